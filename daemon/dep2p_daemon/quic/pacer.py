"""Pacing that asyncio's clock can keep (RFC 9002 section 7.7), and the bound of one send pass.

aioquic lets 16 packets go at once and then waits for a timer; asyncio's timers are good to a
millisecond, so that fast paths would starve. Here a burst holds what is due in two
milliseconds, and never less than the initial window. A pass of one connection is bounded, so
that others get their turn in between.
"""

from __future__ import annotations

from typing import Final

from aioquic.quic.recovery import K_MICRO_SECOND, K_SECOND, QuicPacketPacer
from typing_extensions import override

TIMER_GRANULARITY: Final = 0.002
INITIAL_BURST: Final = 10
"""Packets; the initial congestion window."""
RATE_FACTOR: Final = 1.25
"""How much faster than one window per round trip, so that pacing itself never limits."""
PASS_PACKETS: Final = 92
"""Packets of one connection in one send pass: two batches of 46 x 1400 bytes."""
PASS_BYTES: Final = 128 << 10
"""The same for larger packets than those, but for this many packets:"""
MIN_PASS_PACKETS: Final = 3


class BurstPacer(QuicPacketPacer):
    """Decides when the next packet of a connection may go."""

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self._left = PASS_PACKETS

    @property
    def pass_packets(self) -> int:
        """Packets of one pass."""
        return min(PASS_PACKETS, max(MIN_PASS_PACKETS, PASS_BYTES // self._max_datagram_size))

    def begin_pass(self, packets: int | None = None) -> None:
        """Start a send pass: `packets` more may go."""
        self._left = self.pass_packets if packets is None else packets

    def allowance(self, now: float) -> int:
        """How many packets may go now, as asking `next_send_time` before each would tell."""
        if self.packet_time is None:
            return self._left
        self.update_bucket(now=now)
        if self.bucket_time < 0:
            return 0
        return min(self._left, int(self.bucket_time / self.packet_time) + 1)

    def spend(self, count: int, now: float) -> None:
        """Account for `count` packets, all sent now."""
        self._left -= count
        if self.packet_time is not None:
            self.update_bucket(now=now)
            self.bucket_time -= count * self.packet_time

    def set_max_datagram_size(self, size: int) -> None:
        """Use packets of another size from now on."""
        self._max_datagram_size = size

    @override
    def next_send_time(self, now: float) -> float | None:  # type: ignore[override]
        if self._left <= 0:
            return now
        if self.packet_time is None:
            return None
        self.update_bucket(now=now)
        if self.bucket_time < 0:
            return now + max(-self.bucket_time, K_MICRO_SECOND)
        return None

    @override
    def update_after_send(self, now: float) -> None:
        self._left -= 1
        if self.packet_time is not None:
            self.update_bucket(now=now)
            # May become a debt, which the next packet waits for. The stock pacer forgives it, and
            # then lets one packet go at every wake.
            self.bucket_time -= self.packet_time

    @override
    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        rate = RATE_FACTOR * congestion_window / max(smoothed_rtt, K_MICRO_SECOND)
        self.packet_time = max(K_MICRO_SECOND, min(self._max_datagram_size / rate, K_SECOND))
        self.bucket_max = max(TIMER_GRANULARITY, INITIAL_BURST * self.packet_time)
        self.bucket_time = min(self.bucket_time, self.bucket_max)
