"""Carries one peer stream over one gRPC call, without a queue in between.

    program ── request ──► read ──► await stream.write        (waits for the peer's window)
    program ◄─ response ── context.write ◄── await stream.read (releases the window)

Each direction has one message in hand at most, so that whoever stops reading stops the other
end. The stream's ends and the call's:

    end, or gRPC's half-close    our half closes, reading goes on
    stop_reading                 the peer's half closes for us
    both halves closed           the call ends with OK
    reset, from either side      the call ends with ABORTED, reason STREAM_RESET
    the call breaks              what is open is reset: an end that was not said is no end
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc

from dep2p.v1 import stream_service_pb2
from dep2p_daemon.errors import Dep2pError, InvalidArgumentError, StreamResetError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dep2p_daemon.muxed import Stream
    from dep2p_daemon.rpc.interceptors import Context

    Request: TypeAlias = (
        stream_service_pb2.OpenStreamRequest | stream_service_pb2.AcceptStreamRequest
    )
    ResponseType: TypeAlias = (
        type[stream_service_pb2.OpenStreamResponse] | type[stream_service_pb2.AcceptStreamResponse]
    )

MAX_DATA_BYTES: Final = 1 << 20
"""Of one message; part of the API's contract."""
COALESCED_BYTES: Final = 256 * 1024
"""What is buffered goes to the program in messages of up to this size: a message costs about
0.1 ms whatever its size, and beyond this nothing is gained."""
LINGER_SECONDS: Final = 5.0
"""A peer that stopped reading may still be answering: for so long its data is passed on."""
PROBE_SECONDS: Final = 0.1
"""For telling a half-close from a broken call; a write on a broken call fails at once."""

READ, WRITE = "read", "write"


class Carrier:
    """Owns `stream` from now on; `run` ends it."""

    def __init__(self, stream: Stream, context: Context, response: ResponseType) -> None:
        self._stream = stream
        self._context = context
        self._response = response
        self._open = {READ, WRITE}
        self._ended = asyncio.Event()
        self._error: Dep2pError | grpc.aio.BaseError | None = None
        self._writing = asyncio.Lock()
        self._tasks = asyncio.TaskGroup()
        self._down: asyncio.Task[None]
        self._probe: asyncio.Task[None] | None = None
        self._reading = False
        """`_down` waits for the peer, so that cancelling it cuts no message in half."""

    async def run(self) -> None:
        """Carry until both halves are closed; raises why it ended earlier."""
        try:
            async with self._tasks as tasks:
                self._down = tasks.create_task(self._until_error(self._to_program))
                up = tasks.create_task(self._until_error(self._to_peer))
                await self._ended.wait()
                up.cancel()
                self._down.cancel()
                if self._probe is not None:
                    self._probe.cancel()
        finally:
            if self._error is not None or WRITE in self._open:
                self._stream.reset()
            elif READ in self._open:
                # Our half is closed in order: what was written may still be on its way.
                self._stream.stop_reading()
        if self._error is not None:
            raise self._error

    async def _until_error(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except (Dep2pError, grpc.aio.BaseError) as error:
            if self._error is None:
                self._error = error
            self._ended.set()

    def _close(self, half: str) -> None:
        self._open.discard(half)
        if not self._open:
            self._ended.set()

    async def _to_program(self) -> None:
        while READ in self._open and (data := await self._read()):
            await self._respond(self._response(data=data))
        if READ in self._open:
            await self._respond(self._response(end=stream_service_pb2.StreamEnd()))
            self._close(READ)

    async def _read(self) -> bytes:
        self._reading = True
        try:
            return await self._stream.read(COALESCED_BYTES)
        finally:
            self._reading = False

    async def _respond(self, message: object) -> None:
        # gRPC takes one write at a time. Who is cancelled within leaves it unfinished, so that
        # only the end of the call may do that.
        async with self._writing:
            await self._context.write(message)

    async def _respond_nothing(self) -> None:
        await self._respond(self._response(data=b""))

    async def _to_peer(self) -> None:
        while True:
            # Typed as a message, but at the end of requests it is EOF.
            request: Any = await self._context.read()
            if request is grpc.aio.EOF:
                break
            await self._obey(request)
        await self._check_call()
        await self._close_write()

    async def _obey(self, request: Request) -> None:
        match request.WhichOneof("message"):
            case "data":
                await self._write(request.data)
            case "end":
                await self._close_write()
            case "stop_reading":
                self._stop_reading(request.stop_reading.code)
            case "reset":
                code = request.reset.code
                self._stream.reset(code)
                raise StreamResetError(
                    "the stream was reset by its program", code=code, remote=False
                )
            case kind:
                raise InvalidArgumentError(
                    f"a request {kind or 'without a message'} in the middle of a stream",
                    reason="UNEXPECTED_REQUEST",
                    remedy="send data, end, stop_reading or reset",
                )

    async def _write(self, data: bytes) -> None:
        if len(data) > MAX_DATA_BYTES:
            raise InvalidArgumentError(
                f"a message of {len(data)} bytes of data, where {MAX_DATA_BYTES} are allowed",
                reason="DATA_TOO_LARGE",
                remedy="send it in pieces; 64 KiB or more at a time is efficient",
                size=len(data),
                limit=MAX_DATA_BYTES,
            )
        if WRITE not in self._open:
            raise InvalidArgumentError(
                "data after the end of our half", reason="DATA_AFTER_END", remedy="send end last"
            )
        try:
            await self._stream.write(data)
        except StreamResetError:
            # Perhaps the peer only stopped reading, and is still answering.
            await asyncio.wait((self._down,), timeout=LINGER_SECONDS)
            raise

    async def _close_write(self) -> None:
        if WRITE not in self._open:
            return
        try:
            await self._stream.close_write()
        except StreamResetError:
            # A peer that has all it wants closes both halves. If it has said everything, well.
            await asyncio.wait((self._down,), timeout=LINGER_SECONDS)
            if READ in self._open:
                raise
        self._close(WRITE)

    def _stop_reading(self, code: int) -> None:
        if self._reading:
            self._down.cancel()
        self._stream.stop_reading(code)
        self._close(READ)

    async def _check_call(self) -> None:
        """Raise grpc.aio.BaseError if the requests ended because the call broke.

        gRPC tells the end of requests and a broken call by the same EOF; taken for an end, it
        would make a truncated stream look complete to the peer. Writing tells them apart: on a
        broken call it fails at once, so one that waits is on a call that lives.
        """
        self._probe = self._tasks.create_task(self._until_error(self._respond_nothing))
        await asyncio.wait((self._probe,), timeout=PROBE_SECONDS)
        if isinstance(self._error, grpc.aio.BaseError):
            raise self._error
