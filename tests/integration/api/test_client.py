"""The Python client by itself: where the daemon is, what its answers become, daemons that hang."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from tests.api_nodes import api_nodes, short_directory
from typing_extensions import override

import dep2p
from dep2p.v1 import stream_service_pb2, stream_service_pb2_grpc
from dep2p_daemon import errors
from dep2p_daemon.rpc.errors import to_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture
def directory() -> Iterator[Path]:
    path = short_directory()
    yield path
    for child in path.iterdir():
        child.unlink()
    path.rmdir()


@pytest.mark.parametrize(
    ("env", "uid", "expected"),
    [
        ({"DEP2P_SOCKET": "/x/s", "XDG_RUNTIME_DIR": "/run/user/7"}, 0, "/x/s"),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, 0, "/run/dep2p/dep2pd.sock"),
        ({"XDG_RUNTIME_DIR": "/elsewhere"}, 7, "/elsewhere/dep2p/dep2pd.sock"),
        ({}, 7, "/run/user/7/dep2p/dep2pd.sock"),
    ],
)
def test_where_the_daemon_is_by_default(env: dict[str, str], uid: int, expected: str) -> None:
    assert dep2p.default_socket_path(env, uid) == Path(expected)


def test_client_and_daemon_agree_on_the_default_socket() -> None:
    from dep2p_daemon.ops.config import default_socket

    for env in ({}, {"XDG_RUNTIME_DIR": "/r"}):
        for uid in (0, 1000):
            assert dep2p.default_socket_path(env, uid) == default_socket(env, uid)


async def test_no_socket(directory: Path) -> None:
    path = directory / "s"
    async with dep2p.connect(path) as node:
        with pytest.raises(dep2p.DaemonNotReachableError) as caught:
            await node.get_node()
    assert str(path) in caught.value.message
    assert "no such socket" in caught.value.message
    assert "dep2pd" in caught.value.remedy


async def test_a_socket_that_nobody_listens_on(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(directory / "s"))
    async with dep2p.connect(directory / "s") as node:
        with pytest.raises(dep2p.DaemonNotReachableError, match="nobody answers"):
            await node.get_node()
        with pytest.raises(dep2p.DaemonNotReachableError, match="nobody answers"):
            await node.open_stream("12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA", ["/x"])
        with pytest.raises(dep2p.DaemonNotReachableError):
            await anext(node.watch_events())
        with pytest.raises(dep2p.DaemonNotReachableError):
            await node.listen("/x").__aenter__()


async def test_a_file_that_is_no_socket(directory: Path) -> None:
    (directory / "s").touch()
    async with dep2p.connect(directory / "s") as node:
        with pytest.raises(dep2p.DaemonNotReachableError, match="no socket"):
            await node.get_node()


class FakeDaemon(stream_service_pb2_grpc.StreamServiceServicer):
    """A server that answers as a test wants."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.opening = asyncio.Event()
        self.answers = True
        self.error: errors.Dep2pError | None = None
        self.server = grpc.aio.server(options=(("grpc.http2.bdp_probe", 0),))
        stream_service_pb2_grpc.add_StreamServiceServicer_to_server(self, self.server)

    async def __aenter__(self) -> FakeDaemon:
        self.server.add_insecure_port(f"unix:{self.path}")
        await self.server.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.server.stop(None)

    @override
    async def OpenStream(  # type: ignore[override]
        self, request_iterator: AsyncIterator[object], context: Any
    ) -> None:
        if self.error is not None:
            await context.abort_with_status(to_status(self.error))
        self.opening.set()
        if self.answers:
            opened = stream_service_pb2.StreamInfo(protocol="/x")
            await context.write(stream_service_pb2.OpenStreamResponse(opened=opened))
        await asyncio.Event().wait()  # and never reads

    @override
    def Listen(self, request: object, context: object) -> Any:
        raise NotImplementedError

    @override
    def AcceptStream(self, request_iterator: object, context: object) -> Any:
        raise NotImplementedError


async def test_closing_gives_a_daemon_that_hangs_only_so_long(directory: Path) -> None:
    async with FakeDaemon(directory / "s"), dep2p.connect(directory / "s") as node:
        stream = await node.open_stream("p", ["/x"])
        with pytest.raises(dep2p.DeadlineError):
            await stream.aclose(timeout=0.05)
        await stream.aclose()  # done is done


