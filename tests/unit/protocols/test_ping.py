from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from tests.memory_nodes import address_of, connected, peer, swarms
from tests.virtual_time import virtual_time

from dep2p_daemon.errors import (
    ConnectionClosedError,
    DialTimeoutError,
    ProtocolNotSupportedError,
    ProtocolViolationError,
    StreamResetError,
)
from dep2p_daemon.muxed import CloseCode, Stream, read_exactly
from dep2p_daemon.protocols import ping


@virtual_time
async def test_a_peer_is_dialled_and_pinged_on_one_stream() -> None:
    async with swarms() as (here, there):
        ping.register(there)
        async with aclosing(ping.ping(here, peer(1), addresses=[address_of(1)])) as rtts:
            measured = [await anext(rtts) for _ in range(5)]
            (connection,) = here.connections(peer(1))
            assert len(list(connection.streams)) == 1
        assert len(measured) == 5
        assert connection.rtt is not None
        assert list(connection.streams) == []


@virtual_time
async def test_the_round_trip_is_measured_and_smoothed() -> None:
    delays = [0.2, 1.0]

    async def slow(stream: Stream) -> None:
        while True:
            data = await read_exactly(stream, ping.PING_BYTES)
            await asyncio.sleep(delays.pop(0))
            await stream.write(data)

    async with swarms() as (here, there):
        there.set_handler(ping.PROTOCOL, slow)
        connection, _ = await connected(here, there)
        async with aclosing(ping.ping(here, connection)) as rtts:
            assert await anext(rtts) == pytest.approx(0.2)
            assert connection.rtt == pytest.approx(0.2)
            assert await anext(rtts) == pytest.approx(1.0)
            assert connection.rtt == pytest.approx(0.2 + 0.8 / 8)


@virtual_time
async def test_a_long_series_gets_a_new_stream_before_others_would_end_it() -> None:
    opened: list[Stream] = []

    async def short_lived(stream: Stream) -> None:
        """As go-libp2p: the stream ends 30 s after its start, whatever happens."""
        opened.append(stream)
        async with asyncio.timeout(30.0):
            while True:
                await stream.write(await read_exactly(stream, ping.PING_BYTES))

    async with swarms() as (here, there):
        there.set_handler(ping.PROTOCOL, short_lived)
        connection, _ = await connected(here, there)
        async with aclosing(ping.ping(here, connection)) as rtts:
            for _ in range(60):
                await anext(rtts)
                await asyncio.sleep(1.0)
        assert len(opened) == 3


@pytest.mark.parametrize("end", ["closes", "resets"])
def test_a_stream_that_the_peer_tires_of_is_replaced(end: str) -> None:
    async def once(stream: Stream) -> None:
        await stream.write(await read_exactly(stream, ping.PING_BYTES))
        await asyncio.sleep(0.5)
        if end == "closes":
            await stream.aclose()
        else:
            stream.reset()

    @virtual_time
    async def run() -> None:
        async with swarms() as (here, there):
            there.set_handler(ping.PROTOCOL, once)
            connection, _ = await connected(here, there)
            async with aclosing(ping.ping(here, connection)) as rtts:
                for _ in range(3):
                    await anext(rtts)
                    await asyncio.sleep(1.0)

    run()


@virtual_time
async def test_silence_is_a_timeout_and_wrong_bytes_are_a_violation() -> None:
    async def silent(stream: Stream) -> None:
        await asyncio.sleep(60.0)

    async def wrong(stream: Stream) -> None:
        await read_exactly(stream, ping.PING_BYTES)
        await stream.write(bytes(ping.PING_BYTES))

    async with swarms() as (here, there):
        connection, _ = await connected(here, there)
        there.set_handler(ping.PROTOCOL, silent)
        with pytest.raises(DialTimeoutError, match="within 10 s"):
            await anext(ping.ping(here, connection))
        there.remove_handler(ping.PROTOCOL)
        there.set_handler(ping.PROTOCOL, wrong)
        with pytest.raises(ProtocolViolationError, match="other bytes"):
            await anext(ping.ping(here, connection))
        there.remove_handler(ping.PROTOCOL)
        with pytest.raises(ProtocolNotSupportedError):
            await anext(ping.ping(here, connection))
        await connection.close()
        with pytest.raises(ConnectionClosedError):
            await anext(ping.ping(here, connection))


@virtual_time
async def test_a_third_stream_of_one_peer_is_refused_and_silence_ends_one() -> None:
    async with swarms() as (here, there):
        ping.register(there)
        _, far = await connected(here, there)
        first = await here.open_stream(peer(1), [ping.PROTOCOL])
        second = await here.open_stream(peer(1), [ping.PROTOCOL])
        # The reset may overtake the answer of the negotiation.
        with pytest.raises(StreamResetError) as caught:
            await (await here.open_stream(peer(1), [ping.PROTOCOL])).read()
        assert caught.value.code == CloseCode.RESOURCE_LIMIT_EXCEEDED
        await second.write(bytes(32))
        assert await read_exactly(second, 32) == bytes(32)
        await second.aclose()
        with pytest.raises(StreamResetError):
            await first.read()
        assert asyncio.get_running_loop().time() == ping.IDLE_TIMEOUT
        assert far.streams == ()
