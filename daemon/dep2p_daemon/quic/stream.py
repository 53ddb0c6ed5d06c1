"""One QUIC stream as the rooms above see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from typing_extensions import override

from dep2p_daemon.errors import InvalidArgumentError, LocalError, StreamResetError
from dep2p_daemon.muxed import READ_CHUNK, Buffer, CloseCode, Direction, ReceiveBuffer, Stream

if TYPE_CHECKING:
    import asyncio

    from dep2p_daemon.quic.connection import QuicConnection
    from dep2p_daemon.quic.flow_control import ReceiveWindow
    from dep2p_daemon.quic.stream_set import StreamSet

MAX_CODE: Final = (1 << 62) - 1
"""Error codes are QUIC varints."""


class QuicStream(Stream):
    """A bidirectional stream. `StreamSet` calls the methods that start with `on_`."""

    def __init__(
        self,
        connection: QuicConnection,
        streams: StreamSet,
        stream_id: int,
        direction: Direction,
        window: ReceiveWindow,
    ) -> None:
        super().__init__(connection, stream_id, direction)
        self.window = window
        self.delivered = 0
        """Bytes that arrived in order, whether or not anybody wants them."""
        self.receiving = True
        """False once the peer's end or reset came, or we asked it to stop."""
        self.sending = True
        """False once our end or reset is written, or the peer asked us to stop."""
        self._streams = streams
        self._buffer = ReceiveBuffer(self._on_consumed)
        self._write_error: Exception | None = None
        self._write_waiter: asyncio.Future[None] | None = None

    # For the owner of the stream

    @override
    async def read(self, max_bytes: int = READ_CHUNK) -> bytes:
        return await self._buffer.read(max_bytes)

    @override
    def unread(self, data: bytes) -> None:
        self._buffer.unread(data)

    @override
    async def write(self, data: Buffer) -> None:
        if self._write_waiter is not None:
            raise LocalError("two tasks write the same stream", reason="CONCURRENT_WRITE")
        left = memoryview(data)
        streams = self._streams
        while True:
            self._check_writable()
            room = streams.room(self)
            if room > 0:
                piece = left[:room]
                streams.write(self, cast("bytes", piece))
                left = left[room:]
            if not left:
                return
            self._write_waiter = streams.wait_for_room(self)
            try:
                await self._write_waiter
            finally:
                self._write_waiter = None

    @override
    async def close_write(self) -> None:
        if self._write_error is not None:
            raise self._write_error
        if self.sending:
            self.sending = False
            self._streams.finish(self)

    @override
    def reset(self, code: int = CloseCode.NONE) -> None:
        _check_code(code)
        error = StreamResetError("the stream was reset by this side", code=code, remote=False)
        self._streams.reset(self, code)
        self.sending = self.receiving = False
        self._fail_writes(error)
        self._buffer.feed_error(error)
        self._streams.on_half_ended(self)

    @override
    def stop_reading(self, code: int = CloseCode.NONE) -> None:
        _check_code(code)
        self._buffer.discard()
        if self.receiving:
            self.receiving = False
            self._streams.stop(self, code)
            self._buffer.feed_error(
                StreamResetError("reading was stopped by this side", code=code, remote=False)
            )
            self._streams.on_half_ended(self)

    @property
    @override
    def closed(self) -> bool:
        return not self.sending and not self.receiving

    # For the set of streams

    @property
    def unread_bytes(self) -> int:
        """Bytes that wait for the reader."""
        return self._buffer.size

    def on_data(self, data: bytes) -> None:
        """Take bytes that arrived in order."""
        self.traffic.received += len(data)
        self._buffer.feed(data)

    def on_end(self) -> None:
        """The peer has sent everything."""
        self.receiving = False
        self._buffer.feed_eof()
        self._streams.on_half_ended(self)

    def on_reset(self, code: int) -> None:
        """The peer reset its half."""
        self.receiving = False
        self._buffer.feed_error(
            StreamResetError(f"the peer reset the stream (code {code:#x})", code=code, remote=True)
        )
        self._streams.on_half_ended(self)

    def on_stop_sending(self, code: int) -> None:
        """The peer does not want our half."""
        self.sending = False
        self._fail_writes(
            StreamResetError(
                f"the peer stopped reading the stream (code {code:#x})", code=code, remote=True
            )
        )
        self._streams.on_half_ended(self)

    def on_room(self) -> None:
        """There is room in the send buffer again."""
        if self._write_waiter is not None and not self._write_waiter.done():
            self._write_waiter.set_result(None)

    def on_connection_closed(self, error: Exception) -> None:
        """The connection under the stream has ended."""
        self.sending = self.receiving = False
        self._fail_writes(error)
        if not self._buffer.finished:  # what arrived to its end stays readable
            self._buffer.feed_error(error)

    def _fail_writes(self, error: Exception) -> None:
        if self._write_error is None:
            self._write_error = error
        self.on_room()

    def _check_writable(self) -> None:
        if self._write_error is not None:
            raise self._write_error
        if not self.sending:
            raise LocalError("the stream's sending half is closed", reason="STREAM_WRITE_CLOSED")

    def _on_consumed(self, count: int) -> None:
        self._streams.on_consumed(self, count)


def _check_code(code: int) -> None:
    if not 0 <= code <= MAX_CODE:
        raise InvalidArgumentError(
            f"error code {code} is not between 0 and 2^62-1", reason="ERROR_CODE_OUT_OF_RANGE"
        )
