from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from tests.memory_nodes import CIRCUIT, KEYS, RELAY, address_of, connected, peer, swarms
from tests.memory_transport import MemoryConnection, MemoryNetwork
from tests.virtual_time import virtual_time

from dep2p_daemon import multistream
from dep2p_daemon.errors import (
    ConfigError,
    ConnectionClosedError,
    DialTimeoutError,
    InvalidArgumentError,
    NotFoundError,
    ProtocolNotSupportedError,
    StreamResetError,
)
from dep2p_daemon.events import EventBus
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.muxed import CircuitLimits, CloseCode, Connection, Direction, Stream, read_exactly
from dep2p_daemon.protocols import echo
from dep2p_daemon.swarm.events import AddressesChanged, ConnectionClosed, ConnectionOpened
from dep2p_daemon.swarm.peerstore import Peerstore
from dep2p_daemon.swarm.settings import SwarmSettings
from dep2p_daemon.swarm.swarm import REFUSAL_LOG_INTERVAL, Swarm

if TYPE_CHECKING:
    from collections.abc import MutableMapping

HELD = "/test/held/1"


class Held:
    """Keeps each stream until it is let go."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.release = asyncio.Event()
        self.arrived = asyncio.Condition()

    async def handle(self, stream: Stream) -> None:
        self.streams.append(stream)
        async with self.arrived:
            self.arrived.notify_all()
        await self.release.wait()
        await stream.aclose()

    async def count(self, wanted: int) -> None:
        async with self.arrived:
            await self.arrived.wait_for(lambda: len(self.streams) >= wanted)


async def echoed(stream: Stream, data: bytes) -> bytes:
    await stream.write(data)
    await stream.close_write()
    answer = await read_exactly(stream, len(data))
    assert await stream.read() == b""
    await stream.aclose()
    return answer


# ------------------------------------------------------------------- streams


@virtual_time
async def test_a_stream_reaches_the_handler_of_its_protocol_with_its_name_on() -> None:
    async with swarms() as (here, there):
        echo.register(there)
        stream = await here.open_stream(peer(1), [echo.PROTOCOL], addresses=[address_of(1)])
        assert stream.protocol == echo.PROTOCOL
        assert await echoed(stream, b"hello") == b"hello"


@virtual_time
async def test_the_first_protocol_that_both_know_is_taken() -> None:
    async with swarms() as (here, there):
        echo.register(there)
        connection, _ = await connected(here, there)
        stream = await here.open_stream(peer(1), ["/unknown/2", echo.PROTOCOL])
        assert stream.protocol == echo.PROTOCOL
        assert await echoed(stream, b"hello") == b"hello"
        with pytest.raises(ProtocolNotSupportedError):
            await here.open_stream(peer(1), ["/unknown/2"])
        await asyncio.sleep(1.0)
        assert connection.streams == ()


@virtual_time
async def test_a_listed_protocol_needs_no_answer_and_its_handler_starts_at_once() -> None:
    async with swarms() as (here, there):
        connection, far = await connected(here, there)
        held = Held()
        there.set_handler(HELD, held.handle)
        here.set_remote_protocols(connection, [HELD])
        there.remove_handler(HELD)
        # Nothing was waited for, though the peer has changed its mind.
        stream = await here.open_stream(peer(1), [HELD])
        with pytest.raises(ProtocolNotSupportedError):
            await stream.read()
        there.set_handler(HELD, held.handle)
        stream = await here.open_stream(peer(1), [HELD])
        await held.count(1)
        assert held.streams[0].protocol == HELD
        assert held.streams[0].connection is far
        held.release.set()
        assert await stream.read() == b""


@virtual_time
async def test_a_silent_peer_is_given_up_after_the_negotiation_timeout() -> None:
    network = MemoryNetwork()
    async with swarms(1, network=network) as (here,):
        await network.transport(KEYS[1]).listen(address_of(1))
        connection = await here.dial(peer(1), [address_of(1)])
        with pytest.raises(DialTimeoutError, match="did not answer for /x/1 within 15 s"):
            await here.open_stream(peer(1), ["/x/1"])
        assert asyncio.get_running_loop().time() == 15.0
        assert connection.streams == ()


@virtual_time
async def test_an_initiator_that_never_proposes_is_reset() -> None:
    async with swarms() as (here, there):
        connection, _ = await connected(here, there)
        stream = await connection.open_stream()
        began = asyncio.get_running_loop().time()
        await multistream_header(stream)
        with pytest.raises(StreamResetError) as caught:
            await stream.read()
        assert caught.value.code == CloseCode.PROTOCOL_NEGOTIATION_FAILED
        assert asyncio.get_running_loop().time() - began == 15.0
        assert not connection.is_closed


async def multistream_header(stream: Stream) -> None:
    line = multistream.encode_line(multistream.HEADER)
    assert await read_exactly(stream, len(line)) == line


@virtual_time
async def test_rubbish_in_place_of_a_negotiation_ends_the_stream_only() -> None:
    async with swarms() as (here, there):
        echo.register(there)
        connection, _ = await connected(here, there)
        stream = await connection.open_stream()
        await stream.write(b"GET / HTTP/1.1\r\n\r\n" * 100)
        with pytest.raises(StreamResetError) as caught:
            await multistream_header(stream)
        assert caught.value.code == CloseCode.PROTOCOL_VIOLATION
        good = await here.open_stream(peer(1), [echo.PROTOCOL])
        assert await echoed(good, b"still here") == b"still here"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("a bug"), CloseCode.NONE),
        (StreamResetError(), CloseCode.PROTOCOL_VIOLATION),
        (TimeoutError(), CloseCode.GARBAGE_COLLECTED),
    ],
)
def test_a_handler_that_fails_resets_its_stream_and_nothing_else(
    error: Exception, code: CloseCode
) -> None:
    async def fail(stream: Stream) -> None:
        await stream.read(1)
        raise error

    @virtual_time
    async def run() -> None:
        async with swarms() as (here, there):
            echo.register(there)
            there.set_handler("/fails/1", fail)
            stream = await here.open_stream(peer(1), ["/fails/1"], addresses=[address_of(1)])
            await stream.write(b"x")
            with pytest.raises(StreamResetError) as caught:
                await stream.read()
            assert caught.value.code == code
            good = await here.open_stream(peer(1), [echo.PROTOCOL])
            assert await echoed(good, b"still here") == b"still here"

    run()


@pytest.mark.parametrize(
    "settings",
    [
        SwarmSettings(max_inbound_streams_per_connection=3),
        SwarmSettings(max_inbound_streams=3),
    ],
)
def test_streams_over_the_cap_are_reset_and_room_opens_again(settings: SwarmSettings) -> None:
    @virtual_time
    async def run() -> None:
        async with swarms(settings=settings) as (here, there):
            held = Held()
            there.set_handler(HELD, held.handle)
            connection, _ = await connected(here, there)
            for _ in range(3):
                await here.open_stream(peer(1), [HELD])
            over = await connection.open_stream()
            with pytest.raises(StreamResetError) as caught:
                await over.read()
            assert caught.value.code == CloseCode.RESOURCE_LIMIT_EXCEEDED
            held.release.set()
            await asyncio.sleep(1.0)
            await here.open_stream(peer(1), [HELD])

    run()


@virtual_time
async def test_a_stream_can_be_asked_of_one_connection() -> None:
    async with swarms() as (here, there):
        echo.register(there)
        first, _ = await connected(here, there)
        second, _ = await connected(here, there)
        for connection in (first, second):
            stream = await here.open_stream(peer(1), [echo.PROTOCOL], connection=connection)
            assert stream.connection is connection


@virtual_time
async def test_a_connection_whose_end_was_not_known_yet_is_replaced() -> None:
    async with swarms() as (here, there):
        echo.register(there)
        connection, _ = await connected(here, there)
        assert isinstance(connection, MemoryConnection)

        async def broken() -> Stream:
            error = ConnectionClosedError("idle timeout")
            connection.end(error)
            raise error

        connection.open_stream = broken  # type: ignore[method-assign]
        stream = await here.open_stream(peer(1), [echo.PROTOCOL], addresses=[address_of(1)])
        assert stream.connection is not connection
        assert await echoed(stream, b"hello") == b"hello"


@virtual_time
async def test_protocol_names_are_checked_before_anything_is_dialled() -> None:
    async with swarms() as (here, _there):
        with pytest.raises(InvalidArgumentError, match="not a protocol id"):
            await here.open_stream(peer(1), ["no-slash"], addresses=[address_of(1)])
        assert here.connections() == ()


# --------------------------------------------------------------- connections


@virtual_time
async def test_opening_and_closing_is_published_on_both_sides() -> None:
    async with swarms() as (here, there):
        with here.events.subscribe() as near, there.events.subscribe() as far:
            connection = await here.dial(peer(1), [address_of(1)])
            opened = await far.next()
            assert isinstance(opened, ConnectionOpened)
            assert opened.connection.direction is Direction.INBOUND
            assert opened.connection.remote_peer == peer(0)
            assert await near.next() == ConnectionOpened(connection)
            assert await here.disconnect(peer(1)) == 1
            closed = await near.next()
            assert isinstance(closed, ConnectionClosed)
            assert closed.connection is connection
            assert not closed.error.remote
            heard = await far.next()
            assert isinstance(heard, ConnectionClosed)
            assert heard.error.remote
        assert here.connected_peers() == ()
        assert there.connected_peers() == ()


@virtual_time
async def test_disconnect_closes_one_or_all_and_counts() -> None:
    async with swarms() as (here, there):
        first, _ = await connected(here, there)
        second, _ = await connected(here, there)
        with pytest.raises(NotFoundError):
            await here.disconnect(peer(1), "c0")
        assert await here.disconnect(peer(1), first.id) == 1
        assert here.connections() == (second,)
        assert await here.disconnect(peer(1)) == 1
        assert await here.disconnect(peer(1)) == 0


@virtual_time
async def test_the_gate_refuses_inbound_connections() -> None:
    async with swarms() as (here, there):
        there.gate = lambda connection: "NOT_ALLOWED" if connection.remote_peer == peer(0) else None
        connection = await here.dial(peer(1), [address_of(1)])
        error = await connection.wait_closed()
        assert error.code == CloseCode.GATED
        assert there.connections() == ()


@virtual_time
async def test_a_gate_that_fails_costs_one_connection_not_the_listener() -> None:
    async with swarms() as (here, there):

        def fail(connection: Connection) -> str | None:
            raise RuntimeError("a bug")

        there.gate = fail
        refused = await here.dial(peer(1), [address_of(1)])
        await refused.wait_closed()
        there.gate = None
        await connected(here, there)


@virtual_time
async def test_inbound_connections_over_the_cap_are_told_why() -> None:
    network = MemoryNetwork()
    strict = SwarmSettings(max_connections_per_peer=2)
    async with (
        swarms(1, network=network) as (here,),
        swarms(1, network=network, settings=strict, first=1) as (there,),
    ):
        await connected(here, there)
        await connected(here, there)
        over = await here.dial(peer(1), [address_of(1)], force_new=True)
        assert (await over.wait_closed()).code == CloseCode.RESOURCE_LIMIT_EXCEEDED
        assert len(there.connections()) == 2


@virtual_time
async def test_simultaneous_dials_leave_one_connection_the_smaller_clients() -> None:
    network = MemoryNetwork(latency={address_of(0): 0.1, address_of(1): 0.1})
    async with swarms(network=network) as (small, large):
        await asyncio.gather(
            small.dial(peer(1), [address_of(1)]), large.dial(peer(0), [address_of(0)])
        )
        await asyncio.sleep(10.0)
        (ours,), (theirs,) = small.connections(), large.connections()
        assert ours.direction is Direction.OUTBOUND
        assert theirs.direction is Direction.INBOUND
        assert not ours.is_closed


@virtual_time
async def test_a_dial_that_lost_its_race_returns_the_survivor() -> None:
    network = MemoryNetwork(latency={address_of(0): 0.2, address_of(1): 0.1})
    async with swarms(network=network) as (small, large):
        _, dialled = await asyncio.gather(
            small.dial(peer(1), [address_of(1)]), large.dial(peer(0), [address_of(0)])
        )
        assert dialled.direction is Direction.INBOUND
        assert len(large.connections()) == 2


@virtual_time
async def test_a_twin_with_streams_is_not_closed_under_them() -> None:
    network = MemoryNetwork(latency={address_of(0): 0.1, address_of(1): 0.1})
    async with swarms(network=network) as (small, large):
        held = Held()
        small.set_handler(HELD, held.handle)
        echo.register(large)
        await asyncio.gather(
            small.dial(peer(1), [address_of(1)]), large.dial(peer(0), [address_of(0)])
        )
        (lost,) = [c for c in large.connections() if c.direction is Direction.OUTBOUND]
        stream = await large.open_stream(peer(0), [HELD], connection=lost)
        await asyncio.sleep(60.0)
        assert not lost.is_closed
        # New streams go to the survivor meanwhile.
        other = await large.open_stream(peer(0), [HELD])
        assert other.connection is not lost
        held.release.set()
        assert await stream.read() == b""
        await stream.aclose()
        await asyncio.sleep(10.0)
        assert lost.is_closed
        assert len(large.connections()) == 1


@virtual_time
async def test_a_connection_asked_for_by_name_is_no_twin() -> None:
    async with swarms() as (small, large):
        await connected(small, large)
        await connected(large, small)
        await asyncio.sleep(60.0)
        assert len(small.connections()) == 2


@virtual_time
async def test_inbound_circuits_can_be_handed_in_and_know_their_limits() -> None:
    network = MemoryNetwork(limits=CircuitLimits(duration=120.0, data=1 << 17))
    async with swarms(network=network) as (here, there):
        await there.listen([CIRCUIT])
        connection = await here.dial(peer(1), [CIRCUIT])
        assert connection.relay == RELAY
        assert connection.limits == CircuitLimits(120.0, 1 << 17)
        assert (await here.dial(peer(1), [address_of(1)])) is connection


# --------------------------------------------------------------------- life


@virtual_time
async def test_leaving_tells_the_peers_and_cancels_handlers() -> None:
    network = MemoryNetwork()
    async with swarms(1, network=network) as (there,):
        held = Held()
        there.set_handler(HELD, held.handle)
        store = Peerstore(None)
        async with Swarm(key=KEYS[1], peerstore=store, events=EventBus()) as here:
            here.add_transport(network.transport(KEYS[1]))
            await here.dial(peer(0), [address_of(0)])
            await here.open_stream(peer(0), [HELD])
            await held.count(1)
            (far,) = there.connections()
        error = await far.wait_closed()
        assert error.code == CloseCode.SHUTDOWN
        store.close()
        # The handler is given its grace, then cancelled, and its stream ended.
        await asyncio.sleep(6.0)
        assert there.connections() == ()
        assert held.streams[0].closed


@virtual_time
async def test_handlers_may_finish_after_their_connections_end() -> None:
    finished: list[bool] = []

    async def slow_to_end(stream: Stream) -> None:
        with contextlib.suppress(ConnectionClosedError):
            await stream.read()
        await asyncio.sleep(2.0)
        finished.append(True)

    async with swarms() as (here, there):
        there.set_handler(HELD, slow_to_end)
        connection, _ = await connected(here, there)
        await here.open_stream(peer(1), [HELD])
        await connection.close()
        await asyncio.sleep(3.0)
        assert finished == [True]


@virtual_time
async def test_all_addresses_are_listened_on_or_none() -> None:
    async with swarms(1) as (here,):
        one, two = Multiaddr.for_tcp("203.0.113.1", 1), Multiaddr.for_tcp("203.0.113.1", 2)
        with pytest.raises(ConfigError, match="in use"):
            await here.listen([one, address_of(0)])
        with pytest.raises(ConfigError, match="cannot listen on"):
            await here.listen([one, Multiaddr.parse("/ip4/1.2.3.4/tcp/80/ws")])
        assert list(here.listen_addresses) == [address_of(0)]
        assert await here.listen([one, two]) == (one, two)
        assert list(here.listen_addresses) == [address_of(0), one, two]


@virtual_time
async def test_address_changes_are_published_with_the_whole_set() -> None:
    async with swarms(1) as (here,):
        with here.events.subscribe() as events:
            here.set_announced([Multiaddr.for_tcp("198.51.100.9", 4001)])
            here.set_circuit_addresses([CIRCUIT])
            await events.next()
            event = await events.next()
        expected = (Multiaddr.for_tcp("198.51.100.9", 4001), CIRCUIT, address_of(0))
        assert event == AddressesChanged(expected)
        assert here.own_addresses == expected


@virtual_time
async def test_refusals_make_one_log_line_however_many_they_are() -> None:
    async with swarms() as (here, there):
        there.gate = lambda _connection: "NOT_ALLOWED"

        async def be_refused(times: int) -> list[MutableMapping[str, Any]]:
            with structlog.testing.capture_logs() as lines:
                for _ in range(times):
                    refused = await here.dial(peer(1), [address_of(1)], force_new=True)
                    await refused.wait_closed()
            return [line for line in lines if line["event"] == "connection refused"]

        (line,) = await be_refused(20)
        assert line["reason"] == "NOT_ALLOWED"
        await asyncio.sleep(REFUSAL_LOG_INTERVAL)  # of virtual time
        (later,) = await be_refused(2)
        assert later["refused"] == 20
