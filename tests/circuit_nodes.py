"""Whole nodes for tests of circuits, over whichever transport a test brings."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from dep2p_daemon.circuit.relay_client import RelayClient, RelayClientSettings
from dep2p_daemon.circuit.relay_server import RelayServer, RelayServerSettings
from dep2p_daemon.circuit.transport import CircuitSettings, CircuitTransport
from dep2p_daemon.events import EventBus
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.protocols.identify import Identify
from dep2p_daemon.quic.settings import QuicSettings
from dep2p_daemon.quic.transport import QuicTransport
from dep2p_daemon.swarm.peerstore import Peerstore
from dep2p_daemon.swarm.swarm import Swarm
from dep2p_daemon.tcp.settings import TcpSettings
from dep2p_daemon.tcp.transport import TcpTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from tests.memory_transport import MemoryNetwork

    from dep2p_daemon.events import Subscription
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.muxed import Stream, Transport
    from dep2p_daemon.swarm.dialing import DnsResolver

ECHO = "/test/echo"

Event = TypeVar("Event")


@dataclass
class Node:
    """One node; what a test does not use costs it nothing."""

    swarm: Swarm
    events: EventBus
    circuits: CircuitTransport
    client: RelayClient
    server: RelayServer | None
    seen: Subscription
    addresses: tuple[Multiaddr, ...]
    """Where it listens, with its /p2p."""

    @property
    def peer(self) -> PeerId:
        return self.swarm.local_peer

    @property
    def address(self) -> Multiaddr:
        return self.addresses[0]

    @property
    def relay(self) -> RelayServer:
        assert self.server is not None
        return self.server

    def circuit_to(self, target: Node) -> Multiaddr:
        """The address of `target` through this node."""
        return self.address / f"/p2p-circuit/p2p/{target.peer}"

    async def next(
        self, kind: type[Event], when: Callable[[Event], bool] = lambda _event: True
    ) -> Event:
        """Return the next event of a kind; those before it are dropped."""
        while True:
            event = await self.seen.next()
            if isinstance(event, kind) and when(event):
                return event

    def so_far(self, kind: type[Event]) -> list[Event]:
        """Return the events of a kind that have not been taken yet; drop all others."""
        events = list(self.seen._events)
        self.seen._events.clear()
        return [event for event in events if isinstance(event, kind)]


async def echo(stream: Stream) -> None:
    """Send back what comes, half-close included."""
    while data := await stream.read():
        await stream.write(data)
    await stream.aclose()


Transports: TypeAlias = "Callable[[PrivateKey], list[AbstractAsyncContextManager[Transport]]]"


def memory(network: MemoryNetwork) -> Transports:
    """Nodes that meet on `network`."""
    return lambda key: [network.transport(key)]


def sockets(key: PrivateKey) -> list[AbstractAsyncContextManager[Transport]]:
    """Nodes that meet over real QUIC and TCP."""
    return [QuicTransport(key, QuicSettings()), TcpTransport(key, TcpSettings())]


@asynccontextmanager
async def node(
    transports: Transports,
    *listen: Multiaddr,
    key: PrivateKey | None = None,
    relay: RelayServerSettings | None = None,
    client: RelayClientSettings | None = None,
    circuit: CircuitSettings | None = None,
    identify: bool = False,
    resolver: DnsResolver | None = None,
) -> AsyncIterator[Node]:
    """Run a node that listens at `listen`, with a relay server where `relay` has settings.

    With `identify` the nodes tell each other what they are, as daemons do; streams of protocols
    that the other one listed are then opened without waiting for its consent.
    """
    key, events = key or PrivateKey.generate(), EventBus()
    async with AsyncExitStack() as stack:
        seen = stack.enter_context(events.subscribe())
        lower = [await stack.enter_async_context(t) for t in transports(key)]
        swarm = await stack.enter_async_context(
            Swarm(key=key, peerstore=Peerstore(None), events=events, resolver=resolver)
        )
        circuits = await stack.enter_async_context(CircuitTransport(swarm, key, circuit))
        for transport in (circuits, *lower):
            swarm.add_transport(transport)
        swarm.set_handler(ECHO, echo)
        if identify:
            Identify(swarm).register()
        relays = await stack.enter_async_context(
            RelayClient(swarm, events, client, transport=circuits)
        )
        server = None
        if relay is not None:
            server = await stack.enter_async_context(RelayServer(swarm, events, relay))
        bound = await swarm.listen(listen)
        addresses = tuple(address.with_peer_id(key.peer_id) for address in bound)
        yield Node(swarm, events, circuits, relays, server, seen, addresses)


async def talk(dialler: Node, target: Node, text: bytes, *, through: Node) -> bytes:
    """Open an echo stream from `dialler` to `target` through `through`; return the echo."""
    stream = await dialler.swarm.open_stream(
        target.peer, [ECHO], addresses=[through.circuit_to(target)]
    )
    async with asyncio.TaskGroup() as tasks:

        async def send() -> None:
            await stream.write(text)
            await stream.close_write()

        tasks.create_task(send())
        answer = bytearray()
        while data := await stream.read():
            answer += data
    return bytes(answer)
