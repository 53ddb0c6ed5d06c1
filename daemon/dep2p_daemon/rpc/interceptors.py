"""What surrounds every call: it is counted, its caller's role is checked, its errors are mapped.

The order is that of `RpcServer`: counting outermost, so that a handler counts as running until
its clean-up is done; then the mapping of errors; then the checks, whose refusals are mapped.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc
import structlog
from google.protobuf.message import DecodeError
from typing_extensions import override

from dep2p_daemon.errors import Dep2pError, InvalidArgumentError, PreconditionError
from dep2p_daemon.rpc.errors import internal_status, to_status
from dep2p_daemon.rpc.roles import Role, check_role

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = structlog.get_logger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Proceed: TypeAlias = "Callable[[], Awaitable[Any]]"

STOPPING: Final = "STOPPING"

CANCEL_SECONDS: Final = 1.0
"""For gRPC to cancel a handler whose call has broken; usually it takes microseconds."""


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Runs code around a handler, whichever of gRPC's four kinds it is.

    A handler that is an async generator is driven from here, so that it is closed within its
    call: gRPC itself leaves a generator whose caller went away to the garbage collector.
    """

    @abstractmethod
    async def around(self, method: str, context: Context, proceed: Proceed) -> Any:  # noqa: ANN401
        """Run `proceed` (once, or not at all) and return what it returns."""

    @override
    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None  # an unknown method: gRPC answers UNIMPLEMENTED
        behavior: Callable[[Any, Context], Any] = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        method = handler_call_details.method

        async def guarded(request: object, context: Context) -> object:
            return await self.around(method, context, lambda: _run(behavior, request, context))

        wrapped: Handler = make(
            guarded,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return wrapped


async def _run(behavior: Callable[[Any, Context], Any], request: object, context: Context) -> Any:  # noqa: ANN401
    result = behavior(request, context)
    if not hasattr(result, "__aiter__"):
        return await result
    async with aclosing(result):
        async for response in result:
            try:
                await context.write(response)
            except grpc.aio.AbortError:
                raise
            except grpc.aio.BaseError as error:
                # The caller is gone, and gRPC is about to cancel this task. That must not hit the
                # generator's clean-up, so it is waited for here.
                await asyncio.sleep(CANCEL_SECONDS)
                raise asyncio.CancelledError from error
    return None


class RunningCalls(CallInterceptor):
    """Counts the handlers that run, and refuses new calls once the server stops.

    `grpc.aio.Server.stop` returns before the handlers have cleaned up; `wait_idle` does not.
    """

    def __init__(self) -> None:
        self.count = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False

    def stop(self) -> None:
        """Refuse new calls from now on."""
        self._stopping = True

    async def wait_idle(self) -> None:
        """Wait until no handler runs."""
        await self._idle.wait()

    @override
    async def around(self, method: str, context: Context, proceed: Proceed) -> Any:
        if self._stopping and not method.startswith("/grpc.health."):
            await context.abort_with_status(to_status(stopping_error()))
        self.count += 1
        self._idle.clear()
        try:
            return await proceed()
        finally:
            self.count -= 1
            if not self.count:
                self._idle.set()


class ErrorMapping(CallInterceptor):
    """Ends a call that raised with a status: the one its error maps to, or INTERNAL.

    What is not an error of ours is logged with its traceback under an id, and only that id is
    told to the caller.
    """

    @override
    async def around(self, method: str, context: Context, proceed: Proceed) -> Any:
        try:
            return await proceed()
        except grpc.aio.AbortError:
            raise
        except grpc.aio.BaseError as error:
            # A read or write on a call that ended; gRPC is about to cancel this task.
            raise asyncio.CancelledError from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # The handler awaited something that the daemon cancelled. Left alone, gRPC would
            # send no status at all and the caller would wait for ever (grpc#29248).
            status = to_status(_given_up(method))
        except Dep2pError as error:
            log.debug("call refused", method=method, reason=error.reason, error=str(error))
            status = to_status(error)
        except DecodeError as error:
            status = to_status(InvalidArgumentError(f"the request does not parse: {error}"))
        except Exception:
            status, error_id = internal_status()
            log.exception("a call failed inside", method=method, error_id=error_id)
        try:
            await context.abort_with_status(status)
        except grpc.aio.AbortError:
            raise
        except grpc.aio.BaseError as error:
            raise asyncio.CancelledError from error


class RoleCheck(CallInterceptor):
    """Refuses a call that the caller's role does not cover."""

    def __init__(self, role: Role = Role.ADMIN) -> None:
        self._role = role

    @override
    async def around(self, method: str, context: Context, proceed: Proceed) -> Any:
        check_role(method, self._role)
        return await proceed()


def stopping_error() -> PreconditionError:
    """Return the error of a call that the daemon's end cuts off."""
    return PreconditionError(
        "the daemon is stopping",
        reason=STOPPING,
        remedy="start it again, then repeat the call",
    )


def _given_up(method: str) -> PreconditionError:
    return PreconditionError(
        "the daemon gave this call up, as it does when it stops",
        reason="CALL_GIVEN_UP",
        remedy="repeat the call",
        method=method,
    )
