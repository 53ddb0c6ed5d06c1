"""What a transport gives and the swarm takes: connections that carry streams.

`quic/` and `tcp/` implement `Transport`, `Listener`, `Connection` and `Stream`; everything
above (swarm, protocols, circuit, rpc) sees only these. A `Connection` is already secured and
multiplexed: its `remote_peer` has been proven by the handshake.

Backpressure is part of the contract, in both directions:

- `Stream.read` hands credit back to the peer only for what the caller takes. Bytes nobody
  reads stay within the stream's window and are never acknowledged as consumed.
- `Stream.write` returns once the bytes are in the transport's bounded send buffer, and waits
  while that is full.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import time
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from dep2p_daemon.errors import (
    ConnectionClosedError,
    LocalError,
    ProtocolViolationError,
    StreamResetError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from dep2p_daemon.identity.keys import PublicKey
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr

READ_CHUNK: Final = 64 * 1024
"""Default and usual upper bound of one `read`, in bytes."""

SMALL_CHUNK: Final = 1024
"""Chunks of unread bytes below this size are joined, in bytes."""

MAX_VARINT_BYTES: Final = 9
"""An unsigned varint of multiformats is at most 9 bytes long (63 bits)."""

Buffer: TypeAlias = bytes | bytearray | memoryview


class Direction(enum.Enum):
    """Who opened it."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"


class CloseCode(enum.IntEnum):
    """Application error codes of connections and streams (go-libp2p `core/network`)."""

    NONE = 0
    PROTOCOL_NEGOTIATION_FAILED = 0x1001
    RESOURCE_LIMIT_EXCEEDED = 0x1002
    RATE_LIMITED = 0x1003
    PROTOCOL_VIOLATION = 0x1004
    SUPPLANTED = 0x1005
    GARBAGE_COLLECTED = 0x1006
    SHUTDOWN = 0x1007
    GATED = 0x1008


@dataclass(frozen=True, slots=True)
class CircuitLimits:
    """What a relay announced for a circuit; None means unlimited."""

    duration: float | None
    """Seconds from the circuit's start until the relay closes it."""
    data: int | None
    """Bytes in each direction until the relay closes it."""


@dataclass(slots=True)
class Traffic:
    """Counters of one connection, in bytes of its streams' payload."""

    received: int = 0
    sent: int = 0


class ByteChannel(Protocol):
    """A reliable ordered byte pipe: a TCP socket, or a stream that carries a circuit."""

    async def read(self, max_bytes: int = READ_CHUNK) -> bytes:
        """Return up to `max_bytes`, b"" at the end. Raises on a broken pipe."""
        ...

    async def write(self, data: Buffer) -> None:
        """Write all of `data`, waiting while the pipe is full."""
        ...

    async def close_write(self) -> None:
        """Send the end of our half."""
        ...

    def abort(self) -> None:
        """Drop both halves at once; never blocks, may be called twice."""
        ...


