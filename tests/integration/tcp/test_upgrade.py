"""Upgrades with hand-made peers over loopback, and on a stream instead of a socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from dep2p_daemon.errors import (
    AuthenticationError,
    ConnectionClosedError,
    ProtocolNotSupportedError,
    ProtocolViolationError,
    StreamResetError,
    UnreachableError,
)
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.multistream import handle, select
from dep2p_daemon.muxed import CircuitLimits, read_exactly
from dep2p_daemon.tcp.channel import SocketChannel, bulk
from dep2p_daemon.tcp.secure_channel import SecureChannel, secure
from dep2p_daemon.tcp.transport import TcpTransport
from dep2p_daemon.tcp.upgrade import upgrade
from dep2p_daemon.tcp.yamux_frame import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    HEADER,
    PING,
    SYN,
    WINDOW_UPDATE,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.muxed import Connection, Listener, Stream

LOOPBACK = Multiaddr.for_tcp("127.0.0.1", 0)
YAMUX = "/yamux/1.0.0"


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[tuple[TcpTransport, Listener]]:
    async with TcpTransport(PrivateKey.generate()) as transport:
        yield transport, await transport.listen(LOOPBACK)


@contextlib.asynccontextmanager
async def raw_client(
    listener: Listener, *, muxers: Sequence[str] = (YAMUX,)
) -> AsyncIterator[SecureChannel]:
    """A secured channel to the listener, on which the test speaks Yamux by itself."""
    (address,) = listener.addresses
    sock = socket.create_connection((str(address.host), address.port), timeout=5)
    channel = SocketChannel(sock)
    try:
        await select(channel, ["/noise"])
        yield await secure(
            bulk(channel),
            key=PrivateKey.generate(),
            initiator=True,
            expected_peer=None,
            muxers=muxers,
        )
    finally:
        channel.abort()


async def next_frame(channel: SecureChannel) -> tuple[int, int, int, int]:
    """The next header that is no ping of the other side."""
    while True:
        _, kind, flags, stream_id, length = HEADER.unpack(await read_exactly(channel, HEADER.size))
        if (kind, flags) != (PING, SYN):
            return kind, flags, stream_id, length


async def test_muxer_by_multistream_when_the_handshake_had_none() -> None:
    async with listening() as (_, listener), raw_client(listener, muxers=()) as client:
        assert client.muxer is None
        await select(client, [YAMUX])
        connection = await listener.accept()
        await client.write(encode(DATA, SYN | FIN, 1, 5) + b"hello")
        stream = await connection.accept_stream()
        assert await next_frame(client) == (WINDOW_UPDATE, ACK, 1, 0)
        assert await read_exactly(stream, 5) == b"hello"
        assert await stream.read() == b""


async def test_another_muxer_by_multistream_is_refused() -> None:
    async with listening() as (_, listener), raw_client(listener, muxers=()) as client:
        with pytest.raises(ProtocolNotSupportedError):
            await select(client, ["/mplex/6.7.0"])


async def test_dialling_a_peer_whose_handshake_has_no_muxer() -> None:
    key = PrivateKey.generate()
    finished = asyncio.Event()

    async def serve(sock: socket.socket) -> None:
        channel = SocketChannel(sock)
        await handle(channel, lambda protocol: protocol == "/noise")
        secured = await secure(
            bulk(channel), key=key, initiator=False, expected_peer=None, muxers=()
        )
        await handle(secured, lambda protocol: protocol == YAMUX)
        assert await next_frame(secured) == (WINDOW_UPDATE, SYN, 1, 0)
        await secured.write(encode(DATA, ACK, 1, 2) + b"ok")
        await finished.wait()
        channel.abort()

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        async with TcpTransport(PrivateKey.generate()) as transport, asyncio.TaskGroup() as group:
            address = Multiaddr.for_tcp(*server.getsockname())
            dialling = group.create_task(transport.dial(address, key.peer_id))
            sock, _ = await asyncio.get_running_loop().sock_accept(server)
            group.create_task(serve(sock))
            connection = await dialling
            stream = await connection.open_stream()
            assert await stream.read() == b"ok"
            finished.set()


async def test_peer_without_noise() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        async with TcpTransport(PrivateKey.generate()) as transport:
            address = Multiaddr.for_tcp(*server.getsockname())
            peer = PrivateKey.generate().peer_id
            dialling = asyncio.create_task(transport.dial(address, peer))
            sock, _ = await asyncio.get_running_loop().sock_accept(server)
            channel = SocketChannel(sock)
            with pytest.raises(ProtocolNotSupportedError):
                await handle(channel, lambda _: False)
            with pytest.raises(UnreachableError, match="/noise"):
                await dialling
            channel.abort()


async def test_violation_gets_a_go_away_and_ends_that_connection_only() -> None:
    async with listening() as (transport, listener), raw_client(listener) as client:
        connection = await listener.accept()
        async with TcpTransport(PrivateKey.generate()) as other:
            bystander = await other.dial(listener.addresses[0], transport.local_peer)
            with capture_logs() as logs:
                await client.write(encode(WINDOW_UPDATE, SYN, 2, 0))
                assert await next_frame(client) == (GO_AWAY, 0, 0, 1)
                await client.close_write()
                assert (await connection.wait_closed()).reason == "YAMUX_VIOLATION"
            loud = [entry for entry in logs if entry["log_level"] != "debug"]
            assert [entry["reason"] for entry in loud] == ["YAMUX_VIOLATION"]
            assert not bystander.is_closed
            await bystander.open_stream()


async def test_forged_frame_ends_the_connection() -> None:
    async with listening() as (_, listener):
        (address,) = listener.addresses
        sock = socket.create_connection((str(address.host), address.port), timeout=5)
        channel = SocketChannel(sock)
        await select(channel, ["/noise"])
        await secure(
            bulk(channel),
            key=PrivateKey.generate(),
            initiator=True,
            expected_peer=None,
            muxers=[YAMUX],
        )
        connection = await listener.accept()
        await channel.write(b"\x00\x20" + bytes(32))
        assert (await connection.wait_closed()).reason == "NOISE_DECRYPTION"
        channel.abort()


async def test_channel_that_ends_within_a_frame() -> None:
    async with listening() as (_, listener), raw_client(listener) as client:
        connection = await listener.accept()
        await client._channel.write(b"\x00\x20" + bytes(7))
        await client.close_write()
        assert "within a frame" in str(await connection.wait_closed())


# On a stream: what a stream circuit is after the relay's OK.

CIRCUIT = Multiaddr.parse("/ip4/192.0.2.1/tcp/4001")


class Carried:
    """Two nodes on the two ends of a stream of some connection."""

    def __init__(self) -> None:
        self.alice, self.bob = PrivateKey.generate(), PrivateKey.generate()
        self.relay = PrivateKey.generate().peer_id
        self.streams: tuple[Stream, Stream]
        self.carrier: Connection

    def upgrade(
        self, group: asyncio.TaskGroup, *, initiator: bool, expected: PeerId | None = None
    ) -> asyncio.Task[Connection]:
        return asyncio.get_running_loop().create_task(
            upgrade(
                self.streams[0 if initiator else 1],
                key=self.alice if initiator else self.bob,
                initiator=initiator,
                expected_peer=expected,
                task_group=group,
                local_address=CIRCUIT,
                remote_address=CIRCUIT,
                relay=self.relay,
                limits=CircuitLimits(duration=120.0, data=1 << 17),
            )
        )


@contextlib.asynccontextmanager
async def carried() -> AsyncIterator[Carried]:
    async with listening() as (transport, listener), TcpTransport(PrivateKey.generate()) as dialler:
        pair = Carried()
        pair.carrier = await dialler.dial(listener.addresses[0], transport.local_peer)
        theirs = await listener.accept()
        pair.streams = (await pair.carrier.open_stream(), await theirs.accept_stream())
        yield pair


async def test_connection_on_a_stream() -> None:
    async with carried() as pair, asyncio.TaskGroup() as group:
        dialling = pair.upgrade(group, initiator=True, expected=pair.bob.peer_id)
        ours, theirs = await asyncio.gather(dialling, pair.upgrade(group, initiator=False))
        assert ours.remote_peer == pair.bob.peer_id
        assert theirs.remote_peer == pair.alice.peer_id
        assert (ours.relay, ours.path) == (pair.relay, "relayed")
        assert ours.limits == CircuitLimits(duration=120.0, data=1 << 17)
        stream = await ours.open_stream()
        sending = group.create_task(stream.write(bytes(3_000_000)))
        other = await theirs.accept_stream()
        assert len(await read_exactly(other, 3_000_000)) == 3_000_000
        await sending
        await ours.close()
        await theirs.wait_closed()
        # The carrier saw an orderly end, and lives.
        assert all(stream.closed for stream in pair.streams)
        assert await pair.streams[1].read() == b""
        assert not pair.carrier.is_closed


async def test_wrong_peer_on_a_stream_resets_it() -> None:
    async with carried() as pair, asyncio.TaskGroup() as group:
        dialling = pair.upgrade(group, initiator=True, expected=pair.relay)
        answering = pair.upgrade(group, initiator=False)
        with pytest.raises(AuthenticationError):
            await dialling
        with pytest.raises(StreamResetError):
            await answering
        assert all(stream.closed for stream in pair.streams)


async def test_cancelled_upgrade_resets_the_stream() -> None:
    async with carried() as pair, asyncio.TaskGroup() as group:
        dialling = pair.upgrade(group, initiator=True)
        await pair.streams[1].read()
        dialling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dialling
        with pytest.raises(StreamResetError):
            await pair.streams[1].read()


async def test_lost_carrier_ends_the_connection() -> None:
    async with carried() as pair, asyncio.TaskGroup() as group:
        ours, theirs = await asyncio.gather(
            pair.upgrade(group, initiator=True), pair.upgrade(group, initiator=False)
        )
        stream = await ours.open_stream()
        await pair.carrier.close()
        for connection in (ours, theirs):
            await connection.wait_closed()
        with pytest.raises(ConnectionClosedError):
            await stream.read()


async def test_connection_ends_with_its_task_group() -> None:
    class StopError(Exception):
        pass

    async with carried() as pair:
        with contextlib.suppress(StopError):
            try:
                async with asyncio.TaskGroup() as group:
                    ours, theirs = await asyncio.gather(
                        pair.upgrade(group, initiator=True), pair.upgrade(group, initiator=False)
                    )
                    raise StopError
            except* StopError:
                pass
        assert ours.is_closed
        assert theirs.is_closed
        assert all(stream.closed for stream in pair.streams)


async def test_node_does_not_connect_to_itself() -> None:
    async with carried() as pair, asyncio.TaskGroup() as group:
        pair.bob = pair.alice
        dialling = pair.upgrade(group, initiator=True)
        answering = pair.upgrade(group, initiator=False)
        with pytest.raises(AuthenticationError) as caught:
            await dialling
        assert caught.value.reason == "SELF_CONNECTION"
        with pytest.raises((AuthenticationError, StreamResetError, ProtocolViolationError)):
            await answering
