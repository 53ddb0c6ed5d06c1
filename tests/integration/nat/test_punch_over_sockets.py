"""Hole punching over real sockets on loopback: what the memory network cannot show."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack, asynccontextmanager, closing
from typing import TYPE_CHECKING

import pytest
from tests.circuit_nodes import ECHO, echo

from dep2p_daemon.circuit.relay_client import RelayClient
from dep2p_daemon.circuit.relay_server import RelayServer, RelayServerSettings
from dep2p_daemon.circuit.transport import CircuitTransport
from dep2p_daemon.errors import AuthenticationError, PreconditionError, UnreachableError
from dep2p_daemon.events import EventBus
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.muxed import Direction
from dep2p_daemon.nat.address_watch import AddressWatch
from dep2p_daemon.nat.hole_punch import HolePuncher
from dep2p_daemon.nat.paths import PathWatch
from dep2p_daemon.nat.trail import Outcome, Side, StepKind, TrailChanged
from dep2p_daemon.protocols.identify import Identify
from dep2p_daemon.quic.transport import QuicTransport
from dep2p_daemon.swarm.dialing import DialPolicy
from dep2p_daemon.swarm.peerstore import Peerstore
from dep2p_daemon.swarm.swarm import Swarm
from dep2p_daemon.tcp import transport
from dep2p_daemon.tcp.transport import TcpTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dep2p_daemon.events import Subscription
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.muxed import Connection

QUIC = Multiaddr.for_udp("127.0.0.1", 0)
TCP = Multiaddr.for_tcp("127.0.0.1", 0)
HEADER = b"\x13/multistream/1.0.0\n"


def anything_is_public(address: Multiaddr) -> bool:
    return address.ip is not None


class Node:
    def __init__(self, swarm: Swarm, seen: Subscription, client: RelayClient) -> None:
        self.swarm = swarm
        self.seen = seen
        self.client = client

    @property
    def address(self) -> Multiaddr:
        return self.swarm.listen_addresses[0].with_peer_id(self.swarm.local_peer)

    async def ended(self) -> TrailChanged:
        while True:
            event = await self.seen.next()
            if isinstance(event, TrailChanged) and not event.trail.running:
                return event


class LateTcp:
    """Dials when the peer's connection has been here for a while, as a busy machine does."""

    def __init__(self, tcp: TcpTransport) -> None:
        self._tcp = tcp

    def expect_simultaneous(self, address: Multiaddr, *, seconds: float) -> None:
        self._tcp.expect_simultaneous(address, seconds=seconds)

    async def dial_simultaneously(
        self, address: Multiaddr, peer: PeerId, *, initiator: bool
    ) -> Connection:
        await asyncio.sleep(0.3)
        return await self._tcp.dial_simultaneously(address, peer, initiator=initiator)


@asynccontextmanager
async def node(
    listen: Multiaddr, *, relay: bool = False, late: bool = False
) -> AsyncIterator[Node]:
    key, events = PrivateKey.generate(), EventBus()
    async with AsyncExitStack() as stack:
        seen = stack.enter_context(events.subscribe())
        quic = await stack.enter_async_context(QuicTransport(key))
        tcp = await stack.enter_async_context(TcpTransport(key))
        swarm = await stack.enter_async_context(
            Swarm(key=key, peerstore=Peerstore(None), events=events)
        )
        circuits = await stack.enter_async_context(CircuitTransport(swarm, key))
        for transport in (quic, tcp, circuits):
            swarm.add_transport(transport)
        identify = Identify(swarm)
        identify.register()
        swarm.set_handler(ECHO, echo)
        client = await stack.enter_async_context(RelayClient(swarm, events, transport=circuits))
        if relay:
            await stack.enter_async_context(RelayServer(swarm, events, RelayServerSettings()))
        else:
            PathWatch(swarm)
            watch = await stack.enter_async_context(
                AddressWatch(swarm, identify, is_public=anything_is_public)
            )
            await stack.enter_async_context(
                HolePuncher(
                    swarm,
                    identify,
                    watch,
                    prober=quic,
                    tcp=LateTcp(tcp) if late else tcp,
                    is_public=anything_is_public,
                )
            )
        await swarm.listen([listen])
        yield Node(swarm, seen, client)


