"""What a stranger's answer does: addresses in the peerstore, bounded, of our own networks only."""

from __future__ import annotations

from ipaddress import ip_network
from typing import TYPE_CHECKING

from tests.memory_nodes import swarms

from dep2p_daemon.discovery.mdns import SOURCE, Mdns, MdnsSettings
from dep2p_daemon.discovery.mdns_records import encode_text
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr

if TYPE_CHECKING:
    import pytest

    from dep2p_daemon.swarm.swarm import Swarm

PEER = PrivateKey.from_seed(b"m" * 32).peer_id
NEAR = Multiaddr.parse("/ip4/192.168.1.7/udp/4001/quic-v1")
FAR = Multiaddr.parse("/ip4/198.18.0.1/udp/4001/quic-v1")


def on_lan(swarm: Swarm, monkeypatch: pytest.MonkeyPatch, **settings: int) -> Mdns:
    monkeypatch.setattr(swarm, "networks", lambda: (ip_network("192.168.1.0/24"),))
    return Mdns(swarm, swarm.events, MdnsSettings(**settings))


async def test_a_peer_that_is_found_can_be_dialled_by_its_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with swarms(1) as (swarm,):
        mdns = on_lan(swarm, monkeypatch)
        mdns._take("a", encode_text([NEAR, FAR], PEER))
        info = swarm.peerstore.get(PEER)
        assert info is not None
        assert [(known.address, known.source) for known in info.addresses] == [(NEAR, SOURCE)]
        assert mdns.peers == {PEER}


async def test_ourselves_and_addresses_elsewhere_are_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with swarms(1) as (swarm,):
        mdns = on_lan(swarm, monkeypatch)
        mdns._take("a", encode_text([NEAR], swarm.local_peer))
        mdns._take("b", encode_text([FAR], PEER))
        assert mdns.peers == frozenset()
        assert swarm.peerstore.peers() == ()


async def test_a_name_that_tells_something_new_replaces_what_it_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = PrivateKey.from_seed(b"o" * 32).peer_id
    async with swarms(1) as (swarm,):
        mdns = on_lan(swarm, monkeypatch)
        mdns._take("a", encode_text([NEAR], PEER))
        mdns._take("a", encode_text([NEAR], other))
        assert mdns.peers == {other}
        mdns._take("a", b"")
        assert mdns.peers == frozenset()


async def test_very_many_names_are_not_all_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    async with swarms(1) as (swarm,):
        mdns = on_lan(swarm, monkeypatch, max_peers=3)
        peers = [PrivateKey.from_seed(bytes([n]) * 32).peer_id for n in range(10)]
        for number, peer in enumerate(peers):
            mdns._take(f"n{number}", encode_text([NEAR], peer))
        assert mdns.peers == set(peers[-3:])
