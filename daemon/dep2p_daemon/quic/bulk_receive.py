"""Batches of 1-RTT packets that hold stream data (RFC 9000 sections 12.3, 13 and 19.8).

Packets of the current key phase whose payload is STREAM frames of known streams are opened and
handled straight, with the header-protection masks of a batch in one call. Any other packet is
aioquic's: it gets the datagram as it came and finds it new, since nothing is recorded of a
packet before all its frames were taken. (STREAM frames that were, before another kind of frame
turned up behind them, are duplicates to it.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aioquic import tls
from aioquic.quic.connection import QuicConnectionError, QuicConnectionState
from aioquic.quic.events import StreamDataReceived
from aioquic.quic.packet import QuicStreamFrame, decode_packet_number
from aioquic.quic.recovery import MAX_ACK_RANGES
from aioquic.quic.stream import FinalSizeError
from cryptography.exceptions import InvalidTag

from dep2p_daemon.quic.one_rtt_keys import SAMPLE_OFFSET, SAMPLE_SIZE, header_masks

if TYPE_CHECKING:
    from dep2p_daemon.quic.aioquic_connection import AioquicConnection
    from dep2p_daemon.udp.demultiplexer import SocketAddress

_FORM_AND_FIXED_BIT: Final = 0xC0
_FIXED_BIT: Final = 0x40
_KEY_PHASE: Final = 0x04
_SPIN: Final = 0x20
_SECRET_BITS: Final = 0x1F
_RESERVED_AND_PHASE: Final = 0x1C

_STREAM_KINDS: Final = 0xF8
_STREAM: Final = 0x08
_OFFSET: Final = 0x04
_LENGTH: Final = 0x02
_FIN: Final = 0x01


def receive_bulk(
    connection: AioquicConnection, datagrams: list[bytes], address: SocketAddress, now: float
) -> None:
    """Take datagrams of one sender in, each in the cheapest way that is right for it."""
    id_end = 1 + connection._configuration.connection_id_length
    shortest = id_end + SAMPLE_OFFSET + SAMPLE_SIZE
    counters = connection.counters
    protection = connection.one_rtt_keys.recv.hp
    if protection is None or min(map(len, datagrams)) < shortest:
        for datagram in datagrams:
            connection.receive_datagram(datagram, address, now)
        counters.received_stock += len(datagrams)
        return
    # These keys stay the same over key updates.
    masks, stride = header_masks(
        protection, [datagram[id_end + SAMPLE_OFFSET : shortest] for datagram in datagrams]
    )
    index = 0
    while index < len(datagrams):
        if _is_steady(connection, address):
            run = _Run(connection, now)
            index = run.receive(datagrams, index, masks, stride)
            run.finish()
        if index < len(datagrams):
            connection.receive_datagram(datagrams[index], address, now)
            counters.received_stock += 1
            index += 1


def _is_steady(connection: AioquicConnection, address: SocketAddress) -> bool:
    """Whether a packet of stream data changes nothing but its stream and the packet's records."""
    return (
        connection._handshake_confirmed
        and connection._state is QuicConnectionState.CONNECTED
        and not connection._close_pending
        and connection._network_paths[0].addr == address
        and connection._network_paths[0].is_validated
    )


