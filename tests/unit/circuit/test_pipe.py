from __future__ import annotations

import asyncio
import gc
import weakref
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from tests.memory_transport import WINDOW, MemoryNetwork
from tests.virtual_time import virtual_time

from dep2p_daemon.circuit.events import CloseReason
from dep2p_daemon.circuit.limits import FairQueue, TokenBucket
from dep2p_daemon.circuit.pacing import Pacer, TotalRate
from dep2p_daemon.circuit.pipe import Pipe
from dep2p_daemon.errors import ConnectionClosedError, StreamResetError
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.muxed import CircuitLimits, CloseCode, Connection, Stream, read_exactly

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KIB = 1024


@dataclass
class Ends:
    """A circuit seen from outside: what the two peers hold, and the relay's pipe between."""

    source: Stream
    target: Stream
    pipe: Pipe
    ended: asyncio.Task[CloseReason]


async def connection_to(network: MemoryNetwork, port: int) -> tuple[Connection, Connection]:
    """Return the peer's and the relay's end."""
    relay, peer = (PrivateKey.from_seed(bytes([port, n]) * 16) for n in range(2))
    address = Multiaddr.for_tcp("192.0.2.1", port)
    listener = await network.transport(relay).listen(address)
    ours = await network.transport(peer).dial(address, relay.peer_id)
    return ours, await listener.accept()


@asynccontextmanager
async def circuit(
    limits: CircuitLimits | None = None, pacer: Pacer | None = None, chunk: int = 64 * KIB
) -> AsyncIterator[Ends]:
    network = MemoryNetwork()
    outer_source, inner_source = await connection_to(network, 1)
    outer_target, inner_target = await connection_to(network, 2)
    source, target = await outer_source.open_stream(), await outer_target.open_stream()
    pipe = Pipe(
        await inner_source.accept_stream(),
        await inner_target.accept_stream(),
        pacer=pacer or Pacer(),
        limits=limits,
        chunk=chunk,
    )
    async with asyncio.TaskGroup() as tasks:
        ended = tasks.create_task(pipe.run())
        yield Ends(source, target, pipe, ended)
        ended.cancel()


async def read_all(stream: Stream) -> bytes:
    data = b""
    while chunk := await stream.read():
        data += chunk
    return data


async def send(stream: Stream, data: bytes) -> None:
    await stream.write(data)
    await stream.close_write()


async def test_bytes_pass_both_ways_and_each_half_closes_on_its_own() -> None:
    async with circuit() as ends:
        await send(ends.source, b"a question")
        assert await read_all(ends.target) == b"a question"
        assert not ends.ended.done(), "the other half is open"
        await send(ends.target, b"an answer that comes after the end of the question")
        assert await read_all(ends.source) == b"an answer that comes after the end of the question"
        assert await ends.ended is CloseReason.COMPLETED
        assert ends.pipe.source_to_target == 10
        assert ends.pipe.target_to_source == 50
        assert ends.source.closed
        assert ends.target.closed


async def test_megabytes_pass_intact_in_both_directions_at_once() -> None:
    forth = bytes(range(256)) * 4 * KIB
    back = bytes(reversed(range(256))) * 5 * KIB
    async with circuit() as ends, asyncio.TaskGroup() as tasks:
        tasks.create_task(send(ends.source, forth))
        tasks.create_task(send(ends.target, back))
        got_forth = tasks.create_task(read_all(ends.target))
        got_back = tasks.create_task(read_all(ends.source))
        assert await ends.ended is CloseReason.COMPLETED
        assert await got_forth == forth
        assert await got_back == back
        assert (ends.pipe.source_to_target, ends.pipe.target_to_source) == (len(forth), len(back))


async def test_a_reader_that_stops_reading_stops_its_sender() -> None:
    async with circuit(chunk=64 * KIB) as ends, asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(send(ends.source, bytes(4096 * KIB)))
        await read_exactly(ends.target, 1)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert not sending.done()
        # Two windows, the chunk in the pipe's hands and the byte that was read.
        assert ends.source.traffic.sent <= 2 * WINDOW + 64 * KIB + 1
        rest = await read_all(ends.target)
        assert len(rest) == 4096 * KIB - 1
        await sending