class ReceiveMemory:
    """Received but unread bytes of all connections of a transport, against their bound."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @property
    def allows_growth(self) -> bool:
        """Whether windows may grow: not while half of the memory is in use."""
        return self.used * 2 < self.limit

    @property
    def exceeded(self) -> bool:
        """Whether something has to go."""
        return self.used > self.limit


class ReceiveBuffer:
    """Bytes that arrived on a stream and wait for its one reader.

    The transport calls `feed`, `feed_eof` and `feed_error`; the reader calls `read` and
    `unread`. `on_consumed(n)` fires as the reader takes bytes, so that the transport can
    release that much credit (`unread` calls it with a negative n). The size is bounded by the
    credit the transport gave.
    """

    __slots__ = ("_chunks", "_eof", "_error", "_on_consumed", "_waiter", "size")

    def __init__(self, on_consumed: Callable[[int], None]) -> None:
        self._chunks: deque[bytes] = deque()
        self._eof = False
        self._error: Exception | None = None
        self._on_consumed = on_consumed
        self._waiter: asyncio.Future[None] | None = None
        self.size = 0

    @property
    def finished(self) -> bool:
        """True once the end or an error has arrived (bytes may still be unread)."""
        return self._eof or self._error is not None

    def feed(self, data: bytes) -> None:
        """Append bytes that arrived."""
        if data and not self.finished:
            if len(data) < SMALL_CHUNK and self._chunks and len(self._chunks[-1]) < SMALL_CHUNK:
                # A peer that sends single bytes must not cost fifty times their size.
                self._chunks[-1] += data
            else:
                self._chunks.append(data)
            self.size += len(data)
            self._wake()

    def feed_eof(self) -> None:
        """The peer sent its end; what is buffered stays readable."""
        self._eof = True
        self._wake()

    def feed_error(self, error: Exception) -> None:
        """The stream broke; what is buffered is dropped, reads raise `error` from now on."""
        if self._error is None:
            self._error = error
            self.discard()
            self._wake()

    def discard(self) -> int:
        """Drop what is buffered, as if read; returns the number of bytes."""
        dropped = self.size
        self._chunks.clear()
        self.size = 0
        if dropped:
            self._on_consumed(dropped)
        return dropped

    async def read(self, max_bytes: int) -> bytes:
        """Return what is buffered, 1..`max_bytes` bytes, or b"" at the end.

        One reader at a time. What arrived in many packets comes out as one piece, so that a
        reader that passes it on does so once.
        """
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._eof:
                return b""
            if self._waiter is not None:
                raise LocalError("two tasks read the same stream", reason="CONCURRENT_READ")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        chunk = self._chunks.popleft()
        length = len(chunk)
        if length > max_bytes:
            self._chunks.appendleft(chunk[max_bytes:])
            chunk = chunk[:max_bytes]
        elif self._chunks and length + len(self._chunks[0]) <= max_bytes:
            # Whole chunks only: cutting one costs a copy of what is left of it.
            pieces = [chunk]
            while self._chunks and length + len(self._chunks[0]) <= max_bytes:
                pieces.append(self._chunks.popleft())
                length += len(pieces[-1])
            chunk = b"".join(pieces)
        self.size -= len(chunk)
        self._on_consumed(len(chunk))
        return chunk

    def unread(self, data: bytes) -> None:
        """Put bytes that were read too far back in front, and take their credit back."""
        if data:
            self._chunks.appendleft(data)
            self.size += len(data)
            self._on_consumed(-len(data))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Stream(ABC):
    """One bidirectional byte stream of a connection.

    Whoever gets a stream owns it and must end it with `aclose` or `reset`. One task may read
    while another writes; two readers or two writers at once are an error of the caller.
    """

    def __init__(self, connection: Connection, stream_id: int, direction: Direction) -> None:
        self.connection = connection
        self.id = stream_id
        self.direction = direction
        self.protocol = ""
        """The negotiated protocol id; set by the swarm after multistream-select."""
        self.opened_at = time.time()
        """Unix time in seconds."""
        self.traffic = Traffic()

    @abstractmethod
    async def read(self, max_bytes: int = READ_CHUNK) -> bytes:
        """Return 1..`max_bytes` bytes, b"" once the peer has closed its half.

        Raises:
            StreamResetError: either side reset the stream.
            ConnectionClosedError: the connection under it ended.
        """

    @abstractmethod
    def unread(self, data: bytes) -> None:
        """Put back what a parser read too far; the next `read` returns it first."""

    @abstractmethod
    async def write(self, data: Buffer) -> None:
        """Queue all of `data`, waiting while the peer gives no credit.

        Cancelling it may leave a part written: reset the stream then.

        Raises:
            StreamResetError: either side reset the stream, or the peer stopped reading.
            ConnectionClosedError: the connection under it ended.
        """

    @abstractmethod
    async def close_write(self) -> None:
        """Half-close: the peer reads its end after all that was written. Idempotent."""

    @abstractmethod
    def reset(self, code: int = CloseCode.NONE) -> None:
        """End both halves at once, dropping what is in flight. Idempotent, never blocks."""

    @abstractmethod
    def stop_reading(self, code: int = CloseCode.NONE) -> None:
        """Tell the peer that no more of its bytes will be read, and drop what is buffered."""

    @property
    @abstractmethod
    def closed(self) -> bool:
        """True once both halves have ended."""

    def abort(self) -> None:
        """`ByteChannel`'s name for `reset`."""
        self.reset()

    async def aclose(self) -> None:
        """Close our half and stop reading. Cancelled, it resets instead: it always closes."""
        try:
            await self.close_write()
        except (StreamResetError, ConnectionClosedError):
            pass
        except BaseException:
            self.reset()
            raise
        self.stop_reading()


_connection_numbers = itertools.count(1)


