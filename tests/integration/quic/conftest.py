"""Two QUIC transports on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.quic.connection import QuicConnection
from dep2p_daemon.quic.transport import QuicTransport

if TYPE_CHECKING:
    from dep2p_daemon.muxed import Listener
    from dep2p_daemon.quic.endpoint import Endpoint
    from dep2p_daemon.quic.settings import QuicSettings


@dataclass
class Node:
    """A transport, and a listener where it has one."""

    key: PrivateKey
    transport: QuicTransport
    listener: Listener | None = None

    @property
    def address(self) -> Multiaddr:
        assert self.listener is not None
        return self.listener.addresses[0]

    @property
    def endpoint(self) -> Endpoint:
        return self.transport.drivers[0].endpoint

    async def dial(self, other: Node) -> tuple[QuicConnection, QuicConnection]:
        """Dial `other`; returns both ends."""
        assert other.listener is not None
        ours, theirs = await asyncio.gather(
            self.transport.dial(other.address, other.key.peer_id), other.listener.accept()
        )
        assert isinstance(ours, QuicConnection)
        assert isinstance(theirs, QuicConnection)
        return ours, theirs


MakeNode = Callable[..., Awaitable[Node]]


@pytest.fixture
async def make_node() -> AsyncIterator[MakeNode]:
    async with AsyncExitStack() as stack:

        async def make(
            settings: QuicSettings | None = None,
            *,
            listen: str | None = None,
            key: PrivateKey | None = None,
        ) -> Node:
            key = key or PrivateKey.generate()
            transport = await stack.enter_async_context(QuicTransport(key, settings))
            node = Node(key, transport)
            if listen is not None:
                node.listener = await transport.listen(Multiaddr.parse(listen))
            return node

        yield make
