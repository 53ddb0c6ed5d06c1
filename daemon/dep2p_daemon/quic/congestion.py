"""Cubic that does not grow while nobody uses its window (RFC 9002 section 7.8).

aioquic's grows with every acknowledgement. A connection that is limited by its application or
by flow control would build up a window that no path has ever carried, and one day send it all
at once.
"""

from __future__ import annotations

from typing import Final

from aioquic import tls
from aioquic.quic.congestion.base import register_congestion_control
from aioquic.quic.congestion.cubic import CubicCongestionControl
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicSentPacket
from typing_extensions import override

ALGORITHM: Final = "dep2p-cubic"
"""The name for `QuicConfiguration.congestion_control_algorithm`."""


def initial_window(max_datagram_size: int) -> int:
    """What may go before anything is known of a path, in bytes (RFC 9002 section 7.2)."""
    return min(10 * max_datagram_size, max(14_720, 2 * max_datagram_size))


class UsedWindowCubic(CubicCongestionControl):
    """Cubic whose window grows only when at least half of it was in flight."""

    def __init__(self, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self._judged_at = -1.0
        self._is_used = True

    def set_max_datagram_size(self, size: int) -> None:
        """Use packets of another size from now on."""
        self._max_datagram_size = self.additive_increase_factor = size

    def on_run_acked(self, *, now: float, count: int, size: int, sent_time: float) -> None:
        """Take `count` packets of `size` bytes together as acknowledged: one step for all."""
        window = self.congestion_window
        slow_start = self.ssthresh is None or window < self.ssthresh
        self.on_packet_acked(
            now=now,
            packet=QuicSentPacket(
                epoch=tls.Epoch.ONE_RTT,
                in_flight=True,
                is_ack_eliciting=True,
                is_crypto_packet=False,
                packet_number=0,
                packet_type=QuicPacketType.ONE_RTT,
                sent_time=sent_time,
                sent_bytes=size,
            ),
        )
        grown = self.congestion_window - window
        if slow_start:
            if self.ssthresh is not None:  # where slow start ends, one packet goes beyond
                most = self.ssthresh + self._max_datagram_size
                self.congestion_window = min(self.congestion_window, most)
        elif grown > 0 and self.congestion_window != self._W_est:
            # Cubic's own step is that of one packet; Reno's follows the size.
            self.congestion_window = window + grown * count

    @override
    def reset(self) -> None:
        super().reset()
        self.congestion_window = self._W_max = initial_window(self._max_datagram_size)

    @override
    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        if now != self._judged_at:
            # Before the first packet of an acknowledgement is taken off what is in flight.
            self._judged_at = now
            self._is_used = self.bytes_in_flight * 2 >= self.congestion_window
        window = self.congestion_window
        super().on_packet_acked(now=now, packet=packet)
        if not self._is_used and self.congestion_window > window:
            self.congestion_window = window


register_congestion_control(ALGORITHM, UsedWindowCubic)
