"""Loss recovery (RFC 9002) that does not pay per packet for what comes in runs.

aioquic's own code decides everything; here the packets of `bulk_send.py` are kept in little
space, and acknowledged runs of them are told to stream and congestion control at once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from aioquic import tls
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicDeliveryState, QuicSentPacket
from aioquic.quic.recovery import QuicPacketRecovery
from typing_extensions import override

from dep2p_daemon.quic.congestion import RunCongestionControl
from dep2p_daemon.quic.path_mtu import BASE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aioquic.quic.rangeset import RangeSet
    from aioquic.quic.recovery import QuicPacketSpace
    from aioquic.quic.stream import QuicStreamSender

    from dep2p_daemon.quic.path_mtu import PathMtu


_RTT: Final = (
    "_rtt_first_sample_time",
    "_rtt_initialized",
    "_rtt_latest",
    "_rtt_min",
    "_rtt_smoothed",
    "_rtt_variance",
)


class BulkPacket(QuicSentPacket):
    """A sent 1-RTT packet whose payload is one STREAM frame."""

    __slots__ = ("fin", "sender", "start", "stop")

    epoch = tls.Epoch.ONE_RTT
    in_flight = True
    is_ack_eliciting = True
    is_crypto_packet = False
    packet_type = QuicPacketType.ONE_RTT

    def __init__(
        self,
        packet_number: int,
        sent_time: float,
        sent_bytes: int,
        sender: QuicStreamSender,
        start: int,
        stop: int,
        fin: bool,
    ) -> None:
        self.packet_number = packet_number
        self.sent_time = sent_time
        self.sent_bytes = sent_bytes
        self.sender = sender
        self.start = start
        self.stop = stop
        self.fin = fin

    @property
    @override
    def delivery_handlers(self) -> list[tuple[Any, Any]]:  # type: ignore[override]
        """What aioquic calls when the packet is acknowledged or lost."""
        return [(self.sender.on_data_delivery, (self.start, self.stop, self.fin))]


class BulkRecovery(QuicPacketRecovery):
    """Recovery of one connection; its congestion control must be a `RunCongestionControl`."""

    mtu_probes: frozenset[int] = frozenset()
    """Numbers of packets whose loss says nothing of congestion (RFC 8899 section 3)."""

    path_mtu: PathMtu
    """What hears of large packets' fates; set by the connection."""

    _path_began = -math.inf
    """What was sent before tells nothing of the present path."""

    @property
    def control(self) -> RunCongestionControl:
        """The congestion control."""
        assert isinstance(self._cc, RunCongestionControl)
        return self._cc

    _in_flight: dict[int, QuicSentPacket] | None = None
    """All packets of the space whose acknowledgement aioquic is handling."""

    def begin_path(self, now: float) -> None:
        """Begin as on a new path: congestion control and round trip (RFC 9002 section 5.3, 7)."""
        self._path_began = now
        self.control.begin_path(now)
        self._rtt_initialized = False
        self._rtt_min = math.inf
        self._rtt_latest = self._rtt_smoothed = self._rtt_variance = 0.0

    def on_bulk_sent(self, packets: list[BulkPacket], size: int, space: QuicPacketSpace) -> None:
        """Note packets of `size` bytes together, sent now."""
        space.sent_packets.update((packet.packet_number, packet) for packet in packets)
        space.ack_eliciting_in_flight += len(packets)
        self._time_of_last_sent_ack_eliciting_packet = packets[-1].sent_time or 0.0
        self._cc.on_packet_sent(packet=packets[0])
        self._cc.bytes_in_flight += size - packets[0].sent_bytes

    @override
    def on_ack_received(
        self, *, ack_rangeset: RangeSet, ack_delay: float, now: float, space: QuicPacketSpace
    ) -> None:
        sent = space.sent_packets
        bulk, left = _find(sent, ack_rangeset)
        # The last one is left to aioquic, which takes the round trip's time from it.
        if bulk:
            last = bulk.pop()
            left = dict(sorted({**left, last.packet_number: last}.items()))
        if self.path_mtu.is_suspected and any(
            packet.sent_bytes > BASE_SIZE for packet in (*bulk, *left.values())
        ):
            self.path_mtu.large_acknowledged()
        newest = max((packet.sent_time or 0.0 for packet in left.values()), default=now)
        before = [getattr(self, name) for name in _RTT] if newest < self._path_began else []
        if bulk:
            self._on_bulk_acknowledged(bulk, now, space)
        for number in left:
            del sent[number]
        # It lists all packets that are in flight, thousands on a long path: show it what it needs.
        self._in_flight, space.sent_packets = sent, left
        try:
            super().on_ack_received(
                ack_rangeset=ack_rangeset, ack_delay=ack_delay, now=now, space=space
            )
        finally:
            self._in_flight, space.sent_packets = None, sent
        for name, value in zip(_RTT, before, strict=False):  # of another path
            setattr(self, name, value)

    @override
    def _detect_loss(self, *, now: float, space: QuicPacketSpace) -> None:
        if self._in_flight is not None:
            space.sent_packets = self._in_flight
        super()._detect_loss(now=now, space=space)

    @override
    def _on_packets_lost(
        self,
        *,
        congestion_event: bool = True,
        now: float,
        packets: Iterable[QuicSentPacket],
        persistent_congestion: bool = False,
        space: QuicPacketSpace,
    ) -> None:
        lost = list(packets)
        if self.mtu_probes and space.is_application_data:
            probes = [packet for packet in lost if packet.packet_number in self.mtu_probes]
            lost = [packet for packet in lost if packet.packet_number not in self.mtu_probes]
            super()._on_packets_lost(congestion_event=False, now=now, packets=probes, space=space)
        if congestion_event and any(packet.sent_bytes > BASE_SIZE for packet in lost):
            self.path_mtu.large_lost()
        super()._on_packets_lost(
            congestion_event=congestion_event,
            now=now,
            packets=lost,
            persistent_congestion=persistent_congestion,
            space=space,
        )

    @override
    def reschedule_data(self, *, now: float, speed_up_handshake: bool = False) -> None:
        # Or a probe of the path's MTU, often the oldest, would take data's place.
        for space in self.spaces if self.mtu_probes else ():
            if space.is_application_data:
                probes = [space.sent_packets.get(number) for number in self.mtu_probes]
                self.expire([probe for probe in probes if probe is not None], now, space)
        super().reschedule_data(now=now, speed_up_handshake=speed_up_handshake)
        if self.handshake_confirmed:
            self._expire_oldest(now)

    def _expire_oldest(self, now: float) -> None:
        """Let the data of one more packet go with a probe: both are seldom lost.

        Two datagrams a probe timeout are what RFC 9002 section 6.2.4 allows.
        """
        for space in self.spaces:
            if space.is_application_data:
                oldest = next(
                    (one for one in space.sent_packets.values() if one.is_ack_eliciting), None
                )
                if oldest is not None:
                    self.expire([oldest], now, space)

    def expire(self, packets: list[QuicSentPacket], now: float, space: QuicPacketSpace) -> None:
        """Give packets up that never left, as lost without congestion."""
        self._on_packets_lost(congestion_event=False, now=now, packets=packets, space=space)

    def _on_bulk_acknowledged(
        self, packets: list[BulkPacket], now: float, space: QuicPacketSpace
    ) -> None:
        sent = space.sent_packets
        size = 0
        sender, start, stop, fin = packets[0].sender, packets[0].start, packets[0].start, False
        for packet in packets:
            del sent[packet.packet_number]
            size += packet.sent_bytes
            if packet.sender is not sender or packet.start != stop or fin:
                sender.on_data_delivery(QuicDeliveryState.ACKED, start, stop, fin)
                sender, start = packet.sender, packet.start
            stop, fin = packet.stop, packet.fin
        sender.on_data_delivery(QuicDeliveryState.ACKED, start, stop, fin)
        space.ack_eliciting_in_flight -= len(packets)
        self.control.on_run_acked(now=now, size=size, sent_time=packets[-1].sent_time or 0.0)


def _find(
    sent: dict[int, QuicSentPacket], numbers: RangeSet
) -> tuple[list[BulkPacket], dict[int, QuicSentPacket]]:
    """The packets that have one of `numbers`: ours, and the others. All are in order."""
    bulk: list[BulkPacket] = []
    others: dict[int, QuicSentPacket] = {}
    ranges = iter(numbers)
    start = stop = -1
    for number, packet in sent.items():
        while number >= stop:
            current = next(ranges, None)
            if current is None:
                return bulk, others
            start, stop = current.start, current.stop
        if number >= start:
            if type(packet) is BulkPacket:
                bulk.append(packet)
            else:
                others[number] = packet
    return bulk, others
