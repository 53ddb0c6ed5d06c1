"""Windows, pacing and congestion control together, on a simulated line and virtual time."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from tests.simulated_link import Reader, SimulatedLink, push, simulate

from dep2p_daemon.quic.settings import KIB, MIB, QuicSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dep2p_daemon.muxed import Stream

JUMBO = QuicSettings(max_datagram_size=8900)
"""Fewer packets for the same bytes: a test's second is the processor's."""


@asynccontextmanager
async def running(*work: Any) -> AsyncIterator[None]:
    """Coroutines that run until the end of the block."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def mbit(reader: Reader, seconds: float) -> float:
    """What a reader gets in so many seconds from now."""
    before = reader.received
    await asyncio.sleep(seconds)
    return (reader.received - before) * 8e-6 / seconds


def window_of(stream: Stream) -> Any:
    return stream.window  # type: ignore[attr-defined]


def test_a_gigabit_over_100_ms_is_filled() -> None:
    async def scenario() -> None:
        async with SimulatedLink(
            rate_mbit=1000, round_trip=0.1, dialler=JUMBO, listener=JUMBO
        ) as link:
            ours, theirs = await link.stream()
            reader = Reader(theirs)
            async with running(push(ours), reader.run()):
                await asyncio.sleep(1.8)
                assert await mbit(reader, 0.5) >= 900
            assert window_of(theirs).size >= link.bdp * 4 / 3
            assert link.recovery.congestion_window >= link.bdp

    simulate(scenario())


def test_a_slow_reader_gets_no_larger_window_than_it_had() -> None:
    async def scenario() -> None:
        async with SimulatedLink(rate_mbit=1000, round_trip=0.1) as link:
            ours, theirs = await link.stream()
            reader = Reader(theirs, bytes_per_second=250_000)
            async with running(push(ours), reader.run()):
                assert 1.8 <= await mbit(reader, 10.0) <= 2.2
            settings = QuicSettings()
            assert window_of(theirs).size == settings.initial_stream_window
            memory = link.listener.context.memory
            assert memory.used <= settings.initial_connection_window

    simulate(scenario())


def test_a_reader_that_stops_holds_a_window_and_its_neighbour_goes_on() -> None:
    async def scenario() -> None:
        async with SimulatedLink(
            rate_mbit=200, round_trip=0.05, dialler=JUMBO, listener=JUMBO
        ) as link:
            first, second = await link.stream(), await link.stream()
            stalling, going = Reader(first[1]), Reader(second[1])
            async with running(push(first[0]), push(second[0]), going.run()):
                async with running(stalling.run()):
                    await asyncio.sleep(2)
                assert await mbit(going, 1.0) >= 120  # it has the line to itself, soon
                unread = first[1].unread_bytes  # type: ignore[attr-defined]
                assert unread == link.listener.context.memory.used
                assert unread <= window_of(first[1]).size <= 6 * link.bdp
                assert await mbit(going, 1.0) >= 170
                assert first[1].unread_bytes == unread  # type: ignore[attr-defined]

    simulate(scenario())


def test_memory_of_a_connection_stays_below_its_bound_whatever_its_streams_do() -> None:
    bound = 3 * MIB
    settings = QuicSettings(
        max_datagram_size=8900,
        max_connection_unread=bound,
        max_connection_window=2 * MIB,
        initial_stream_window=256 * KIB,
    )

    async def scenario() -> None:
        async with SimulatedLink(
            rate_mbit=400, round_trip=0.02, dialler=JUMBO, listener=settings
        ) as link:
            streams = [await link.stream() for _ in range(16)]
            readers = [Reader(theirs) for _, theirs in streams]
            async with running(*(push(ours) for ours, _ in streams)):
                async with running(*(reader.run() for reader in readers)):
                    await asyncio.sleep(1)
                await asyncio.sleep(1)
                assert MIB < link.listener.context.memory.used <= bound

    simulate(scenario())


def test_after_an_idle_time_the_window_is_the_first_again() -> None:
    async def scenario() -> None:
        async with SimulatedLink(rate_mbit=100, round_trip=0.05) as link:
            ours, theirs = await link.stream()
            reader = Reader(theirs)
            async with running(reader.run()):
                async with running(push(ours)):
                    await asyncio.sleep(1)
                await asyncio.sleep(1)
                assert link.recovery.congestion_window > 300_000
                await asyncio.sleep(2)
                sent = link.forward.sent
                await ours.write(bytes(200_000))
                await asyncio.sleep(0.04)  # before the first acknowledgement
                assert link.forward.sent - sent <= 12

    simulate(scenario())
