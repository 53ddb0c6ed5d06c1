"""PCP's and NAT-PMP's bytes, epochs and back-off."""

from __future__ import annotations

import contextlib
import itertools
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dep2p_daemon.errors import ProtocolViolationError
from dep2p_daemon.nat.port_mapping import nat_pmp, pcp
from dep2p_daemon.nat.port_mapping.terms import Endpoint, Port, Transport, is_usable

CLIENT = IPv4Address("192.168.1.10")
NONCE = bytes(range(12))
PORT = Port(Transport.UDP, 4001)
ports = st.integers(1, 65535)
transports = st.sampled_from(Transport)


def test_a_nat_pmp_request_has_the_bytes_of_the_rfc() -> None:
    assert nat_pmp.encode_address_request() == b"\0\0"
    data = nat_pmp.encode_map_request(Transport.TCP, 4001, external_port=4002, lifetime=7200)
    assert data == bytes.fromhex("0002 0000 0fa1 0fa2 00001c20")


def test_nat_pmp_responses() -> None:
    assert nat_pmp.decode_response(bytes.fromhex("0080 0000 00000064 cb007107")) == (
        nat_pmp.AddressResponse(0, 100, IPv4Address("203.0.113.7"))
    )
    assert nat_pmp.decode_response(bytes.fromhex("0081 0000 00000064 0fa1 9c40 00000e10")) == (
        nat_pmp.MapResponse(0, 100, Transport.UDP, 4001, 40000, 3600)
    )
    refused = nat_pmp.decode_response(bytes.fromhex("0082 0002 00000001"))
    assert refused == nat_pmp.MapResponse(2, 1, Transport.TCP)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00800000000000",  # cut off
        "0080 0000 00000064 cb0071",  # an address of three bytes
        "0081 0000 00000064 0fa1 9c40 00000e",  # a mapping cut off
        "0081 0000 00000064 0fa1 9c40 00000e10 00",  # something behind it
        "0001 0000 00000064 0fa1 9c40 00000e10",  # a request
        "0181 0000 00000064 0fa1 9c40 00000e10",  # another version
        "0083 0000 00000064 0fa1 9c40 00000e10",  # an unknown opcode
    ],
)
def test_what_is_no_nat_pmp_response_is_refused(text: str) -> None:
    with pytest.raises(ProtocolViolationError):
        nat_pmp.decode_response(bytes.fromhex(text))


def test_a_pcp_request_has_the_bytes_of_the_rfc() -> None:
    data = pcp.encode_map_request(
        CLIENT, NONCE, PORT, suggested=Endpoint(IPv4Address(0), 4001), lifetime=7200
    )
    assert data == bytes.fromhex(
        "02 01 0000 00001c20 00000000000000000000ffffc0a8010a"
        "000102030405060708090a0b 11 000000 0fa1 0fa1 00000000000000000000ffff00000000"
    )
    announce = pcp.encode_announce_request(IPv6Address("2001:db8::1"))
    assert announce == bytes.fromhex("02 00 0000 00000000 20010db8000000000000000000000001")
    with pytest.raises(ValueError, match="nonce"):
        pcp.encode_map_request(
            CLIENT, b"short", PORT, suggested=Endpoint(IPv4Address(0), 0), lifetime=0
        )


RESPONSE = bytes.fromhex(
    "02 81 00 00 00000e10 00000064 000000000000000000000000"
    "000102030405060708090a0b 11 000000 0fa1 9c40 00000000000000000000ffffcb007107"
)


def test_a_pcp_response_and_whether_it_is_ours() -> None:
    answer = pcp.decode_response(RESPONSE)
    assert answer == pcp.MapResponse(
        0, 3600, 100, NONCE, 17, 4001, Endpoint(IPv4Address("203.0.113.7"), 40000)
    )
    assert isinstance(answer, pcp.MapResponse)
    assert answer.answers(NONCE, PORT)
    assert not answer.answers(bytes(12), PORT)
    assert not answer.answers(NONCE, Port(Transport.TCP, 4001))
    assert not answer.answers(NONCE, Port(Transport.UDP, 4002))
    assert pcp.decode_response(RESPONSE + bytes(8)) == answer  # an option is ignored


@pytest.mark.parametrize(
    "data",
    [
        b"",
        RESPONSE[:-4],
        RESPONSE[:-1],
        RESPONSE[:20],
        RESPONSE + b"\0",
        RESPONSE + bytes(1100),
        b"\x02\x01" + RESPONSE[2:],
        b"\x03" + RESPONSE[1:],
        b"\x02\x82" + RESPONSE[2:],
    ],
)
def test_what_is_no_pcp_response_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolViolationError):
        pcp.decode_response(data)


