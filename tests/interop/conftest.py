"""Daemons of ours for the interop tests, each with a client; js nodes are `JsPeer`s."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from tests.e2e.processes import Daemon, daemons
from tests.interop.js_peer import JS_DIRECTORY
from tests.node_packages import node_with_packages

import dep2p

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from dep2p.v1.peer_pb2 import Peer

EVENT_SECONDS = 20.0


@dataclass(frozen=True)
class OurNode:
    """A running `dep2pd` and the public client that drives it."""

    daemon: Daemon
    node: dep2p.Node

    @property
    def peer_id(self) -> str:
        return self.daemon.peer_id

    def address(self, transport: str) -> str:
        """Its loopback address over "quic" or "tcp", with /p2p."""
        return self.daemon.address({"quic": "quic-v1", "tcp": "tcp"}[transport])

    async def identified(self, peer_id: str) -> Peer:
        """What `peer_id`'s identify told us, as soon as it has."""
        async with asyncio.timeout(EVENT_SECONDS):
            async with contextlib.aclosing(self.node.watch_events("peer_identified")) as events:
                async for event in events:
                    if event.peer_identified.peer_id == peer_id:
                        return event.peer_identified
        raise AssertionError("the daemon ended its events")


@pytest.fixture(scope="session", autouse=True)
def _js_packages() -> None:
    """Skip at once where no js node can run; install its packages where it can."""
    node_with_packages(JS_DIRECTORY)


@pytest.fixture
async def ours() -> AsyncIterator[Callable[..., Awaitable[OurNode]]]:
    """Start daemons by `await ours("name", "--flag", section__key="value")`.

    All of them end with the test.
    """
    async with daemons() as start, contextlib.AsyncExitStack() as clients:

        async def start_one(name: str, *flags: str, **settings: str) -> OurNode:
            daemon = start.prepare(name, *flags)
            daemon.env |= {f"DEP2P_{key.upper()}": value for key, value in settings.items()}
            await daemon.start()
            node = await clients.enter_async_context(dep2p.connect(daemon.socket))
            return OurNode(daemon, node)

        yield start_one


@pytest.fixture(params=["quic", "tcp"])
def transport(request: pytest.FixtureRequest) -> str:
    """What the connection under test, or each leg of the circuit, runs over."""
    return str(request.param)
