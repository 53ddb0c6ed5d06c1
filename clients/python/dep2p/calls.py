"""Calls whose errors are this package's, and whose reads survive the cancelling of a reader."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import grpc
import grpc.aio

from dep2p.errors import DaemonNotReachableError, DeadlineError, Dep2pError, error_of
from dep2p.socket_path import not_reachable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    StreamCall = grpc.aio.StreamStreamCall[Any, Any] | grpc.aio.UnaryStreamCall[Any, Any]

Response = TypeVar("Response")
Item = TypeVar("Item")

STATUS_SECONDS: Final = 5.0
"""For the status of a call that has failed already; it is there at once."""


def from_rpc_error(error: grpc.aio.AioRpcError, socket: Path) -> Dep2pError:
    """Return the error of ours that a failed call stands for."""
    return _known(error_of(error.code(), error.details() or "", error.trailing_metadata()), socket)


async def status_error(call: grpc.aio.Call, socket: Path) -> Dep2pError | None:
    """Return why `call` ended, None when it ended well.

    A failed write does not say it (grpc#36066): the status does.
    """
    try:
        async with asyncio.timeout(STATUS_SECONDS):
            code = await call.code()
            if code is grpc.StatusCode.OK:
                return None
            error = error_of(code, await call.details() or "", await call.trailing_metadata())
    except TimeoutError:
        return not_reachable(socket, "the call broke and has no status")
    return _known(error, socket)


def _known(error: Dep2pError, socket: Path) -> Dep2pError:
    if type(error) is DaemonNotReachableError:
        return not_reachable(socket, error.message)
    return error


async def unary(
    method: grpc.aio.UnaryUnaryMultiCallable[Any, Response],
    request: object,
    *,
    timeout: float | None,
    socket: Path,
) -> Response:
    """Call a method that takes one message and gives one."""
    try:
        return await method(request, timeout=timeout)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, socket) from None


async def responses(
    start: Callable[[], grpc.aio.UnaryStreamCall[Any, Response]],
    pick: Callable[[Response], Item],
    socket: Path,
) -> AsyncGenerator[Item, None]:
    """Yield what the daemon sends until it ends the call; closing the generator ends the call."""
    call = start()
    try:
        async for response in call:
            yield pick(response)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, socket) from None
    finally:
        call.cancel()


class Reader(Generic[Response]):
    """Reads a call's messages one at a time, one ahead at most.

    grpc.aio ends a call whose reader is cancelled, so that a timeout around a read would cost
    the stream. Here the read itself goes on, and the next reader gets its message.
    """

    def __init__(self, call: StreamCall, socket: Path) -> None:
        self._call = call
        self._socket = socket
        self._pending: asyncio.Task[Response | None] | None = None

    async def next(self) -> Response | None:
        """Return the next message, None at the end. Raises Dep2pError."""
        if self._pending is None:
            self._pending = asyncio.create_task(self._read())
        pending = self._pending
        await asyncio.wait((pending,))
        self._pending = None
        return pending.result()

    async def _read(self) -> Response | None:
        try:
            message: Any = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self._socket) from None
        except asyncio.CancelledError:
            if self._call.cancelled():
                return None  # by ourselves
            raise
        return None if message is grpc.aio.EOF else message

    async def aclose(self) -> None:
        """Drop a read that nobody waits for; the call must have ended. Idempotent."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.cancel()
            await asyncio.wait((pending,))
            if not pending.cancelled():
                pending.exception()  # seen: nobody is left to tell


def too_late(what: str, seconds: float) -> DeadlineError:
    """Return the error of something that took longer than its caller allows."""
    return DeadlineError(
        f"{what} took longer than {seconds:g} s",
        reason="DEADLINE_EXCEEDED",
        metadata={"seconds": f"{seconds:g}"},
        code=grpc.StatusCode.DEADLINE_EXCEEDED,
    )
