"""A transport inside one process: real connections and streams over asyncio, no sockets.

It honours the contract of `muxed`: windows that only consumption opens, half-close, reset codes,
close codes. A `MemoryNetwork` stands for the wire; tests make addresses slow, dead or foreign.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from typing_extensions import override

from dep2p_daemon.errors import (
    AuthenticationError,
    ConfigError,
    ConnectionClosedError,
    StreamResetError,
    UnreachableError,
)
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.muxed import (
    READ_CHUNK,
    Buffer,
    CircuitLimits,
    CloseCode,
    Connection,
    Direction,
    Listener,
    ReceiveBuffer,
    Stream,
    Transport,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dep2p_daemon.identity.keys import PrivateKey
    from dep2p_daemon.identity.peer_id import PeerId

WINDOW = 256 * 1024


class MemoryStream(Stream):
    """One end of a stream; `other` is the peer's end."""

    other: MemoryStream

    def __init__(self, connection: MemoryConnection, number: int, direction: Direction) -> None:
        super().__init__(connection, number, direction)
        self._received = ReceiveBuffer(self._consumed)
        self._credit = asyncio.Event()
        self._credit.set()
        self._sent_end = False
        self._received_end = False
        self._error: Exception | None = None
        self._home = connection

    @override
    async def read(self, max_bytes: int = READ_CHUNK) -> bytes:
        data = await self._received.read(max_bytes)
        self.traffic.received += len(data)
        return data

    @override
    def unread(self, data: bytes) -> None:
        self._received.unread(data)

    @override
    async def write(self, data: Buffer) -> None:
        rest = memoryview(data)
        while True:
            if self._error is not None:
                raise self._error
            if not rest:
                return
            room = WINDOW - self.other._received.size
            if room <= 0:
                self._credit.clear()
                await self._credit.wait()
                continue
            self.other._received.feed(bytes(rest[:room]))
            self.traffic.sent += len(rest[:room])
            rest = rest[room:]

    @override
    async def close_write(self) -> None:
        if self._error is not None:
            raise self._error
        if not self._sent_end:
            self._sent_end = True
            self.other._received_end = True
            self.other._received.feed_eof()
            self._forget_if_closed()
            self.other._forget_if_closed()

    @override
    def reset(self, code: int = CloseCode.NONE) -> None:
        if not self.closed:
            self.fail(StreamResetError(code=code, remote=False))
            self.other.fail(StreamResetError(code=code, remote=True))

    @override
    def stop_reading(self, code: int = CloseCode.NONE) -> None:
        self._received.discard()
        if not self._received_end:
            self._received_end = True
            self.other.fail_writes(StreamResetError(code=code, remote=True))
            self._forget_if_closed()

    @property
    @override
    def closed(self) -> bool:
        return self._sent_end and self._received_end

    def fail(self, error: Exception) -> None:
        self._received_end = True
        self._received.feed_error(error)
        self.fail_writes(error)

    def fail_writes(self, error: Exception) -> None:
        if not self._sent_end:
            self._sent_end = True
            self._error = error
            self._credit.set()
        self._forget_if_closed()

    def _consumed(self, count: int) -> None:
        if count > 0:
            self.other._credit.set()

    def _forget_if_closed(self) -> None:
        if self.closed:
            self._home.open_streams.pop(self.id, None)


class MemoryConnection(Connection):
    """One end of a connection; `other` is the peer's end."""

    other: MemoryConnection

    def __init__(
        self,
        network: MemoryNetwork,
        local: PrivateKey,
        remote: PrivateKey,
        direction: Direction,
        local_address: Multiaddr,
        remote_address: Multiaddr,
        relay: PeerId | None,
        limits: CircuitLimits | None,
    ) -> None:
        super().__init__(
            local_peer=local.peer_id,
            remote_peer=remote.peer_id,
            remote_key=remote.public_key,
            direction=direction,
            local_address=local_address,
            remote_address=remote_address,
            security="memory",
            muxer="memory",
            relay=relay,
            limits=limits,
        )
        self.open_streams: dict[int, MemoryStream] = {}
        self._network = network
        self._numbers: Iterator[int] = itertools.count(int(direction is Direction.INBOUND), 2)
        self._inbound: asyncio.Queue[MemoryStream | None] = asyncio.Queue()
        self._ended = asyncio.Event()
        self._error: ConnectionClosedError | None = None
        self.heard: float | None = None
        """What `heard_at` says; a test sets it."""

    @property
    @override
    def heard_at(self) -> float | None:
        return self.heard

    @property
    @override
    def streams(self) -> tuple[Stream, ...]:
        return tuple(self.open_streams.values())

    @property
    @override
    def is_closed(self) -> bool:
        return self._error is not None

    @override
    async def open_stream(self) -> Stream:
        if self._error is not None:
            raise self._error
        number = next(self._numbers)
        ours = MemoryStream(self, number, Direction.OUTBOUND)
        theirs = MemoryStream(self.other, number, Direction.INBOUND)
        ours.other, theirs.other = theirs, ours
        self.open_streams[number] = ours
        self.other.open_streams[number] = theirs
        self.other._inbound.put_nowait(theirs)
        return ours

    @override
    async def accept_stream(self) -> Stream:
        stream = await self._inbound.get()
        if stream is None or self._error is not None:
            self._inbound.put_nowait(None)
            assert self._error is not None
            raise self._error
        return stream

    @override
    async def close(self, code: int = CloseCode.NONE, message: str = "") -> None:
        self.end(ConnectionClosedError(message or "closed by us", code=code, remote=False))
        self.other.end(ConnectionClosedError(message or "closed by peer", code=code, remote=True))

    @override
    async def wait_closed(self) -> ConnectionClosedError:
        await self._ended.wait()
        assert self._error is not None
        return self._error

    def end(self, error: ConnectionClosedError) -> None:
        if self._error is None:
            self._error = error
            for stream in list(self.open_streams.values()):
                stream.fail(error)
            self._inbound.put_nowait(None)
            self._ended.set()


