"""A byte stream between this program and a peer, carried by one call."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Self

import grpc
import grpc.aio

from dep2p.calls import Reader, send, too_late
from dep2p.errors import (
    DaemonNotReachableError,
    Dep2pError,
    LimitError,
    PreconditionError,
    StreamResetError,
)
from dep2p.v1 import peer_pb2, stream_service_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from types import TracebackType

    from google.protobuf.message import Message

    from dep2p.v1.stream_service_pb2 import StreamInfo

    RequestType = (
        type[stream_service_pb2.OpenStreamRequest] | type[stream_service_pb2.AcceptStreamRequest]
    )
    ResponseType = stream_service_pb2.OpenStreamResponse | stream_service_pb2.AcceptStreamResponse

MAX_READ: Final = 1 << 20
"""Most bytes that one message holds."""
WRITE_CHUNK: Final = 256 * 1024
"""Bytes of one message to the daemon; larger ones are no faster and take more memory."""
READ_ALL_LIMIT: Final = 64 << 20
RESET_SECONDS: Final = 1.0
"""For the daemon to take a reset with its code, after which the call is cancelled."""
CLOSE_SECONDS: Final = 30.0
"""For what was written to be taken by the peer, after which `aclose` gives up and resets."""


class Stream:
    """One bidirectional byte stream. An async context manager closes it.

    One task may read while another writes; two readers or two writers at once are an error.
    Leaving `async with` closes both halves in order, and resets them after an exception.
    """

    def __init__(
        self,
        call: grpc.aio.StreamStreamCall[Any, Any],
        request: RequestType,
        info: StreamInfo,
        reader: Reader[ResponseType],
        socket: Path,
    ) -> None:
        self._call = call
        self._request = request
        self._reader = reader
        self._socket = socket
        self._receiving = asyncio.Lock()
        self._buffer: deque[bytes] = deque()
        """Holds one message, except after a write that failed: then all that still came."""
        self._error: Dep2pError | None = None
        self._call_ended = False
        self._peer_ended = False
        self._write_ended = False
        self._closed = False
        self.info = info
        """What the daemon said of it when it was opened: protocol, direction, connection."""

    @property
    def protocol(self) -> str:
        """The negotiated protocol id."""
        return self.info.protocol

    @property
    def peer_id(self) -> str:
        """The proven identity of the other end."""
        return self.info.connection.peer_id

    @property
    def relayed(self) -> bool:
        """Whether its bytes went through a relay when it was opened."""
        return self.info.connection.path == peer_pb2.PATH_RELAYED

    async def read(self, max_bytes: int = MAX_READ) -> bytes:
        """Return 1..`max_bytes` bytes, b"" once the peer has closed its half.

        Cancelling it loses nothing: the next read returns what came.

        Raises:
            StreamResetError: either side reset the stream.
            UnreachableError: the connection under it ended.
            DaemonNotReachableError: the daemon went away.
        """
        while not self._buffer:
            if self._peer_ended:
                return b""
            if self._error is not None:
                raise self._error
            await self._receive()
        data = self._buffer.popleft()
        if len(data) > max_bytes:
            self._buffer.appendleft(data[max_bytes:])
            data = data[:max_bytes]
        return data

    async def _receive(self) -> None:
        """Take the next message, unless the last one has come."""
        async with self._receiving:
            if self._error is not None or self._call_ended:
                return
            try:
                message = await self._reader.next()
            except Dep2pError as error:
                # What a local reset has set before stays.
                self._error = self._error or error
                return
            if message is None:
                self._call_ended = True
                self._peer_ended = self._error is None
            elif message.HasField("end"):
                self._peer_ended = True
            elif message.data:
                self._buffer.append(message.data)

    async def read_exactly(self, size: int) -> bytes:
        """Return exactly `size` bytes. Raises asyncio.IncompleteReadError at an earlier end."""
        data = bytearray()
        while len(data) < size:
            piece = await self.read(size - len(data))
            if not piece:
                raise asyncio.IncompleteReadError(bytes(data), size)
            data += piece
        return bytes(data)

    async def read_all(self, limit: int = READ_ALL_LIMIT) -> bytes:
        """Return everything up to the peer's end. Raises LimitError beyond `limit` bytes."""
        data = bytearray()
        while piece := await self.read():
            data += piece
            if len(data) > limit:
                raise LimitError(
                    f"the peer sent more than {limit} bytes",
                    reason="TOO_MUCH_DATA",
                    remedy="read piece by piece, or raise the limit",
                    metadata={"limit": str(limit)},
                )
        return bytes(data)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self.read():
            yield piece

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`, waiting while the peer does not read.

        Cancelling it resets the stream, since a part may have been sent.

        Raises:
            StreamResetError: either side reset the stream, or the peer stopped reading.
            UnreachableError: the connection under it ended.
            DaemonNotReachableError: the daemon went away.
        """
        if self._write_ended:
            raise PreconditionError("our half is closed already", reason="WRITE_AFTER_CLOSE")
        view = memoryview(data)
        for start in range(0, len(view), WRITE_CHUNK):
            await self._send(self._request(data=bytes(view[start : start + WRITE_CHUNK])))

    async def _send(self, message: Message) -> None:
        if not await self._sent(message):
            raise _ended()

    async def _sent(self, message: Message) -> bool:
        """Send, or raise why not; False when the call has ended well and takes no more."""
        if self._error is not None:
            raise self._error
        try:
            await send(self._call, message)
        except asyncio.CancelledError:
            self._error = _reset(0)
            raise
        except (grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
            # The write does not tell why it failed. The status does, and comes behind what the
            # daemon has sent: not more than it had under way, since the call is over.
            while self._error is None and not self._call_ended:
                await self._receive()
            if self._error is not None:
                raise self._error from None
            return False
        return True

    async def close_write(self) -> None:
        """Half-close: the peer reads its end after all that was written. Idempotent."""
        if not self._write_ended:
            self._write_ended = True
            await self._send(self._request(end=stream_service_pb2.StreamEnd()))

    async def reset(self, code: int = 0) -> None:
        """End both halves at once, dropping what is in flight. Idempotent.

        The peer learns `code` where the transport can tell it (QUIC does, yamux cannot) and
        unless a write is blocked at this moment.
        """
        self._error = self._error or _reset(code)
        self._write_ended, self._peer_ended = True, False
        self._buffer.clear()
        try:
            if code and not self._call.done():
                message = self._request(reset=stream_service_pb2.ResetStream(code=code))
                with contextlib.suppress(
                    TimeoutError,
                    grpc.aio.AioRpcError,
                    grpc.aio.BaseError,
                    asyncio.InvalidStateError,
                ):
                    async with asyncio.timeout(RESET_SECONDS):
                        await send(self._call, message)
                        await self._call.code()
        finally:
            await self._end_call()

    async def aclose(self, timeout: float = CLOSE_SECONDS) -> None:
        """Close our half, stop reading, and wait until the daemon has passed all data on.

        Cancelled, it resets instead: it always closes. Idempotent.

        Raises:
            DeadlineError: the peer did not take it within `timeout` seconds; it was reset.
            StreamResetError and others: what was written may not have arrived. Not raised when
                the peer had ended its half before: then it has said all it wanted.
        """
        peer_ended = self._peer_ended
        try:
            if self._error is None and not self._closed:
                async with asyncio.timeout(timeout):
                    await self._leave()
        except TimeoutError:
            raise too_late("closing the stream", timeout) from None
        except StreamResetError:
            if not peer_ended:
                raise
        finally:
            self._peer_ended = self._error is None
            self._buffer.clear()
            await self._end_call()

    async def _leave(self) -> None:
        """Say that both halves are closed, and drop what still comes until the call ends."""
        await self.close_write()
        if not self._peer_ended:
            # The peer's end may be on its way, and with it the call's.
            await self._sent(self._request(stop_reading=stream_service_pb2.StopReading()))
        await self._call.done_writing()
        while self._error is None and not self._call_ended:
            self._buffer.clear()
            await self._receive()
        if self._error is not None:
            raise self._error

    async def _end_call(self) -> None:
        self._closed = self._write_ended = True
        self._call.cancel()
        await self._reader.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            await self.aclose()
        else:
            await self.reset()


def _reset(code: int) -> StreamResetError:
    return StreamResetError(
        "the stream was reset by this program",
        reason="STREAM_RESET",
        metadata={"code": str(code), "by": "local"},
        code=grpc.StatusCode.ABORTED,
    )


def _ended() -> StreamResetError:
    return StreamResetError(
        "the stream has ended",
        reason="STREAM_ENDED",
        metadata={"by": "local"},
        code=grpc.StatusCode.ABORTED,
    )


def call_ended() -> DaemonNotReachableError:
    """Return the error of a call that ended well before it had begun."""
    return DaemonNotReachableError(
        "the daemon ended the call before it began", reason="DAEMON_NOT_REACHABLE"
    )


async def open_stream(
    call: grpc.aio.StreamStreamCall[Any, Any],
    first: stream_service_pb2.OpenStreamRequest | stream_service_pb2.AcceptStreamRequest,
    *,
    timeout: float,
    socket: Path,
) -> Stream:
    """Send the first request of `call`, wait for the first response, and return the stream."""
    reader: Reader[Any] = Reader(call, socket)
    try:
        async with asyncio.timeout(timeout):
            # A failed write has its reason in the status, which the read gives.
            with contextlib.suppress(
                grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError
            ):
                await send(call, first)
            response = await reader.next()
    except TimeoutError:
        call.cancel()
        await reader.aclose()
        raise too_late("opening the stream", timeout) from None
    except BaseException:
        call.cancel()
        await reader.aclose()
        raise
    if response is None:
        raise call_ended()
    opening = isinstance(first, stream_service_pb2.OpenStreamRequest)
    info = response.opened if opening else response.accepted
    return Stream(call, type(first), info, reader, socket)
