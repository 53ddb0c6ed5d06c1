from __future__ import annotations

import ipaddress
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.errors import MultiaddrError
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.identity.peer_id import PeerId
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.multiaddr.address import MAX_BYTES, MAX_COMPONENTS
from dep2p_daemon.multiaddr.codes import PROTOCOLS
from dep2p_daemon.wire import multibase, varint

RELAY = PeerId.parse("12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA")
TARGET = PeerId.parse("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N")
CIRCUIT = f"/ip4/203.0.113.10/udp/4001/quic-v1/p2p/{RELAY}/p2p-circuit/p2p/{TARGET}"

names = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,40}", fullmatch=True)
ports = st.integers(0, 65535).map(str)
peers = st.binary(min_size=32, max_size=32).map(
    lambda seed: str(PrivateKey.from_seed(seed).peer_id)
)
VALUES = {
    "ip4": st.ip_addresses(v=4).map(str),
    "ip6": st.ip_addresses(v=6).map(str),
    "ip6zone": st.from_regex(r"[a-z]{1,8}[0-9]?", fullmatch=True),
    "tcp": ports,
    "udp": ports,
    "dns": names,
    "dns4": names,
    "dns6": names,
    "dnsaddr": names,
    "sni": names,
    "p2p": peers,
    "certhash": st.binary(min_size=32, max_size=32).map(
        lambda digest: multibase.encode_base64url(b"\x12\x20" + digest)
    ),
    "unix": st.from_regex(r"[a-z][a-z0-9/._-]{0,30}", fullmatch=True),
}


@st.composite
def texts(draw: st.DrawFn) -> str:
    chosen = draw(st.lists(st.sampled_from(PROTOCOLS), min_size=1, max_size=8))
    text = ""
    for protocol in chosen:
        text += f"/{protocol.name}"
        if protocol.codec is not None:
            text += f"/{draw(VALUES[protocol.name])}"
        if protocol.is_path:
            break
    return text


def test_every_code_has_its_number_in_the_table_of_multiformats() -> None:
    # multiaddr/protocols.csv
    assert {protocol.name: protocol.code for protocol in PROTOCOLS} == {
        "ip4": 4,
        "tcp": 6,
        "ip6": 41,
        "ip6zone": 42,
        "dns": 53,
        "dns4": 54,
        "dns6": 55,
        "dnsaddr": 56,
        "udp": 273,
        "webrtc-direct": 280,
        "webrtc": 281,
        "p2p-circuit": 290,
        "unix": 400,
        "p2p": 421,
        "https": 443,
        "tls": 448,
        "sni": 449,
        "noise": 454,
        "quic": 460,
        "quic-v1": 461,
        "webtransport": 465,
        "certhash": 466,
        "ws": 477,
        "wss": 478,
        "http": 480,
    }


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("/ip4/127.0.0.1/udp/1234", "047f000001910204d2"),
        ("/ip4/127.0.0.1/tcp/4001/ws", "047f000001060fa1dd03"),
        ("/ip6/2001:db8::1/tcp/443", "2920010db80000000000000000000000010601bb"),
        ("/dns4/example.com/udp/9/quic-v1", "360b6578616d706c652e636f6d91020009cd03"),
        ("/p2p-circuit", "a202"),
    ],
)
def test_binary_form(text: str, encoded: str) -> None:
    assert bytes(Multiaddr.parse(text)).hex() == encoded
    assert str(Multiaddr.from_bytes(bytes.fromhex(encoded))) == text


@given(texts())
def test_round_trips(text: str) -> None:
    address = Multiaddr.parse(text)
    assert Multiaddr.parse(str(address)) == address
    assert Multiaddr.from_bytes(bytes(address)) == address
    assert str(Multiaddr.from_bytes(address.to_bytes())) == str(address)
    assert hash(Multiaddr.from_bytes(bytes(address))) == hash(address)


@given(texts())
def test_every_cut_is_refused_or_a_shorter_address(text: str) -> None:
    data = bytes(Multiaddr.parse(text))
    for end in range(len(data)):
        try:
            address = Multiaddr.from_bytes(data[:end])
        except MultiaddrError:
            continue
        assert bytes(address) == data[:end]


@given(st.binary(max_size=80))
def test_random_bytes_are_refused_or_an_address(data: bytes) -> None:
    try:
        address = Multiaddr.from_bytes(data)
    except MultiaddrError:
        return
    assert bytes(address) == data
    assert Multiaddr.parse(str(address)) == address


