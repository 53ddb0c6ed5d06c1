"""A stream of a `YamuxConnection`: reads consume, writes queue in the session."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from typing_extensions import override

from dep2p_daemon.errors import ConnectionClosedError, LocalError, StreamResetError
from dep2p_daemon.muxed import READ_CHUNK, Buffer, CloseCode, Direction, ReceiveBuffer, Stream

if TYPE_CHECKING:
    from dep2p_daemon.tcp.yamux_connection import YamuxConnection


class YamuxStream(Stream):
    """One stream. Yamux has no room for reset codes: they stay on this side."""

    def __init__(self, owner: YamuxConnection, stream_id: int, direction: Direction) -> None:
        super().__init__(owner, stream_id, direction)
        self._owner = owner
        self._buffer = ReceiveBuffer(self._on_consumed)
        self._error: StreamResetError | ConnectionClosedError | None = None
        self._drained: asyncio.Future[None] | None = None
        self._write_ended = False

    @override
    async def read(self, max_bytes: int = READ_CHUNK) -> bytes:
        # More at a time would have to be joined, which costs more than it saves.
        return await self._buffer.read(min(max_bytes, READ_CHUNK))

    @override
    def unread(self, data: bytes) -> None:
        self._buffer.unread(data)

    @override
    async def write(self, data: Buffer) -> None:
        self._check_writable()
        if self._drained is not None:
            raise LocalError("two tasks write the same stream", reason="CONCURRENT_WRITE")
        self.traffic.sent += self._owner.enqueue(self.id, data)
        if not self._owner.send_buffer_full:
            return
        self._drained = asyncio.get_running_loop().create_future()
        try:
            await self._drained
        finally:
            self._drained = None
        if self._error is not None:
            raise self._error

    @override
    async def close_write(self) -> None:
        if self._write_ended:
            return
        self._check_writable()
        self._write_ended = True
        self._owner.finish(self)

    @override
    def reset(self, code: int = CloseCode.NONE) -> None:
        if self.closed:
            self._buffer.discard()
            return
        self._error = StreamResetError(code=code, remote=False)
        self._buffer.feed_error(self._error)
        self.on_drained()
        self._owner.reset(self)

    @override
    def stop_reading(self, code: int = CloseCode.NONE) -> None:
        if not self._buffer.finished:
            self._owner.ignore(self)
            self._buffer.feed_eof()
            self._owner.retire(self)
        self._buffer.discard()

    @property
    @override
    def closed(self) -> bool:
        return self._error is not None or (self._write_ended and self._buffer.finished)

    def _check_writable(self) -> None:
        if self._error is not None:
            raise self._error
        if self._write_ended:
            raise LocalError("write after close_write", reason="STREAM_CLOSED")

    # What the connection tells.

    def on_data(self, data: bytes) -> int:
        """Bytes arrived; return how many were buffered."""
        before = self._buffer.size
        self._buffer.feed(data)
        self.traffic.received += len(data)
        return self._buffer.size - before

    def on_end(self) -> None:
        """The peer closed its half."""
        self._buffer.feed_eof()

    def on_drained(self) -> None:
        """What was queued is on its way, or never will be."""
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def on_failure(self, error: StreamResetError | ConnectionClosedError) -> None:
        """The peer or the connection ended both halves. What arrived complete stays readable."""
        self._error = error
        if not self._buffer.finished:
            self._buffer.feed_error(error)
        self.on_drained()

    def _on_consumed(self, count: int) -> None:
        self._owner.consume(self, count)
