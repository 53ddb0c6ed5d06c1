"""Streams over real sockets: bytes, ends, codes, backpressure, limits."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.waiting import turns, until

from dep2p_daemon.errors import InvalidArgumentError, LocalError, StreamResetError
from dep2p_daemon.muxed import CloseCode, Direction
from dep2p_daemon.quic.settings import KIB, MIB, QuicSettings

MakeNode = Callable[..., Awaitable[Any]]
LOOPBACK = "/ip4/127.0.0.1/udp/0/quic-v1"


async def pair(
    make_node: MakeNode, server: QuicSettings | None = None, client: QuicSettings | None = None
) -> Any:
    return await (await make_node(client)).dial(await make_node(server, listen=LOOPBACK))


async def stream_pair(make_node: MakeNode) -> Any:
    """A stream's two ends, each having written one byte."""
    ours, theirs = await pair(make_node)
    stream = await ours.open_stream()
    await stream.write(b"o")
    inbound = await theirs.accept_stream()
    await inbound.write(b"t")
    assert await inbound.read() == b"o"
    assert await stream.read() == b"t"
    return stream, inbound


async def read_all(stream: Any) -> bytes:
    chunks = []
    while data := await stream.read():
        chunks.append(data)
    return b"".join(chunks)


async def test_a_large_echo_arrives_intact(make_node: MakeNode) -> None:
    ours, theirs = await pair(make_node)
    data = b"".join(hashlib.sha256(bytes([i % 256])).digest() for i in range(4 * MIB // 32))

    async def echo() -> None:
        inbound = await theirs.accept_stream()
        while chunk := await inbound.read():
            await inbound.write(chunk)
        await inbound.close_write()

    async def send() -> None:
        await stream.write(data)
        await stream.close_write()

    stream = await ours.open_stream()
    async with asyncio.TaskGroup() as group:
        group.create_task(echo())
        group.create_task(send())
        received = await read_all(stream)
    assert received == data
    assert stream.traffic.sent == stream.traffic.received == len(data)
    assert ours.traffic.sent == len(data)
    assert theirs.traffic.received == len(data)


async def test_streams_do_not_mix(make_node: MakeNode) -> None:
    ours, theirs = await pair(make_node)
    streams = [await ours.open_stream() for _ in range(50)]
    backward = [await theirs.open_stream() for _ in range(50)]

    async def talk(stream: Any, text: bytes) -> None:
        for _ in range(20):
            await stream.write(text)
            await asyncio.sleep(0)
        await stream.close_write()

    async def check(stream: Any) -> None:
        content = await read_all(stream)
        assert content == b"%d," % stream.id * 20
        await stream.aclose()

    async with asyncio.TaskGroup() as group:
        for stream in [*streams, *backward]:
            group.create_task(talk(stream, b"%d," % stream.id))
        for connection in (ours, theirs):
            for _ in range(50):
                inbound = await connection.accept_stream()
                assert inbound.direction is Direction.INBOUND
                group.create_task(check(inbound))


async def test_half_close_both_ways(make_node: MakeNode) -> None:
    stream, inbound = await stream_pair(make_node)
    await stream.write(b"request")
    await stream.close_write()
    await stream.close_write()
    assert await read_all(inbound) == b"request"
    assert await inbound.read() == b""
    assert not inbound.closed
    with pytest.raises(LocalError):
        await stream.write(b"more")
    await inbound.write(b"late answer")
    await inbound.close_write()
    assert await read_all(stream) == b"late answer"
    assert stream.closed
    assert inbound.closed
    assert stream.connection.streams == ()
    assert inbound.connection.streams == ()


@pytest.mark.parametrize("code", [0, CloseCode.RATE_LIMITED, (1 << 32) - 1, (1 << 62) - 1])
async def test_reset_ends_both_halves_with_its_code(make_node: MakeNode, code: int) -> None:
    stream, inbound = await stream_pair(make_node)
    reading = asyncio.create_task(stream.read())
    await asyncio.sleep(0)
    inbound.reset(code)
    inbound.reset(7)  # the first one counts
    with pytest.raises(StreamResetError) as caught:
        await reading
    assert (caught.value.code, caught.value.remote) == (code, True)
    await until(lambda: stream.closed)
    with pytest.raises(StreamResetError) as caught:
        await stream.write(b"x")
    assert (caught.value.code, caught.value.remote) == (code, True)
    with pytest.raises(StreamResetError) as caught:
        await inbound.read()
    assert (caught.value.code, caught.value.remote) == (code, False)
    assert inbound.connection.streams == stream.connection.streams == ()


@pytest.mark.parametrize("code", [-1, 1 << 62])
async def test_a_code_that_does_not_fit_is_refused(make_node: MakeNode, code: int) -> None:
    stream, _ = await stream_pair(make_node)
    for refuse in (stream.reset, stream.stop_reading):
        with pytest.raises(InvalidArgumentError):
            refuse(code)


async def test_stop_reading_ends_the_writer_only(make_node: MakeNode) -> None:
    stream, inbound = await stream_pair(make_node)
    inbound.stop_reading(CloseCode.RATE_LIMITED)
    await until(lambda: not stream.sending)
    with pytest.raises(StreamResetError) as caught:
        await stream.write(b"x")
    assert (caught.value.code, caught.value.remote) == (CloseCode.RATE_LIMITED, True)
    await inbound.write(b"the other way goes on")
    await inbound.close_write()
    assert await read_all(stream) == b"the other way goes on"


async def test_a_reset_before_any_byte_frees_the_stream(make_node: MakeNode) -> None:
    ours, theirs = await pair(make_node)
    for _ in range(600):  # more than the peer allows at a time
        stream = await ours.open_stream()
        stream.reset(1)
        inbound = await theirs.accept_stream()
        with pytest.raises(StreamResetError):
            await inbound.read()
        await inbound.aclose()
    assert ours.streams == theirs.streams == ()


async def test_aclose_ends_both_halves(make_node: MakeNode) -> None:
    stream, inbound = await stream_pair(make_node)
    await stream.aclose()
    assert await inbound.read() == b""
    await until(lambda: not inbound.sending)
    with pytest.raises(StreamResetError):
        await inbound.write(b"x")
    assert stream.closed


async def test_two_readers_or_writers_are_told(make_node: MakeNode) -> None:
    stream, _ = await stream_pair(make_node)
    reading = asyncio.create_task(stream.read())
    writing = asyncio.create_task(stream.write(bytes(8 * MIB)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(LocalError):
        await stream.read()
    with pytest.raises(LocalError):
        await stream.write(b"x")
    for task in (reading, writing):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_reader_that_stops_bounds_memory_and_then_completes(make_node: MakeNode) -> None:
    ours, theirs = await pair(make_node)
    stream = await ours.open_stream()
    block = bytes(range(256)) * 256
    blocks = 400  # 25 MiB
    written = 0

    async def push() -> None:
        nonlocal written
        for _ in range(blocks):
            await stream.write(block)
            written += len(block)
        await stream.close_write()

    async with asyncio.TaskGroup() as group:
        group.create_task(push())
        inbound = await theirs.accept_stream()
        # The writer stalls once the windows and its buffer are full: nothing else moves it.
        settings = QuicSettings()
        full = settings.initial_stream_window
        await until(lambda: inbound.unread_bytes >= full)
        before = -1
        while before != written:
            before = written
            await turns(50)
        assert written <= full + settings.send_buffer
        assert theirs._session.unread_bytes == full
        assert theirs._session._context.memory.used == full
        received = hashlib.sha256(await read_all(inbound))
    assert received.digest() == hashlib.sha256(block * blocks).digest()
    assert theirs._session._context.memory.used == 0


async def test_a_slow_stream_does_not_hold_up_others(make_node: MakeNode) -> None:
    ours, theirs = await pair(make_node)
    stuck = await ours.open_stream()
    writing = asyncio.create_task(stuck.write(bytes(4 * MIB)))
    slow = await theirs.accept_stream()
    await until(lambda: slow.unread_bytes == QuicSettings().initial_stream_window)
    brisk = await ours.open_stream()
    await brisk.write(b"hello")
    assert await (await theirs.accept_stream()).read() == b"hello"
    assert not writing.done()
    writing.cancel()


async def filled(stream: Any, window: int) -> None:
    await until(lambda: stream.unread_bytes == window)


async def test_many_stalled_streams_do_not_hold_up_others(make_node: MakeNode) -> None:
    ours, theirs = await pair(make_node)
    window = QuicSettings().initial_stream_window
    writing = []
    for _ in range(8):  # together four times the connection's first window
        stuck = await ours.open_stream()
        writing.append(asyncio.create_task(stuck.write(bytes(2 * window))))
        slow = await theirs.accept_stream()
        await filled(slow, window)
    brisk = await ours.open_stream()
    await brisk.write(b"hello")
    assert await (await theirs.accept_stream()).read() == b"hello"
    assert not any(task.done() for task in writing)
    for task in writing:
        task.cancel()


async def test_unread_bytes_of_a_connection_have_a_bound(make_node: MakeNode) -> None:
    bound = 2 * MIB
    settings = QuicSettings(max_connection_unread=bound, max_connection_window=1 * MIB)
    ours, theirs = await pair(make_node, server=settings)
    streams = [await ours.open_stream() for _ in range(16)]
    writing = [asyncio.create_task(stream.write(bytes(1 * MIB))) for stream in streams]
    await until(lambda: theirs._session.streams.unread_bytes >= bound)
    await turns(200)
    assert theirs._session.streams.unread_bytes <= bound
    for task in writing:
        task.cancel()


async def test_the_window_grows_while_the_reader_consumes(make_node: MakeNode) -> None:
    # 16 MiB through windows that begin far below what is in flight at this speed.
    settings = QuicSettings(initial_stream_window=16 * KIB, initial_connection_window=32 * KIB)
    ours, theirs = await pair(make_node, server=settings)
    stream = await ours.open_stream()

    async def push() -> None:
        await stream.write(bytes(16 * MIB))
        await stream.close_write()

    async with asyncio.TaskGroup() as group:
        group.create_task(push())
        inbound = await theirs.accept_stream()
        assert len(await read_all(inbound)) == 16 * MIB
    assert settings.initial_stream_window < inbound.window.size <= settings.max_stream_window
    assert theirs._session.streams._window.size >= inbound.window.size


async def test_out_of_receive_memory_the_worst_connection_goes(make_node: MakeNode) -> None:
    server = await make_node(
        QuicSettings(receive_memory=700 * KIB, initial_stream_window=512 * KIB), listen=LOOPBACK
    )
    greedy, modest = await make_node(), await make_node()
    modest_ours, modest_theirs = await modest.dial(server)
    greedy_ours, greedy_theirs = await greedy.dial(server)
    quiet = await modest_ours.open_stream()
    await quiet.write(bytes(64 * KIB))
    await modest_theirs.accept_stream()
    await until(lambda: modest_theirs._session.unread_bytes == 64 * KIB)

    async def push() -> None:
        stream = await greedy_ours.open_stream()
        await stream.write(bytes(2 * MIB))

    tasks = [asyncio.create_task(push()) for _ in range(2)]
    error = await greedy_ours.wait_closed()
    assert error.code == CloseCode.RESOURCE_LIMIT_EXCEEDED
    assert greedy_theirs.is_closed
    assert not modest_theirs.is_closed
    assert server.transport.context.memory.used == 64 * KIB
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_stream_limit_holds_and_is_replenished(make_node: MakeNode) -> None:
    ours, theirs = await pair(make_node, server=QuicSettings(max_inbound_streams=4))
    streams = [await ours.open_stream() for _ in range(4)]
    waiting = asyncio.create_task(ours.open_stream())
    cancelled = asyncio.create_task(ours.open_stream())
    await asyncio.sleep(0)
    assert not waiting.done()
    cancelled.cancel()
    for stream in streams:
        await stream.write(b"x")
        await stream.close_write()
        inbound = await theirs.accept_stream()
        assert await read_all(inbound) == b"x"
        await inbound.close_write()
        assert await stream.read() == b""
    fifth = await waiting
    assert fifth.id > streams[-1].id
    await fifth.write(b"y")
    assert await (await theirs.accept_stream()).read() == b"y"


async def test_many_streams_one_after_the_other_leave_nothing(make_node: MakeNode) -> None:
    ours, theirs = await pair(make_node)
    for number in range(1000):
        stream = await ours.open_stream()
        await stream.write(b"%d" % number)
        await stream.close_write()
        inbound = await theirs.accept_stream()
        assert await read_all(inbound) == b"%d" % number
        await inbound.aclose()
        await stream.aclose()
    for connection in (ours, theirs):
        await until(lambda c=connection: not c._session.streams._ended)  # type: ignore[misc]
        assert connection.streams == ()
        assert len(connection._session.quic._streams) == 0
        assert connection._session.quic._streams_queue == []


async def test_what_arrived_whole_is_readable_after_the_close(make_node: MakeNode) -> None:
    stream, inbound = await stream_pair(make_node)
    await stream.write(b"famous last words")
    await stream.close_write()
    await until(lambda: not inbound.receiving)
    await stream.connection.close()
    await inbound.connection.wait_closed()
    assert await read_all(inbound) == b"famous last words"


@pytest.mark.parametrize("size", [1200, 1400, 9000, 16_000, QuicSettings().max_datagram_size])
async def test_datagrams_grow_up_to_what_is_wanted(make_node: MakeNode, size: int) -> None:
    """Loopback carries any; without a setting, datagrams become as large as UDP lets them."""
    settings = QuicSettings(max_datagram_size=size)
    ours, theirs = await pair(make_node, settings, settings)
    stream = await ours.open_stream()
    dice = random.Random(size)
    sent = bytearray()

    async def push() -> None:
        # Who sends little has no use for large ones, and they are not looked for.
        while ours._session.quic.max_datagram_size < size:
            sent.extend(dice.randbytes(MIB))
            await stream.write(sent[-MIB:])
        sent.extend(dice.randbytes(MIB))
        await stream.write(sent[-MIB:])
        await stream.close_write()

    async with asyncio.TaskGroup() as group:
        group.create_task(push())
        assert await read_all(await theirs.accept_stream()) == sent
    socket = ours._session.endpoint._sender
    assert socket.counters.sent_bytes / socket.counters.sent > min(size, 9000) / 2
