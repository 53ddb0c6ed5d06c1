"""Pacing that asyncio's clock can keep (RFC 9002 section 7.7), and the bound of one send pass.

aioquic lets 16 packets go at once and then waits for a timer; asyncio's timers are good to a
millisecond, so that fast paths would starve. Here a burst holds what is due in two
milliseconds, and never less than the initial window. What counts are bytes: with datagrams of
64 KiB an acknowledgement is not one of them. A pass of one connection is bounded, so that
others get their turn in between.
"""

from __future__ import annotations

from typing import Final

from aioquic.quic.recovery import K_MICRO_SECOND, K_SECOND, QuicPacketPacer
from typing_extensions import override

from dep2p_daemon.quic.congestion import initial_window
from dep2p_daemon.udp.batches import MAX_BATCH_BYTES

TIMER_GRANULARITY: Final = 0.002
RATE_FACTOR: Final = 1.25
"""How much faster than one window per round trip, so that pacing itself never limits."""
PASS_BATCHES: Final = 2
"""Full batches of one connection in one send pass: each is a system call."""
PASS_PACKETS: Final = 92
"""At most so many packets: what two batches are of 1400 bytes each."""


class BurstPacer(QuicPacketPacer):
    """Decides when the next packet of a connection may go."""

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self.byte_time: float | None = None
        """Seconds for a byte at the present rate; None: no round trip was measured yet."""
        self._left = PASS_PACKETS
        self._presumed = 0

    @property
    def pass_packets(self) -> int:
        """Packets of one pass."""
        return min(PASS_PACKETS, PASS_BATCHES * (MAX_BATCH_BYTES // self._max_datagram_size))

    def begin_pass(self, packets: int | None = None) -> None:
        """Start a send pass: `packets` more may go."""
        self._left = self.pass_packets if packets is None else packets

    def allowance(self, now: float) -> int:
        """How many full packets may go now, as asking `next_send_time` before each would tell."""
        if self.byte_time is None:
            return self._left
        self.update_bucket(now=now)
        if self.bucket_time < 0:
            return 0
        packet_time = self.byte_time * self._max_datagram_size
        return min(self._left, int(self.bucket_time / packet_time) + 1)

    def spend(self, count: int, size: int, now: float) -> None:
        """Account for `count` packets of `size` bytes together, all sent now."""
        self._left -= count
        self._charge(size, now)

    def settle(self, size: int) -> None:
        """Correct what was charged for aioquic's packets since the last time: they had `size`."""
        if self.byte_time is not None:
            self.bucket_time += (self._presumed - size) * self.byte_time
        self._presumed = 0

    def set_max_datagram_size(self, size: int) -> None:
        """Use packets of another size from now on."""
        self._max_datagram_size = size

    def _charge(self, size: int, now: float) -> None:
        if self.byte_time is not None:
            self.update_bucket(now=now)
            # May become a debt, which the next packet waits for. The stock pacer forgives it, and
            # then lets one packet go at every wake.
            self.bucket_time -= size * self.byte_time

    @override
    def next_send_time(self, now: float) -> float | None:  # type: ignore[override]
        if self._left <= 0:
            return now
        if self.byte_time is None:
            return None
        self.update_bucket(now=now)
        if self.bucket_time < 0:
            return now + max(-self.bucket_time, K_MICRO_SECOND)
        return None

    @override
    def update_after_send(self, now: float) -> None:
        # aioquic does not say how large the packet is; `settle` will.
        self._left -= 1
        self._presumed += self._max_datagram_size
        self._charge(self._max_datagram_size, now)

    @override
    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        rate = RATE_FACTOR * congestion_window / max(smoothed_rtt, K_MICRO_SECOND)
        size = self._max_datagram_size
        self.byte_time = min(1 / rate, K_SECOND / size)
        self.bucket_max = max(TIMER_GRANULARITY, initial_window(size) * self.byte_time)
        self.bucket_time = min(self.bucket_time, self.bucket_max)