@given(
    st.text(max_size=60)
    | st.lists(
        st.sampled_from([protocol.name for protocol in PROTOCOLS]) | st.text(max_size=10)
    ).map(lambda parts: "/" + "/".join(parts))
)
def test_random_texts_are_refused_or_an_address(text: str) -> None:
    try:
        address = Multiaddr.parse(text)
    except MultiaddrError:
        return
    assert Multiaddr.parse(str(address)) == address
    assert Multiaddr.from_bytes(bytes(address)) == address


@given(texts(), texts())
def test_no_property_of_an_address_raises(one: str, two: str) -> None:
    address = Multiaddr.parse(one)
    if "unix" not in address.protocols:
        address /= two
    values = (address.transport, address.host, address.port, address.ip, address.peer_id)
    flags = (
        address.is_dns,
        address.is_circuit,
        address.is_private,
        address.is_loopback,
        address.is_unspecified,
    )
    assert len(values) == len(flags)
    assert Multiaddr.from_bytes(bytes(address)) == address


@pytest.mark.parametrize(
    ("text", "component", "said"),
    [
        ("/ip4/300.1.1.1/udp/4001", "ip4", "300.1.1.1"),
        ("/ip4/01.2.3.4", "ip4", "not an IPv4 address"),
        ("/ip4", "ip4", "has no value"),
        ("/ip6/fe80::1%eth0/tcp/1", "ip6", "/ip6zone/eth0/ip6/"),
        ("/ip6/1.2.3.4", "ip6", "not an IPv6 address"),
        ("/ip4/1.2.3.4/udp/65536", "udp", "0 to 65535"),
        ("/ip4/1.2.3.4/udp/-1", "udp", "0 to 65535"),
        ("/ip4/1.2.3.4/udp/\u0663", "udp", "0 to 65535"),
        ("/ip4/1.2.3.4/udp/4001/quick", "quick", "unknown component"),
        ("/ip4/1.2.3.4//udp/4001", "", "empty component"),
        ("/p2p/12D3KooW", "p2p", "12D3KooW"),
        ("/dns4/has space/tcp/1", "dns4", "domain name"),
        ("/dns4/line\nbreak/tcp/1", "dns4", "domain name"),
        (f"/dns4/{'a' * 254}/tcp/1", "dns4", "253 bytes"),
        ("/ip6zone/a%b/ip6/::1", "ip6zone", "interface name"),
        ("/certhash/uAAAA", "certhash", "multihash"),
        ("/certhash/!", "certhash", "multibase"),
        ("/unix", "unix", "no value"),
    ],
)
def test_an_error_names_the_component(text: str, component: str, said: str) -> None:
    with pytest.raises(MultiaddrError) as caught:
        Multiaddr.parse(text)
    assert caught.value.metadata["component"] == component
    assert said in caught.value.message
    assert caught.value.remedy.startswith("write it like /")


@pytest.mark.parametrize("protocol", [p for p in PROTOCOLS if p.example])
def test_every_remedy_is_a_right_form(protocol: object) -> None:
    example = getattr(protocol, "example", "")
    assert str(Multiaddr.parse(example)) == example


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("203.0.113.10:4001", "write /ip4/203.0.113.10/udp/4001/quic-v1"),
        ("[2001:db8::1]:4001", "write /ip6/2001:db8::1/udp/4001/quic-v1"),
        ("relay1.example.com:4001", "write /dns/relay1.example.com/udp/4001/quic-v1"),
        ("", "write it like /ip4/203.0.113.10/udp/4001/quic-v1"),
        ("udp/4001", "write it like /ip4/203.0.113.10/udp/4001/quic-v1"),
    ],
)
def test_without_a_slash(text: str, remedy: str) -> None:
    with pytest.raises(MultiaddrError) as caught:
        Multiaddr.parse(text)
    assert caught.value.remedy == remedy


@pytest.mark.parametrize(
    ("component", "value"),
    [
        ("dns4", b""),
        ("dns4", b"a\nb"),
        ("dns4", b"a/tcp"),
        ("dns4", b"\xff"),
        ("ip6zone", b"a%b"),
        ("p2p", b"\x12\x20"),
        ("certhash", b"\x12\x20a"),
        ("unix", b"relative"),
        ("unix", b"/\xff"),
    ],
)
def test_a_binary_value_that_has_no_text_is_refused(component: str, value: bytes) -> None:
    code = next(protocol.code for protocol in PROTOCOLS if protocol.name == component)
    with pytest.raises(MultiaddrError) as caught:
        Multiaddr.from_bytes(varint.encode(code) + varint.encode_prefixed(value))
    assert caught.value.metadata["component"] == component


