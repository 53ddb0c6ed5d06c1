"""Yamux, without I/O: https://github.com/libp2p/specs/blob/master/yamux/README.md.

Flow:
  - `receive` takes the peer's bytes and returns what happened.
  - `write`, `finish`, `reset`, `accept`, `consume` change streams; `output` returns the frames
    that are due, one of each stream in turn.
  - `deadline` says when `handle_timer` wants to be called: pings and lingering streams.

Credit goes back to the peer by `consume` only, half a window or 2 MiB at a time. A window doubles
while it is smaller than what its reader takes in two round trips: one on the way to us, and one
of credit on its way back.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from dep2p_daemon.errors import ConnectionClosedError, LocalError
from dep2p_daemon.tcp import yamux_frame as frame
from dep2p_daemon.tcp.yamux_events import (
    DataReceived,
    Event,
    GoAwayReceived,
    RoundTripMeasured,
    StreamAcknowledged,
    StreamEnded,
    StreamOpened,
    StreamRefused,
    StreamReset,
)
from dep2p_daemon.tcp.yamux_frame import (
    HEADER_BYTES,
    INITIAL_WINDOW,
    FrameParser,
    GoAwayCode,
    Header,
    violation,
)
from dep2p_daemon.tcp.yamux_keepalive import Keepalive
from dep2p_daemon.tcp.yamux_stream_state import (
    READABLE,
    WRITABLE,
    StreamInput,
    StreamState,
    YamuxStreamState,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from dep2p_daemon.muxed import Buffer
    from dep2p_daemon.tcp.settings import YamuxSettings

YAMUX_PROTOCOL: Final = "/yamux/1.0.0"
MAX_UNACKNOWLEDGED: Final = 256
"""Our streams that the peer has not acknowledged yet; the specification's ACK backlog."""
MEASURE_PERIOD: Final = 0.02
"""Seconds. Shorter looks at a reader see bursts: it empties its buffer, then waits."""
MAX_CREDIT_STEP: Final = 2 << 20
"""Bytes: of the widest window 14 MiB are always there to be used, 1 Gbit/s over 100 ms."""
MAX_PAYLOAD: Final = 65519 - HEADER_BYTES
"""Bytes of one frame that we send: with its header it fills one Noise frame."""


