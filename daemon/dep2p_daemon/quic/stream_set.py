"""The streams of one connection: their ends, their send buffers, and the credit they use.

sans-IO like `session.py`, of which it is a part: calls of streams and events of aioquic come
in, calls of aioquic go out.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from dep2p_daemon.muxed import Direction
from dep2p_daemon.quic.flow_control import ReceiveWindow
from dep2p_daemon.quic.stream import QuicStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioquic.quic import events

    from dep2p_daemon.errors import ConnectionClosedError
    from dep2p_daemon.quic.aioquic_connection import AioquicConnection
    from dep2p_daemon.quic.connection import QuicConnection
    from dep2p_daemon.quic.context import QuicContext


class StreamSet:
    """Made by a `Session`, once its peer is proven."""

    def __init__(
        self,
        quic: AioquicConnection,
        context: QuicContext,
        *,
        clock: Callable[[], float],
        on_work: Callable[[], None],
    ) -> None:
        """Serve the streams of `quic`.

        Args:
            quic: the connection.
            context: settings and the memory that all connections share.
            clock: monotonic time in seconds.
            on_work: called when there is something to transmit.
        """
        settings = context.settings
        self.connection: QuicConnection
        """Set by whoever makes both, before the first event."""
        self.has_written = False
        """Whether an owner of a stream did something since the session last looked."""
        self.unread_bytes = 0
        """Bytes that arrived and were not consumed, of all streams."""
        self._quic = quic
        self._settings = settings
        self._memory = context.memory
        self._clock = clock
        self._on_work = on_work
        self._window = ReceiveWindow(
            settings.initial_connection_window, settings.max_connection_window
        )
        self._streams: dict[int, QuicStream] = {}
        self._ended: dict[int, QuicStream] = {}
        """Over for us; aioquic still waits for the peer."""
        self._full: set[QuicStream] = set()
        """Streams whose writer waits for room."""
        self._is_closed = False

    @property
    def open(self) -> tuple[QuicStream, ...]:
        """The streams that are not over."""
        return tuple(self._streams.values())

    def close(self, error: ConnectionClosedError) -> None:
        """The connection has ended: tell all streams, and give their memory back."""
        self._is_closed = True
        for stream in [*self._streams.values(), *self._ended.values()]:
            stream.on_connection_closed(error)
        self._streams.clear()
        self._ended.clear()
        self._full.clear()
        self._memory.used -= self.unread_bytes
        self.unread_bytes = 0

    # For QuicStream and QuicConnection

    def open_stream(self) -> QuicStream | None:
        """Open a stream; None while the peer allows no more."""
        if not self._quic.openable_streams:
            return None
        return self._add(self._quic.open_stream(), Direction.OUTBOUND)

    def room(self, stream: QuicStream) -> int:
        """Bytes that may be written now."""
        return self._quic.room(stream.id, self._settings.send_buffer)

    def wait_for_room(self, stream: QuicStream) -> asyncio.Future[None]:
        """Return a future that is done when half of the send buffer is free."""
        self._full.add(stream)
        return asyncio.get_running_loop().create_future()

    def write(self, stream: QuicStream, data: bytes) -> None:
        """Queue bytes."""
        self._quic.send_stream_data(stream.id, data)
        stream.traffic.sent += len(data)
        self.connection.traffic.sent += len(data)
        self._written()

    def finish(self, stream: QuicStream) -> None:
        """Queue the end of our half."""
        self._quic.send_stream_data(stream.id, b"", end_stream=True)
        self._written()
        self.on_half_ended(stream)

    def reset(self, stream: QuicStream, code: int) -> None:
        """Reset our half and ask the peer to reset its own."""
        if not self._is_closed:
            self._quic.stop_sending(stream.id, code)
            self._quic.stop_receiving(stream.id, code)
            self._written()

    def stop(self, stream: QuicStream, code: int) -> None:
        """Ask the peer to send no more."""
        if not self._is_closed:
            self._quic.stop_receiving(stream.id, code)
            self._written()

    def on_half_ended(self, stream: QuicStream) -> None:
        """One half of the stream has ended: forget it once both have."""
        if not stream.sending:
            self._full.discard(stream)
        if stream.closed and self._streams.pop(stream.id, None) is not None:
            self._ended[stream.id] = stream

    def on_consumed(self, stream: QuicStream, count: int) -> None:
        """The reader took bytes: move the windows on."""
        if self._is_closed:
            return
        if stream.window.consume(count) and stream.receiving:
            may_grow = self._memory.allows_growth
            limit = stream.window.announce(
                self._quic.stream_bytes_received(stream.id),
                self._clock(),
                self._quic.rtt or 0.0,
                may_grow=may_grow,
            )
            if may_grow:
                self._window.keep_above(stream.window.size * 3 // 2)
            self._quic.raise_stream_limit(stream.id, limit)
            self._on_work()
        self._consume(count)

    def _consume(self, count: int) -> None:
        if self._window.consume(count):
            limit = self._window.announce(
                self._quic.bytes_received,
                self._clock(),
                self._quic.rtt or 0.0,
                may_grow=self._memory.allows_growth,
            )
            self._quic.raise_connection_limit(limit)
            self._on_work()
        self.account()

    def _written(self) -> None:
        self.has_written = True
        self._on_work()

    def _add(self, stream_id: int, direction: Direction) -> QuicStream:
        window = ReceiveWindow(
            self._settings.initial_stream_window, self._settings.max_stream_window
        )
        stream = QuicStream(self.connection, self, stream_id, direction, window)
        self._streams[stream_id] = stream
        return stream

    def _find(self, stream_id: int) -> QuicStream:
        """The stream of an event; the first one of the peer's streams makes it known."""
        stream = self._streams.get(stream_id) or self._ended.get(stream_id)
        if stream is None:
            stream = self._add(stream_id, Direction.INBOUND)
            self.connection.on_stream(stream)
        return stream

    # For the session

    def account(self) -> None:
        """Keep the count of unread bytes right, and stalled streams from starving the others."""
        received = self._quic.bytes_received
        unread = received - self._window.consumed
        self._memory.used += unread - self.unread_bytes
        self.unread_bytes = unread
        if self._memory.allows_growth and self._window.keep_ahead_of(
            received, self._settings.max_connection_unread
        ):
            self._quic.raise_connection_limit(self._window.limit)
            self._on_work()

    def after_transmit(self) -> None:
        """Wake writers that have room again; let go of what aioquic has forgotten."""
        quic = self._quic
        if self._full:
            buffer = self._settings.send_buffer
            for stream in [s for s in self._full if 2 * quic.room(s.id, buffer) >= buffer]:
                self._full.discard(stream)
                stream.on_room()
        if self._ended:
            for stream_id in [i for i in self._ended if not quic.knows_stream(i)]:
                del self._ended[stream_id]

    def on_data(self, stream_id: int, pieces: list[bytes], *, end: bool) -> None:
        """Bytes arrived in order."""
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        stream = self._find(stream_id)
        stream.delivered += len(data)
        self.connection.traffic.received += len(data)
        if not stream.receiving:
            self._consume(len(data))  # nobody wants it any more
            return
        stream.on_data(data)
        if end:
            stream.on_end()

    def on_stream_reset(self, event: events.StreamReset) -> None:
        """The peer reset its half."""
        stream = self._find(event.stream_id)
        # What the peer sent and we never got counts as consumed: it will not come.
        missing = self._quic.drop_undelivered(event.stream_id, stream.delivered)
        stream.delivered += missing
        if stream.receiving:
            stream.on_reset(event.error_code)
        self._consume(missing)

    def on_stop_sending(self, event: events.StopSendingReceived) -> None:
        """The peer does not want our half."""
        stream = self._find(event.stream_id)
        self._quic.stop_sending(event.stream_id, event.error_code)
        if stream.sending:
            stream.on_stop_sending(event.error_code)
