"""Bulk stream data into 1-RTT packets (RFC 9000 sections 12, 13, 17.3.1 and 19.8), in batches.

Full packets that hold one STREAM frame, and what is left behind them, are built straight, with
the header-protection masks of a batch in one call. All else is aioquic's: what fills no packet,
the end of a stream on its own, acknowledgements, limits, resets, probes. What was sent is in
aioquic's own books, so that loss, retransmission, flow control and congestion control mean what
they always mean.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from aioquic import tls

from dep2p_daemon.quic.one_rtt_keys import SAMPLE_OFFSET, SAMPLE_SIZE, header_masks
from dep2p_daemon.quic.recovery import BulkPacket

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aioquic.quic.stream import QuicStream

    from dep2p_daemon.quic.aioquic_connection import AioquicConnection

TURN_PACKETS: Final = 16
"""Packets of one stream before the next stream has its turn."""
LONG_NUMBERS_AFTER: Final = 1 << 14
"""Packets since the largest acknowledged one from which numbers take four bytes."""
MAX_OUTSTANDING: Final = (1 << 15) - 1024
"""The most packets since the largest acknowledged one: aioquic's own, in between, have numbers
of two bytes, which tell 2^15 apart."""

MAX_STOCK_DATAGRAM: Final = 16_000
"""Largest datagram that aioquic may build: it writes the length of a STREAM frame in two bytes."""
SMALLEST: Final = 200
"""Bytes of a packet that is not full but fills the congestion window."""

_TAG_SIZE: Final = 16
_FIXED_BIT: Final = 0x40
_STREAM: Final = 0x08
_OFFSET: Final = 0x04
_FIN: Final = 0x01


def send_bulk(connection: AioquicConnection, now: float) -> tuple[list[bytes], bool]:
    """Build what congestion window, pacing and credit let go now.

    Returns the datagrams, mostly of one size, and whether window or pacing hold more back.
    """
    queue = connection._streams_queue
    waiting = deque(stream for stream in queue if _has_data(stream))
    if not waiting:
        return [], False
    loss, pacer = connection._loss, connection._burst_pacer
    space = connection._spaces[tls.Epoch.ONE_RTT]
    outstanding = connection._packet_number - space.largest_acked_packet
    room = loss.congestion_window - loss.bytes_in_flight
    size = connection.max_datagram_size
    count = min(pacer.allowance(now), MAX_OUTSTANDING - outstanding)
    if SMALLEST <= room < size <= MAX_STOCK_DATAGRAM and _is_larger(waiting, room):
        size = room  # one packet that fills the window, which is small where much is lost
    count = min(count, room // size)
    if count <= 0:
        # Something small may still go, but nothing that aioquic would cut to pieces to fill the
        # window, and nothing where numbers become ambiguous.
        is_cut = size > MAX_STOCK_DATAGRAM and loss.bytes_in_flight and _is_larger(waiting, room)
        return [], bool(is_cut) or outstanding >= MAX_OUTSTANDING
    batch = _Batch(connection, now, size, 4 if outstanding > LONG_NUMBERS_AFTER else 2)
    served: dict[QuicStream, None] = {}
    while waiting and (left := count - len(batch.packets)) > 0:
        stream = waiting.popleft()
        if batch.take(stream, min(left, TURN_PACKETS)):
            served.pop(stream, None)
            served[stream] = None
            waiting.append(stream)
    if not batch.packets:
        return [], False
    # Whom aioquic serves first now: those who have waited longest.
    connection._streams_queue = [stream for stream in queue if stream not in served]
    connection._streams_queue += served
    datagrams = batch.finish()
    pacer.spend(len(datagrams), sum(map(len, datagrams)), now)
    return datagrams, len(datagrams) == count


def _has_data(stream: QuicStream) -> bool:
    sender = stream.sender
    return not (sender.buffer_is_empty or sender.reset_pending or stream.is_blocked)


def _is_larger(waiting: Iterable[QuicStream], room: int) -> bool:
    """Whether what waits to be sent exceeds `room` bytes."""
    for stream in waiting:
        for pending in stream.sender._pending:
            room -= pending.stop - pending.start
            if room < 0:
                return True
    return False


class _Batch:
    """The packets of one pass."""

    def __init__(
        self, connection: AioquicConnection, now: float, size: int, number_size: int
    ) -> None:
        self.packets: list[BulkPacket] = []
        self._size = size
        self._connection = connection
        self._now = now
        keys = connection.one_rtt_keys
        keys.apply_update()
        aead = keys.send.aead
        assert aead is not None
        self._seal = aead._aead.encrypt
        self._iv = aead._iv
        self._number = connection._packet_number
        self._number_size = number_size
        self._first = (
            _FIXED_BIT | connection._spin_bit << 5 | keys.send.key_phase << 2 | number_size - 1
        )
        self._prefix = bytes((self._first,)) + connection._peer_cid.cid
        self._sealed: list[bytes] = []

    def take(self, stream: QuicStream, most: int) -> int:
        """Build up to `most` packets of a stream; returns their number."""
        connection, sender = self._connection, stream.sender
        pending = sender._pending
        before = len(self.packets)
        while (left := most - (len(self.packets) - before)) > 0 and len(pending):
            first = pending[0]
            credit = connection._remote_max_data - connection._remote_max_data_used
            stop = min(first.stop, sender.highest_offset + credit, stream.max_stream_data_remote)
            # A short range before others is sent as it is: it was part of a lost packet.
            is_fragment = stop == first.stop and len(pending) > 1
            reached = self._seal_range(stream, range(first.start, stop), left, is_fragment)
            if reached == first.start:
                break
            pending.subtract(first.start, reached)
            if reached > sender.highest_offset:
                connection._remote_max_data_used += reached - sender.highest_offset
                sender.highest_offset = reached
            if reached == sender._buffer_fin:
                sender._pending_eof = False
            if reached < first.stop:
                break
        sender.buffer_is_empty = not (len(pending) or sender._pending_eof)
        return len(self.packets) - before

    def _seal_range(self, stream: QuicStream, what: range, most: int, is_fragment: bool) -> int:
        """Seal up to `most` packets of `what`; returns how far they reach."""
        sender, seal, iv, number_size = stream.sender, self._seal, self._iv, self._number_size
        number_mask = (1 << 8 * number_size) - 1
        number, prefix, now = self._number, self._prefix, self._now
        stream_id, final_size = encode_varint(stream.stream_id or 0), sender._buffer_fin
        capacity = self._size - len(prefix) - number_size - _TAG_SIZE
        capacity -= 1 + len(stream_id)
        overhead = len(prefix) + number_size + _TAG_SIZE
        base, start = sender._buffer_start, what.start
        packets, sealed = self.packets, self._sealed
        with memoryview(sender._buffer) as data:
            for number in range(self._number, self._number + most):
                offset = encode_varint(start) if start else b""
                stop = start + capacity - len(offset)
                if stop > what.stop:
                    # What is left of a run, and what would be several packets of aioquic's.
                    is_rest = start > what.start or what.stop - start > MAX_STOCK_DATAGRAM
                    if start == what.stop or not (is_fragment or is_rest):
                        break
                    stop = what.stop
                fin = stop == final_size
                kind = _STREAM | (_OFFSET if start else 0) | (_FIN if fin else 0)
                frame = b"".join(
                    (bytes((kind,)), stream_id, offset, data[start - base : stop - base])
                )
                header = prefix + (number & number_mask).to_bytes(number_size, "big")
                sealed.append(seal((iv ^ number).to_bytes(12, "big"), frame, header))
                size = overhead + len(frame)
                packets.append(BulkPacket(number, now, size, sender, start, stop, fin))
                start = stop
        self._number = self._connection._packet_number + len(packets)
        return start

    def finish(self) -> list[bytes]:
        """Protect the headers and enter the packets into aioquic's books; returns the datagrams."""
        connection, now, packets = self._connection, self._now, self.packets
        space = connection._spaces[tls.Epoch.ONE_RTT]
        path = connection._network_paths[0]
        datagrams = self._protect_headers()
        size = sum(map(len, datagrams))
        connection.one_rtt_keys.count_sealed(connection._packet_number, len(packets))
        connection._packet_number += len(packets)
        connection._recovery.on_bulk_sent(packets, size, space)
        path.bytes_sent += size
        # RFC 9000 section 10.1: the first one since something came restarts the idle timer.
        if not connection._ack_eliciting_sent_since_receipt:
            connection._close_at = now + connection._idle_timeout()
            connection._ack_eliciting_sent_since_receipt = True
        return datagrams

    def _protect_headers(self) -> list[bytes]:
        protection = self._connection.one_rtt_keys.send.hp
        assert protection is not None
        size = self._number_size
        sample = SAMPLE_OFFSET - size
        masks, stride = header_masks(
            protection, [body[sample : sample + SAMPLE_SIZE] for body in self._sealed]
        )
        first, connection_id = self._first, self._prefix[1:]
        number_mask = (1 << 8 * size) - 1
        number = self._connection._packet_number
        datagrams = []
        at = 0
        for body in self._sealed:
            mask = int.from_bytes(masks[at + 1 : at + 1 + size], "big")
            datagrams.append(
                b"".join(
                    (
                        bytes((first ^ (masks[at] & 0x1F),)),
                        connection_id,
                        ((number & number_mask) ^ mask).to_bytes(size, "big"),
                        body,
                    )
                )
            )
            number += 1
            at += stride
        return datagrams


def encode_varint(value: int) -> bytes:
    """A QUIC variable-length integer (RFC 9000 section 16)."""
    if value < 1 << 6:
        return bytes((value,))
    if value < 1 << 14:
        return (value | 1 << 14).to_bytes(2, "big")
    if value < 1 << 30:
        return (value | 1 << 31).to_bytes(4, "big")
    return (value | 3 << 62).to_bytes(8, "big")
