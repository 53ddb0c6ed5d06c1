"""The API's socket: who may use it, who has it, what is left of it, how it ends."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.api_nodes import api_node, api_nodes, config_in, short_directory

import dep2p
from dep2p_daemon.daemon import Daemon
from dep2p_daemon.errors import ConfigError, PreconditionError
from dep2p_daemon.rpc.server import RpcServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from dep2p_daemon.ops.config import Config


@pytest.fixture
def directory() -> Iterator[Path]:
    path = short_directory()
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def daemon(directory: Path) -> AsyncIterator[Daemon]:
    async with Daemon(config_in(directory)) as daemon:
        yield daemon


def channel(config: Config) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(
        f"unix:{config.socket}", options=(("grpc.use_local_subchannel_pool", 1),)
    )


async def start_and_stop(daemon: Daemon, path: Path) -> None:
    async with RpcServer(daemon, path):
        pass


async def test_only_its_owner_can_use_it(daemon: Daemon, directory: Path) -> None:
    path = directory / "run" / "dep2p" / "s"
    before = os.umask(0o000)
    try:
        async with RpcServer(daemon, path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert stat.S_IMODE((path.parent / "s.lock").stat().st_mode) == 0o600
            assert os.umask(0o000) == 0, "the process' own umask is as it was"
        assert not path.exists()
    finally:
        os.umask(before)


async def test_a_second_daemon_is_told_who_has_it(daemon: Daemon, directory: Path) -> None:
    path = directory / "s"
    async with RpcServer(daemon, path), dep2p.connect(path) as node:
        with pytest.raises(PreconditionError) as caught:
            await start_and_stop(daemon, path)
        assert caught.value.reason == "ALREADY_RUNNING"
        assert str(os.getpid()) in caught.value.message
        assert str(path) in caught.value.message
        assert "--socket" in caught.value.remedy
        # gRPC alone would have taken the socket's place, and removed it at its end.
        assert (await node.get_node()).peer_id == str(daemon.peer_id)
    await start_and_stop(daemon, path)


async def test_what_a_killed_daemon_left_does_no_harm(daemon: Daemon, directory: Path) -> None:
    path = directory / "s"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    path.with_name("s.lock").write_text("999999\n")
    async with RpcServer(daemon, path), dep2p.connect(path) as node:
        await node.get_node()
        assert path.with_name("s.lock").read_text() == f"{os.getpid()}\n"


async def test_paths_that_gRPC_would_read_as_something_else(
    daemon: Daemon, directory: Path
) -> None:
    path = directory / "100% of #1?"
    async with RpcServer(daemon, path), dep2p.connect(path) as node:
        assert path.is_socket()
        await node.get_node()


async def test_a_path_that_is_too_long(daemon: Daemon, directory: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        await start_and_stop(daemon, directory / ("x" * 108))
    assert caught.value.reason == "SOCKET_PATH_INVALID"


async def test_a_file_in_its_place(daemon: Daemon, directory: Path) -> None:
    (directory / "s").write_text("precious")
    with pytest.raises(ConfigError) as caught:
        await start_and_stop(daemon, directory / "s")
    assert caught.value.reason == "SOCKET_PATH_TAKEN"
    assert (directory / "s").read_text() == "precious"


async def test_a_directory_that_others_may_write_to(daemon: Daemon, directory: Path) -> None:
    (directory / "open").mkdir()
    (directory / "open").chmod(0o777)
    with pytest.raises(ConfigError) as caught:
        await start_and_stop(daemon, directory / "open" / "s")
    assert caught.value.reason == "DIRECTORY_MODE"
    assert f"chmod go-w {directory / 'open'}" in caught.value.remedy


async def test_a_lock_that_is_a_link_is_not_followed(daemon: Daemon, directory: Path) -> None:
    (directory / "victim").write_text("precious")
    (directory / "s.lock").symlink_to(directory / "victim")
    with pytest.raises(ConfigError) as caught:
        await start_and_stop(daemon, directory / "s")
    assert caught.value.reason == "LOCK_FAILED"
    assert (directory / "victim").read_text() == "precious"


async def test_health_says_when_it_serves() -> None:
    async with api_nodes() as start:
        node = await start()
        async with channel(node.config) as plain:
            health: Any = health_pb2_grpc.HealthStub(plain)
            for service in ("", "dep2p.v1.NodeService", "dep2p.v1.StreamService"):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            watch = health.Watch(health_pb2.HealthCheckRequest(service="dep2p.v1.PeerService"))
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            stopping = asyncio.create_task(node.server._stop())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            await stopping


async def test_reflection_lists_the_services() -> None:
    async with api_nodes() as start:
        node = await start()
        async with channel(node.config) as plain:
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(plain)  # type: ignore[arg-type]
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            async for answer in stub.ServerReflectionInfo(iter([request])):
                names = {service.name for service in answer.list_services_response.service}
    assert names == {
        "dep2p.v1.NodeService",
        "dep2p.v1.PeerService",
        "dep2p.v1.RelayService",
        "dep2p.v1.StreamService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


async def test_every_method_answers_over_the_socket() -> None:
    """Whatever it answers to an empty request: it exists, and it is in the table of roles."""
    from tests.unit.rpc.test_roles import served

    async with api_nodes() as start:
        node = await start()
        async with channel(node.config) as plain:
            for method in sorted(served()):
                if "Watch" in method or "Info" in method or method.endswith("/Stop"):
                    continue
                call: Any = plain.unary_unary(method)
                code = await call(b"", timeout=15).code()
                assert code not in (
                    grpc.StatusCode.UNIMPLEMENTED,
                    grpc.StatusCode.PERMISSION_DENIED,
                ), method


async def test_the_end_lets_calls_finish_and_tells_watchers() -> None:
    async with api_nodes() as start:
        a, b = await start(), await start()
        await a.client.dial(b.address())
        events = a.client.watch_events(skip_snapshot=True)
        watching = asyncio.ensure_future(anext(events))
        stream = await a.client.open_stream(b.peer_id, ["/dep2p/echo/1.0.0"])
        a.daemon.request_stop("signal")
        ending = asyncio.create_task(a.server._stop())
        event = await watching
        assert event.stopping.reason == "signal"
        with pytest.raises(StopAsyncIteration):
            await anext(events)
        with pytest.raises(dep2p.DaemonStoppingError):
            await a.client.get_node()
        # A stream that is open may still end as it wants to.
        await stream.write(b"last words")
        assert await stream.read_exactly(10) == b"last words"
        await stream.aclose()
        await ending
        assert a.server._running.count == 0


async def test_the_end_cuts_off_what_does_not_finish() -> None:
    async with api_nodes() as start:
        a, b = await start(), await start()
        await a.client.dial(b.address())
        a.server._grace = 0.05
        stream = await a.client.open_stream(b.peer_id, ["/dep2p/echo/1.0.0"])
        await a.server._stop()
        assert a.server._running.count == 0
        with pytest.raises(dep2p.DaemonNotReachableError):
            await stream.read()
        assert a.daemon.swarm.connections(), "the node itself still runs"


async def test_stop_by_request(directory: Path) -> None:
    async with api_node(config_in(directory)) as node:
        await node.client.stop()
        assert await node.daemon.wait_stop_requested() == "request"