class _Run:
    """Datagrams of a batch between two that are for aioquic."""

    def __init__(self, connection: AioquicConnection, now: float) -> None:
        self._connection = connection
        self._now = now
        self._streams = connection._streams
        self._credit = connection._local_max_data
        self._space = connection._spaces[tls.Epoch.ONE_RTT]
        self._count = 0
        # Consecutive packet numbers, the first of them recorded already.
        self._start = self._stop = -1
        self._spin_number, self._spin = connection._spin_highest_pn, False
        # Data in order of one stream.
        self._stream_id = -1
        self._pieces: list[bytes] = []

    def receive(self, datagrams: list[bytes], index: int, masks: bytes, stride: int) -> int:
        """Take datagrams from `index` on; returns the index of the first that is not for here."""
        keys = self._connection.one_rtt_keys
        aead, phase = keys.recv.aead, keys.recv.key_phase << 2
        assert aead is not None
        unseal, iv = aead._aead.decrypt, aead._iv
        space, window = self._space, self._space.received_packets
        id_end = 1 + self._connection._configuration.connection_id_length
        connection_id = self._connection_id(datagrams[index][1:id_end])
        for datagram in datagrams[index:] if index else datagrams:
            at = index * stride
            first = datagram[0] ^ (masks[at] & _SECRET_BITS)
            if (
                first & _FORM_AND_FIXED_BIT != _FIXED_BIT
                or first & _RESERVED_AND_PHASE != phase
                or datagram[1:id_end] != connection_id
            ):
                break
            size = (first & 0x03) + 1
            header_end = id_end + size
            mask = int.from_bytes(masks[at + 1 : at + 1 + size], "big")
            truncated = int.from_bytes(datagram[id_end:header_end], "big") ^ mask
            number = decode_packet_number(truncated, size * 8, space.expected_packet_number)
            header = b"".join((bytes((first,)), connection_id, truncated.to_bytes(size, "big")))
            try:
                payload = unseal((iv ^ number).to_bytes(12, "big"), datagram[header_end:], header)
            except InvalidTag:
                keys.forged += 1
                index += 1
                continue
            if number != self._stop:
                self._record()
            if number < window._lower or number in window._received:
                index += 1
                continue  # a duplicate
            if not self._take(payload):
                break
            index += 1
            if number == self._stop:
                self._stop += 1
            else:
                self._begin(number)
            # The rest of what a new packet means to aioquic, which leaves `expected` alone where
            # it is what has come.
            if number > space.expected_packet_number:
                space.expected_packet_number = number + 1
            if number > self._spin_number:
                self._spin_number, self._spin = number, bool(first & _SPIN)
            if keys.first_opened is None:
                keys.first_opened = number
        return index

    def _connection_id(self, found: bytes) -> bytes:
        """The id that packets must carry. A client's change says that it moved: not for here."""
        connection = self._connection
        if connection._is_client and any(found == ours.cid for ours in connection._host_cids):
            return found
        return connection.host_cid

    def finish(self) -> None:
        """Enter what was taken into aioquic's books."""
        self._deliver()
        self._record()
        connection, space = self._connection, self._space
        if not self._count:
            return
        connection.counters.received_fast += self._count
        connection._close_at = self._now + connection._idle_timeout()
        connection._ack_eliciting_sent_since_receipt = False
        if self._spin_number > connection._spin_highest_pn:
            connection._spin_highest_pn = self._spin_number
            connection._spin_bit = self._spin != connection._is_client
        if space.ack_at is None:
            space.ack_at = self._now + connection._ack_delay

    # Packet numbers

    def _begin(self, number: int) -> None:
        """Record the first packet of consecutive ones."""
        space = self._space
        space.ack_queue.add(number)
        if len(space.ack_queue) > MAX_ACK_RANGES:
            space.ack_queue.shift()
        space.received_packets.add(number)
        if number > space.largest_received_packet:
            space.largest_received_packet = number
            space.largest_received_time = self._now
        self._start, self._stop = number, number + 1
        self._count += 1

    def _record(self) -> None:
        """Record the others."""
        space, start, stop = self._space, self._start + 1, self._stop
        self._start = self._stop = -1
        if stop <= start:
            return
        space.ack_queue.add(start, stop)
        if len(space.ack_queue) > MAX_ACK_RANGES:
            space.ack_queue.shift()
        space.received_packets._received.update(range(start, stop))
        space.received_packets.add(stop - 1)
        if stop - 1 > space.largest_received_packet:
            space.largest_received_packet = stop - 1
            space.largest_received_time = self._now
        self._count += stop - start

    # Frames

    def _take(self, payload: bytes) -> bool:
        """Handle a packet's frames; False if aioquic must, to whom those handled are duplicates."""
        position, end = 0, len(payload)
        while position < end:
            kind = payload[position]
            if kind & _STREAM_KINDS != _STREAM:
                # PADDING may fill the rest.
                return bool(position) and payload.count(0, position) == end - position
            position += 1
            stream_id, position = decode_varint(payload, position)
            offset = 0
            if kind & _OFFSET:
                offset, position = decode_varint(payload, position)
            stop = end
            if kind & _LENGTH:
                length, position = decode_varint(payload, position)
                stop = position + length
            if not position <= stop <= end:
                return False
            data = payload[position:stop]
            if not self._take_frame(stream_id, offset, data, bool(kind & _FIN)):
                return False
            position = stop
        return end > 0

    def _take_frame(self, stream_id: int, offset: int, data: bytes, fin: bool) -> bool:
        stream = self._streams.get(stream_id)
        if stream is None:
            return False
        receiver, credit = stream.receiver, self._credit
        stop = offset + len(data)
        new = stop - receiver.highest_offset
        if stop > stream.max_stream_data_local or credit.used + new > credit.value:
            return False  # a violation
        if (
            offset == receiver._buffer_start
            and data
            and not fin
            and not receiver._buffer
            and receiver._final_size is None
        ):
            if stream_id != self._stream_id:
                self._deliver()
                self._stream_id = stream_id
            self._pieces.append(data)
            receiver._buffer_start = stop
            if new > 0:
                receiver.highest_offset = stop
                credit.used += new
            return True
        self._deliver()
        try:
            event = receiver.handle_frame(QuicStreamFrame(data=data, fin=fin, offset=offset))
        except (FinalSizeError, QuicConnectionError):
            return False
        if event is not None:
            self._connection._events.append(event)
        if new > 0:
            credit.used += new
        return True

    def _deliver(self) -> None:
        """Hand over data that came in order, in one piece."""
        if self._pieces:
            self._connection._events.append(
                StreamDataReceived(
                    data=b"".join(self._pieces), end_stream=False, stream_id=self._stream_id
                )
            )
            self._pieces.clear()
        self._stream_id = -1


def decode_varint(data: bytes, position: int) -> tuple[int, int]:
    """Read a QUIC variable-length integer; returns it and where it ends.

    Where `data` ends before, so does this position lie behind its end.
    """
    first = data[position] if position < len(data) else 0
    if first < 0x40:
        return first, position + 1
    size = 1 << (first >> 6)
    stop = position + size
    return int.from_bytes(data[position:stop], "big") & ((1 << (8 * size - 2)) - 1), stop
