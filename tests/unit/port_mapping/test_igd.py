"""What a gateway's UPnP says, taken apart: bounds, foreign URLs, hostile XML."""

from __future__ import annotations

import asyncio
import contextlib
from ipaddress import ip_address
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.scripted_igd import ScriptedIgd

from dep2p_daemon.errors import ProtocolViolationError
from dep2p_daemon.nat.port_mapping import http_exchange, igd, ssdp
from dep2p_daemon.nat.port_mapping.igd import Fault, Service, Url

GATEWAY: Final = ip_address("192.168.1.1")
LOCATION: Final = Url(5000, "/root.xml")
SERVICE: Final = Service(igd.SERVICES[1], Url(5000, "/ctl"))

BOMB: Final = (
    b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
    + b"".join(b'<!ENTITY %c "%b">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(9))
    + b"]><x>&j;</x>"
)
EXTERNAL_ENTITY: Final = b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>'


def parse_http(data: bytes) -> http_exchange.Response:
    async def run() -> http_exchange.Response:
        reader = asyncio.StreamReader(limit=http_exchange.MAX_HEAD)
        reader.feed_data(data)
        reader.feed_eof()
        return await http_exchange.read_response(reader)

    return asyncio.run(run())


# ---------------------------------------------------------------------- SSDP


def test_a_search_names_what_is_looked_for() -> None:
    data = ssdp.encode_search("upnp:rootdevice")
    assert data.startswith(b"M-SEARCH * HTTP/1.1\r\n")
    assert b'\r\nMAN: "ssdp:discover"\r\n' in data
    assert data.endswith(b"\r\nST: upnp:rootdevice\r\n\r\n")


def test_the_location_of_a_response() -> None:
    response = ScriptedIgd().answer_search(ssdp.encode_search(ssdp.TARGETS[0]))
    assert response is not None
    assert ssdp.decode_response(response) == "http://192.168.1.1:5000/root.xml"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 404 Not Found\r\nLOCATION: http://192.168.1.1/\r\n\r\n",
        b"NOTIFY * HTTP/1.1\r\nLOCATION: http://192.168.1.1/\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nST: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nLOCATION: http://\xff\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1/\r\n\r\n" + b"x" * 2048,
    ],
)
def test_what_is_no_response_to_a_search(data: bytes) -> None:
    with pytest.raises(ProtocolViolationError) as caught:
        ssdp.decode_response(data)
    assert caught.value.reason == "UPNP_MALFORMED"


# ---------------------------------------------------------------------- HTTP


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloand more",
        b"HTTP/1.0 200 OK\r\n\r\nhello",
        b"HTTP/1.1 200\r\nTRANSFER-ENCODING: Chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nhello",
    ],
)
def test_a_response(data: bytes) -> None:
    assert parse_http(data) == http_exchange.Response(200, b"hello")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 999 No\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 65537\r\n\r\n" + b"x" * 65537,
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 65537,
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 3000 + b"\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 4,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloxx0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + (b"2000\r\n" + b"x" * 8192 + b"\r\n") * 9
        + b"0\r\n\r\n",
    ],
    ids=range(16),
)
def test_a_response_that_is_too_much_or_no_http(data: bytes) -> None:
    with pytest.raises(ProtocolViolationError) as caught:
        parse_http(data)
    assert caught.value.reason == "UPNP_MALFORMED"


@given(st.binary(max_size=300))
def test_any_bytes_are_a_response_or_a_violation(data: bytes) -> None:
    with contextlib.suppress(ProtocolViolationError):
        parse_http(b"HTTP/1.1 200 OK\r\n" + data)


# ----------------------------------------------------------------------- XML


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<x>",
        b"not xml",
        BOMB,
        EXTERNAL_ENTITY,
        b'<!DOCTYPE x SYSTEM "http://192.0.2.1/x.dtd"><x/>',
        b"<x>&undefined;</x>",
        b"<x>" * 40 + b"</x>" * 40,
        b"<x>" + b"<y/>" * 5000 + b"</x>",
        b'<?xml version="1.0" encoding="nonsense"?><x/>',
        b'<?xml version="1.0" encoding="utf-7"?><x/>',
    ],
    ids=range(11),
)
def test_xml_that_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolViolationError) as caught:
        igd.parse_xml(data)
    assert caught.value.reason == "UPNP_MALFORMED"


def test_a_document_type_is_why_a_bomb_is_refused() -> None:
    for data in (BOMB, EXTERNAL_ENTITY):
        with pytest.raises(ProtocolViolationError, match="document type"):
            igd.parse_xml(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_xml_or_a_violation(data: bytes) -> None:
    for document in (data, b"<x>" + data + b"</x>"):
        with contextlib.suppress(ProtocolViolationError):
            igd.parse_xml(document)


# ---------------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://192.168.1.1:5000/x?y=1", Url(5000, "/x?y=1")),
        ("http://192.168.1.1", Url(80, "/")),
        ("/ctl", Url(5000, "/ctl")),
        ("ctl", Url(5000, "/ctl")),
        ("//192.168.1.1:81/ctl", Url(81, "/ctl")),
    ],
)
def test_a_url_at_the_gateway(text: str, url: Url) -> None:
    assert igd.parse_url(text, GATEWAY, LOCATION) == url


