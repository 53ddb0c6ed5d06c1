from __future__ import annotations

import asyncio
import itertools
import os

import pytest
from tests.memory_nodes import connected, peer, swarms
from tests.memory_transport import WINDOW
from tests.virtual_time import virtual_time

from dep2p_daemon.errors import ProtocolViolationError, StreamResetError
from dep2p_daemon.muxed import CloseCode, Stream, read_exactly
from dep2p_daemon.protocols import echo, perf


@virtual_time
async def test_echo_sends_everything_back_and_then_the_end() -> None:
    payload = os.urandom(4 * 1024 * 1024 + 1)
    async with swarms() as (here, there):
        echo.register(there)
        await connected(here, there)
        stream = await here.open_stream(peer(1), [echo.PROTOCOL])

        async def send() -> None:
            await stream.write(payload)
            await stream.close_write()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send())
            assert await read_exactly(stream, len(payload)) == payload
            assert await stream.read() == b""
        assert stream.closed


@virtual_time
async def test_echo_does_not_read_from_who_does_not_read() -> None:
    async with swarms() as (here, there):
        echo.register(there)
        await connected(here, there)
        stream = await here.open_stream(peer(1), [echo.PROTOCOL])
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while True:
                await stream.write(bytes(1024))
                sent += 1024

        flooding = asyncio.create_task(flood())
        await asyncio.sleep(30.0)
        # One window towards the echo, one back, and the piece in its hands.
        assert sent <= 2 * WINDOW + 128 * 1024
        flooding.cancel()
        stream.reset()


@virtual_time
async def test_perf_moves_what_was_asked_in_both_directions() -> None:
    async with swarms() as (here, there):
        perf.register(there)
        await connected(here, there)
        for up, down in ((3_000_000, 2_000_001), (0, 10), (10, 0), (0, 0)):
            stream = await here.open_stream(peer(1), [perf.PROTOCOL])
            reports = [
                report
                async for report in perf.measure(stream, upload_bytes=up, download_bytes=down)
            ]
            assert len(reports) == 1
            (last,) = reports
            assert last.final
            assert (last.uploaded, last.downloaded) == (up, down)
            assert last.upload_time is not None
            assert last.download_time is not None
            assert stream.closed
        await asyncio.sleep(1.0)
        assert here.connections()[0].streams == ()


@virtual_time
async def test_perf_reports_each_second_while_data_moves() -> None:
    async def slow(stream: Stream) -> None:
        wanted = int.from_bytes(await read_exactly(stream, 8), "big")
        while True:
            data = await stream.read(64 * 1024)
            await asyncio.sleep(0.25)
            if not data:
                break
        for _ in range(wanted // 1000):
            await stream.write(bytes(1000))
            await asyncio.sleep(0.25)
        await stream.aclose()

    async with swarms() as (here, there):
        there.set_handler(perf.PROTOCOL, slow)
        await connected(here, there)
        stream = await here.open_stream(peer(1), [perf.PROTOCOL])
        reports = [
            report
            async for report in perf.measure(stream, upload_bytes=2 << 20, download_bytes=10_000)
        ]
        assert len(reports) > 5
        assert [report.final for report in reports] == [False] * (len(reports) - 1) + [True]
        for before, after in itertools.pairwise(reports):
            assert after.elapsed - before.elapsed >= 0.99 or after.final
            assert after.uploaded >= before.uploaded
            assert after.downloaded >= before.downloaded
        assert reports[-1].upload_time == pytest.approx(8.25, abs=1.0)
        assert reports[-1].download_time == pytest.approx(2.5, abs=0.3)


@pytest.mark.parametrize("sent", [9, 11])
def test_a_server_that_sends_another_amount_is_found_out(sent: int) -> None:
    async def wrong(stream: Stream) -> None:
        while await stream.read():
            pass
        await stream.write(bytes(sent))
        await stream.aclose()

    @virtual_time
    async def run() -> None:
        async with swarms() as (here, there):
            there.set_handler(perf.PROTOCOL, wrong)
            await connected(here, there)
            stream = await here.open_stream(peer(1), [perf.PROTOCOL])
            with pytest.raises(ProtocolViolationError, match="10 were asked for"):
                async for _ in perf.measure(stream, upload_bytes=0, download_bytes=10):
                    pass
            assert stream.closed

    run()


@virtual_time
async def test_a_measurement_that_is_left_resets_its_stream() -> None:
    async def silent(stream: Stream) -> None:
        await read_exactly(stream, 8)
        await asyncio.sleep(6.0)
        with pytest.raises(StreamResetError) as caught:
            await stream.read(1)
        ends.append(caught.value)

    ends: list[Exception] = []
    async with swarms() as (here, there):
        there.set_handler(perf.PROTOCOL, silent)
        connection, _ = await connected(here, there)
        stream = await here.open_stream(peer(1), [perf.PROTOCOL])
        measuring = perf.measure(stream, upload_bytes=1 << 30, download_bytes=0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5.0):
                await anext(measuring)
        await measuring.aclose()
        assert stream.closed
        await asyncio.sleep(2.0)
        assert connection.streams == ()
        assert len(ends) == 1


@virtual_time
async def test_perf_streams_of_one_peer_are_capped() -> None:
    async with swarms() as (here, there):
        perf.register(there)
        await connected(here, there)
        for _ in range(8):
            await here.open_stream(peer(1), [perf.PROTOCOL])
        with pytest.raises(StreamResetError) as caught:
            await (await here.open_stream(peer(1), [perf.PROTOCOL])).read()
        assert caught.value.code == CloseCode.RESOURCE_LIMIT_EXCEEDED