class Connection(ABC):
    """A secured, multiplexed connection to a peer whose identity has been proven.

    Owned by whoever got it from `Transport.dial` or `Listener.accept` (the swarm); ended with
    `close`, which is idempotent and cancel-safe.
    """

    def __init__(
        self,
        *,
        local_peer: PeerId,
        remote_peer: PeerId,
        remote_key: PublicKey,
        direction: Direction,
        local_address: Multiaddr,
        remote_address: Multiaddr,
        security: str,
        muxer: str,
        relay: PeerId | None = None,
        limits: CircuitLimits | None = None,
    ) -> None:
        self.id = f"c{next(_connection_numbers)}"
        """Unique within this process; the API's name of the connection."""
        self.local_peer = local_peer
        self.remote_peer = remote_peer
        self.remote_key = remote_key
        self.direction = direction
        self.local_address = local_address
        self.remote_address = remote_address
        """Where the peer is, without its `/p2p`; for a circuit `<relay>/p2p/<id>/p2p-circuit`."""
        self.security = security
        """"libp2p-tls" or "/noise"."""
        self.muxer = muxer
        """"quic" or "/yamux/1.0.0"."""
        self.relay = relay
        """The relay whose circuit carries this connection; None when it is direct."""
        self.limits = limits
        """What the relay announced; None when it announced none."""
        self.opened_at = time.time()
        self.traffic = Traffic()
        self.rtt: float | None = None
        """Smoothed round trip in seconds, where the transport or a ping measured one."""

    @property
    def heard_at(self) -> float | None:
        """The loop's time when something last came from the peer; None where nobody notes it."""
        return None

    @property
    def datagram_size(self) -> int | None:
        """Bytes of the UDP payloads that bulk data is sent in; None where it is not QUIC."""
        return None

    @property
    def relayed(self) -> bool:
        """True when the packets go through a relay."""
        return self.relay is not None

    @property
    def path(self) -> str:
        """The way the packets go: "direct" or "relayed"."""
        return "relayed" if self.relayed else "direct"

    @property
    @abstractmethod
    def streams(self) -> tuple[Stream, ...]:
        """The streams open now."""

    @property
    @abstractmethod
    def is_closed(self) -> bool:
        """True once no stream can be opened any more."""

    @abstractmethod
    async def open_stream(self) -> Stream:
        """Open a stream, waiting while the peer allows no more of them.

        Raises:
            ConnectionClosedError: the connection has ended.
        """

    @abstractmethod
    async def accept_stream(self) -> Stream:
        """Return the next stream that the peer opened. Raises ConnectionClosedError."""

    @abstractmethod
    async def close(self, code: int = CloseCode.NONE, message: str = "") -> None:
        """End the connection and all its streams; tell the peer `code` where the wire can."""

    @abstractmethod
    async def wait_closed(self) -> ConnectionClosedError:
        """Wait for the end, whoever caused it, and return why."""


class Listener(ABC):
    """A listening address. Owned by whoever called `Transport.listen`."""

    @property
    @abstractmethod
    def addresses(self) -> tuple[Multiaddr, ...]:
        """What it is bound to, with the real port; 0.0.0.0 is not expanded here."""

    @abstractmethod
    async def accept(self) -> Connection:
        """Return the next inbound connection. Raises ConnectionClosedError after `close`."""

    @abstractmethod
    async def close(self) -> None:
        """Stop accepting; connections that were accepted live on."""


class Transport(ABC):
    """Dials and listens on one kind of multiaddr. An async context manager owns its tasks."""

    @abstractmethod
    def can_dial(self, address: Multiaddr) -> bool:
        """Whether `address` (without a trailing `/p2p`) is one for this transport."""

    @abstractmethod
    async def dial(self, address: Multiaddr, peer: PeerId) -> Connection:
        """Connect to `address` and prove that `peer` is there.

        The caller sets the deadline (`asyncio.timeout`); cancelled, nothing is left behind.

        Raises:
            UnreachableError: nobody answered, or the address refused.
            AuthenticationError: somebody else is there.
        """

    @abstractmethod
    async def listen(self, address: Multiaddr) -> Listener:
        """Listen on an IP address and port (0: any).

        Raises:
            ConfigError: the address cannot be bound; says why.
        """


async def read_exactly(channel: ByteChannel, size: int) -> bytes:
    """Read exactly `size` bytes. Raises ProtocolViolationError when the end comes first."""
    chunks: list[bytes] = []
    missing = size
    while missing:
        chunk = await channel.read(missing)
        if not chunk:
            raise ProtocolViolationError(
                f"the stream ended {missing} bytes before the {size} that were expected",
                reason="UNEXPECTED_END",
            )
        chunks.append(chunk)
        missing -= len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def read_message(channel: ByteChannel, max_bytes: int) -> bytes:
    """Read one varint-length-prefixed message and not a byte more.

    Never reads past the message: what follows a relay's STATUS belongs to somebody else.

    Raises:
        ProtocolViolationError: longer than `max_bytes`, a malformed length, or the end.
    """
    length = shift = 0
    for index in range(MAX_VARINT_BYTES):
        byte = (await read_exactly(channel, 1))[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            if byte == 0 and index:
                break
            if length > max_bytes:
                raise ProtocolViolationError(
                    f"a message of {length} bytes, where {max_bytes} are allowed",
                    reason="MESSAGE_TOO_LARGE",
                )
            return await read_exactly(channel, length)
    raise ProtocolViolationError("a malformed message length", reason="MALFORMED_LENGTH")


async def write_message(channel: ByteChannel, message: bytes) -> None:
    """Write `message` behind its varint length, in one write."""
    length = len(message)
    prefix = bytearray()
    while length > 0x7F:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    await channel.write(bytes(prefix) + message)
