"""aioquic's streams: opening, room to write, credit as the application consumes, and their bounds.

The part of `aioquic_connection.py` that a `StreamSet` calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aioquic.quic.connection import QuicConnection as StockConnection
from typing_extensions import override

from dep2p_daemon.quic.stream_ranges import Fragments, bound_ranges

if TYPE_CHECKING:
    from aioquic.quic.packet_builder import QuicPacketBuilder
    from aioquic.quic.recovery import QuicPacketSpace
    from aioquic.quic.stream import QuicStream as StockStream

MAX_KEPT_WINDOWS: Final = 8
"""Congestion windows of a stream's data that are kept for retransmission: each time that a packet
is lost again costs one, and makes them smaller."""


class StreamsConnection(StockConnection):
    """aioquic's connection, as far as streams and credit go."""

    @property
    def openable_streams(self) -> int:
        """How many more streams the peer's limit lets us open."""
        return max(0, self._remote_max_streams_bidi - self._local_next_stream_id_bidi // 4)

    def open_stream(self) -> int:
        """Open a bidirectional stream; nothing is sent yet. Returns its id."""
        stream_id = self.get_next_available_stream_id()
        self._get_or_create_stream_for_send(stream_id)
        return stream_id

    @override
    def _get_or_create_stream(self, frame_type: int, stream_id: int) -> StockStream:
        known = len(self._streams_queue)
        stream = super()._get_or_create_stream(frame_type, stream_id)
        for new in self._streams_queue[known:]:
            bound_ranges(new)
        return stream

    @override
    def _get_or_create_stream_for_send(self, stream_id: int) -> StockStream:
        known = len(self._streams_queue)
        stream = super()._get_or_create_stream_for_send(stream_id)
        for new in self._streams_queue[known:]:
            bound_ranges(new)
        return stream

    def knows_stream(self, stream_id: int) -> bool:
        """Whether aioquic keeps state of the stream: it forgets finished ones."""
        return stream_id in self._streams

    def unsent(self, stream_id: int) -> int:
        """Bytes written to the stream that were never sent."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.sender._buffer_stop - stream.sender.highest_offset

    def room(self, stream_id: int, most: int) -> int:
        """Bytes that may be written to the stream now, of which `most` may be unsent.

        What was sent is kept from the first byte on that the peer has not acknowledged. One that
        never acknowledges it, but all the rest, must not make us keep everything.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return most
        sender = stream.sender
        kept = sender._buffer_stop - sender._buffer_start
        most_kept = most + MAX_KEPT_WINDOWS * self._loss.congestion_window
        return min(most - self.unsent(stream_id), most_kept - kept)

    def stop_receiving(self, stream_id: int, code: int) -> None:
        """Send STOP_SENDING, once, unless the peer has already sent everything."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        receiver = stream.receiver
        if not receiver.is_finished and receiver._stop_error_code is None:
            receiver.stop(code)

    def stop_sending(self, stream_id: int, code: int) -> None:
        """Send RESET_STREAM, unless everything was acknowledged, and free the send buffer."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.sender.is_finished:
            stream.sender.reset(code)
            stream.sender._buffer = bytearray()

    # Credit

    @property
    def bytes_received(self) -> int:
        """Stream bytes that count against the connection's limit."""
        return self._local_max_data.used

    def stream_bytes_received(self, stream_id: int) -> int:
        """How far the data of a stream reaches that aioquic still knows, gaps included."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.receiver.highest_offset

    def drop_undelivered(self, stream_id: int, delivered: int) -> int:
        """Free what a reset stream still has beyond gaps: it may be kept for its other half.

        Returns the bytes that count as received and will never be delivered.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return 0
        stream.receiver._buffer, stream.receiver._ranges = bytearray(), Fragments()
        return stream.receiver.highest_offset - delivered

    def raise_connection_limit(self, limit: int) -> None:
        """Let the peer send up to `limit` bytes on all streams together."""
        self._local_max_data.value = max(limit, self._local_max_data.value)

    def raise_stream_limit(self, stream_id: int, limit: int) -> None:
        """Let the peer send up to offset `limit` on one stream."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.receiver.is_finished:
            stream.max_stream_data_local = max(limit, stream.max_stream_data_local)

    @override
    def _write_stream_limits(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: StockStream
    ) -> None:
        if stream.max_stream_data_local_sent == stream.max_stream_data_local:
            return
        # The stock method doubles the limit when half of it has arrived, then writes the frame
        # if the limit is news. With nothing arrived it only writes.
        receiver = stream.receiver
        arrived, receiver.highest_offset = receiver.highest_offset, 0
        try:
            super()._write_stream_limits(builder, space, stream)
        finally:
            receiver.highest_offset = arrived

    @override
    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        data, streams = self._local_max_data, self._local_max_streams_bidi
        if data.sent == data.value and streams.sent == streams.value:
            return
        arrived, data.used = data.used, 0
        try:
            super()._write_connection_limits(builder, space)
        finally:
            data.used = arrived
