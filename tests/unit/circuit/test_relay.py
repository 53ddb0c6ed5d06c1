"""Relay, listener and dialler together, over a network in memory and a clock that jumps."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from tests.circuit_nodes import ECHO, Node, memory, node, talk
from tests.memory_transport import MemoryNetwork
from tests.virtual_time import virtual_time

from dep2p_daemon.circuit.admission import AdmissionLimits
from dep2p_daemon.circuit.events import (
    CircuitClosed,
    CircuitOpened,
    CloseReason,
    RelayState,
    ReservationChange,
    ReservationChanged,
)
from dep2p_daemon.circuit.messages import (
    HOP_PROTOCOL,
    STOP_PROTOCOL,
    HopConnect,
    Status,
    StopStatus,
    encode_hop,
    encode_stop,
)
from dep2p_daemon.circuit.relay_server import RelayServerSettings
from dep2p_daemon.errors import (
    ConnectionClosedError,
    NotFoundError,
    RelayRefusedError,
    StreamResetError,
)
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.muxed import CircuitLimits, Direction, read_message, write_message
from dep2p_daemon.swarm.events import ConnectionClosed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dep2p_daemon.muxed import Stream

RELAY_ADDRESS = Multiaddr.parse("/ip4/192.0.2.1/tcp/4001")


@dataclass
class Three:
    network: MemoryNetwork
    relay: Node
    listener: Node
    dialler: Node


@asynccontextmanager
async def three(settings: RelayServerSettings | None = None) -> AsyncIterator[Three]:
    """A relay, a listener with a reservation, and a dialler."""
    network = MemoryNetwork()
    async with (
        node(memory(network), RELAY_ADDRESS, relay=settings or RelayServerSettings()) as relay,
        node(memory(network)) as listener,
        node(memory(network)) as dialler,
    ):
        status = await listener.client.connect(relay.address)
        assert status.state is RelayState.RESERVED
        yield Three(network, relay, listener, dialler)


@virtual_time
async def test_two_nodes_talk_through_a_relay() -> None:
    async with three() as nodes:
        text = bytes(range(256)) * 4096
        answer = await talk(nodes.dialler, nodes.listener, text, through=nodes.relay)
        assert answer == text

        (ours,) = nodes.dialler.swarm.connections(nodes.listener.peer)
        assert ours.relay == nodes.relay.peer
        assert ours.limits is None
        assert str(ours.remote_address) == f"{RELAY_ADDRESS}/p2p/{nodes.relay.peer}/p2p-circuit"
        (theirs,) = nodes.listener.swarm.connections(nodes.dialler.peer)
        assert theirs.direction is Direction.INBOUND
        assert theirs.relay == nodes.relay.peer

        opened = await nodes.relay.next(CircuitOpened)
        (circuit,) = nodes.relay.relay.circuits
        assert circuit.circuit_id == opened.circuit.circuit_id
        assert (circuit.source, circuit.target) == (nodes.dialler.peer, nodes.listener.peer)
        assert circuit.source_to_target_bytes > len(text)
        assert circuit.target_to_source_bytes > len(text)

        await nodes.dialler.swarm.disconnect(nodes.listener.peer)
        closed = await nodes.relay.next(CircuitClosed)
        assert closed.circuit.circuit_id == circuit.circuit_id
        assert closed.circuit.close_reason is CloseReason.COMPLETED
        assert nodes.relay.relay.circuits == ()
        assert len(nodes.relay.relay._circuits._pairs) == 0, "no rate is kept for pairs that left"


@virtual_time
async def test_a_target_without_reservation_is_said_to_be_one() -> None:
    async with three() as nodes:
        with pytest.raises(RelayRefusedError) as raised:
            await nodes.listener.swarm.dial(
                nodes.dialler.peer, [nodes.relay.circuit_to(nodes.dialler)]
            )
        assert raised.value.reason == "NO_RESERVATION"
        assert "target peer not connected to relay" in raised.value.message
        assert "dep2pctl relay connect" in raised.value.remedy


@virtual_time
async def test_limits_are_announced_to_both_ends() -> None:
    settings = RelayServerSettings(circuit_duration=120.0, circuit_data=1 << 20)
    async with three(settings) as nodes:
        limits = CircuitLimits(120.0, 1 << 20)
        (relay,) = nodes.listener.client.relays
        assert relay.limits == limits
        await talk(nodes.dialler, nodes.listener, b"hello", through=nodes.relay)
        (ours,) = nodes.dialler.swarm.connections(nodes.listener.peer)
        (theirs,) = nodes.listener.swarm.connections(nodes.dialler.peer)
        assert ours.limits == theirs.limits == limits


@virtual_time
async def test_the_volume_limit_breaks_the_connection_and_never_ends_a_stream() -> None:
    async with three(RelayServerSettings(circuit_data=100_000)) as nodes:
        with pytest.raises((ConnectionClosedError, ExceptionGroup)) as raised:
            await talk(nodes.dialler, nodes.listener, bytes(200_000), through=nodes.relay)
        error: BaseException = raised.value
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        assert isinstance(error, ConnectionClosedError)
        assert error.reason == "CIRCUIT_LIMIT_REACHED"
        assert "at most 100000 bytes in each direction" in error.message
        closed = await nodes.relay.next(CircuitClosed)
        assert closed.circuit.close_reason is CloseReason.DATA_LIMIT
        assert closed.circuit.source_to_target_bytes <= 100_000


@virtual_time
async def test_the_duration_limit_ends_the_circuit_on_time() -> None:
    async with three(RelayServerSettings(circuit_duration=60.0)) as nodes:
        await talk(nodes.dialler, nodes.listener, b"hello", through=nodes.relay)
        (connection,) = nodes.dialler.swarm.connections(nodes.listener.peer)
        began = asyncio.get_running_loop().time()
        error = await connection.wait_closed()
        assert error.reason == "CIRCUIT_LIMIT_REACHED"
        assert "at most 60 s" in error.message
        assert asyncio.get_running_loop().time() - began == pytest.approx(60.0, abs=1.0)
        closed = await nodes.relay.next(CircuitClosed)
        assert closed.circuit.close_reason is CloseReason.DURATION_LIMIT


@virtual_time
async def test_an_expired_reservation_is_none_at_once() -> None:
    settings = RelayServerSettings(admission=AdmissionLimits(reservation_ttl=600.0))
    async with three(settings) as nodes:
        # The listener stays connected, but does not refresh.
        nodes.listener.client._relays[nodes.relay.peer].task.cancel()  # type: ignore[union-attr]
        await asyncio.sleep(599)
        assert await talk(nodes.dialler, nodes.listener, b"hello", through=nodes.relay) == b"hello"
        await nodes.dialler.swarm.disconnect(nodes.listener.peer)
        # A second more at most: the end is announced as a whole one.
        await asyncio.sleep(2)
        with pytest.raises(RelayRefusedError) as raised:
            await talk(nodes.dialler, nodes.listener, b"hello", through=nodes.relay)
        assert raised.value.reason == "NO_RESERVATION"
        ended = await nodes.relay.next(
            ReservationChanged, lambda event: event.change is ReservationChange.ENDED
        )
        assert ended.reservation.peer_id == nodes.listener.peer
        assert nodes.relay.relay.reservations == ()


@virtual_time
async def test_a_reservation_ends_with_its_holders_last_connection() -> None:
    async with three() as nodes:
        (held,) = nodes.relay.relay.reservations
        assert held.peer_id == nodes.listener.peer
        extra = await nodes.listener.swarm.dial(
            nodes.relay.peer, [nodes.relay.address], force_new=True
        )
        await extra.close()
        await nodes.relay.next(ConnectionClosed)
        assert len(nodes.relay.relay.reservations) == 1
        await nodes.dialler.swarm.dial(nodes.relay.peer, [nodes.relay.address])
        nodes.network.dead.add(RELAY_ADDRESS)
        (last,) = nodes.listener.swarm.connections(nodes.relay.peer)
        await last.close()
        ended = await nodes.relay.next(
            ReservationChanged, lambda event: event.change is ReservationChange.ENDED
        )
        assert ended.reservation.peer_id == nodes.listener.peer
        with pytest.raises(RelayRefusedError, match="target peer not connected to relay"):
            await talk(nodes.dialler, nodes.listener, b"hello", through=nodes.relay)


@virtual_time
async def test_circuits_above_a_cap_are_refused_and_the_cap_is_free_again_afterwards() -> None:
    settings = RelayServerSettings(admission=AdmissionLimits(max_circuits_per_source=2))
    async with three(settings) as nodes:
        dial = nodes.dialler.swarm.dial
        address = [nodes.relay.circuit_to(nodes.listener)]
        connections = [await dial(nodes.listener.peer, address, force_new=True) for _ in range(2)]
        with pytest.raises(RelayRefusedError) as raised:
            await dial(nodes.listener.peer, address, force_new=True)
        assert raised.value.reason == "RESOURCE_LIMIT_EXCEEDED"
        assert "max_circuits_per_source" in raised.value.remedy
        await connections[0].close()
        await nodes.relay.next(CircuitClosed)
        await dial(nodes.listener.peer, address, force_new=True)
        assert len(nodes.relay.relay.circuits) == 2


@virtual_time
async def test_reservations_above_a_cap_are_refused_but_refreshes_are_not() -> None:
    admission = AdmissionLimits(max_reservations=1, reservation_ttl=600.0)
    async with three(RelayServerSettings(admission=admission)) as nodes:
        with pytest.raises(RelayRefusedError) as raised:
            await nodes.dialler.client.connect(nodes.relay.address)
        assert raised.value.reason == "RESERVATION_REFUSED"
        assert nodes.dialler.client.relays == (), "a relay that never worked is forgotten"
        refreshed = await nodes.relay.next(
            ReservationChanged, lambda event: event.change is ReservationChange.REFRESHED
        )
        assert refreshed.reservation.peer_id == nodes.listener.peer


@virtual_time
async def test_a_reset_goes_through_the_circuit() -> None:
    async with three() as nodes:
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


@virtual_time
async def test_a_relay_that_goes_tells_everybody() -> None:
    network = MemoryNetwork()
    async with node(memory(network)) as listener, node(memory(network)) as dialler:
        async with node(memory(network), RELAY_ADDRESS, relay=RelayServerSettings()) as relay:
            await listener.client.connect(relay.address)
            await talk(dialler, listener, b"hello", through=relay)
            (connection,) = dialler.swarm.connections(listener.peer)
        assert (await connection.wait_closed()).reason == "CIRCUIT_SHUTDOWN"
        assert listener.swarm.connections() == ()
        assert relay.relay.circuits == ()
        assert relay.relay.reservations == ()
        closed = await relay.next(CircuitClosed)
        assert closed.circuit.close_reason is CloseReason.SHUTDOWN
        ended = await relay.next(
            ReservationChanged, lambda event: event.change is ReservationChange.ENDED
        )
        assert ended.reservation.peer_id == listener.peer


@virtual_time
async def test_an_operator_can_close_a_circuit() -> None:
    async with three() as nodes:
        await talk(nodes.dialler, nodes.listener, b"hello", through=nodes.relay)
        (circuit,) = nodes.relay.relay.circuits
        (connection,) = nodes.dialler.swarm.connections(nodes.listener.peer)
        nodes.relay.relay.close_circuit(circuit.circuit_id)
        closed = await nodes.relay.next(CircuitClosed)
        assert closed.circuit.close_reason is CloseReason.CLOSED_BY_OPERATOR
        assert (await connection.wait_closed()).reason == "CIRCUIT_GATED"
        with pytest.raises(NotFoundError):
            nodes.relay.relay.close_circuit(circuit.circuit_id)


@virtual_time
async def test_a_circuit_with_a_peer_gone_and_the_other_asleep_does_not_last_for_ever() -> None:
    """The source resets while bytes for a target that does not read wait in the relay."""
    async with three(RelayServerSettings(pair_rate=None)) as nodes:
        carrier = await nodes.dialler.swarm.dial(nodes.relay.peer, [nodes.relay.address])
        nodes.listener.swarm.remove_handler(STOP_PROTOCOL)
        asleep: asyncio.Queue[Stream] = asyncio.Queue()

        async def sleep_on_it(stream: Stream) -> None:
            await read_message(stream, 4096)
            await write_message(stream, encode_stop(StopStatus(Status.OK)))
            await asleep.put(stream)
            await asyncio.sleep(3600)

        nodes.listener.swarm.set_handler(STOP_PROTOCOL, sleep_on_it)
        hop = await nodes.dialler.swarm.open_stream(
            nodes.relay.peer, [HOP_PROTOCOL], connection=carrier
        )
        await write_message(hop, encode_hop(HopConnect(nodes.listener.peer)))
        await read_message(hop, 4096)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await hop.write(bytes(10 << 20))
        hop.reset()
        async with asyncio.timeout(200):
            closed = await nodes.relay.next(CircuitClosed)
        assert closed.circuit.close_reason is CloseReason.RESET_BY_SOURCE