@pytest.mark.parametrize("listen", [QUIC, TCP], ids=["quic", "tcp"])
async def test_two_nodes_behind_a_relay_get_direct(listen: Multiaddr) -> None:
    """Identify hides loopback addresses from relayed peers: the relay's observation is all."""
    async with node(listen, relay=True) as relay, node(listen) as a, node(listen) as b:
        await a.client.connect(relay.address)
        await b.client.connect(relay.address)
        circuit = relay.address / f"/p2p-circuit/p2p/{b.swarm.local_peer}"
        connection = await a.swarm.dial(b.swarm.local_peer, [circuit], policy=DialPolicy.RELAYED)
        assert connection.relayed
        theirs, ours = (await b.ended()).trail, (await a.ended()).trail
        assert theirs.outcome is ours.outcome is Outcome.DIRECT
        assert (theirs.side, ours.side) == (Side.INITIATOR, Side.RECEIVER)
        assert theirs.steps[0].kind is StepKind.PUNCH
        # Each dialled the other's listening port, from its own.
        best = a.swarm.best_connection(b.swarm.local_peer)
        assert best is not None
        assert best.remote_address == b.swarm.listen_addresses[0]
        assert best.local_address == a.swarm.listen_addresses[0]
        assert best.direction is Direction.OUTBOUND
        stream = await a.swarm.open_stream(b.swarm.local_peer, [ECHO])
        assert not stream.connection.relayed
        await stream.write(b"Hello!")
        assert await stream.read() == b"Hello!"
        await stream.aclose()


async def test_a_peer_that_connects_over_tcp_before_we_do_is_waited_for() -> None:
    async with (
        node(TCP, relay=True) as relay,
        node(TCP, late=True) as a,
        node(TCP) as b,
    ):
        await a.client.connect(relay.address)
        await b.client.connect(relay.address)
        circuit = relay.address / f"/p2p-circuit/p2p/{b.swarm.local_peer}"
        await a.swarm.dial(b.swarm.local_peer, [circuit], policy=DialPolicy.RELAYED)
        trail = (await b.ended()).trail
        assert [(step.kind, step.outcome) for step in trail.steps] == [
            (StepKind.PUNCH, Outcome.DIRECT)
        ]


async def test_a_probe_leaves_from_the_listening_socket() -> None:
    key = PrivateKey.generate()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.setblocking(False)
        where = Multiaddr.for_udp("127.0.0.1", peer.getsockname()[1])
        async with QuicTransport(key) as quic:
            assert not quic.send_probe(where, b"nobody listens here")
            listener = await quic.listen(QUIC)
            assert quic.send_probe(where, b"random")
            data, sender = await asyncio.get_running_loop().sock_recvfrom(peer, 100)
            assert data == b"random"
            assert sender[1] == listener.addresses[0].port
            assert not quic.send_probe(Multiaddr.for_udp("::1", 4001), b"no such socket")


async def test_random_packets_of_any_first_byte_disturb_nobody() -> None:
    one, other = PrivateKey.generate(), PrivateKey.generate()
    async with QuicTransport(one) as sender, QuicTransport(other) as target:
        await sender.listen(QUIC)
        listener = await target.listen(QUIC)
        (where,) = listener.addresses
        for first in range(256):
            assert sender.send_probe(where, bytes([first]) + bytes(63))
        connection = await sender.dial(where, other.peer_id)
        assert connection.remote_peer == other.peer_id


# TCP from both sides at once


@asynccontextmanager
async def two_tcp() -> AsyncIterator[tuple[TcpTransport, Multiaddr, TcpTransport, Multiaddr]]:
    a, b = PrivateKey.generate(), PrivateKey.generate()
    async with TcpTransport(a) as one, TcpTransport(b) as other:
        (here,) = (await one.listen(TCP)).addresses
        (there,) = (await other.listen(TCP)).addresses
        yield one, here, other, there


async def test_the_roles_are_those_agreed_on_whoever_connected() -> None:
    """The server's SYN comes first and finds the client's listener: the client begins still."""
    async with two_tcp() as (one, here, other, there):
        client = asyncio.create_task(
            one.dial_simultaneously(there, other.local_peer, initiator=True)
        )
        server = asyncio.create_task(
            other.dial_simultaneously(here, one.local_peer, initiator=False)
        )
        connection = await client
        assert connection.direction is Direction.OUTBOUND
        assert connection.remote_peer == other.local_peer
        assert connection.remote_address == there
        server.cancel()
        await asyncio.wait({server})


