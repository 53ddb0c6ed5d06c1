"""The interceptors around handlers of every kind, on a real gRPC server and channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from dep2p_daemon.errors import NotFoundError, UnreachableError
from dep2p_daemon.rpc.interceptors import Context, ErrorMapping, RoleCheck, RunningCalls
from dep2p_daemon.rpc.roles import Role

UNARY = "/dep2p.v1.NodeService/GetNode"
STREAM = "/dep2p.v1.NodeService/WatchEvents"
BIDI = "/dep2p.v1.StreamService/OpenStream"

TIMEOUT = 10.0

Behaviour = Callable[[Any, Context], Any]


class Rig:
    """A server with one handler, and a channel to it."""

    def __init__(self, method: str, behaviour: Behaviour, role: Role = Role.ADMIN) -> None:
        self.running = RunningCalls()
        self.server = grpc.aio.server(
            interceptors=(self.running, ErrorMapping(), RoleCheck(role)),
        )
        kind = {
            UNARY: grpc.unary_unary_rpc_method_handler,
            STREAM: grpc.unary_stream_rpc_method_handler,
            BIDI: grpc.stream_stream_rpc_method_handler,
        }.get(method, grpc.unary_unary_rpc_method_handler)
        service, _, name = method[1:].partition("/")
        handler: Any = kind(behaviour)
        self.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {name: handler}),)
        )
        self.method = method

    async def __aenter__(self) -> Rig:
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        self.channel: Any = grpc.aio.insecure_channel(
            f"127.0.0.1:{port}", options=(("grpc.use_local_subchannel_pool", 1),)
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.channel.close()
        await self.server.stop(None)

    async def call(self) -> None:
        """Call it and read all there is."""
        if self.method not in (STREAM, BIDI):
            await self.channel.unary_unary(self.method)(b"x", timeout=TIMEOUT)
            return
        if self.method == STREAM:
            responses = self.channel.unary_stream(self.method)(b"x", timeout=TIMEOUT)
        else:
            responses = self.channel.stream_stream(self.method)(iter([b"x"]), timeout=TIMEOUT)
        async for _ in responses:
            pass


def raising(method: str, error: Callable[[], BaseException]) -> Behaviour:
    """A handler of the method's kind, in each of the two styles where there are two."""

    async def unary(request: object, context: Context) -> bytes:
        raise error()

    async def generator(request: object, context: Context) -> AsyncIterator[bytes]:
        yield b"first"
        raise error()

    return unary if method == UNARY else generator


