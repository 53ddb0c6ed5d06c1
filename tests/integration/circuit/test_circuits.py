"""Circuits between real nodes over real sockets on loopback, in one process."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from tests.circuit_nodes import ECHO, Node, node, sockets, talk

from dep2p_daemon.circuit.admission import AdmissionLimits
from dep2p_daemon.circuit.events import (
    CircuitClosed,
    CloseReason,
    RelayChanged,
    RelayState,
    ReservationChange,
    ReservationChanged,
)
from dep2p_daemon.circuit.relay_server import RelayServerSettings
from dep2p_daemon.errors import ConnectionClosedError, RelayRefusedError, StreamResetError
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dep2p_daemon.muxed import Stream

ANY = {
    "quic": Multiaddr.parse("/ip4/127.0.0.1/udp/0/quic-v1"),
    "tcp": Multiaddr.parse("/ip4/127.0.0.1/tcp/0"),
}


@dataclass
class Three:
    relay: Node
    listener: Node
    dialler: Node


@asynccontextmanager
async def three(wire: str, **settings: Any) -> AsyncIterator[Three]:
    """A relay, a listener with a reservation and a dialler; they meet over `wire`."""
    relaying = RelayServerSettings(**settings)
    async with (
        node(sockets, ANY[wire], relay=relaying, identify=True) as relay,
        node(sockets, identify=True) as listener,
        node(sockets, identify=True) as dialler,
    ):
        await listener.client.connect(relay.address)
        yield Three(relay, listener, dialler)


wires = pytest.mark.parametrize("wire", ANY)


@wires
async def test_four_megabytes_come_back_through_a_relay_half_closed(wire: str) -> None:
    async with three(wire, pair_rate=None) as nodes:
        text = bytes(range(256)) * 16 * 1024
        answer = await talk(nodes.dialler, nodes.listener, text, through=nodes.relay)
        assert hashlib.sha256(answer).digest() == hashlib.sha256(text).digest()
        (ours,) = nodes.dialler.swarm.connections(nodes.listener.peer)
        assert (ours.path, ours.relay) == ("relayed", nodes.relay.peer)
        relay_address = nodes.relay.address
        assert ours.remote_address == relay_address / "/p2p-circuit"
        (circuit,) = nodes.relay.relay.circuits
        assert circuit.source_to_target_bytes > len(text)
        assert circuit.target_to_source_bytes > len(text)
        await nodes.dialler.swarm.disconnect(nodes.listener.peer)
        closed = await nodes.relay.next(CircuitClosed)
        assert closed.circuit.close_reason in (
            CloseReason.COMPLETED,
            CloseReason.RESET_BY_SOURCE,
            CloseReason.RESET_BY_TARGET,
        )


@wires
async def test_many_streams_share_a_circuit(wire: str) -> None:
    async with three(wire, pair_rate=None) as nodes:
        texts = [bytes([n]) * 200_000 for n in range(20)]
        answers = await asyncio.gather(
            *(talk(nodes.dialler, nodes.listener, text, through=nodes.relay) for text in texts)
        )
        assert answers == texts
        assert len(nodes.relay.relay.circuits) == 1


@wires
async def test_both_ends_may_open_streams(wire: str) -> None:
    async with three(wire) as nodes:
        await talk(nodes.dialler, nodes.listener, b"there", through=nodes.relay)
        stream = await nodes.listener.swarm.open_stream(nodes.dialler.peer, [ECHO])
        assert stream.connection.relay == nodes.relay.peer
        await stream.write(b"and back")
        await stream.close_write()
        assert await stream.read() == b"and back"


@wires
async def test_a_reset_goes_through_the_relay(wire: str) -> None:
    async with three(wire) as nodes:
        stream = await nodes.dialler.swarm.open_stream(
            nodes.listener.peer, [ECHO], addresses=[nodes.relay.circuit_to(nodes.listener)]
        )
        await stream.write(b"x")
        assert await stream.read() == b"x"
        (connection,) = nodes.listener.swarm.connections(nodes.dialler.peer)
        (theirs,) = connection.streams
        theirs.reset()
        with pytest.raises(StreamResetError):
            await stream.read()
        assert not stream.connection.is_closed
        assert await talk(nodes.dialler, nodes.listener, b"y", through=nodes.relay) == b"y"


@wires
async def test_a_peer_without_reservation_cannot_be_reached_and_the_error_says_why(
    wire: str,
) -> None:
    async with three(wire) as nodes:
        with pytest.raises(RelayRefusedError) as raised:
            await talk(nodes.listener, nodes.dialler, b"hello", through=nodes.relay)
        assert raised.value.reason == "NO_RESERVATION"
        assert "target peer not connected to relay" in raised.value.message


@wires
async def test_a_caller_in_a_hurry_leaves_no_circuit_behind(wire: str) -> None:
    async with three(wire) as nodes:
        dialling = asyncio.timeout(0.001)
        with pytest.raises(TimeoutError):
            async with dialling:
                await talk(nodes.dialler, nodes.listener, b"hello", through=nodes.relay)
        assert await talk(nodes.dialler, nodes.listener, b"later", through=nodes.relay) == b"later"


@wires
async def test_the_cap_per_source_holds_and_is_free_again(wire: str) -> None:
    async with three(wire, admission=AdmissionLimits(max_circuits_per_source=2)) as nodes:
        dial = nodes.dialler.swarm.dial
        address = [nodes.relay.circuit_to(nodes.listener)]
        connections = [await dial(nodes.listener.peer, address, force_new=True) for _ in range(2)]
        with pytest.raises(RelayRefusedError) as raised:
            await dial(nodes.listener.peer, address, force_new=True)
        assert raised.value.reason == "RESOURCE_LIMIT_EXCEEDED"
        await connections[0].close()
        await nodes.relay.next(CircuitClosed)
        await dial(nodes.listener.peer, address, force_new=True)


@wires
async def test_the_volume_limit_is_an_error_with_its_name_and_never_an_end(wire: str) -> None:
    async with three(wire, circuit_data=300_000) as nodes:
        stream = await nodes.dialler.swarm.open_stream(
            nodes.listener.peer, [ECHO], addresses=[nodes.relay.circuit_to(nodes.listener)]
        )

        async def push() -> None:
            await stream.write(bytes(1_000_000))
            await stream.close_write()

        async def take() -> int:
            size = 0
            while data := await stream.read():
                size += len(data)
            return size

        results = await asyncio.gather(push(), take(), return_exceptions=True)
        assert isinstance(results[1], (ConnectionClosedError, StreamResetError)), results
        error = await stream.connection.wait_closed()
        assert error.reason == "CIRCUIT_LIMIT_REACHED"
        closed = await nodes.relay.next(CircuitClosed)
        assert closed.circuit.close_reason is CloseReason.DATA_LIMIT


@wires
async def test_the_duration_limit_is_an_error_with_its_name(wire: str) -> None:
    async with three(wire, circuit_duration=1.0) as nodes:
        await talk(nodes.dialler, nodes.listener, b"hello", through=nodes.relay)
        (connection,) = nodes.dialler.swarm.connections(nodes.listener.peer)
        error = await connection.wait_closed()
        assert error.reason == "CIRCUIT_LIMIT_REACHED"


@wires
async def test_an_expired_reservation_is_none(wire: str) -> None:
    async with three(wire, admission=AdmissionLimits(reservation_ttl=0.3)) as nodes:
        # A holder that does not refresh, though it stays connected.
        keeper = nodes.listener.client._relays[nodes.relay.peer].task
        assert keeper is not None
        keeper.cancel()
        await nodes.relay.next(
            ReservationChanged, lambda event: event.change is ReservationChange.ENDED
        )
        assert nodes.relay.swarm.connections(nodes.listener.peer)
        with pytest.raises(RelayRefusedError, match="target peer not connected to relay"):
            await talk(nodes.dialler, nodes.listener, b"hello", through=nodes.relay)


@wires
async def test_a_reservation_is_refreshed_before_it_ends(wire: str) -> None:
    async with three(wire, admission=AdmissionLimits(reservation_ttl=2.0)) as nodes:
        changes = [await nodes.relay.next(ReservationChanged) for _ in range(3)]
        assert [event.change for event in changes] == [
            ReservationChange.CREATED,
            ReservationChange.REFRESHED,
            ReservationChange.REFRESHED,
        ]
        assert await talk(nodes.dialler, nodes.listener, b"on", through=nodes.relay) == b"on"


@wires
async def test_a_relay_that_restarts_is_reserved_at_again(wire: str) -> None:
    key = PrivateKey.generate()
    async with node(sockets) as listener, node(sockets) as dialler:
        async with node(sockets, ANY[wire], key=key, relay=RelayServerSettings()) as relay:
            await listener.client.connect(relay.address)
            address = relay.address
            assert await talk(dialler, listener, b"before", through=relay) == b"before"
        listener.so_far(RelayChanged)
        async with node(
            sockets, address.without_peer_id(), key=key, relay=RelayServerSettings()
        ) as relay:
            await listener.next(
                RelayChanged, lambda event: event.status.state is RelayState.RESERVED
            )
            assert await talk(dialler, listener, b"after", through=relay) == b"after"


async def test_a_relay_may_be_reached_over_quic_by_one_and_over_tcp_by_the_other() -> None:
    async with (
        node(sockets, ANY["quic"], ANY["tcp"], relay=RelayServerSettings()) as relay,
        node(sockets) as listener,
        node(sockets) as dialler,
    ):
        quic, tcp = relay.addresses
        status = await listener.client.connect(quic)
        assert len(status.circuit_addresses) == 2
        connection = await dialler.swarm.dial(
            listener.peer, [tcp / f"/p2p-circuit/p2p/{listener.peer}"]
        )
        assert connection.remote_address.value("tcp") == tcp.value("tcp")
        assert await talk(dialler, listener, b"mixed", through=relay) == b"mixed"


@wires
async def test_a_reader_that_stops_holds_its_sender_and_loses_nothing(wire: str) -> None:
    size = 24 << 20
    async with three(wire, pair_rate=None) as nodes:
        opened: asyncio.Queue[Stream] = asyncio.Queue()

        async def keep(stream: Stream) -> None:
            opened.put_nowait(stream)
            await stream.connection.wait_closed()

        nodes.listener.swarm.set_handler("/test/sink", keep)
        stream = await nodes.dialler.swarm.open_stream(
            nodes.listener.peer,
            ["/test/sink"],
            addresses=[nodes.relay.circuit_to(nodes.listener)],
        )
        chunk = bytes(range(256)) * 256
        digest = hashlib.sha256()

        async def push() -> None:
            for _ in range(size // len(chunk)):
                await stream.write(chunk)
            await stream.close_write()

        async with asyncio.TaskGroup() as tasks:
            pushing = tasks.create_task(push())
            theirs = await opened.get()
            # Until nothing moves any more at the relay: everything between is full.
            before = -1
            while before != (now := nodes.relay.relay.circuits[0].source_to_target_bytes):
                before = now
                await asyncio.sleep(0.5)
            assert not pushing.done()
            assert before < 4 << 20, "what is on the way is bounded"
            received = 0
            while data := await theirs.read():
                digest.update(data)
                received += len(data)
        assert received == size
        assert digest.digest() == hashlib.sha256(chunk * (size // len(chunk))).digest()
        theirs.reset()
