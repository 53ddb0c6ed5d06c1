"""Calls whose errors are this package's, and whose reads survive the cancelling of a reader."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc
import grpc.aio

from dep2p.errors import DaemonNotReachableError, DeadlineError, Dep2pError, error_of
from dep2p.socket_path import not_reachable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from google.protobuf.message import Message

    StreamCall = grpc.aio.StreamStreamCall[Any, Any] | grpc.aio.UnaryStreamCall[Any, Any]

Response = TypeVar("Response")
Item = TypeVar("Item")


def from_rpc_error(error: grpc.aio.AioRpcError, socket: Path) -> Dep2pError:
    """Return the error of ours that a failed call stands for."""
    return _known(error_of(error.code(), error.details() or "", error.trailing_metadata()), socket)


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


async def send(call: grpc.aio.StreamStreamCall[Any, Any], message: Message) -> None:
    """Send one message, waiting while the daemon takes none. Cancelled, it ends the call.

    Raises:
        grpc.aio.BaseError, asyncio.InvalidStateError: the call is over; its status says why.
    """
    # Not `call.write`: that one puts an INTERNAL of its own in the place of the status with
    # which the daemon ended the call (grpc#36066). This is what it does otherwise.
    await call.wait_for_connection()
    core = call._cython_call  # type: ignore[attr-defined]
    try:
        await core.send_serialized_message(message.SerializeToString())
    except asyncio.CancelledError:
        call.cancel()
        raise


class Reader(Generic[Response]):
    """Reads a call's messages one at a time, one ahead at most.

    grpc.aio ends a call whose reader is cancelled, so that a timeout around a read would cost
    the stream. Here the read itself goes on, and the next reader gets its message.
    """

    def __init__(self, call: StreamCall, socket: Path) -> None:
        self._call = call
        self._socket = socket
        self._pending: asyncio.Task[Response | None] | None = None
        self._closed = False

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
            if self._closed or self._call.cancelled():
                return None  # by ourselves
            raise
        return None if message is grpc.aio.EOF else message

    async def aclose(self) -> None:
        """Drop a read that nobody waits for; the call must have ended. Idempotent."""
        self._closed = True
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