def info_of(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    for key, value in error.trailing_metadata():
        if key == "grpc-status-details-bin":
            assert isinstance(value, bytes)
            info = error_details_pb2.ErrorInfo()
            assert status_pb2.Status.FromString(value).details[0].Unpack(info)
            return info
    raise AssertionError("no details")


@pytest.mark.parametrize("method", [UNARY, STREAM, BIDI])
async def test_an_error_of_ours_arrives_with_its_details(method: str) -> None:
    behaviour = raising(method, lambda: NotFoundError("no such peer", remedy="dial it", peer="P"))
    async with Rig(method, behaviour) as rig:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.call()
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "no such peer"
    assert dict(info_of(caught.value).metadata) == {"remedy": "dial it", "peer": "P"}


@pytest.mark.parametrize("method", [UNARY, STREAM, BIDI])
async def test_any_other_error_leaks_nothing(method: str) -> None:
    async with Rig(method, raising(method, lambda: ValueError("a secret path"))) as rig:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.call()
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(caught.value)
    assert info_of(caught.value).metadata["error_id"] in (caught.value.details() or "")


@pytest.mark.parametrize("method", [UNARY, STREAM, BIDI])
async def test_a_cancellation_from_inside_still_answers(method: str) -> None:
    """Left alone, gRPC sends no status and the caller waits for its deadline."""
    async with Rig(method, raising(method, asyncio.CancelledError)) as rig:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.call()
    assert info_of(caught.value).reason == "CALL_GIVEN_UP"


async def test_the_largest_status_passes_grpcs_limits() -> None:
    metadata = {f"address_{index}": "ü" * 200 for index in range(64)}
    error = UnreachableError("ü" * 4000, remedy="é" * 4000, **metadata)
    async with Rig(UNARY, raising(UNARY, lambda: error)) as rig:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.call()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert info_of(caught.value).metadata["truncated"] == "true"


async def test_a_caller_who_leaves_closes_the_generator_before_the_call_ends() -> None:
    closed = asyncio.Event()

    async def endless(request: object, context: Context) -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(1 << 20)  # the caller does not read: the write blocks
        finally:
            await asyncio.sleep(0)  # cleaning up may await
            closed.set()

    async with Rig(STREAM, endless) as rig:
        call = rig.channel.unary_stream(STREAM)(b"x")
        await call.read()
        assert rig.running.count == 1
        call.cancel()
        await rig.running.wait_idle()
        assert closed.is_set()


async def test_stop_waits_for_the_handlers_clean_up() -> None:
    started, cleaned = asyncio.Event(), asyncio.Event()

    async def slow(request: object, context: Context) -> bytes:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            cleaned.set()
        return b""

    async with Rig(UNARY, slow) as rig:
        call = rig.channel.unary_unary(UNARY)(b"x")
        await started.wait()
        await rig.server.stop(0)
        await rig.running.wait_idle()
        assert cleaned.is_set()
        with pytest.raises(grpc.aio.AioRpcError):
            await call


async def test_idle_is_when_the_last_call_has_ended() -> None:
    may_end = [asyncio.Event(), asyncio.Event()]
    started = asyncio.Queue[asyncio.Event]()

    async def slow(request: object, context: Context) -> bytes:
        mine = may_end.pop()
        await started.put(mine)
        await mine.wait()
        return b""

    async with Rig(UNARY, slow) as rig:
        calls = [rig.channel.unary_unary(UNARY)(b"x") for _ in range(2)]
        first, second = await started.get(), await started.get()
        idle = asyncio.create_task(rig.running.wait_idle())
        first.set()
        codes = [asyncio.ensure_future(call.code()) for call in calls]
        await asyncio.wait(codes, return_when=asyncio.FIRST_COMPLETED)
        assert rig.running.count == 1
        assert not idle.done()
        second.set()
        await idle
        await asyncio.wait(codes)


async def test_a_new_call_while_stopping_is_told_so() -> None:
    async with Rig(UNARY, raising(UNARY, AssertionError)) as rig:
        rig.running.stop()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.call()
    assert info_of(caught.value).reason == "STOPPING"


@pytest.mark.parametrize(
    ("method", "role", "reason"),
    [
        ("/dep2p.v1.NodeService/Forgotten", Role.ADMIN, "METHOD_NOT_LISTED"),
        ("/dep2p.v1.NodeService/Stop", Role.OPERATOR, "ROLE_TOO_LOW"),
    ],
)
async def test_roles_are_checked_before_the_handler_runs(
    method: str, role: Role, reason: str
) -> None:
    ran = asyncio.Event()

    async def handler(request: object, context: Context) -> bytes:
        ran.set()
        return b""

    async with Rig(method, handler, role) as rig:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.call()
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert info_of(caught.value).reason == reason
    assert not ran.is_set()


async def test_an_unknown_method_is_unimplemented() -> None:
    async with Rig(UNARY, raising(UNARY, AssertionError)) as rig:
        rig.method = "/dep2p.v1.NodeService/NoSuchMethod"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.call()
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_request_that_does_not_parse_is_the_callers_mistake() -> None:
    from dep2p.v1 import stream_service_pb2

    async def handler(request: AsyncIterator[object], context: Context) -> None:
        async for _ in request:
            pass

    def kind(behaviour: Callable[..., Awaitable[None]]) -> Any:
        return grpc.stream_stream_rpc_method_handler(
            behaviour, request_deserializer=stream_service_pb2.OpenStreamRequest.FromString
        )

    rig = Rig("/dep2p.v1.StreamService/AcceptStream", handler)
    rig.server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "dep2p.v1.StreamService", {"OpenStream": kind(handler)}
            ),
        )
    )
    rig.method = BIDI
    async with rig:
        call = rig.channel.stream_stream(BIDI)(iter([b"\xff\xff\xff"]), timeout=10)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
