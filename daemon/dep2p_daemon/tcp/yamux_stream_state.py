"""The state of one Yamux stream: its halves, its windows, and what waits to be sent."""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING, Final

from dep2p_daemon.errors import ProtocolViolationError
from dep2p_daemon.tcp.yamux_frame import INITIAL_WINDOW

if TYPE_CHECKING:
    from dep2p_daemon.muxed import Buffer

_SMALL_WRITE: Final = 4 * 1024
_JOINED_WRITES: Final = 16 * 1024


class StreamState(enum.Enum):
    """Which halves of a stream are open."""

    OPEN = enum.auto()
    WRITE_CLOSED = enum.auto()
    READ_CLOSED = enum.auto()
    CLOSED = enum.auto()
    RESET = enum.auto()


class StreamInput(enum.Enum):
    """What changes a stream's state."""

    SEND_FIN = enum.auto()
    RECEIVE_DATA = enum.auto()
    RECEIVE_FIN = enum.auto()
    RESET = enum.auto()


TRANSITIONS: Final[dict[tuple[StreamState, StreamInput], StreamState]] = {
    (StreamState.OPEN, StreamInput.SEND_FIN): StreamState.WRITE_CLOSED,
    (StreamState.OPEN, StreamInput.RECEIVE_DATA): StreamState.OPEN,
    (StreamState.OPEN, StreamInput.RECEIVE_FIN): StreamState.READ_CLOSED,
    (StreamState.OPEN, StreamInput.RESET): StreamState.RESET,
    (StreamState.WRITE_CLOSED, StreamInput.RECEIVE_DATA): StreamState.WRITE_CLOSED,
    (StreamState.WRITE_CLOSED, StreamInput.RECEIVE_FIN): StreamState.CLOSED,
    (StreamState.WRITE_CLOSED, StreamInput.RESET): StreamState.RESET,
    (StreamState.READ_CLOSED, StreamInput.SEND_FIN): StreamState.CLOSED,
    (StreamState.READ_CLOSED, StreamInput.RESET): StreamState.RESET,
}
"""Every change there is. A pair that is missing is a frame that the protocol does not allow."""

READABLE: Final = frozenset({StreamState.OPEN, StreamState.WRITE_CLOSED})
"""States in which the peer may still send."""
WRITABLE: Final = frozenset({StreamState.OPEN, StreamState.READ_CLOSED})
"""States in which we may still send."""


class YamuxStreamState:
    """What the session knows about one stream. Only the session touches it."""

    __slots__ = (
        "acknowledged",
        "consumed",
        "credit",
        "fin_requested",
        "id",
        "ignored",
        "inbound",
        "measured",
        "measured_since",
        "queue",
        "queued",
        "ready",
        "send_window",
        "state",
        "syn_pending",
        "window",
    )

    def __init__(self, stream_id: int, *, inbound: bool, now: float) -> None:
        self.id = stream_id
        self.inbound = inbound
        self.state = StreamState.OPEN
        self.syn_pending = not inbound
        """The peer has not been told of it yet."""
        self.acknowledged = False
        """Inbound: we accepted it; outbound: the peer did."""
        self.ignored = False
        """What still arrives is dropped."""
        self.window = INITIAL_WINDOW
        """Our receive window's size."""
        self.credit = INITIAL_WINDOW
        """Bytes that the peer may still send."""
        self.consumed = 0
        """Bytes that were read since the last window update."""
        self.measured = 0
        """Bytes that were read since `measured_since`, in seconds."""
        self.measured_since = now
        self.send_window = INITIAL_WINDOW
        """Bytes that we may still send."""
        self.queue: deque[Buffer] = deque()
        self.queued = 0
        self.fin_requested = False
        self.ready = False
        """Whether it stands in the session's sending order."""

    def step(self, event: StreamInput) -> None:
        """Change the state. Raises ProtocolViolationError where the table has no entry."""
        following = TRANSITIONS.get((self.state, event))
        if following is None:
            raise ProtocolViolationError(
                f"the peer broke Yamux: {event.name} on a stream that is {self.state.name}",
                reason="YAMUX_VIOLATION",
            )
        self.state = following

    @property
    def sendable(self) -> bool:
        """Whether a frame could be sent now."""
        if self.syn_pending:
            return True
        if self.queued:
            return self.send_window > 0
        return self.fin_requested and self.state in WRITABLE

    def push(self, data: Buffer) -> None:
        """Queue bytes. `data` must not change afterwards."""
        size = len(data)
        last = self.queue[-1] if self.queue else None
        if size < _SMALL_WRITE and type(last) is bytearray and len(last) < _JOINED_WRITES:
            last += data
        elif size < _SMALL_WRITE:
            # Small writes that have to wait share one buffer, or they would cost far more
            # than their bytes.
            self.queue.append(bytearray(data))
        else:
            self.queue.append(data)
        self.queued += size

    def take(self, size: int) -> list[Buffer]:
        """Take `size` queued bytes."""
        pieces: list[Buffer] = []
        self.queued -= size
        while size:
            piece = self.queue.popleft()
            length = len(piece)
            if length > size:
                view = memoryview(piece)
                self.queue.appendleft(view[size:])
                piece, length = view[:size], size
            pieces.append(piece)
            size -= length
        return pieces

    def drop_queue(self) -> int:
        """Forget what is queued; return its size."""
        dropped, self.queued = self.queued, 0
        self.queue.clear()
        self.fin_requested = False
        return dropped
