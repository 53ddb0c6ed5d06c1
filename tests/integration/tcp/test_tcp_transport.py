"""The TCP transport over loopback: two nodes in one process, and strangers with raw sockets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import socket
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from dep2p_daemon.errors import (
    AuthenticationError,
    ConfigError,
    ConnectionClosedError,
    LocalError,
    PeerError,
    PreconditionError,
    StreamResetError,
    UnreachableError,
)
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.muxed import Direction, read_exactly
from dep2p_daemon.tcp import transport as transport_module
from dep2p_daemon.tcp.settings import TcpSettings, YamuxSettings
from dep2p_daemon.tcp.transport import TcpTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dep2p_daemon.muxed import Connection, Stream

LOOPBACK = Multiaddr.for_tcp("127.0.0.1", 0)
KIB = 1024
MIB = 1024 * KIB


@contextlib.asynccontextmanager
async def node(settings: TcpSettings | None = None) -> AsyncIterator[Node]:
    key = PrivateKey.generate()
    async with TcpTransport(key, settings) as transport:
        yield Node(key, transport)


class Node:
    def __init__(self, key: PrivateKey, transport: TcpTransport) -> None:
        self.key = key
        self.peer = key.peer_id
        self.transport = transport

    async def dial(self, other: Multiaddr, peer: Node) -> Connection:
        return await self.transport.dial(other, peer.peer)


@contextlib.asynccontextmanager
async def connected(
    dialler_settings: TcpSettings | None = None, listener_settings: TcpSettings | None = None
) -> AsyncIterator[tuple[Connection, Connection]]:
    """A connection, as its dialler and as its listener have it."""
    async with node(dialler_settings) as alice, node(listener_settings) as bob:
        listener = await bob.transport.listen(LOOPBACK)
        ours = await alice.dial(listener.addresses[0], bob)
        yield ours, await listener.accept()


async def stream_pair(ours: Connection, theirs: Connection) -> tuple[Stream, Stream]:
    stream = await ours.open_stream()
    return stream, await theirs.accept_stream()


async def echo(stream: Stream) -> None:
    while data := await stream.read():
        await stream.write(data)
    await stream.aclose()


async def echo_all(connection: Connection) -> None:
    async with asyncio.TaskGroup() as group:
        with contextlib.suppress(ConnectionClosedError):
            while True:
                group.create_task(echo(await connection.accept_stream()))


async def read_to_end(stream: Stream) -> bytes:
    chunks = []
    while data := await stream.read():
        chunks.append(data)
    return b"".join(chunks)


async def write_forever(stream: Stream) -> None:
    while True:
        await stream.write(bytes(64 * KIB))


async def send_and_end(stream: Stream, data: bytes) -> None:
    await stream.write(data)
    await stream.close_write()


def raw_socket(address: Multiaddr) -> socket.socket:
    sock = socket.create_connection((str(address.host), address.port), timeout=5)
    sock.setblocking(False)
    return sock


async def read_until_closed(sock: socket.socket) -> bytes:
    """What a stranger gets before its connection is closed or reset."""
    loop = asyncio.get_running_loop()
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := await loop.sock_recv(sock, 65536):
            received += data
    return received


# Connections.


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_both_sides_know_each_other(host: str) -> None:
    async with node() as alice, node() as bob:
        listener = await bob.transport.listen(Multiaddr.for_tcp(host, 0))
        (address,) = listener.addresses
        assert alice.transport.can_dial(address)
        ours = await alice.dial(address, bob)
        theirs = await listener.accept()
        assert (ours.local_peer, ours.remote_peer) == (alice.peer, bob.peer)
        assert (theirs.local_peer, theirs.remote_peer) == (bob.peer, alice.peer)
        assert theirs.remote_key == alice.key.public_key
        assert (ours.direction, theirs.direction) == (Direction.OUTBOUND, Direction.INBOUND)
        assert ours.remote_address == address == theirs.local_address
        assert ours.local_address == theirs.remote_address
        assert {(c.security, c.muxer, c.path) for c in (ours, theirs)} == {
            ("/noise", "/yamux/1.0.0", "direct")
        }


async def test_bytes_arrive_in_both_directions_and_are_counted() -> None:
    async with connected() as (ours, theirs):
        stream, other = await stream_pair(ours, theirs)
        data = random.Random(1).randbytes(3 * MIB + 17)
        sending = asyncio.create_task(send_and_end(stream, data))
        echoing = asyncio.create_task(echo(other))
        assert await read_to_end(stream) == data
        await sending
        await echoing
        assert stream.closed
        assert other.closed
        assert ours.traffic == theirs.traffic == stream.traffic == other.traffic
        assert (ours.traffic.sent, ours.traffic.received) == (len(data), len(data))
        assert ours.streams == theirs.streams == ()


async def test_streams_of_both_sides_at_once() -> None:
    async with connected() as (ours, theirs), asyncio.TaskGroup() as group:
        echoes = [group.create_task(echo_all(side)) for side in (ours, theirs)]

        async def ask(connection: Connection, number: int) -> None:
            data = random.Random(number).randbytes(1 + number * 4099)
            stream = await connection.open_stream()
            sending = asyncio.create_task(send_and_end(stream, data))
            assert await read_to_end(stream) == data
            await sending
            await stream.aclose()

        async with asyncio.TaskGroup() as asking:
            for number in range(64):
                asking.create_task(ask(ours, number))
                asking.create_task(ask(theirs, number))
        assert ours.streams == theirs.streams == ()
        await ours.close()
        await asyncio.wait(echoes)


async def test_round_trip_is_known_soon() -> None:
    async with connected() as (ours, theirs):
        stream, other = await stream_pair(ours, theirs)
        # The first ping went out before this.
        await stream.write(b"x")
        await other.read()
        await other.write(b"y")
        await stream.read()
        assert ours.rtt is not None
        assert ours.rtt > 0


async def test_wrong_peer_is_refused_and_the_listener_goes_on() -> None:
    async with node() as alice, node() as bob:
        listener = await bob.transport.listen(LOOPBACK)
        with pytest.raises(AuthenticationError) as caught:
            await alice.transport.dial(listener.addresses[0], PrivateKey.generate().peer_id)
        assert caught.value.reason == "PEER_ID_MISMATCH"
        assert str(listener.addresses[0]) in str(caught.value)
        assert str(bob.peer) in str(caught.value)
        await alice.dial(listener.addresses[0], bob)
        assert (await listener.accept()).remote_peer == alice.peer


async def test_nobody_listens() -> None:
    async with node() as alice:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            address = Multiaddr.for_tcp("127.0.0.1", sock.getsockname()[1])
        with pytest.raises(UnreachableError) as caught:
            await alice.transport.dial(address, alice.peer)
        assert caught.value.reason == "CONNECTION_REFUSED"
        assert str(address) in str(caught.value)
        assert caught.value.remedy


@pytest.mark.parametrize(
    ("greeting", "reason"),
    [
        (b"220 mail.example ESMTP\r\n", "CLOSED_DURING_HANDSHAKE"),
        (b"HTTP/1.1 400 Bad Request\r\n" * 4, "MULTISTREAM_VIOLATION"),
        (b"", "CLOSED_DURING_HANDSHAKE"),
    ],
)
async def test_somebody_who_does_not_speak_libp2p(greeting: bytes, reason: str) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await reader.readline()
        await reader.readline()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server, node() as alice:
        address = Multiaddr.for_tcp(*server.sockets[0].getsockname())
        with pytest.raises(PeerError) as caught:
            await alice.transport.dial(address, alice.peer)
        assert caught.value.reason == reason
        assert str(address) in str(caught.value)


async def test_cancelled_dial_leaves_nothing() -> None:
    gone = asyncio.Event()
    started = asyncio.Event()

    async def stay_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        started.set()
        await reader.read()
        gone.set()
        writer.close()

    server = await asyncio.start_server(stay_silent, "127.0.0.1", 0)
    async with server, node() as alice:
        address = Multiaddr.for_tcp(*server.sockets[0].getsockname())
        dialling = asyncio.create_task(alice.transport.dial(address, alice.peer))
        await started.wait()
        dialling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dialling
        await gone.wait()


# Streams.


async def test_half_close_and_answer() -> None:
    async with connected() as (ours, theirs):
        stream, other = await stream_pair(ours, theirs)
        await send_and_end(stream, b"question")
        await stream.close_write()
        assert await read_to_end(other) == b"question"
        assert not stream.closed
        await send_and_end(other, b"answer")
        assert await read_to_end(stream) == b"answer"
        with pytest.raises(LocalError):
            await stream.write(b"more")


async def test_server_may_speak_first() -> None:
    async with connected() as (ours, theirs):
        stream, other = await stream_pair(ours, theirs)
        await other.write(b"welcome")
        assert await stream.read() == b"welcome"


@pytest.mark.parametrize("by_dialler", [True, False])
async def test_reset_reaches_reader_and_writer(by_dialler: bool) -> None:
    async with connected() as (ours, theirs):
        pair = await stream_pair(ours, theirs)
        resetting, hit = pair if by_dialler else pair[::-1]
        reading = asyncio.create_task(hit.read())
        writing = asyncio.create_task(hit.write(bytes(4 * MIB)))
        await asyncio.sleep(0)
        resetting.reset(7)
        resetting.reset(7)
        for task in (reading, writing):
            with pytest.raises(StreamResetError) as caught:
                await task
            assert caught.value.remote
        with pytest.raises(StreamResetError) as caught:
            await resetting.read()
        assert (caught.value.remote, caught.value.code) == (False, 7)
        with pytest.raises(StreamResetError):
            await resetting.write(b"x")
        with pytest.raises(StreamResetError):
            await hit.close_write()
        assert ours.streams == theirs.streams == ()
        await stream_pair(ours, theirs)


async def test_answer_outlives_a_reset_of_the_other_half() -> None:
    async with connected() as (ours, theirs):
        stream, other = await stream_pair(ours, theirs)
        await send_and_end(other, b"complete")
        later, _ = await stream_pair(theirs, ours)
        other.reset()
        await later.aclose()
        await stream_pair(theirs, ours)
        assert await stream.read() == b"complete"
        assert await stream.read() == b""
        with pytest.raises(StreamResetError):
            await stream.write(b"x")


async def test_reader_that_leaves_stops_the_writer() -> None:
    async with connected() as (ours, theirs):
        stream, other = await stream_pair(ours, theirs)
        await other.aclose()
        with pytest.raises(StreamResetError):
            await write_forever(stream)
        assert await stream.read() == b""


async def test_one_reader_and_one_writer() -> None:
    async with connected() as (ours, theirs):
        stream, _ = await stream_pair(ours, theirs)
        reading = asyncio.create_task(stream.read())
        writing = asyncio.create_task(stream.write(bytes(4 * MIB)))
        await asyncio.sleep(0)
        with pytest.raises(LocalError):
            await stream.read()
        with pytest.raises(LocalError):
            await stream.write(b"x")
        for task in (reading, writing):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        stream.reset()


async def test_unread_comes_first() -> None:
    async with connected() as (ours, theirs):
        stream, other = await stream_pair(ours, theirs)
        await send_and_end(stream, b"headbody")
        assert await read_exactly(other, 6) == b"headbo"
        other.unread(b"bo")
        assert await read_to_end(other) == b"body"


async def test_buffers_may_be_reused_after_write() -> None:
    async with connected() as (ours, theirs):
        stream, other = await stream_pair(ours, theirs)
        buffer = bytearray(b"a" * 10_000)
        await stream.write(buffer)
        await stream.write(memoryview(buffer))
        buffer[:] = b"x" * 10_000
        await stream.write(memoryview(b"..second..")[2:-2])
        await stream.close_write()
        assert await read_to_end(other) == b"a" * 20_000 + b"second"


async def test_stalled_reader_holds_little_and_blocks_nobody() -> None:
    settings = TcpSettings(yamux=YamuxSettings(send_buffer=256 * KIB))
    async with node(settings) as alice, node(settings) as bob:
        listener = await bob.transport.listen(LOOPBACK)
        ours = await alice.dial(listener.addresses[0], bob)
        theirs = await listener.accept()
        stalled, unread = await stream_pair(ours, theirs)
        data = random.Random(2).randbytes(16 * MIB)
        pushing = asyncio.create_task(send_and_end(stalled, data))
        async with asyncio.TaskGroup() as group:
            group.create_task(echo_all(theirs))
            for number in range(8):
                stream = await ours.open_stream()
                sending = group.create_task(send_and_end(stream, data[number : 2 * MIB]))
                assert await read_to_end(stream) == data[number : 2 * MIB]
                await sending
            assert not pushing.done()
            assert bob.transport.memory.used == 256 * KIB
            # The transfer completes as soon as somebody reads.
            assert await read_to_end(unread) == data
            await pushing
            await ours.close()
        assert bob.transport.memory.used == 0


async def test_stream_beyond_the_receive_memory_is_reset() -> None:
    settings = TcpSettings(receive_memory=300 * KIB)
    async with connected(listener_settings=settings) as (ours, theirs):
        first, unread = await stream_pair(ours, theirs)
        second, also_unread = await stream_pair(ours, theirs)
        await first.write(bytes(200 * KIB))
        unread.unread(await read_exactly(unread, 200 * KIB))
        with capture_logs() as logs:
            await second.write(bytes(200 * KIB))
            with pytest.raises(StreamResetError):
                await second.read()
        assert [entry["reason"] for entry in logs] == ["RECEIVE_MEMORY"]
        with pytest.raises(StreamResetError):
            await also_unread.read()
        await stream_pair(ours, theirs)


async def test_streams_over_the_cap_are_reset() -> None:
    settings = TcpSettings(yamux=YamuxSettings(max_inbound_streams=4))
    async with connected(listener_settings=settings) as (ours, theirs):
        with capture_logs() as logs:
            streams = [await ours.open_stream() for _ in range(40)]
            for stream in streams[4:]:
                with pytest.raises(StreamResetError):
                    await stream.read()
        assert [entry["limit"] for entry in logs] == ["max_inbound_streams"]
        for _ in range(4):
            await (await theirs.accept_stream()).aclose()
        for stream in streams[:4]:
            assert await stream.read() == b""
            await stream.aclose()
        await stream_pair(ours, theirs)


async def test_opening_waits_for_the_peer_to_accept() -> None:
    async with connected() as (ours, theirs):
        opened = [await ours.open_stream() for _ in range(256)]
        opening = asyncio.create_task(ours.open_stream())
        await opened[0].write(b"x")
        first = await theirs.accept_stream()
        assert await first.read() == b"x"
        await opening


# Ends.


async def test_close_ends_both_sides() -> None:
    async with connected() as (ours, theirs):
        stream, other = await stream_pair(ours, theirs)
        accepting = asyncio.create_task(theirs.accept_stream())
        reading = asyncio.create_task(other.read())
        await asyncio.sleep(0)
        await ours.close(message="enough")
        await ours.close()
        assert ours.is_closed
        assert not (await ours.wait_closed()).remote
        assert (await theirs.wait_closed()).remote
        assert "enough" in str(await ours.wait_closed())
        for work in (accepting, reading, stream.read(), other.write(b"x"), ours.open_stream()):
            with pytest.raises(ConnectionClosedError):
                await work
        with pytest.raises(ConnectionClosedError):
            await theirs.open_stream()


async def test_what_was_written_before_close_arrives() -> None:
    async with connected() as (ours, theirs):
        stream, other = await stream_pair(ours, theirs)
        await send_and_end(stream, bytes(200 * KIB))
        await ours.close()
        await theirs.wait_closed()
        assert len(await read_to_end(other)) == 200 * KIB


async def test_cancelled_close_closes() -> None:
    async with connected() as (ours, theirs):
        closing = asyncio.create_task(ours.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await ours.wait_closed()
        await theirs.wait_closed()


async def test_vanished_peer_is_noticed() -> None:
    settings = TcpSettings(
        yamux=YamuxSettings(keepalive_interval=0.05, keepalive_timeout=0.2, close_timeout=0.1)
    )
    async with node(settings) as alice:
        accepted: asyncio.Queue[socket.socket] = asyncio.Queue()
        async with node() as bob:
            listener = await bob.transport.listen(LOOPBACK)
            async with silenceable_proxy(listener.addresses[0], accepted) as (address, silence):
                ours = await alice.dial(address, bob)
                await listener.accept()
                silence.set()
                assert (await ours.wait_closed()).reason == "KEEPALIVE_TIMEOUT"


@contextlib.asynccontextmanager
async def silenceable_proxy(
    target: Multiaddr, _accepted: asyncio.Queue[socket.socket]
) -> AsyncIterator[tuple[Multiaddr, asyncio.Event]]:
    """Forwards bytes until it is told to keep them to itself."""
    silence = asyncio.Event()
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if not silence.is_set():
                    writer.write(data)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward = await asyncio.open_connection(str(target.host), target.port)
        writers.extend((writer, onward[1]))
        await asyncio.gather(pump(reader, onward[1]), pump(onward[0], writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Multiaddr.for_tcp(*server.sockets[0].getsockname()), silence
        for writer in writers:
            writer.close()


async def test_leaving_the_transport_closes_everything() -> None:
    async with node() as alice:
        async with node() as bob:
            listener = await bob.transport.listen(LOOPBACK)
            ours = await alice.dial(listener.addresses[0], bob)
            theirs = await listener.accept()
        assert theirs.is_closed
        assert (await ours.wait_closed()).remote
        with pytest.raises(UnreachableError):
            await alice.dial(listener.addresses[0], bob)
        with pytest.raises(PreconditionError):
            await bob.transport.listen(LOOPBACK)
        with pytest.raises(PreconditionError):
            await bob.dial(listener.addresses[0], alice)


async def test_leaving_the_transport_ends_a_dial() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        async with node() as alice:
            address = Multiaddr.for_tcp(*server.getsockname())
            dialling = asyncio.create_task(alice.transport.dial(address, alice.peer))
            sock, _ = await asyncio.get_running_loop().sock_accept(server)
            await asyncio.get_running_loop().sock_recv(sock, 1)
        with pytest.raises(UnreachableError):
            await dialling
        sock.close()


async def test_closed_listener_leaves_accepted_connections_alone() -> None:
    async with node() as alice, node() as bob:
        listener = await bob.transport.listen(LOOPBACK)
        (address,) = listener.addresses
        ours = await alice.dial(address, bob)
        theirs = await listener.accept()
        waiting = await alice.dial(address, bob)
        stranger = raw_socket(address)
        accepting = asyncio.create_task(listener.accept())
        await accepting
        accepting = asyncio.create_task(listener.accept())
        await asyncio.sleep(0)
        await listener.close()
        await listener.close()
        with pytest.raises(ConnectionClosedError):
            await accepting
        await read_until_closed(stranger)
        stranger.close()
        with pytest.raises(UnreachableError):
            await alice.dial(address, bob)
        await stream_pair(ours, theirs)
        assert not waiting.is_closed


async def test_upgraded_connections_that_nobody_accepts_end_with_the_listener() -> None:
    async with node() as alice, node() as bob:
        listener = await bob.transport.listen(LOOPBACK)
        ours = await alice.dial(listener.addresses[0], bob)
        stream = await ours.open_stream()
        await listener.close()
        with pytest.raises(ConnectionClosedError):
            await stream.read()


# Ports.


async def test_dial_leaves_from_the_listening_port() -> None:
    async with node() as alice, node() as bob:
        own = await alice.transport.listen(LOOPBACK)
        listener = await bob.transport.listen(LOOPBACK)
        connection = await alice.dial(listener.addresses[0], bob)
        assert connection.local_address == own.addresses[0]
        assert (await listener.accept()).remote_address == own.addresses[0]
        # The same pair of addresses is taken now: another port does as well.
        second = await alice.dial(listener.addresses[0], bob)
        assert second.local_address != own.addresses[0]


async def test_dial_to_loopback_leaves_from_a_wildcard_listener() -> None:
    async with node() as alice, node() as bob:
        own = await alice.transport.listen(Multiaddr.for_tcp("0.0.0.0", 0))
        listener = await bob.transport.listen(LOOPBACK)
        connection = await alice.dial(listener.addresses[0], bob)
        assert connection.local_address.port == own.addresses[0].port


async def test_node_that_dials_itself() -> None:
    async with node() as alice:
        listener = await alice.transport.listen(LOOPBACK)
        with pytest.raises(AuthenticationError) as caught:
            await alice.dial(listener.addresses[0], alice)
        assert caught.value.reason == "SELF_CONNECTION"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_port_with_a_listener_is_taken(host: str) -> None:
    async with node() as alice, node() as bob:
        listener = await alice.transport.listen(LOOPBACK)
        with pytest.raises(ConfigError) as caught:
            await bob.transport.listen(Multiaddr.for_tcp(host, listener.addresses[0].port or 0))
        assert caught.value.reason == "LISTEN_FAILED"
        assert caught.value.remedy


async def test_port_is_free_again_after_connections_from_it() -> None:
    async with node() as alice:
        async with node() as bob:
            listener = await bob.transport.listen(LOOPBACK)
            (address,) = listener.addresses
            own = await alice.transport.listen(LOOPBACK)
            await bob.dial(own.addresses[0], alice)
            await (await own.accept()).close()
        async with node() as carol:
            again = await carol.transport.listen(address)
            assert again.addresses == (address,)


# Strangers.


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="http"),
        pytest.param(b"\xff" * 4096, id="endless length"),
        pytest.param(
            b"\x13/multistream/1.0.0\n\x07/noise\n\xff\xff" + bytes(65535), id="long noise"
        ),
        pytest.param(b"\x13/multistream/1.0.0\n\x07/noise\n\x00\x00", id="empty noise"),
        pytest.param(b"\x13/multistream/1.0.0\n\x07/noise\n\x00\x20" + bytes(32), id="zero key"),
        pytest.param(b"\x13/multistream/1.0.0\n" + b"\x03/x\n" * 100, id="endless proposals"),
        *(pytest.param(random.Random(n).randbytes(5000), id=f"random {n}") for n in range(5)),
    ],
)
async def test_strange_bytes_close_their_connection_only(data: bytes) -> None:
    async with node() as alice, node() as bob:
        listener = await bob.transport.listen(LOOPBACK)
        (address,) = listener.addresses
        stranger = raw_socket(address)
        with capture_logs() as logs, contextlib.closing(stranger):
            with contextlib.suppress(ConnectionError):
                await asyncio.get_running_loop().sock_sendall(stranger, data)
                stranger.shutdown(socket.SHUT_WR)
            await read_until_closed(stranger)
        await alice.dial(address, bob)
        await listener.accept()
        assert len([entry for entry in logs if entry["log_level"] != "debug"]) == 0
        assert len(logs) <= 1


async def test_long_handshake_message_is_refused_before_it_comes() -> None:
    async with node() as bob:
        listener = await bob.transport.listen(LOOPBACK)
        with contextlib.closing(raw_socket(listener.addresses[0])) as stranger:
            stranger.send(b"\x13/multistream/1.0.0\n\x07/noise\n\xff\xff")
            answer = await read_until_closed(stranger)
        assert answer == b"\x13/multistream/1.0.0\n\x07/noise\n"


async def test_half_open_connections_are_capped() -> None:
    settings = TcpSettings(max_half_open=8, max_half_open_per_ip=8)
    async with node() as alice, node(settings) as bob:
        listener = await bob.transport.listen(LOOPBACK)
        (address,) = listener.addresses
        with contextlib.ExitStack() as stack, capture_logs() as logs:
            strangers = [stack.enter_context(raw_socket(address)) for _ in range(40)]
            for stranger in strangers[8:]:
                assert await read_until_closed(stranger) == b""
            assert bob.transport.half_open.count == 8
            assert [entry["limit"] for entry in logs] == ["max_half_open"]
            with pytest.raises(UnreachableError):
                await alice.dial(address, bob)
        for stranger in strangers[:8]:
            assert stranger.fileno() == -1
        # They have left: the next in line is served.
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(UnreachableError):
                    await alice.dial(address, bob)
                    break
        assert (await listener.accept()).remote_peer == alice.peer


async def test_silent_connections_are_dropped_in_time() -> None:
    async with node(TcpSettings(upgrade_timeout=0.05)) as bob:
        listener = await bob.transport.listen(LOOPBACK)
        with contextlib.closing(raw_socket(listener.addresses[0])) as stranger:
            assert await read_until_closed(stranger) == b"\x13/multistream/1.0.0\n"
        assert bob.transport.half_open.count == 0


async def test_connections_that_nobody_accepts_hold_their_half_open_slots() -> None:
    settings = TcpSettings(accept_backlog=1, max_half_open=2, max_half_open_per_ip=2)
    async with node() as alice, node(settings) as bob:
        listener = await bob.transport.listen(LOOPBACK)
        (address,) = listener.addresses
        connections = [await alice.dial(address, bob) for _ in range(3)]
        with pytest.raises(UnreachableError):
            await alice.dial(address, bob)
        for _ in range(3):
            await listener.accept()
        connections.append(await alice.dial(address, bob))
        await listener.accept()


async def test_descriptors_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    loop: Any = asyncio.get_running_loop()
    accept = loop.sock_accept
    failures = [errno.EMFILE, errno.ENFILE, errno.ECONNABORTED]

    async def failing(sock: socket.socket) -> object:
        if failures:
            code = failures.pop()
            raise OSError(code, os.strerror(code))
        return await accept(sock)

    monkeypatch.setattr(transport_module, "ACCEPT_BACKOFF", (0.001, 0.002))
    monkeypatch.setattr(loop, "sock_accept", failing)
    async with node() as alice, node() as bob:
        with capture_logs() as logs:
            listener = await bob.transport.listen(LOOPBACK)
            await alice.dial(listener.addresses[0], bob)
            await listener.accept()
        assert failures == []
        warnings = [entry["reason"] for entry in logs if entry["log_level"] == "warning"]
        assert warnings == ["OUT_OF_RESOURCES"] * 2