def test_an_unknown_code_is_named() -> None:
    with pytest.raises(MultiaddrError, match="code 777") as caught:
        Multiaddr.from_bytes(b"\x89\x06" + bytes(8))
    assert caught.value.reason == "MULTIADDR_UNKNOWN_PROTOCOL"


def test_other_forms_of_the_same_address() -> None:
    assert str(Multiaddr.parse(f"/ipfs/{RELAY}")) == f"/p2p/{RELAY}"
    assert str(Multiaddr.parse("/ip4/1.2.3.4/tcp/80/")) == "/ip4/1.2.3.4/tcp/80"
    assert str(Multiaddr.parse("/ip4/1.2.3.4/tcp/0080")) == "/ip4/1.2.3.4/tcp/80"
    assert str(Multiaddr.parse("/ip6/2001:DB8:0::1")) == "/ip6/2001:db8::1"
    cid = "bafzbeie5745rpv2m6tjyuugywy4d5ewrqgqqhfnf445he3omzpjbx5xqxe"
    assert Multiaddr.parse(f"/p2p/{cid}").peer_id == TARGET


def test_bounds() -> None:
    assert len(Multiaddr.parse("/ws" * MAX_COMPONENTS).protocols) == MAX_COMPONENTS
    for text in ("/ws" * (MAX_COMPONENTS + 1), "/" * (2 * MAX_BYTES + 1)):
        with pytest.raises(MultiaddrError):
            Multiaddr.parse(text)
    for data in (b"\xdd\x03" * (MAX_COMPONENTS + 1), bytes(MAX_BYTES + 1)):
        with pytest.raises(MultiaddrError):
            Multiaddr.from_bytes(data)
    with pytest.raises(MultiaddrError):
        Multiaddr.parse("/ws" * MAX_COMPONENTS) / "/ws"


def test_a_value_longer_than_any_real_one_is_refused_by_its_length() -> None:
    with pytest.raises(MultiaddrError, match="allowed"):
        Multiaddr.from_bytes(b"\x36\xff\xff\x03" + b"a" * 100)


def test_a_path_is_the_end() -> None:
    address = Multiaddr.parse("/unix/run/dep2p/some.sock")
    assert address.value("unix") == "/run/dep2p/some.sock"
    with pytest.raises(MultiaddrError):
        Multiaddr.from_bytes(bytes(address) + b"\xdd\x03")


def test_a_circuit_address() -> None:
    address = Multiaddr.parse(CIRCUIT)
    assert address.protocols == ("ip4", "udp", "quic-v1", "p2p", "p2p-circuit", "p2p")
    assert address.is_circuit
    assert address.transport == "circuit"
    assert address.peer_id == TARGET
    assert address.value("p2p") == str(RELAY)
    assert address.value("tcp") is None
    relay, rest = address.split_circuit()
    assert str(relay) == f"/ip4/203.0.113.10/udp/4001/quic-v1/p2p/{RELAY}"
    assert str(rest) == f"/p2p/{TARGET}"
    assert relay / "/p2p-circuit" / rest == address
    assert address.without_peer_id().peer_id is None
    assert address.without_peer_id().with_peer_id(TARGET) == address


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"/ip4/1.2.3.4/tcp/1/p2p/{RELAY}", "CIRCUIT_INVALID"),
        (f"/p2p/{RELAY}/p2p-circuit/p2p/{RELAY}/p2p-circuit/p2p/{TARGET}", "CIRCUIT_INVALID"),
        (f"/ip4/1.2.3.4/tcp/1/p2p-circuit/p2p/{TARGET}", "RELAY_ID_MISSING"),
        ("/p2p-circuit", "RELAY_ID_MISSING"),
    ],
)
def test_what_is_no_circuit_through_one_relay(text: str, reason: str) -> None:
    with pytest.raises(MultiaddrError) as caught:
        Multiaddr.parse(text).split_circuit()
    assert caught.value.reason == reason


def test_the_peer_id_at_the_end() -> None:
    address = Multiaddr.for_udp("203.0.113.10", 4001)
    assert address.peer_id is None
    assert address.without_peer_id() == address
    named = address.with_peer_id(RELAY)
    assert str(named) == f"{address}/p2p/{RELAY}"
    assert named.with_peer_id(TARGET) == address.with_peer_id(TARGET)
    assert named.without_peer_id() == address
    assert str(Multiaddr.parse(f"/p2p/{RELAY}").without_peer_id()) == "/"