@pytest.mark.parametrize("by_source", [True, False])
async def test_a_reset_passes_through_with_its_code_and_blame(by_source: bool) -> None:
    async with circuit() as ends:
        culprit, victim = (ends.source, ends.target) if by_source else (ends.target, ends.source)
        await culprit.write(b"x")
        await read_exactly(victim, 1)
        culprit.reset(CloseCode.RATE_LIMITED)
        with pytest.raises(StreamResetError) as raised:
            await victim.read()
        assert raised.value.code == CloseCode.RATE_LIMITED
        expected = CloseReason.RESET_BY_SOURCE if by_source else CloseReason.RESET_BY_TARGET
        assert await ends.ended is expected


@pytest.mark.parametrize("by_source", [True, False])
async def test_a_lost_connection_resets_the_other_side(by_source: bool) -> None:
    async with circuit() as ends:
        lost, left = (ends.source, ends.target) if by_source else (ends.target, ends.source)
        await lost.connection.close()
        with pytest.raises(StreamResetError):
            await left.read()
        expected = CloseReason.SOURCE_DISCONNECTED if by_source else CloseReason.TARGET_DISCONNECTED
        assert await ends.ended is expected


async def test_a_lost_connection_is_noticed_while_the_other_side_does_not_read() -> None:
    async with circuit() as ends, asyncio.TaskGroup() as tasks:

        async def push_until_reset() -> None:
            with pytest.raises(StreamResetError):
                await ends.source.write(bytes(4096 * KIB))

        tasks.create_task(push_until_reset())
        await read_exactly(ends.target, 1)
        await ends.target.connection.close()
        assert await ends.ended is CloseReason.TARGET_DISCONNECTED


async def test_a_target_that_stops_reading_for_good_may_still_answer() -> None:
    async with circuit() as ends:
        ends.target.stop_reading(7)
        with pytest.raises(StreamResetError) as raised:
            await ends.source.write(bytes(4096 * KIB))
        assert raised.value.code == 7
        await send(ends.target, b"no, thank you")
        assert await read_all(ends.source) == b"no, thank you"
        assert await ends.ended is CloseReason.RESET_BY_TARGET


@virtual_time
async def test_the_volume_limit_resets_both_sides_and_never_looks_like_an_end() -> None:
    async with circuit(CircuitLimits(None, 100 * KIB)) as ends:
        await ends.source.write(bytes(100 * KIB))
        await read_exactly(ends.target, 100 * KIB)
        await ends.source.write(b"x")
        for stream in (ends.source, ends.target):
            with pytest.raises(StreamResetError) as raised:
                await stream.read()
            assert raised.value.code == CloseCode.RESOURCE_LIMIT_EXCEEDED
        assert await ends.ended is CloseReason.DATA_LIMIT
        assert ends.pipe.source_to_target == 100 * KIB


@virtual_time
async def test_a_transfer_that_fills_the_volume_exactly_completes() -> None:
    async with circuit(CircuitLimits(None, 100 * KIB)) as ends:
        await send(ends.source, bytes(100 * KIB))
        assert len(await read_all(ends.target)) == 100 * KIB
        await send(ends.target, bytes(100 * KIB))
        assert len(await read_all(ends.source)) == 100 * KIB
        assert await ends.ended is CloseReason.COMPLETED


@virtual_time
async def test_the_duration_limit_resets_both_sides_on_time() -> None:
    async with circuit(CircuitLimits(120.0, None)) as ends:
        began = asyncio.get_running_loop().time()
        for stream in (ends.source, ends.target):
            with pytest.raises(StreamResetError) as raised:
                await stream.read()
            assert raised.value.code == CloseCode.RESOURCE_LIMIT_EXCEEDED
        assert asyncio.get_running_loop().time() - began == pytest.approx(120.0)
        assert await ends.ended is CloseReason.DURATION_LIMIT


async def test_a_circuit_that_ends_before_its_time_leaves_nothing_that_waits_for_it() -> None:
    async with circuit(CircuitLimits(3600.0, None)) as ends:
        await ends.source.close_write()
        await ends.target.close_write()
        assert await ends.ended is CloseReason.COMPLETED
        ends.pipe.stop(CloseReason.SHUTDOWN, CloseCode.SHUTDOWN)
        assert await ends.source.read() == b"", "a stop after the end changes nothing"
    pipe = weakref.ref(ends.pipe)
    del ends
    gc.collect()
    assert pipe() is None


