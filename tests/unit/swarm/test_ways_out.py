"""What the kernel says of routes, and which of its news ends a way out."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.swarm.ways_out import WayOut, is_cut, parse_route, ways_out

RTA_OIF, RTA_GATEWAY, RTA_PREFSRC, RTA_VIA = 4, 5, 7, 18
NEWLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE = 16, 20, 21, 24, 25
HOME = WayOut(ip_address("192.168.1.10"), 2, "192.168.1.1")
HOME6 = WayOut(ip_address("2001:db8:5::10"), 2, "fe80::1")


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def route(family: int, *attributes: bytes, length: int = 32) -> bytes:
    return struct.pack("=BBBBBBBBI", family, length, 0, 0, 254, 3, 0, 1, 0) + b"".join(attributes)


def index(number: int) -> bytes:
    return attribute(RTA_OIF, struct.pack("=i", number))


def ip(kind: int, text: str) -> bytes:
    return attribute(kind, ip_address(text).packed)


def address(text: str) -> bytes:
    packed = ip_address(text).packed
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    return struct.pack("=BBBBI", family, 24, 0, 0, 2) + attribute(1, packed)


def link(number: int, flags: int) -> bytes:
    return struct.pack("=BxHiII", 0, 1, number, flags, 0)


def test_a_route_through_a_gateway() -> None:
    body = route(
        socket.AF_INET,
        ip(1, "203.0.113.1"),
        index(2),
        ip(RTA_GATEWAY, "192.168.1.1"),
        ip(RTA_PREFSRC, "192.168.1.10"),
    )
    assert parse_route(body) == HOME


def test_a_route_without_gateway_and_one_through_another_family() -> None:
    plain = route(socket.AF_INET, index(3), ip(RTA_PREFSRC, "10.0.0.2"))
    assert parse_route(plain) == WayOut(ip_address("10.0.0.2"), 3, "")
    via = struct.pack("=H", socket.AF_INET6) + ip_address("fe80::1").packed
    other = route(socket.AF_INET, index(3), attribute(RTA_VIA, via), ip(RTA_PREFSRC, "10.0.0.2"))
    assert parse_route(other) == WayOut(ip_address("10.0.0.2"), 3, "fe80::1")


def test_a_route_without_source_is_no_way_out() -> None:
    assert parse_route(route(socket.AF_INET, index(2))) is None


@given(st.binary(max_size=200))
def test_rubbish_never_raises(body: bytes) -> None:
    parse_route(body)
    for kind in (NEWLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE):
        is_cut(kind, body, (HOME, HOME6))


@pytest.mark.parametrize(
    ("kind", "body", "cut"),
    [
        (DELADDR, address("192.168.1.10"), True),
        (DELADDR, address("172.17.0.1"), False),
        (DELADDR, address("2001:db8:5::10"), True),
        (NEWADDR, address("192.168.1.10"), False),
        (DELROUTE, route(socket.AF_INET, index(2), length=0), True),
        (DELROUTE, route(socket.AF_INET, index(2), length=24), False),
        (DELROUTE, route(socket.AF_INET, index(9), length=0), False),
        (NEWROUTE, route(socket.AF_INET, index(2), length=0), False),
        (NEWLINK, link(2, 0x1003), True),
        (NEWLINK, link(2, 0x1043), False),
        (NEWLINK, link(7, 0x1003), False),
    ],
)
def test_what_ends_a_way_out(kind: int, body: bytes, cut: bool) -> None:
    assert is_cut(kind, body, (HOME, HOME6)) is cut


def test_this_machine_answers() -> None:
    for way in ways_out():
        assert not way.source.is_loopback
        assert not way.source.is_unspecified