@pytest.mark.parametrize(
    ("text", "transport", "host", "port"),
    [
        ("/ip4/1.2.3.4/udp/4001/quic-v1", "quic-v1", "1.2.3.4", 4001),
        (f"/ip4/1.2.3.4/udp/4001/quic-v1/p2p/{RELAY}", "quic-v1", "1.2.3.4", 4001),
        ("/ip6/::1/tcp/4001", "tcp", "::1", 4001),
        ("/ip6zone/eth0/ip6/fe80::1/udp/1/quic-v1", "quic-v1", "fe80::1%eth0", 1),
        ("/dns4/example.com/udp/1/quic-v1", "quic-v1", "example.com", 1),
        ("/dns/example.com/tcp/1", "tcp", "example.com", 1),
        ("/dnsaddr/example.com", None, "example.com", None),
        ("/ip4/1.2.3.4/udp/4001", None, "1.2.3.4", 4001),
        ("/ip4/1.2.3.4/udp/4001/quic", None, "1.2.3.4", 4001),
        ("/ip4/1.2.3.4/tcp/443/tls/ws", None, "1.2.3.4", 443),
        ("/ip4/1.2.3.4/udp/443/quic-v1/webtransport", None, "1.2.3.4", 443),
        ("/ip4/1.2.3.4", None, "1.2.3.4", None),
        ("/unix/run/x", None, None, None),
        (f"/p2p/{RELAY}", None, None, None),
        (f"/p2p/{RELAY}/p2p-circuit", "circuit", None, None),
        (CIRCUIT, "circuit", "203.0.113.10", 4001),
        ("/udp/4001/quic-v1", None, None, None),
    ],
)
def test_where_it_leads(
    text: str, transport: str | None, host: str | None, port: int | None
) -> None:
    address = Multiaddr.parse(text)
    assert (address.transport, address.host, address.port) == (transport, host, port)


@pytest.mark.parametrize(
    ("host", "kinds"),
    [
        ("127.0.0.1", "loopback private"),
        ("::1", "loopback private"),
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("10.1.2.3", "private"),
        ("100.64.0.1", "private"),
        ("169.254.1.1", "private"),
        ("fe80::1%eth0", "private"),
        ("fd00::1", "private"),
        # Networks for documentation stand for public ones in every test and example.
        ("203.0.113.10", ""),
        ("192.0.2.1", ""),
        ("2001:db8::1", ""),
        ("8.8.8.8", ""),
    ],
)
def test_kinds_of_ip_addresses(host: str, kinds: str) -> None:
    address = Multiaddr.for_tcp(host, 4001)
    assert address.ip == ipaddress.ip_address(host)
    assert address.host == host
    flags = {
        "loopback": address.is_loopback,
        "private": address.is_private,
        "unspecified": address.is_unspecified,
    }
    assert {name for name, flag in flags.items() if flag} == set(kinds.split())


def test_addresses_of_sockets() -> None:
    assert str(Multiaddr.for_udp("10.0.0.1", 1)) == "/ip4/10.0.0.1/udp/1/quic-v1"
    assert str(Multiaddr.for_tcp(ipaddress.ip_address("::1"), 2)) == "/ip6/::1/tcp/2"
    assert str(Multiaddr.for_udp("::ffff:10.0.0.1", 1)) == "/ip4/10.0.0.1/udp/1/quic-v1"
    mapped = Multiaddr.parse("/ip6/::ffff:10.0.0.1/tcp/1")
    assert mapped.is_private
    assert Multiaddr.parse("/ip6/::ffff:7f00:1/tcp/1").is_loopback
    assert str(Multiaddr.for_tcp("fe80::1%eth0", 1)) == "/ip6zone/eth0/ip6/fe80::1/tcp/1"
    with pytest.raises(MultiaddrError, match="not an IP address"):
        Multiaddr.for_udp("example.com", 1)
    with pytest.raises(MultiaddrError):
        Multiaddr.for_udp("10.0.0.1", 65536)


def test_names_are_not_ip_addresses() -> None:
    address = Multiaddr.parse("/dns4/localhost/tcp/1")
    assert address.is_dns
    assert address.ip is None
    assert not address.is_loopback
    assert not Multiaddr.for_tcp("1.2.3.4", 1).is_dns


def test_values() -> None:
    one, two = Multiaddr.for_udp("10.0.0.1", 1), Multiaddr.for_udp("10.0.0.1", 2)
    assert one != two
    assert {one, two, Multiaddr.parse(str(one))} == {one, two}
    assert repr(one) == "Multiaddr(/ip4/10.0.0.1/udp/1/quic-v1)"
    with pytest.raises(FrozenInstanceError):
        one._data = bytes(two)  # type: ignore[misc]
