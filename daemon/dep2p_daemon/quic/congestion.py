"""Cubic that does not grow while nobody uses its window (RFC 9002 section 7.8).

aioquic's grows with every acknowledgement. A connection that is limited by its application or
by flow control would build up a window that no path has ever carried, and one day send it all
at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aioquic.quic.congestion.base import register_congestion_control
from aioquic.quic.congestion.cubic import CubicCongestionControl
from typing_extensions import override

if TYPE_CHECKING:
    from aioquic.quic.packet_builder import QuicSentPacket

ALGORITHM: Final = "dep2p-cubic"
"""The name for `QuicConfiguration.congestion_control_algorithm`."""


class UsedWindowCubic(CubicCongestionControl):
    """Cubic whose window grows only when at least half of it was in flight."""

    def __init__(self, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self._judged_at = -1.0
        self._is_used = True

    def set_max_datagram_size(self, size: int) -> None:
        """Use packets of another size from now on."""
        self._max_datagram_size = self.additive_increase_factor = size

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