async def test_a_client_takes_the_connection_that_its_listener_accepted() -> None:
    """Its own SYNs never arrive (nobody listens there): the peer's, from there, do."""
    key = PrivateKey.generate()
    peer = PrivateKey.generate()
    async with TcpTransport(key) as client, TcpTransport(peer) as server:
        (here,) = (await client.listen(TCP)).addresses
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
            there = Multiaddr.for_tcp("127.0.0.1", sock.getsockname()[1])
            dial = asyncio.create_task(
                client.dial_simultaneously(there, peer.peer_id, initiator=True)
            )
            await asyncio.sleep(0)
            assert here.port is not None
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", here.port))
            served: Connection = await server.upgrade(
                sock.dup(), here, initiator=False, expected_peer=key.peer_id
            )
            connection = await dial
            assert connection.remote_peer == peer.peer_id
            assert served.remote_peer == key.peer_id
            assert (connection.direction, served.direction) == (
                Direction.OUTBOUND,
                Direction.INBOUND,
            )


async def test_somebody_else_there_is_an_error_and_the_expectation_ends() -> None:
    async with two_tcp() as (one, _here, _other, there):
        stranger = PrivateKey.generate().peer_id
        with pytest.raises(AuthenticationError):
            await one.dial_simultaneously(there, stranger, initiator=True)
        assert not one.crossings._expected


async def test_without_a_listening_socket_there_is_nothing_to_dial_from() -> None:
    async with TcpTransport(PrivateKey.generate()) as tcp:
        with pytest.raises(PreconditionError, match="listening"):
            await tcp.dial_simultaneously(
                Multiaddr.for_tcp("127.0.0.1", 4001), tcp.local_peer, initiator=True
            )


async def test_a_dial_that_is_cancelled_expects_nobody_any_more() -> None:
    async with two_tcp() as (one, _here, _other, _there):
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            where = Multiaddr.for_tcp("127.0.0.1", silent.getsockname()[1])
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await one.dial_simultaneously(where, one.local_peer, initiator=True)
        assert not one.crossings._expected


async def test_a_connection_that_comes_before_the_dial_is_kept_for_it() -> None:
    async with two_tcp() as (one, here, other, there):
        one.expect_simultaneous(there, seconds=60)
        server = asyncio.create_task(
            other.dial_simultaneously(here, one.local_peer, initiator=False)
        )
        await one.crossings._expected[("127.0.0.1", there.port or 0)]
        connection = await one.dial_simultaneously(there, other.local_peer, initiator=True)
        assert connection.remote_peer == other.local_peer
        assert (await server).direction is Direction.INBOUND
        assert not one.crossings._expected
        assert not one.crossings._early


async def test_what_is_kept_for_a_dial_that_never_comes_is_closed() -> None:
    async with two_tcp() as (one, here, other, there):
        one.expect_simultaneous(there, seconds=60)
        one.expect_simultaneous(there, seconds=0.05)
        with pytest.raises(UnreachableError) as caught:
            await other.dial_simultaneously(here, one.local_peer, initiator=False)
        assert caught.value.reason != "HANDSHAKE_NOT_BEGUN"  # it was told before
        assert not one.crossings._expected
        one.expect_simultaneous(there, seconds=60)
    assert not one.crossings._expected


async def test_a_handshake_that_nobody_begins_makes_room_for_the_next_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The peer accepted before it expected us, so each takes the other for who is to begin."""
    monkeypatch.setattr(transport, "PATIENCE", 0.05)
    async with two_tcp() as (one, here, other, there):
        with pytest.raises(UnreachableError) as caught:
            await other.dial_simultaneously(here, one.local_peer, initiator=False)
        assert caught.value.reason == "HANDSHAKE_NOT_BEGUN"
        one.expect_simultaneous(there, seconds=60)
        server = asyncio.create_task(
            other.dial_simultaneously(here, one.local_peer, initiator=False)
        )
        await one.dial_simultaneously(there, other.local_peer, initiator=True)
        assert (await server).remote_address == here


async def test_a_crossing_that_fails_leaves_its_ports_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "PATIENCE", 0.05)
    async with two_tcp() as (_one, _here, other, there):
        loop = asyncio.get_running_loop()
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            silent.setblocking(False)
            where = Multiaddr.for_tcp("127.0.0.1", silent.getsockname()[1])
            for _ in range(2):
                with pytest.raises(UnreachableError):
                    await other.dial_simultaneously(
                        where, PrivateKey.generate().peer_id, initiator=False
                    )
                accepted, source = await loop.sock_accept(silent)
                assert source == ("127.0.0.1", there.port)
                with closing(accepted):
                    assert await loop.sock_recv(accepted, 100) == HEADER
                    with pytest.raises(ConnectionResetError):
                        await loop.sock_recv(accepted, 100)
