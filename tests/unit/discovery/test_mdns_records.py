"""TXT records of mDNS: what is told, and what of a stranger's is taken."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.discovery.mdns_records import (
    MAX_ADDRESSES,
    decode_text,
    encode_text,
    is_local,
    random_name,
)
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr

PEER = PrivateKey.from_seed(b"m" * 32).peer_id
QUIC = Multiaddr.parse("/ip4/192.168.1.7/udp/4001/quic-v1")
TCP = Multiaddr.parse("/ip4/192.168.1.7/tcp/4001")
LAN = [ip_network("192.168.1.0/24"), ip_network("fd00::/64"), ip_network("198.51.100.0/24")]


def string(text: str) -> bytes:
    return bytes((len(text),)) + text.encode()


def test_the_name_is_random_and_within_the_bounds_of_the_spec() -> None:
    names = {random_name() for _ in range(100)}
    assert len(names) == 100
    assert all(32 <= len(name) < 64 and name.isalnum() and name == name.lower() for name in names)


def test_addresses_are_told_as_the_spec_has_them() -> None:
    assert encode_text([QUIC, TCP], PEER) == b"".join(
        string(f"dnsaddr={address}/p2p/{PEER}") for address in (QUIC, TCP)
    )


def test_what_is_told_is_understood() -> None:
    assert decode_text(encode_text([QUIC, TCP], PEER)) == {PEER: [QUIC, TCP]}


def test_too_many_or_too_long_addresses_are_left_out() -> None:
    many = [Multiaddr.for_udp(f"192.168.1.{n}", 4001) for n in range(1, 100)]
    assert decode_text(encode_text(many, PEER)) == {PEER: many[:MAX_ADDRESSES]}
    long = Multiaddr.parse("/dns/" + "a" * 240 + "/udp/1/quic-v1")
    assert encode_text([long], PEER) == b""
    all_told = b"".join(string(f"dnsaddr={address}/p2p/{PEER}") for address in many)
    assert decode_text(all_told) == {PEER: many[:MAX_ADDRESSES]}


def test_several_peers_may_stand_behind_one_name() -> None:
    other = PrivateKey.from_seed(b"o" * 32).peer_id
    assert decode_text(encode_text([QUIC], PEER) + encode_text([TCP], other)) == {
        PEER: [QUIC],
        other: [TCP],
    }


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\x00",
        b"\xff" + b"x" * 10,
        string("path=/"),
        string("dnsaddr="),
        string("dnsaddr=/ip4/192.168.1.7"),
        string(f"dnsaddr={QUIC}"),
        string("dnsaddr=nonsense"),
        string(f"dnsaddr={QUIC}/p2p/{PEER}/p2p-circuit/p2p/{PEER}"),
        b"\x0adnsaddr=\xff\xfe",
    ],
)
def test_what_is_no_peers_address_is_skipped(text: bytes) -> None:
    assert decode_text(text) == {}
    assert decode_text(text[:1] and text + encode_text([QUIC], PEER)) in (
        {},
        {PEER: [QUIC]},
    )


@given(st.binary(max_size=6000))
def test_whatever_comes_is_bounded(data: bytes) -> None:
    assert sum(map(len, decode_text(data).values())) <= MAX_ADDRESSES


@pytest.mark.parametrize(
    ("address", "local"),
    [
        (str(QUIC), True),
        (str(TCP), True),
        ("/ip6/fd00::9/udp/4001/quic-v1", True),
        ("/ip4/192.168.2.7/udp/4001/quic-v1", False),  # another network
        ("/ip4/198.51.100.7/udp/4001/quic-v1", True),  # documentation: Python calls it private
        ("/ip4/8.8.8.8/udp/4001/quic-v1", False),
        ("/ip4/127.0.0.1/udp/4001/quic-v1", False),
        ("/ip4/0.0.0.0/udp/4001/quic-v1", False),
        ("/dns/printer.local/udp/4001/quic-v1", False),
        ("/ip4/192.168.1.7/udp/4001", False),
    ],
)
def test_only_addresses_of_our_own_private_networks_count(address: str, local: bool) -> None:
    assert is_local(Multiaddr.parse(address), LAN) is local