class MemoryListener(Listener):
    def __init__(self, network: MemoryNetwork, key: PrivateKey, address: Multiaddr) -> None:
        self._network = network
        self.key = key
        self.address = address
        self.inbound: asyncio.Queue[MemoryConnection | None] = asyncio.Queue()

    @property
    @override
    def addresses(self) -> tuple[Multiaddr, ...]:
        return (self.address,)

    @override
    async def accept(self) -> Connection:
        connection = await self.inbound.get()
        if connection is None:
            self.inbound.put_nowait(None)
            raise ConnectionClosedError("the listener is closed")
        return connection

    @override
    async def close(self) -> None:
        self._network.listeners.pop(self.address, None)
        self.inbound.put_nowait(None)


@dataclass
class MemoryNetwork:
    """Who listens where, and how the ways there are."""

    listeners: dict[Multiaddr, MemoryListener] = field(default_factory=dict)
    dead: set[Multiaddr] = field(default_factory=set)
    """Addresses that swallow everything."""
    latency: dict[Multiaddr, float] = field(default_factory=dict)
    """Seconds a dial takes."""
    failures: dict[Multiaddr, Exception] = field(default_factory=dict)
    """What a dial raises."""
    limits: CircuitLimits | None = None
    """Of all circuits."""
    dials: list[tuple[float, Multiaddr]] = field(default_factory=list)
    """What was dialled, and when."""
    cancelled: list[Multiaddr] = field(default_factory=list)
    """Dials that were given up."""

    def transport(self, key: PrivateKey) -> MemoryTransport:
        return MemoryTransport(self, key)


class MemoryTransport(Transport):
    def __init__(self, network: MemoryNetwork, key: PrivateKey) -> None:
        self._network = network
        self._key = key

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        return

    @override
    def can_dial(self, address: Multiaddr) -> bool:
        return address.transport is not None

    @override
    async def dial(self, address: Multiaddr, peer: PeerId) -> Connection:
        network = self._network
        network.dials.append((asyncio.get_running_loop().time(), address))
        try:
            if address in network.dead:
                await asyncio.get_running_loop().create_future()
            await asyncio.sleep(network.latency.get(address, 0.0))
        except asyncio.CancelledError:
            network.cancelled.append(address)
            raise
        if (failure := network.failures.get(address)) is not None:
            raise failure
        listener = network.listeners.get(address)
        if listener is None:
            raise UnreachableError("connection refused")
        if listener.key.peer_id != peer:
            there = listener.key.peer_id
            raise AuthenticationError(
                f"{there} answered instead of {peer}",
                reason="PEER_ID_MISMATCH",
                actual_peer=there,
            )
        return self._connect(listener, address)

    @override
    async def listen(self, address: Multiaddr) -> Listener:
        if address in self._network.listeners:
            raise ConfigError(f"{address} is in use")
        listener = MemoryListener(self._network, self._key, address)
        self._network.listeners[address] = listener
        return listener

    def _connect(self, listener: MemoryListener, address: Multiaddr) -> Connection:
        relay = limits = None
        near = Multiaddr.for_tcp("127.0.0.1" if address.is_loopback else "192.0.2.77", 50_000)
        if address.is_circuit:
            relay = address.split_circuit()[0].peer_id
            limits = self._network.limits
            near = address
        here = MemoryConnection(
            self._network, self._key, listener.key, Direction.OUTBOUND, near, address, relay, limits
        )
        there = MemoryConnection(
            self._network, listener.key, self._key, Direction.INBOUND, address, near, relay, limits
        )
        here.other, there.other = there, here
        listener.inbound.put_nowait(there)
        return here
