"""A sketch of BBR version 1, to know what it would bring (docs/adr/0007-cubic-and-not-bbr.md).

It models the path by the largest delivery rate of ten round trips and the smallest round trip of
ten seconds, paces at that rate, and takes no loss for a sign of anything. For the simulated line
only: nothing of it is meant for a network with others on it.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Final

from aioquic.quic.congestion.base import register_congestion_control
from typing_extensions import override

from dep2p_daemon.quic.congestion import RunCongestionControl, initial_window

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aioquic.quic.packet_builder import QuicSentPacket

    from dep2p_daemon.quic.recovery import BulkRecovery

BBR: Final = "bbr-sketch"
STARTUP_GAIN: Final = 2.89
PROBES: Final = (1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
RATE_TRIPS: Final = 10
SHORTEST_SECONDS: Final = 10.0


class BbrSketch(RunCongestionControl):
    """Startup, drain and the cycle of probes; no PROBE_RTT."""

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self._size = max_datagram_size
        self._rates: deque[float] = deque([0.0], maxlen=RATE_TRIPS)
        """Of the last round trips, in bytes a second."""
        self._shortest, self._shortest_at = math.inf, 0.0
        self._delivered = self._delivered_before = 0
        self._round_began = -math.inf
        self._full_rate, self._rounds_alike = 0.0, 0
        self._mode, self._probe = "startup", 0
        self.congestion_window = initial_window(max_datagram_size)

    @property
    def gain(self) -> float:
        """Of pacing."""
        if self._mode == "probe":
            return PROBES[self._probe]
        return STARTUP_GAIN if self._mode == "startup" else 1 / STARTUP_GAIN

    @property
    def pacing_rate(self) -> float:
        """Bytes a second; 0 while nothing is known."""
        return max(self._rates) * self.gain

    @override
    def set_max_datagram_size(self, size: int) -> None:
        self._size = size

    @override
    def on_packet_sent(self, *, packet: QuicSentPacket) -> None:
        self.bytes_in_flight += packet.sent_bytes

    @override
    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        self.on_run_acked(now=now, size=packet.sent_bytes, sent_time=packet.sent_time or 0.0)

    @override
    def on_run_acked(self, *, now: float, size: int, sent_time: float) -> None:
        self.bytes_in_flight -= size
        self._delivered += size
        if sent_time >= self._round_began:
            self._end_round(now)
        bdp = max(self._rates) * (0.0 if self._shortest == math.inf else self._shortest)
        if self._mode == "drain" and self.bytes_in_flight <= bdp:
            self._mode = "probe"
        if self._mode == "startup":
            self.congestion_window += size
            return
        # Acknowledged in batches: two of them are always in flight beyond the model.
        self.congestion_window = int(max(2 * bdp, 4 * self._size))

    def _end_round(self, now: float) -> None:
        elapsed = now - self._round_began
        if 0 < elapsed < math.inf:
            self._rates.append((self._delivered - self._delivered_before) / elapsed)
        self._round_began, self._delivered_before = now, self._delivered
        self._probe = (self._probe + 1) % len(PROBES)
        if self._mode == "startup":
            if self._rates[-1] >= self._full_rate * 1.25:
                self._full_rate, self._rounds_alike = self._rates[-1], 0
            else:
                self._rounds_alike += 1
                if self._rounds_alike == 3:
                    self._mode = "drain"

    @override
    def on_rtt_measurement(self, *, now: float, rtt: float) -> None:
        if rtt <= self._shortest or now - self._shortest_at > SHORTEST_SECONDS:
            self._shortest, self._shortest_at = rtt, now

    @override
    def on_packets_expired(self, *, packets: Iterable[QuicSentPacket]) -> None:
        self.bytes_in_flight -= sum(packet.sent_bytes for packet in packets)

    @override
    def on_packets_lost(self, *, now: float, packets: Iterable[QuicSentPacket]) -> None:
        self.bytes_in_flight -= sum(packet.sent_bytes for packet in packets)

    @override
    def on_persistent_congestion(self) -> None:
        self.congestion_window = 4 * self._size


def pace(recovery: BulkRecovery) -> None:
    """Have the pacer follow the sketch's rate instead of the window's."""
    pacer, control = recovery._pacer, recovery.control
    update = pacer.update_rate
    assert isinstance(control, BbrSketch)

    def follow(congestion_window: int, smoothed_rtt: float) -> None:
        if control.pacing_rate:  # the pacer adds a quarter
            congestion_window = int(control.pacing_rate * smoothed_rtt / 1.25)
        update(congestion_window=congestion_window, smoothed_rtt=smoothed_rtt)

    pacer.update_rate = follow  # type: ignore[method-assign]


register_congestion_control(BBR, BbrSketch)
