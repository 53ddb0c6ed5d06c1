"""Endpoints in memory: no sockets, and a clock that only the test moves."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.quic.context import QuicContext
from dep2p_daemon.quic.endpoint import Endpoint
from dep2p_daemon.quic.settings import QuicSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dep2p_daemon.errors import Dep2pError
    from dep2p_daemon.quic.connection import QuicConnection

Address = tuple[str, int]


@dataclass
class Wire:
    """What the endpoints sent and has not arrived; a test may look at it, drop or change it."""

    now: float = 1000.0
    nodes: dict[Address, Node] = field(default_factory=dict)
    flying: deque[tuple[Address, Address, list[bytes]]] = field(default_factory=deque)
    keep: Callable[[Address, bytes], bool] = lambda _to, _datagram: True
    change: Callable[[list[bytes]], list[bytes]] = lambda datagrams: datagrams
    """What becomes of datagrams that were kept."""
    sent: list[tuple[float, Address, bytes]] = field(default_factory=list)
    """(time, sender, datagram) of everything, dropped or not."""

    def pump(self) -> None:
        """Deliver until nothing moves at this moment."""
        moving = True
        while moving:
            moving = False
            for node in list(self.nodes.values()):
                if node.endpoint.has_work:
                    node.endpoint.flush()
                    moving = True
            while self.flying:
                sender, target, datagrams = self.flying.popleft()
                kept = self.change([d for d in datagrams if self.keep(target, d)])
                if target in self.nodes and kept:
                    self.nodes[target].endpoint.receive(kept, sender, None)
                moving = True

    def advance(self, seconds: float, latency: float = 0.0) -> None:
        """Let time pass, firing every deadline on the way."""
        end = self.now + seconds
        self.pump()
        while True:
            deadlines = [
                at
                for node in self.nodes.values()
                if (at := node.endpoint.next_deadline) is not None
            ]
            # Timers have a granularity, and no test should spin on one.
            at = max(min(deadlines, default=end), self.now + 0.0005)
            if at >= end:
                break
            self.now = at
            for node in list(self.nodes.values()):
                node.endpoint.handle_timers()
            self.now += latency
            self.pump()
        self.now = end
        for node in list(self.nodes.values()):
            node.endpoint.handle_timers()
        self.pump()


class Node:
    """One endpoint on the wire; also its own `DatagramSender`."""

    def __init__(
        self,
        wire: Wire,
        address: Address,
        settings: QuicSettings | None = None,
        key: PrivateKey | None = None,
    ) -> None:
        self.wire = wire
        self.address = address
        self.key = key or PrivateKey.generate()
        self.context = QuicContext.create(self.key, settings or QuicSettings())
        self.is_blocked = False
        self.refusal = 0
        """The errno of everything that is sent."""
        self.accepted: list[QuicConnection] = []
        self.endpoint = Endpoint(
            self.context,
            self,
            clock=lambda: wire.now,
            local_host=address[0],
            local_port=address[1],
            on_work=lambda: None,
        )
        wire.nodes[address] = self

    def listen(self) -> Node:
        def accept(connection: QuicConnection) -> bool:
            self.accepted.append(connection)
            return True

        self.endpoint.on_accepted = accept
        return self

    def send(self, datagrams: Sequence[bytes], destination: Any, local: bytes | None = None) -> int:
        if self.refusal:
            return self.refusal
        self.wire.sent += [(self.wire.now, self.address, d) for d in datagrams]
        self.wire.flying.append((self.address, destination, list(datagrams)))
        return 0

    def move(self, address: Address) -> None:
        """As a NAT does it: from now on everything leaves from `address` and comes there."""
        del self.wire.nodes[self.address]
        self.address = address
        self.wire.nodes[address] = self

    def dial(self, target: Node, peer: Any = None) -> Dial:
        dial = Dial()
        dial.session = self.endpoint.connect(
            target.address,
            target.key.peer_id if peer is None else peer,
            on_established=dial.connections.append,
            on_failed=dial.errors.append,
        )
        return dial

    def datagrams_since(self, when: float) -> int:
        return sum(1 for at, sender, _ in self.wire.sent if sender == self.address and at >= when)


class Dial:
    def __init__(self) -> None:
        self.connections: list[QuicConnection] = []
        self.errors: list[Dep2pError] = []
        self.session: Any = None

    @property
    def connection(self) -> QuicConnection:
        assert not self.errors, self.errors
        (connection,) = self.connections
        return connection

    @property
    def error(self) -> Dep2pError:
        assert not self.connections
        (error,) = self.errors
        return error


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def make_node(wire: Wire) -> Callable[..., Node]:
    count = 0

    def make(settings: QuicSettings | None = None, key: PrivateKey | None = None) -> Node:
        nonlocal count
        count += 1
        return Node(wire, (f"192.0.2.{count}", 4000 + count), settings, key)

    return make