@pytest.mark.parametrize(
    ("text", "version"), [("0081000100000064", 0), ("018100010000000000000064", 1)]
)
def test_a_gateway_of_another_version_is_recognised(text: str, version: int) -> None:
    assert pcp.decode_response(bytes.fromhex(text)) == pcp.OtherVersion(version)


@given(st.binary(max_size=120))
@example(RESPONSE)
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    for decode in (pcp.decode_response, nat_pmp.decode_response):
        with contextlib.suppress(ProtocolViolationError):
            decode(data)


@given(transports, ports, ports, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_nat_pmp_mappings_come_back_as_they_were_sent(
    transport: Transport, internal: int, external: int, lifetime: int, epoch: int
) -> None:
    request = nat_pmp.encode_map_request(
        transport, internal, external_port=external, lifetime=lifetime
    )
    response = bytes((0, request[1] | 0x80, 0, 0)) + epoch.to_bytes(4) + request[4:]
    assert nat_pmp.decode_response(response) == nat_pmp.MapResponse(
        0, epoch, transport, internal, external, lifetime
    )


@given(
    transports,
    ports,
    ports,
    st.ip_addresses(),
    st.binary(min_size=12, max_size=12),
    st.integers(0, 2**32 - 1),
)
@example(Transport.UDP, 1, 1, ip_address("::ffff:203.0.113.7"), bytes(12), 0)
def test_pcp_mappings_come_back_as_they_were_sent(
    transport: Transport,
    internal: int,
    external: int,
    ip: IPv4Address | IPv6Address,
    nonce: bytes,
    lifetime: int,
) -> None:
    port = Port(transport, internal)
    request = pcp.encode_map_request(
        CLIENT, nonce, port, suggested=Endpoint(ip, external), lifetime=lifetime
    )
    response = b"\x02\x81\0\0" + request[4:8] + bytes(16) + request[24:]
    answer = pcp.decode_response(response)
    assert isinstance(answer, pcp.MapResponse)
    assert answer.answers(nonce, port)
    assert answer.lifetime == lifetime
    expected = ip.ipv4_mapped or ip if isinstance(ip, IPv6Address) else ip
    assert answer.external == Endpoint(expected, external)


EPOCHS = [pcp.Epoch, nat_pmp.Epoch]


@pytest.mark.parametrize("kind", EPOCHS)
@given(start=st.integers(0, 10**6), steps=st.lists(st.integers(0, 10**5), max_size=20))
def test_a_clock_that_goes_on_is_no_restart(
    kind: type[pcp.Epoch] | type[nat_pmp.Epoch], start: int, steps: list[int]
) -> None:
    epoch = kind()
    elapsed = 0
    assert not epoch.restarted(start, 0.0)
    for step in steps:
        elapsed += step
        assert not epoch.restarted(start + elapsed, float(elapsed))


@pytest.mark.parametrize("kind", EPOCHS)
def test_a_clock_that_begins_anew_is_a_restart(
    kind: type[pcp.Epoch] | type[nat_pmp.Epoch],
) -> None:
    epoch = kind()
    assert not epoch.restarted(1000, 0.0)
    assert epoch.restarted(3, 60.0)
    assert not epoch.restarted(63, 120.0)
    # It ran for less time than passed: it was off meanwhile.
    assert epoch.restarted(80, 180.0)


def test_a_clock_that_leaps_is_a_restart_for_pcp() -> None:
    epoch = pcp.Epoch()
    assert not epoch.restarted(10, 0.0)
    assert epoch.restarted(5000, 60.0)


@given(st.floats(0, 1))
def test_pcp_waits_longer_each_time(random: float) -> None:
    waits = list(itertools.islice(pcp.retransmissions(lambda: random), 14))
    assert 2.69 <= waits[0] <= 3.31
    for before, after in itertools.pairwise(waits):
        assert 0.9 * 2 * before <= after * 1.0001 or after >= 0.9 * 1024 * 0.999
        assert after <= 1.1 * 1024 * 1.001


def test_nat_pmp_sends_nine_times_within_two_minutes() -> None:
    assert nat_pmp.RETRANSMISSIONS[0] == 0.25
    assert nat_pmp.RETRANSMISSIONS[-1] == 64
    assert len(nat_pmp.RETRANSMISSIONS) == 9


@pytest.mark.parametrize(
    "text", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "169.254.0.1", "::", "fe80::1"]
)
def test_no_gateway_gives_out_such_an_address(text: str) -> None:
    assert not is_usable(Endpoint(ip_address(text), 4001))
    assert not is_usable(Endpoint(ip_address("203.0.113.7"), 0))
    assert is_usable(Endpoint(ip_address("203.0.113.7"), 4001))


def test_result_codes_have_names() -> None:
    assert pcp.result_name(8) == "NO_RESOURCES"
    assert pcp.result_name(200) == "RESULT_200"
    assert nat_pmp.result_name(3) == "NETWORK_FAILURE"
    assert nat_pmp.result_name(77) == "RESULT_77"
