"""Byte channels under Noise: a non-blocking socket, or any other `ByteChannel` (a circuit).

`BulkChannel` is what the secured channel wants of them: many bytes at a time, and no copies.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Final, Protocol

from dep2p_daemon.errors import ConnectionClosedError
from dep2p_daemon.muxed import READ_CHUNK, Buffer, ByteChannel
from dep2p_daemon.tcp.sockets import reset_at_close

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RECEIVE_BYTES: Final = 256 * 1024
"""Taken from a socket at a time; four full Noise frames."""

_TCPI_RETRANSMITS: Final = 2
"""Where `struct tcp_info` (linux/tcp.h) has a byte that counts the timeouts in a row."""

_receive_buffer: Final = memoryview(bytearray(RECEIVE_BYTES))
"""Shared by all sockets: what is in it is used up before the next one receives."""


class BulkChannel(ByteChannel, Protocol):
    """A `ByteChannel` that moves much at a time."""

    async def read_bulk(self) -> Buffer:
        """Return what is there, b"" at the end.

        The buffer may be reused by any other channel: use it up before the next `await`.
        """
        ...

    async def write_pieces(self, pieces: Sequence[bytes]) -> None:
        """Write all of `pieces`, in order, waiting while the pipe is full."""
        ...


class SocketChannel:
    """A connected TCP socket. Owns it; `abort` closes it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        # Several small frames leave in one write anyway; none of them should wait for more.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._fd = sock.fileno()
        self._loop = asyncio.get_running_loop()
        self._readable: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._aborted = False

    async def read(self, max_bytes: int = READ_CHUNK) -> bytes:
        """Return up to `max_bytes`, b"" at the end. Raises ConnectionClosedError."""
        while True:
            self._check()
            try:
                return self._sock.recv(max_bytes)
            except (BlockingIOError, InterruptedError):
                await self._wait_readable()
            except OSError as error:
                raise _broken(error) from error

    async def read_bulk(self) -> Buffer:
        """See `BulkChannel`."""
        while True:
            self._check()
            try:
                size = self._sock.recv_into(_receive_buffer)
            except (BlockingIOError, InterruptedError):
                await self._wait_readable()
            except OSError as error:
                raise _broken(error) from error
            else:
                return _receive_buffer[:size]

    async def write(self, data: Buffer) -> None:
        """Write all of `data`."""
        view = memoryview(data)
        while view:
            self._check()
            try:
                view = view[self._sock.send(view) :]
            except (BlockingIOError, InterruptedError):
                await self._wait_writable()
            except OSError as error:
                raise _broken(error) from error

    async def write_pieces(self, pieces: Sequence[bytes]) -> None:
        """See `BulkChannel`."""
        self._check()
        try:
            sent = self._sock.sendmsg(pieces)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            raise _broken(error) from error
        for piece in pieces:
            if sent >= len(piece):
                sent -= len(piece)
            else:
                await self.write(memoryview(piece)[sent:])
                sent = 0

    async def close_write(self) -> None:
        """Send the end of our half."""
        self._check()
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise _broken(error) from error

    def abort(self) -> None:
        """Close the socket; whoever waits for it gets ConnectionClosedError. Idempotent."""
        if self._aborted:
            return
        self._aborted = True
        for waiter, remove in (
            (self._readable, self._loop.remove_reader),
            (self._writable, self._loop.remove_writer),
        ):
            if waiter is not None:
                remove(self._fd)
                _wake(waiter)
        if _is_unheard(self._sock):
            # The kernel would go on for minutes to send what is left, and meanwhile nobody could
            # connect between the same two ports again, as the punch of a new path has to.
            reset_at_close(self._sock)
        self._sock.close()

    def _check(self) -> None:
        if self._aborted:
            raise ConnectionClosedError("the connection is closed")

    async def _wait_readable(self) -> None:
        self._readable = waiter = self._loop.create_future()
        self._loop.add_reader(self._fd, _wake, waiter)
        try:
            await waiter
        finally:
            self._stop_waiting(self._loop.remove_reader)
            self._readable = None

    async def _wait_writable(self) -> None:
        self._writable = waiter = self._loop.create_future()
        self._loop.add_writer(self._fd, _wake, waiter)
        try:
            await waiter
        finally:
            self._stop_waiting(self._loop.remove_writer)
            self._writable = None

    def _stop_waiting(self, remove: Callable[[int], bool]) -> None:
        # After `abort` the descriptor's number may already belong to somebody else.
        if not self._aborted:
            remove(self._fd)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _is_unheard(sock: socket.socket) -> bool:
    """Whether what was sent had to be repeated and is not acknowledged yet."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCPI_RETRANSMITS + 1)
    except OSError:
        return False
    return info[_TCPI_RETRANSMITS] > 0


def _broken(error: OSError) -> ConnectionClosedError:
    return ConnectionClosedError(
        f"the TCP connection broke: {error.strerror or error}", remote=True, os_error=error.errno
    )


class ForwardingChannel:
    """Makes any `ByteChannel` a `BulkChannel`: for Noise on a stream of another connection."""

    def __init__(self, inner: ByteChannel) -> None:
        self._inner = inner

    async def read(self, max_bytes: int = READ_CHUNK) -> bytes:
        """Return up to `max_bytes`, b"" at the end."""
        return await self._inner.read(max_bytes)

    async def read_bulk(self) -> Buffer:
        """See `BulkChannel`."""
        return await self._inner.read(RECEIVE_BYTES)

    async def write(self, data: Buffer) -> None:
        """Write all of `data`."""
        await self._inner.write(data)

    async def write_pieces(self, pieces: Sequence[bytes]) -> None:
        """See `BulkChannel`."""
        await self._inner.write(b"".join(pieces))

    async def close_write(self) -> None:
        """Send the end of our half."""
        await self._inner.close_write()

    def abort(self) -> None:
        """Drop both halves at once."""
        self._inner.abort()


def bulk(channel: ByteChannel) -> BulkChannel:
    """Return `channel` as a `BulkChannel`."""
    return channel if isinstance(channel, SocketChannel) else ForwardingChannel(channel)
