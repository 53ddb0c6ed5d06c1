"""The API's server: a gRPC server on a unix socket that only its owner can use."""

from __future__ import annotations

import asyncio
import os
import stat
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import quote

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from dep2p.v1 import (
    node_service_pb2,
    node_service_pb2_grpc,
    peer_service_pb2,
    peer_service_pb2_grpc,
    relay_service_pb2,
    relay_service_pb2_grpc,
    stream_service_pb2,
    stream_service_pb2_grpc,
)
from dep2p_daemon.daemon import Stopping, prepare_directory
from dep2p_daemon.errors import ConfigError
from dep2p_daemon.lock_file import LockFile
from dep2p_daemon.rpc.interceptors import ErrorMapping, RoleCheck, RunningCalls, stopping_error
from dep2p_daemon.rpc.node_service import NodeService
from dep2p_daemon.rpc.peer_service import PeerService
from dep2p_daemon.rpc.relay_service import RelayService
from dep2p_daemon.rpc.stream_service import StreamService

if TYPE_CHECKING:
    from pathlib import Path

    from dep2p_daemon.daemon import Daemon

log = structlog.get_logger(__name__)

MAX_PATH_BYTES: Final = 107
"""`sun_path` of Linux is 108 bytes with its NUL."""
GRACE_SECONDS: Final = 2.0
"""For the calls that run when the daemon stops; then they are cut off."""
MAX_CALLS: Final = 8192
"""Calls of all kinds at once; ours: twice the streams that may be open (`stream_service`)."""
GOODBYE_SECONDS: Final = 0.1
"""For gRPC's own clients to take the goodbye; ended without, they log an internal error."""

SERVICES: Final = tuple(
    service.full_name
    for file in (node_service_pb2, peer_service_pb2, relay_service_pb2, stream_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)

_OPTIONS: Final = (
    # With the probe, gRPC buffers megabytes for a program that does not read.
    ("grpc.http2.bdp_probe", 0),
    # gRPC would take the place of another server's live socket without a word; the lock file
    # is what keeps two daemons apart, this only says what is meant.
    ("grpc.so_reuseport", 0),
)


class RpcServer:
    """Serves the API of `daemon` at `socket_path`. An async context manager.

    Entered after the daemon and left before it: leaving it tells the watchers, lets the calls
    that run end, and returns when none uses the daemon any more.
    """

    def __init__(self, daemon: Daemon, socket_path: Path, *, grace: float = GRACE_SECONDS) -> None:
        self._daemon = daemon
        self._path = socket_path
        self._grace = grace

    async def __aenter__(self) -> Self:
        """Start serving.

        Raises:
            PreconditionError: reason ALREADY_RUNNING, another daemon has the socket.
            ConfigError: the socket cannot be made.
        """
        async with AsyncExitStack() as stack:
            self._check_path()
            prepare_directory(self._path.parent, option="--socket")
            stack.enter_context(
                LockFile(
                    self._path.with_name(f"{self._path.name}.lock"),
                    what=f"the socket {self._path}",
                    option="--socket",
                )
            )
            stack.callback(self._remove_socket)
            self._running = RunningCalls()
            self._server = grpc.aio.server(
                interceptors=(self._running, ErrorMapping(), RoleCheck()),
                options=_OPTIONS,
                maximum_concurrent_rpcs=MAX_CALLS,
            )
            stack.push_async_callback(self._server.stop, None)
            self._add_services()
            self._bind()
            await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
            await self._server.start()
            await self._set_health(health_pb2.HealthCheckResponse.SERVING)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        async with self._stack:
            await self._stop()

    async def _stop(self) -> None:
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._running.stop()
        self._daemon.events.publish(Stopping(self._daemon.stop_reason or "end"))
        self._streams.offers.stop(stopping_error())
        with suppress(TimeoutError):
            async with asyncio.timeout(self._grace):
                await self._running.wait_idle()
        if self._running.count:
            log.info("cutting off the calls that still run", count=self._running.count)
        # Says goodbye, then cancels them, but returns before they have cleaned up.
        await self._server.stop(GOODBYE_SECONDS)
        await self._running.wait_idle()

    def _add_services(self) -> None:
        daemon, server = self._daemon, self._server
        self._streams = StreamService(daemon)
        node_service_pb2_grpc.add_NodeServiceServicer_to_server(NodeService(daemon), server)
        peer_service_pb2_grpc.add_PeerServiceServicer_to_server(PeerService(daemon), server)
        relay_service_pb2_grpc.add_RelayServiceServicer_to_server(RelayService(daemon), server)
        stream_service_pb2_grpc.add_StreamServiceServicer_to_server(self._streams, server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)

    async def _set_health(self, status: int) -> None:
        for name in ("", *SERVICES):
            await self._health.set(name, status)

    def _check_path(self) -> None:
        length = len(os.fsencode(self._path))
        if length > MAX_PATH_BYTES or not self._path.is_absolute():
            raise ConfigError(
                f"the socket {self._path} cannot be: its path must be absolute and at most "
                f"{MAX_PATH_BYTES} bytes long, and it has {length}",
                reason="SOCKET_PATH_INVALID",
                remedy="name another with --socket, such as /tmp/dep2pd.sock",
                path=self._path,
            )
        with suppress(OSError):
            if not stat.S_ISSOCK(self._path.lstat().st_mode):
                raise ConfigError(
                    f"{self._path} exists and is no socket",
                    reason="SOCKET_PATH_TAKEN",
                    remedy="move it away, or name another with --socket",
                    path=self._path,
                )

    def _bind(self) -> None:
        # The socket file's mode is the only access control: gRPC does not check who connects.
        before = os.umask(0o177)
        try:
            self._server.add_insecure_port(f"unix:{quote(str(self._path))}")
        except RuntimeError as error:
            raise ConfigError(
                f"the socket {self._path} cannot be made: {error}",
                reason="SOCKET_FAILED",
                remedy="name another with --socket",
                path=self._path,
            ) from error
        finally:
            os.umask(before)

    def _remove_socket(self) -> None:
        """GRPC removes it; not after every failure, though. We have the lock, so it is ours."""
        self._path.unlink(missing_ok=True)
