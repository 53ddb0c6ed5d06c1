"""Swarms on a memory network, for tests of the swarm and of what stands on it."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from tests.memory_transport import MemoryNetwork

from dep2p_daemon.events import EventBus
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.swarm.peerstore import Peerstore
from dep2p_daemon.swarm.swarm import DEFAULT_SETTINGS, Swarm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.muxed import Connection
    from dep2p_daemon.swarm.dialing import DnsResolver
    from dep2p_daemon.swarm.settings import SwarmSettings

KEYS = sorted(
    (PrivateKey.from_seed(bytes([n]) * 32) for n in range(1, 8)), key=lambda key: key.peer_id
)
"""By peer id: the first one's connections survive simultaneous dials."""

QUIC = Multiaddr.parse("/ip4/203.0.113.9/udp/4001/quic-v1")
TCP = Multiaddr.parse("/ip4/203.0.113.9/tcp/4001")
RELAY = PrivateKey.from_seed(b"r" * 32).peer_id
CIRCUIT = Multiaddr.parse(f"/ip4/198.51.100.1/udp/4001/quic-v1/p2p/{RELAY}/p2p-circuit")


def address_of(number: int) -> Multiaddr:
    """Where node `number` listens."""
    return Multiaddr.for_udp(f"203.0.113.{number + 1}", 4001)


@asynccontextmanager
async def swarms(
    count: int = 2,
    *,
    network: MemoryNetwork | None = None,
    settings: SwarmSettings = DEFAULT_SETTINGS,
    resolver: DnsResolver | None = None,
    first: int = 0,
) -> AsyncIterator[list[Swarm]]:
    """Nodes `first` and up, that listen at `address_of` and know nothing of each other."""
    network = network or MemoryNetwork()
    made: list[Swarm] = []
    async with AsyncExitStack() as stack:
        for number in range(first, first + count):
            store = Peerstore(None)
            stack.callback(store.close)
            swarm = Swarm(
                key=KEYS[number],
                peerstore=store,
                events=EventBus(),
                resolver=resolver,
                settings=settings,
            )
            swarm.add_transport(network.transport(KEYS[number]))
            made.append(await stack.enter_async_context(swarm))
            await swarm.listen([address_of(number)])
        yield made


async def connected(one: Swarm, other: Swarm) -> tuple[Connection, Connection]:
    """Let `one` dial `other`; return both ends, each taken over by its swarm."""
    number = [key.peer_id for key in KEYS].index(other.local_peer)
    with other.events.subscribe() as events:
        here = await one.dial(other.local_peer, [address_of(number)], force_new=True)
        await events.next()
    return here, other.connections(one.local_peer)[-1]


def peer(number: int) -> PeerId:
    """The peer id of node `number`."""
    return KEYS[number].peer_id