async def test_a_stopped_pipe_says_why_and_the_first_reason_stands() -> None:
    async with circuit() as ends:
        await asyncio.sleep(0)
        ends.pipe.stop(CloseReason.CLOSED_BY_OPERATOR, CloseCode.GATED)
        ends.pipe.stop(CloseReason.SHUTDOWN, CloseCode.SHUTDOWN)
        with pytest.raises(StreamResetError) as raised:
            await ends.source.read()
        assert raised.value.code == CloseCode.GATED
        assert await ends.ended is CloseReason.CLOSED_BY_OPERATOR


async def test_a_pipe_that_is_stopped_before_it_runs_does_not_run() -> None:
    network = MemoryNetwork()
    far, near = await connection_to(network, 1)
    stream = await far.open_stream()
    inner = await near.accept_stream()
    pipe = Pipe(inner, inner, pacer=Pacer())
    pipe.stop(CloseReason.SHUTDOWN, CloseCode.SHUTDOWN)
    assert await pipe.run() is CloseReason.SHUTDOWN
    with pytest.raises(StreamResetError):
        await stream.read()


async def test_a_cancelled_pipe_resets_both_sides() -> None:
    async with circuit() as ends:
        await asyncio.sleep(0)
        ends.ended.cancel()
        for stream in (ends.source, ends.target):
            with pytest.raises((StreamResetError, ConnectionClosedError)):
                await stream.read()


@virtual_time
async def test_the_rate_slows_and_never_cuts() -> None:
    bucket = TokenBucket(100 * KIB, 0.0)
    async with circuit(pacer=Pacer(1, bucket), chunk=5 * KIB) as ends, asyncio.TaskGroup() as tasks:
        tasks.create_task(send(ends.source, bytes(1000 * KIB)))
        tasks.create_task(send(ends.target, bytes(1000 * KIB)))
        back = tasks.create_task(read_all(ends.source))
        assert len(await read_all(ends.target)) == 1000 * KIB
        assert len(await back) == 1000 * KIB
        # Both directions share the rate: 2000 KiB at 100 KiB/s, less the burst and the last chunks.
        assert 19.5 <= asyncio.get_running_loop().time() <= 20.1
        assert await ends.ended is CloseReason.COMPLETED


@virtual_time
async def test_circuits_share_the_total_rate_fairly() -> None:
    total = TotalRate(FairQueue(100 * KIB, 0.0))
    async with (
        circuit(pacer=Pacer(1, None, total), chunk=5 * KIB) as first,
        circuit(pacer=Pacer(2, None, total), chunk=50 * KIB) as second,
        asyncio.TaskGroup() as tasks,
    ):
        for ends in (first, second):
            tasks.create_task(send(ends.source, bytes(1000 * KIB)))
            tasks.create_task(ends.target.close_write())
        reading = [tasks.create_task(read_all(ends.target)) for ends in (first, second)]
        await asyncio.sleep(10)
        # Equal parts, up to one chunk of each.
        assert first.pipe.source_to_target > 400 * KIB
        difference = first.pipe.source_to_target - second.pipe.source_to_target
        assert abs(difference) <= 55 * KIB
        assert [len(await task) for task in reading] == [1000 * KIB] * 2
        assert 19.0 <= asyncio.get_running_loop().time() <= 20.1
    total.close()


@virtual_time
async def test_a_circuit_that_ends_gives_its_turn_up() -> None:
    total = TotalRate(FairQueue(KIB, 0.0))
    async with circuit(pacer=Pacer(1, None, total)) as ends:
        await ends.source.write(bytes(64 * KIB))
        await ends.source.write(bytes(64 * KIB))
        await read_exactly(ends.target, 64 * KIB)
        ends.pipe.stop(CloseReason.SHUTDOWN, CloseCode.SHUTDOWN)
        assert await ends.ended is CloseReason.SHUTDOWN
    async with circuit(pacer=Pacer(2, None, total)) as ends:
        began = asyncio.get_running_loop().time()
        await ends.source.write(bytes(128 * KIB))
        await read_exactly(ends.target, 128 * KIB)
        # The debt of the first chunk, and one of its own; not what the first had still wanted.
        assert asyncio.get_running_loop().time() - began == pytest.approx(128, abs=1)


@virtual_time
async def test_closing_the_total_rate_lets_everybody_through() -> None:
    total = TotalRate(FairQueue(1, 0.0))
    async with circuit(pacer=Pacer(1, None, total), chunk=KIB) as ends:
        await ends.source.write(bytes(4 * KIB))
        await read_exactly(ends.target, KIB)
        total.close()
        total.close()
        await read_exactly(ends.target, 3 * KIB)
        assert asyncio.get_running_loop().time() < 1
