from __future__ import annotations

from ipaddress import ip_network

from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.swarm.ranking import Candidate, Group, rank
from dep2p_daemon.swarm.settings import DialSettings

SETTINGS = DialSettings()
RELAY = PrivateKey.from_seed(b"r" * 32).peer_id
NETWORKS = [ip_network("192.168.7.0/24"), ip_network("fd00::/64")]

TEXTS = [
    "/ip4/203.0.113.9/tcp/4001",
    "/ip4/203.0.113.9/udp/4001/quic-v1",
    "/ip6/2001:db8::9/tcp/4001",
    "/ip6/2001:db8::9/udp/4001/quic-v1",
    "/ip4/10.1.2.3/udp/4001/quic-v1",
    "/ip4/192.168.7.3/tcp/4001",
    "/ip4/192.168.7.3/udp/4001/quic-v1",
    "/ip4/127.0.0.1/udp/4001/quic-v1",
    "/ip6/fd00::3/udp/4001/quic-v1",
    "/ip6/fe80::3/tcp/4001",
    f"/ip4/198.51.100.1/tcp/4001/p2p/{RELAY}/p2p-circuit",
    f"/ip4/198.51.100.1/udp/4001/quic-v1/p2p/{RELAY}/p2p-circuit",
    "/dns4/example.com/udp/4001/quic-v1",
]
ADDRESSES = [Multiaddr.parse(text) for text in TEXTS]


def order(*texts: str) -> list[tuple[Group, str]]:
    ranked = rank([Multiaddr.parse(t) for t in texts], networks=NETWORKS, settings=SETTINGS)
    return [(candidate.group, str(candidate.address)) for candidate in ranked]


def test_local_then_public_then_foreign_private_then_circuits() -> None:
    assert order(*TEXTS) == [
        (Group.LOCAL, "/ip6/fd00::3/udp/4001/quic-v1"),
        (Group.LOCAL, "/ip4/192.168.7.3/udp/4001/quic-v1"),
        (Group.LOCAL, "/ip4/127.0.0.1/udp/4001/quic-v1"),
        (Group.LOCAL, "/ip4/192.168.7.3/tcp/4001"),
        (Group.PUBLIC, "/ip6/2001:db8::9/udp/4001/quic-v1"),
        (Group.PUBLIC, "/ip4/203.0.113.9/udp/4001/quic-v1"),
        (Group.PUBLIC, "/dns4/example.com/udp/4001/quic-v1"),
        (Group.PUBLIC, "/ip6/2001:db8::9/tcp/4001"),
        (Group.PUBLIC, "/ip4/203.0.113.9/tcp/4001"),
        (Group.PRIVATE, "/ip4/10.1.2.3/udp/4001/quic-v1"),
        (Group.PRIVATE, "/ip6/fe80::3/tcp/4001"),
        (Group.CIRCUIT, f"/ip4/198.51.100.1/udp/4001/quic-v1/p2p/{RELAY}/p2p-circuit"),
        (Group.CIRCUIT, f"/ip4/198.51.100.1/tcp/4001/p2p/{RELAY}/p2p-circuit"),
    ]


def test_the_families_take_turns_with_ipv6_first() -> None:
    texts = [f"/ip4/203.0.113.{n}/tcp/1" for n in (1, 2, 3)] + [
        f"/ip6/2001:db8::{n}/tcp/1" for n in (1, 2)
    ]
    assert [text for _, text in order(*texts)] == [
        "/ip6/2001:db8::1/tcp/1",
        "/ip4/203.0.113.1/tcp/1",
        "/ip6/2001:db8::2/tcp/1",
        "/ip4/203.0.113.2/tcp/1",
        "/ip4/203.0.113.3/tcp/1",
    ]


def test_each_group_has_its_own_deadline() -> None:
    ranked = rank(ADDRESSES, networks=NETWORKS, settings=SETTINGS)
    deadlines = {candidate.group: candidate.timeout for candidate in ranked}
    assert deadlines == {
        Group.LOCAL: 5.0,
        Group.PUBLIC: 15.0,
        Group.PRIVATE: 15.0,
        Group.CIRCUIT: 25.0,
    }


@given(st.lists(st.sampled_from(ADDRESSES)))
def test_ranking_keeps_every_address_once_and_groups_ascend(addresses: list[Multiaddr]) -> None:
    ranked = rank(addresses, networks=NETWORKS, settings=SETTINGS)
    assert sorted(str(c.address) for c in ranked) == sorted({str(a) for a in addresses})
    assert [c.group for c in ranked] == sorted(c.group for c in ranked)


@given(st.permutations(ADDRESSES))
def test_quic_always_precedes_tcp_within_a_group(addresses: list[Multiaddr]) -> None:
    ranked = rank(addresses, networks=NETWORKS, settings=SETTINGS)
    for group in Group:
        quic = [is_quic(c) for c in ranked if c.group is group]
        assert quic == sorted(quic, reverse=True)


def is_quic(candidate: Candidate) -> bool:
    return "quic-v1" in candidate.address.protocols