async def test_opening_gives_a_daemon_that_hangs_only_so_long(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dep2p.client._OPENING_MARGIN", 0.0)
    async with FakeDaemon(directory / "s") as daemon, dep2p.connect(directory / "s") as node:
        daemon.answers = False
        with pytest.raises(dep2p.DeadlineError):
            await node.open_stream("p", ["/x"], timeout=0.1)
        assert daemon.opening.is_set()


@pytest.mark.parametrize(
    ("error", "cls"),
    [
        (errors.MultiaddrError("x"), dep2p.InvalidArgumentError),
        (errors.NotFoundError("x"), dep2p.NotFoundError),
        (errors.AlreadyExistsError("x"), dep2p.AlreadyExistsError),
        (errors.PreconditionError("x"), dep2p.PreconditionError),
        (errors.PreconditionError("x", reason="STOPPING"), dep2p.DaemonStoppingError),
        (errors.PermissionDeniedError("x"), dep2p.PermissionDeniedError),
        (errors.ResourceLimitError("x"), dep2p.LimitError),
        (errors.ProtocolNotSupportedError("x"), dep2p.ProtocolNotSupportedError),
        (errors.UnreachableError("x"), dep2p.UnreachableError),
        (errors.DialTimeoutError("x"), dep2p.DeadlineError),
        (errors.ProtocolViolationError("x"), dep2p.PeerFailedError),
        (errors.ConnectionClosedError("x"), dep2p.UnreachableError),
        (errors.StreamResetError(code=4), dep2p.StreamResetError),
        (errors.RelayRefusedError("x", status=200), dep2p.LimitError),
        (errors.RelayRefusedError("x", status=201), dep2p.LimitError),
        (errors.RelayRefusedError("x", status=202), dep2p.PermissionDeniedError),
        (errors.RelayRefusedError("x", status=203), dep2p.UnreachableError),
        (errors.RelayRefusedError("x", status=204), dep2p.NoReservationError),
        (errors.LocalError("x"), dep2p.DaemonError),
    ],
)
async def test_every_error_arrives_as_its_class(
    directory: Path, error: errors.Dep2pError, cls: type[dep2p.Dep2pError]
) -> None:
    error.remedy, error.metadata["peer"] = "do this", "P"
    async with FakeDaemon(directory / "s") as daemon, dep2p.connect(directory / "s") as node:
        daemon.error = error
        with pytest.raises(dep2p.Dep2pError) as caught:
            await node.open_stream("p", ["/x"])
    told = caught.value
    assert type(told) is cls
    assert (told.message, told.remedy, told.metadata["peer"]) == (error.message, "do this", "P")
    assert told.reason
    assert "remedy" not in told.metadata
    assert str(told) == f"{error.message} (do this)"


async def test_a_method_that_the_daemon_does_not_know(directory: Path) -> None:
    async with FakeDaemon(directory / "s"), dep2p.connect(directory / "s") as node:
        with pytest.raises(dep2p.UnsupportedError):
            await node.get_node()


async def test_one_protocol_is_no_list_of_protocols(directory: Path) -> None:
    async with dep2p.connect(directory / "s") as node:
        with pytest.raises(TypeError):
            await node.open_stream("p", "/x")


async def test_a_daemon_that_is_killed_is_told_to_all_who_wait() -> None:
    async with api_nodes() as start:
        a, b = await start(), await start()
        await a.client.dial(b.address())
        stream = await a.client.open_stream(b.peer_id, ["/dep2p/echo/1.0.0"])
        events = a.client.watch_events(skip_snapshot=True)
        waiting = [
            asyncio.ensure_future(stream.read()),
            asyncio.ensure_future(anext(events)),
        ]
        await a.client.get_node()
        # As a crash would: the server drops everything without a word.
        await a.server._server.stop(None)
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(outcome, dep2p.DaemonNotReachableError), outcome


async def test_a_daemon_that_comes_back_is_found_again(directory: Path) -> None:
    async with dep2p.connect(directory / "s") as node:
        for _ in range(3):
            async with FakeDaemon(directory / "s"):
                while True:
                    try:
                        stream = await node.open_stream("p", ["/x"])
                    except dep2p.DaemonNotReachableError:
                        await asyncio.sleep(0.01)
                    else:
                        break
                await stream.reset()
            with pytest.raises(dep2p.DaemonNotReachableError):
                await node.open_stream("p", ["/x"])
