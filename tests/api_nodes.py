"""Real daemons with their API in this process, on loopback, for tests."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import dep2p
from dep2p_daemon.daemon import Daemon
from dep2p_daemon.ops.config import Config
from dep2p_daemon.rpc.server import RpcServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from dep2p.v1.event_pb2 import Event
    from dep2p_daemon.muxed import Stream

LISTEN = ("/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0")
TRANSPORTS = ("quic-v1", "tcp")

StartNode: TypeAlias = "Callable[..., Awaitable[ApiNode]]"


def short_directory() -> Path:
    """A directory whose path leaves room for a socket's name; the caller removes it."""
    return Path(tempfile.mkdtemp(prefix="dep2p-", dir="/tmp"))


def config_in(directory: Path, *, node: dict[str, Any] | None = None, **sections: Any) -> Config:
    """A configuration that listens on loopback and keeps everything in `directory`."""
    own = {"data_dir": directory / "data", "listen": LISTEN, **(node or {})}
    values: dict[str, Any] = {"socket": directory / "s", "node": own, **sections}
    return Config(**values)


@dataclass
class ApiNode:
    """A daemon, its API's server, and a client of it."""

    config: Config
    daemon: Daemon
    server: RpcServer
    client: dep2p.Node

    @property
    def peer_id(self) -> str:
        return str(self.daemon.peer_id)

    def address(self, transport: str = "quic-v1") -> str:
        """The full direct address over `transport`."""
        return next(
            str(address)
            for address in self.daemon.addresses()
            if address.transport == transport and not address.is_circuit
        )


@asynccontextmanager
async def api_node(config: Config) -> AsyncIterator[ApiNode]:
    """Run one node."""
    async with (
        Daemon(config) as daemon,
        RpcServer(daemon, config.socket) as server,
        dep2p.connect(config.socket) as client,
    ):
        yield ApiNode(config, daemon, server, client)


@asynccontextmanager
async def api_nodes() -> AsyncIterator[StartNode]:
    """Give a function that starts nodes, each in a directory of its own, gone afterwards."""
    async with AsyncExitStack() as stack:

        async def start(**sections: Any) -> ApiNode:
            directory = short_directory()
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            return await stack.enter_async_context(api_node(config_in(directory, **sections)))

        yield start


@dataclass
class Inbound:
    """Serves a protocol in the swarm itself: what arrives is left to the test."""

    node: ApiNode
    protocol: str = "/test/1"
    streams: asyncio.Queue[Stream] = field(default_factory=asyncio.Queue)
    _done: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> Inbound:
        self.node.daemon.swarm.set_handler(self.protocol, self._handle)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.node.daemon.swarm.remove_handler(self.protocol)
        self._done.set()

    async def _handle(self, stream: Stream) -> None:
        await self.streams.put(stream)
        await self._done.wait()

    async def next(self) -> Stream:
        """The next stream that a peer opened."""
        return await self.streams.get()


async def read_all(stream: Stream) -> bytes:
    """Everything up to the peer's end."""
    data = bytearray()
    while piece := await stream.read():
        data += piece
    return bytes(data)


class EventLog:
    """Collects a client's events; `wait` is for the first one that a condition holds for."""

    def __init__(self, client: dep2p.Node, *types: str, skip_snapshot: bool = False) -> None:
        self._events = client.watch_events(*types, skip_snapshot=skip_snapshot)
        self.seen: list[Event] = []
        self._news = asyncio.Event()
        self._task: asyncio.Task[None]

    async def __aenter__(self) -> EventLog:
        self._task = asyncio.create_task(self._collect())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._task.cancel()
        await asyncio.wait((self._task,))
        await self._events.aclose()

    async def _collect(self) -> None:
        async for event in self._events:
            self.seen.append(event)
            self._news.set()

    async def wait(self, kind: str, when: Callable[[Event], bool] = lambda _: True) -> Event:
        """The first event of a kind that `when` accepts, of those seen and those to come."""
        while True:
            for event in self.seen:
                if event.WhichOneof("event") == kind and when(event):
                    return event
            self._news.clear()
            await self._news.wait()