class YamuxSession:
    """One side of a session. The client's streams are odd, the server's even."""

    def __init__(
        self,
        *,
        client: bool,
        settings: YamuxSettings,
        now: float,
        may_grow: Callable[[], bool] = lambda: True,
    ) -> None:
        self._settings = settings
        self._may_grow = may_grow
        self._remote_parity = 0 if client else 1
        self._next_id = 1 if client else 2
        self._streams: dict[int, YamuxStreamState] = {}
        self._inbound = 0
        self._unaccepted = 0
        self._unacknowledged = 0
        self._growth = 0
        self._control = bytearray()
        self._ready: deque[YamuxStreamState] = deque()
        self._drained: list[int] = []
        self._lingering: dict[int, float] = {}
        self._parser = FrameParser()
        self._receiving: YamuxStreamState | None = None
        self._fin_after_payload = False
        self._go_away: GoAwayCode | None = None
        self._go_away_sent = False
        self.remote_gone_away = False
        """The peer takes no more streams."""
        self.queued = 0
        """Bytes of all streams that wait to be sent."""
        self._keepalive = Keepalive(
            now, interval=settings.keepalive_interval, timeout=settings.keepalive_timeout
        )

    # What the application does.

    @property
    def heard_at(self) -> float:
        """When something last came from the peer."""
        return self._keepalive.last_received

    @property
    def can_open(self) -> bool:
        """Whether the peer has room for one more stream that it has not seen yet."""
        return self._unacknowledged < MAX_UNACKNOWLEDGED

    def open(self, now: float) -> int:
        """Open a stream and return its id. Raises ConnectionClosedError after a go-away."""
        if self.remote_gone_away or self._go_away is not None:
            raise ConnectionClosedError("the connection takes no more streams", reason="GO_AWAY")
        if self._next_id > frame.MAX_STREAM_ID:
            raise ConnectionClosedError("the stream ids are used up", reason="STREAM_IDS_EXHAUSTED")
        stream = YamuxStreamState(self._next_id, inbound=False, now=now)
        self._next_id += 2
        self._streams[stream.id] = stream
        self._unacknowledged += 1
        # In its turn, behind the ends of streams that were finished earlier: the peer may
        # have room for this one only after those.
        self._schedule(stream)
        return stream.id

    def accept(self, stream_id: int) -> None:
        """Acknowledge a stream that the peer opened."""
        stream = self._streams.get(stream_id)
        if stream is not None and stream.inbound and not stream.acknowledged:
            stream.acknowledged = True
            self._unaccepted -= 1
            self._control += frame.encode(frame.WINDOW_UPDATE, frame.ACK, stream_id, 0)

    def write(self, stream_id: int, data: Buffer) -> None:
        """Queue bytes; `data` must not change afterwards. Raises LocalError after `finish`."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.fin_requested or stream.state not in WRITABLE:
            raise LocalError("write on a stream whose half is closed", reason="STREAM_CLOSED")
        if data:
            stream.push(data)
            self.queued += len(data)
            self._schedule(stream)

    def queued_on(self, stream_id: int) -> int:
        """Bytes of this stream that wait to be sent."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.queued

    def finish(self, stream_id: int, now: float) -> None:
        """Close our half once all that is queued has been sent. Idempotent."""
        stream = self._streams.get(stream_id)
        if stream is not None and stream.state in WRITABLE:
            stream.fin_requested = True
            self._schedule(stream)
            self._linger(stream, now)

    def reset(self, stream_id: int) -> None:
        """End both halves at once. Idempotent."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            if not stream.syn_pending:
                self._control += frame.encode(frame.WINDOW_UPDATE, frame.RST, stream_id, 0)
            stream.syn_pending = False
            stream.step(StreamInput.RESET)
            self._forget(stream)

    def ignore(self, stream_id: int, now: float) -> None:
        """Drop what still arrives on a stream, and give no more credit for it."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.ignored:
            stream.ignored = True
            self._linger(stream, now)

    def consume(self, stream_id: int, count: int, now: float) -> None:
        """Give credit for bytes that were read; a negative count takes it back."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.ignored or stream.state not in READABLE:
            return
        stream.consumed += count
        if stream.consumed < min(stream.window // 2, MAX_CREDIT_STEP):
            return
        delta = stream.consumed + self._grow(stream, now)
        stream.consumed = 0
        stream.credit += delta
        self._control += frame.encode(frame.WINDOW_UPDATE, 0, stream_id, delta)

    def go_away(self, code: GoAwayCode) -> None:
        """Take no more streams, and say so after everything else that can be sent. Idempotent."""
        if self._go_away is None:
            self._go_away = code

    # What goes out.

    @property
    def control_backlog(self) -> int:
        """Bytes of frames about the session and its streams that wait to be sent."""
        return len(self._control)

    @property
    def output_due(self) -> bool:
        """Whether `output` would return something."""
        go_away_due = self._go_away is not None and not self._go_away_sent
        return bool(self._control or self._ready or go_away_due)

    def output(self, limit: int) -> list[Buffer]:
        """Return frames of about `limit` bytes in total, as pieces in order; [] if none is due."""
        parts: list[Buffer] = []
        size = len(self._control)
        if size:
            parts.append(bytes(self._control))
            self._control.clear()
        while self._ready and size < limit:
            stream = self._ready.popleft()
            stream.ready = False
            if stream.sendable:
                size += self._emit(stream, parts)
                self._schedule(stream)
        if self._go_away is not None and not self._go_away_sent and not self._ready:
            self._go_away_sent = True
            parts.append(frame.encode(frame.GO_AWAY, 0, frame.SESSION_ID, self._go_away))
        return parts

    def take_drained(self) -> list[int]:
        """Return the streams whose queues ran empty since the last call."""
        drained, self._drained = self._drained, []
        return drained

    def _schedule(self, stream: YamuxStreamState) -> None:
        if not stream.ready and stream.sendable:
            stream.ready = True
            self._ready.append(stream)

    def _emit(self, stream: YamuxStreamState, parts: list[Buffer]) -> int:
        """Append the start, one data frame, and the end behind the last one; return their size."""
        if stream.syn_pending:
            stream.syn_pending = False
            parts.append(frame.encode(frame.WINDOW_UPDATE, frame.SYN, stream.id, 0))
        size = min(stream.queued, stream.send_window, MAX_PAYLOAD)
        if size:
            payload = stream.take(size)
            stream.send_window -= size
            self.queued -= size
            parts.append(frame.encode(frame.DATA, 0, stream.id, size))
            parts += payload
            if not stream.queued:
                self._drained.append(stream.id)
        if stream.fin_requested and not stream.queued:
            # Never on a frame with data: js-libp2p (yamux 8.0.1) drops such data once it has
            # closed its own half.
            parts.append(frame.encode(frame.WINDOW_UPDATE, frame.FIN, stream.id, 0))
            stream.step(StreamInput.SEND_FIN)
            if stream.state is StreamState.CLOSED:
                self._forget(stream)
        return HEADER_BYTES + size

    def _grow(self, stream: YamuxStreamState, now: float) -> int:
        """Return by how much the window grows, growing it."""
        settings = self._settings
        rtt = self._keepalive.base_rtt
        stream.measured += stream.consumed
        elapsed = now - stream.measured_since
        if not rtt or elapsed < max(2 * rtt, MEASURE_PERIOD):
            return 0
        in_a_round_trip = stream.measured * rtt / elapsed
        stream.measured, stream.measured_since = 0, now
        if stream.window >= 2 * in_a_round_trip:
            return 0
        room = min(settings.max_window - stream.window, settings.max_window_growth - self._growth)
        growth = min(stream.window, room)
        if growth <= 0 or not self._may_grow():
            return 0
        stream.window += growth
        self._growth += growth
        return growth

    def _linger(self, stream: YamuxStreamState, now: float) -> None:
        """We are done with both halves; the peer has some time to be done with its own."""
        done = stream.fin_requested or stream.state not in WRITABLE
        if done and stream.ignored and stream.state in READABLE:
            self._lingering.setdefault(stream.id, now + self._settings.linger_timeout)

    def _forget(self, stream: YamuxStreamState) -> None:
        """The stream has ended: late frames for it will be ignored."""
        if self._streams.pop(stream.id, None) is None:
            return
        self._lingering.pop(stream.id, None)
        self._growth -= stream.window - INITIAL_WINDOW
        if stream.queued:
            self._drained.append(stream.id)
            self.queued -= stream.drop_queue()
        if stream.inbound:
            self._inbound -= 1
            if not stream.acknowledged:
                self._unaccepted -= 1
        elif not stream.acknowledged:
            self._unacknowledged -= 1

    # What comes in.

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Take bytes from the peer; return what they mean.

        Raises:
            ProtocolViolationError: the peer broke the protocol; `go_away` and close.
        """
        events: list[Event] = []
        self._keepalive.received(now)
        for item in self._parser.feed(data):
            if isinstance(item, bytes):
                self._receive_payload(item, events)
            elif item.kind in (frame.DATA, frame.WINDOW_UPDATE):
                self._receive_stream_frame(item, now, events)
            elif item.kind == frame.PING:
                self._receive_ping(item, now, events)
            else:
                self.remote_gone_away = True
                events.append(GoAwayReceived(item.length))
        return events

    def _receive_ping(self, header: Header, now: float, events: list[Event]) -> None:
        if header.stream_id != frame.SESSION_ID:
            raise violation(f"a ping on stream {header.stream_id}")
        if header.flags & frame.SYN:
            self._control += frame.encode(frame.PING, frame.ACK, frame.SESSION_ID, header.length)
        elif header.flags & frame.ACK:
            rtt = self._keepalive.answered(header.length, now)
            if rtt is not None:
                events.append(RoundTripMeasured(rtt))

    def _receive_stream_frame(self, header: Header, now: float, events: list[Event]) -> None:
        kind, flags, stream_id, length = header
        if stream_id == frame.SESSION_ID:
            raise violation("a stream frame about the session")
        if flags & frame.SYN:
            self._receive_syn(stream_id, now, events)
        stream = self._streams.get(stream_id)
        if kind == frame.DATA:
            self._expect_payload(stream, length)
        if stream is None:
            # Ended or refused: the peer may not know yet. A payload is dropped as it comes.
            return
        if flags & frame.ACK and not stream.inbound and not stream.acknowledged:
            stream.acknowledged = True
            self._unacknowledged -= 1
            events.append(StreamAcknowledged(stream_id))
        if kind == frame.WINDOW_UPDATE:
            stream.send_window += length
            self._schedule(stream)
        if flags & frame.RST:
            self._receive_reset(stream, events)
        elif flags & frame.FIN:
            if self._parser.payload_left:
                self._fin_after_payload = True
            else:
                self._receive_fin(stream, events)

    def _receive_syn(self, stream_id: int, now: float, events: list[Event]) -> None:
        if stream_id % 2 != self._remote_parity:
            raise violation(f"stream id {stream_id} is not the peer's to open")
        if stream_id in self._streams:
            raise violation(f"stream {stream_id} is opened twice")
        settings = self._settings
        limit = ""
        if self._inbound >= settings.max_inbound_streams:
            limit = "max_inbound_streams"
        elif self._unaccepted >= settings.accept_backlog:
            limit = "accept_backlog"
        if limit or self._go_away is not None:
            self._control += frame.encode(frame.WINDOW_UPDATE, frame.RST, stream_id, 0)
            events.append(StreamRefused(limit or "closing"))
            return
        self._streams[stream_id] = YamuxStreamState(stream_id, inbound=True, now=now)
        self._inbound += 1
        self._unaccepted += 1
        events.append(StreamOpened(stream_id))

    def _expect_payload(self, stream: YamuxStreamState | None, length: int) -> None:
        self._receiving, self._fin_after_payload = stream, False
        if length > self._settings.max_window:
            raise violation(f"a frame of {length} bytes")
        if stream is not None and length:
            stream.step(StreamInput.RECEIVE_DATA)
            if length > stream.credit:
                raise violation(f"{length} bytes on a stream with room for {stream.credit}")
            stream.credit -= length

    def _receive_payload(self, data: bytes, events: list[Event]) -> None:
        stream = self._receiving
        if stream is None or stream.state not in READABLE:
            return
        if not stream.ignored:
            events.append(DataReceived(stream.id, data))
        if self._parser.payload_left:
            return
        if self._fin_after_payload:
            self._receive_fin(stream, events)
        elif not stream.credit and stream.id in self._lingering:
            # We are done with this stream, and its peer writes into a wall: tell it.
            self.reset(stream.id)

    def _receive_fin(self, stream: YamuxStreamState, events: list[Event]) -> None:
        stream.step(StreamInput.RECEIVE_FIN)
        events.append(StreamEnded(stream.id))
        self._lingering.pop(stream.id, None)
        if stream.state is StreamState.CLOSED:
            self._end(stream, events)

    def _receive_reset(self, stream: YamuxStreamState, events: list[Event]) -> None:
        stream.step(StreamInput.RESET)
        events.append(StreamReset(stream.id))
        self._end(stream, events)

    def _end(self, stream: YamuxStreamState, events: list[Event]) -> None:
        freed = not stream.inbound and not stream.acknowledged
        self._forget(stream)
        if freed:
            events.append(StreamAcknowledged(stream.id))

    # Time.

    def deadline(self) -> float:
        """When `handle_timer` is due."""
        due = self._keepalive.deadline()
        return min(due, next(iter(self._lingering.values()))) if self._lingering else due

    def handle_timer(self, now: float) -> None:
        """Send the ping that is due, reset streams that lingered too long.

        Raises:
            ConnectionClosedError: the peer has been silent since a ping, for too long.
        """
        if (value := self._keepalive.handle_timer(now)) is not None:
            self._control += frame.encode(frame.PING, frame.SYN, frame.SESSION_ID, value)
        while self._lingering:
            stream_id, due = next(iter(self._lingering.items()))
            if due > now:
                break
            self.reset(stream_id)