@pytest.mark.parametrize(
    "text",
    [
        "http://192.168.1.2:5000/x",
        "http://127.0.0.1/x",
        "http://localhost/x",
        "http://router.local/x",
        "http://192.168.1.1.example.com/x",
        "http://192.168.1.1@192.0.2.1/x",
        "http://user@192.168.1.1/x",
        "http://0xC0A80101/x",
        "http://[::ffff:192.168.1.1]/x",
        "//192.0.2.1/x",
        "https://192.168.1.1/x",
        "file:///etc/passwd",
        "gopher://192.168.1.1/x",
        "http://192.168.1.1:0/x",
        "http://192.168.1.1:65536/x",
        "http://192.168.1.1:abc/x",
        "http://[::1/x",
    ],
)
def test_a_url_that_leads_elsewhere(text: str) -> None:
    with pytest.raises(ProtocolViolationError) as caught:
        igd.parse_url(text, GATEWAY, LOCATION)
    assert caught.value.reason == "UPNP_FOREIGN_URL"


@pytest.mark.parametrize("text", ["/" + "x" * 600, "/x y", "/\x7f", "/ü"])
def test_a_url_that_is_odd(text: str) -> None:
    with pytest.raises(ProtocolViolationError) as caught:
        igd.parse_url(text, GATEWAY, LOCATION)
    assert caught.value.reason == "UPNP_MALFORMED"


@given(st.text(max_size=60))
def test_whatever_a_url_says_its_request_is_one_line(text: str) -> None:
    try:
        url = igd.parse_url(text, GATEWAY, LOCATION)
    except ProtocolViolationError:
        return
    request = http_exchange.encode_request("GET", f"{GATEWAY}:{url.port}", url.path)
    assert request.count(b"\r\n") == 4
    assert request.split(b"\r\n")[0].count(b" ") == 2


# -------------------------------------------------------------- descriptions


def described(**moods: object) -> tuple[Service, ...]:
    router = ScriptedIgd()
    for name, value in moods.items():
        setattr(router, name, value)
    return igd.parse_description(router.description().encode(), LOCATION, GATEWAY)


def test_the_service_that_maps_ports_is_found_among_others() -> None:
    assert described() == (Service(igd.SERVICES[1], Url(5000, "/ctl/IPConn")),)
    assert described(version=2)[0].type == igd.SERVICES[0]
    assert described(service="WANPPPConnection")[0].type == igd.SERVICES[2]
    assert described(service="SwitchPower") == ()


def test_control_urls_are_relative_to_what_is_stated() -> None:
    assert described(base="http://192.168.1.1:81/")[0].control == Url(81, "/ctl/IPConn")


@pytest.mark.parametrize(
    "moods",
    [
        {"control": "http://192.0.2.1/ctl"},
        {"base": "http://192.0.2.1/"},
        {"base": "http://evil.example/"},
    ],
)
def test_services_elsewhere_are_left_out(moods: dict[str, object]) -> None:
    with pytest.raises(ProtocolViolationError) as caught:
        described(**moods)
    assert caught.value.reason == "UPNP_FOREIGN_URL"


def test_of_many_services_few_are_tried() -> None:
    inner = f"<serviceType>{igd.SERVICES[1]}</serviceType><controlURL>/c</controlURL>"
    data = f"<root>{f'<service>{inner}</service>' * 100}</root>".encode()
    assert len(igd.parse_description(data, LOCATION, GATEWAY)) == igd.MAX_SERVICES


# ------------------------------------------------------------------- actions


def test_an_action_is_well_formed() -> None:
    body = igd.encode_action(SERVICE, "AddPortMapping", {"NewRemoteHost": "", "NewEnabled": 1})
    action = next(igd.parse_xml(body).each("AddPortMapping"))
    assert [(one.name, one.text) for one in action.children] == [
        ("NewRemoteHost", ""),
        ("NewEnabled", "1"),
    ]
    headers = igd.action_headers(SERVICE, "AddPortMapping")
    assert headers["SOAPAction"] == f'"{SERVICE.type}#AddPortMapping"'


def test_answers_and_faults() -> None:
    body = b"<e><b><u:XResponse><New>1</New></u:XResponse></b></e>"
    assert igd.decode_action(200, body, "X") == {"New": "1"}
    fault = igd.decode_action(500, b"<e><errorCode> 725 </errorCode></e>", "X")
    assert fault == Fault(725)
    assert Fault(725).name == "ONLY_PERMANENT_LEASES_SUPPORTED"
    assert Fault(899).name == "ERROR_899"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<e/>"),
        (200, b"<e><YResponse/></e>"),
        (500, b"<e><XResponse/></e>"),
        (500, b"<e><errorCode>99999999999</errorCode></e>"),
        (500, "<e><errorCode>٧١٨</errorCode></e>".encode()),
        (302, b"<e><XResponse/></e>"),
        (404, b""),
        (200, BOMB),
    ],
    ids=range(8),
)
def test_what_is_no_answer_to_an_action(status: int, body: bytes) -> None:
    with pytest.raises(ProtocolViolationError):
        igd.decode_action(status, body, "X")
