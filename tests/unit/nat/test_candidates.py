"""Which addresses a peer can make us send packets to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.nat.candidates import (
    CandidateFilter,
    CandidateLimits,
    Rejection,
    is_public,
)

PEER = PrivateKey.from_seed(b"p" * 32).peer_id
OTHER = PrivateKey.from_seed(b"o" * 32).peer_id


def address(text: str) -> Multiaddr:
    return Multiaddr.parse(text)


def verdict(text: str, **options: frozenset[Multiaddr]) -> Rejection | None:
    (judged,) = CandidateFilter(PEER, **options).judge([address(text)])  # type: ignore[arg-type]
    return judged.rejection


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/45.8.1.7/udp/4001/quic-v1",
        "/ip4/45.8.1.7/tcp/4001",
        "/ip4/45.8.1.7/udp/443/quic-v1",
        "/ip6/2a0e:aaaa::7/udp/4001/quic-v1",
        f"/ip4/45.8.1.7/udp/4001/quic-v1/p2p/{PEER}",
    ],
)
def test_public_addresses_are_used(text: str) -> None:
    assert verdict(text) is None


@pytest.mark.parametrize(
    ("text", "rejection"),
    [
        ("/ip4/127.0.0.1/udp/4001/quic-v1", Rejection.NOT_PUBLIC),
        ("/ip4/10.0.0.1/udp/4001/quic-v1", Rejection.NOT_PUBLIC),
        ("/ip4/172.16.3.1/tcp/4001", Rejection.NOT_PUBLIC),
        ("/ip4/192.168.1.1/udp/4001/quic-v1", Rejection.NOT_PUBLIC),
        ("/ip4/100.64.0.1/udp/4001/quic-v1", Rejection.NOT_PUBLIC),
        ("/ip4/169.254.169.254/tcp/8080", Rejection.NOT_PUBLIC),
        ("/ip4/0.0.0.0/udp/4001/quic-v1", Rejection.NOT_PUBLIC),
        ("/ip4/0.1.2.3/udp/4001/quic-v1", Rejection.NOT_PUBLIC),
        ("/ip4/224.0.0.251/udp/5353/quic-v1", Rejection.NOT_PUBLIC),
        ("/ip4/239.255.255.250/udp/1900/quic-v1", Rejection.NOT_PUBLIC),
        ("/ip4/240.0.0.1/udp/4001/quic-v1", Rejection.NOT_PUBLIC),
        ("/ip4/255.255.255.255/udp/4001/quic-v1", Rejection.NOT_PUBLIC),
        ("/ip4/198.18.0.1/udp/4001/quic-v1", Rejection.NOT_PUBLIC),
        ("/ip6/::1/udp/4001/quic-v1", Rejection.NOT_PUBLIC),
        ("/ip6/::/udp/4001/quic-v1", Rejection.NOT_PUBLIC),
        ("/ip6/fe80::1/udp/4001/quic-v1", Rejection.NOT_PUBLIC),
        ("/ip6/fd00::1/udp/4001/quic-v1", Rejection.NOT_PUBLIC),
        ("/ip6/ff02::fb/udp/5353/quic-v1", Rejection.NOT_PUBLIC),
        ("/ip6/::ffff:10.0.0.1/udp/4001/quic-v1", Rejection.NOT_PUBLIC),
        ("/ip6/64:ff9b::a00:1/udp/4001/quic-v1", Rejection.NOT_PUBLIC),
        ("/ip6/2002:a00:1::/udp/4001/quic-v1", Rejection.NOT_PUBLIC),
        ("/ip4/45.8.1.7/udp/53/quic-v1", Rejection.SERVICE_PORT),
        ("/ip4/45.8.1.7/udp/123/quic-v1", Rejection.SERVICE_PORT),
        ("/ip4/45.8.1.7/tcp/25", Rejection.SERVICE_PORT),
        ("/ip4/45.8.1.7/udp/0/quic-v1", Rejection.SERVICE_PORT),
        ("/dns4/example.com/udp/4001/quic-v1", Rejection.NO_TRANSPORT),
        ("/ip4/45.8.1.7/udp/4001", Rejection.NO_TRANSPORT),
        ("/ip4/45.8.1.7/tcp/4001/ws", Rejection.NO_TRANSPORT),
        (f"/ip4/45.8.1.7/udp/4001/quic-v1/p2p/{OTHER}", Rejection.FOREIGN_PEER),
        (f"/ip4/45.8.1.7/udp/4001/quic-v1/p2p/{OTHER}/p2p-circuit", Rejection.CIRCUIT),
    ],
)
def test_all_others_are_not(text: str, rejection: Rejection) -> None:
    assert verdict(text) is rejection


def test_neither_ourselves_nor_our_relays() -> None:
    where = address("/ip4/45.8.1.7/udp/4001/quic-v1")
    assert verdict(str(where), own=frozenset([where])) is Rejection.OWN_ADDRESS
    assert verdict(str(where), relays=frozenset([where])) is Rejection.RELAY_ADDRESS
    # Behind one NAT with us, a peer has our IP address and another port.
    assert verdict("/ip4/45.8.1.7/udp/4002/quic-v1", own=frozenset([where])) is None


def test_a_peer_has_few_ip_addresses_of_a_family() -> None:
    judge = CandidateFilter(PEER).judge
    judged = judge([Multiaddr.for_udp(f"45.8.{n}.7", 4001) for n in range(5)])
    assert [one.rejection for one in judged] == [None, None, *[Rejection.TOO_MANY_IPS] * 3]
    judged = judge([Multiaddr.for_udp(f"2a0e:aaaa:{n}::7", 4001) for n in range(3)])
    assert [one.rejection for one in judged] == [None, None, Rejection.TOO_MANY_IPS]


def test_what_was_accepted_stays_and_counts_over_all_messages() -> None:
    judge = CandidateFilter(PEER, CandidateLimits(max_addresses=2)).judge
    one, two, three = (Multiaddr.for_udp("45.8.1.7", port) for port in (4001, 4002, 4003))
    assert [c.rejection for c in judge([one])] == [None]
    assert [c.rejection for c in judge([one, two, three])] == [None, None, Rejection.TOO_MANY]
    assert [c.rejection for c in judge([three, two, one])] == [Rejection.TOO_MANY, None, None]


addresses = st.builds(
    lambda ip, port, kind: kind(str(ip), port),
    st.ip_addresses(),
    st.integers(min_value=0, max_value=65535),
    st.sampled_from([Multiaddr.for_udp, Multiaddr.for_tcp]),
)


@given(st.lists(st.lists(addresses, max_size=40), max_size=5))
def test_whatever_a_peer_sends_few_public_addresses_are_touched(
    messages: list[list[Multiaddr]],
) -> None:
    candidates = CandidateFilter(PEER)
    touched: set[Multiaddr] = set()
    for message in messages:
        touched |= {one.address for one in candidates.judge(message) if one.rejection is None}
    limits = candidates.limits
    assert len(touched) <= limits.max_addresses
    assert touched == set(candidates.accepted)
    for version in (4, 6):
        ips = {one.ip for one in touched if one.ip is not None and one.ip.version == version}
        assert version == 6 or len(ips) <= limits.max_ips_per_family
        assert not any(
            ip.is_multicast or ip.is_loopback or ip.is_link_local or ip.is_unspecified for ip in ips
        )
    assert all(is_public(one) for one in touched)
