"""Congestion control: CUBIC behind HyStart++ (RFC 9438, RFC 9406), on the rules of RFC 9002.

Ours and not aioquic's because its window

- grows with every acknowledgement, used or not: a connection that is limited by its application
  or by flow control would build up a window that no path has ever carried, and one day send it
  all at once (RFC 9002 section 7.8, RFC 9438 section 5.8);
- grows while it recovers from a loss, by what was sent before it (RFC 9002 section 7.3.2);
- ends slow start by any five longer round trips in a row, which jitter gives it.

What comes in is acknowledged in runs, and a run is one step.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from aioquic.quic.congestion.base import (
    K_MINIMUM_WINDOW,
    QuicCongestionControl,
    register_congestion_control,
)
from typing_extensions import override

from dep2p_daemon.quic.cubic import BETA, CubicCurve
from dep2p_daemon.quic.hystart import HyStart, Phase

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aioquic.quic.packet_builder import QuicSentPacket

ALGORITHM: Final = "dep2p-cubic"
"""The name for `QuicConfiguration.congestion_control_algorithm`."""
IDLE_SECONDS: Final = 1.0
"""Of silence after which nothing is known of the path any more (RFC 6298's least timeout, after
which RFC 5681 section 4.1 begins anew), but never less than `IDLE_ROUND_TRIPS`."""
IDLE_ROUND_TRIPS: Final = 4


def initial_window(max_datagram_size: int) -> int:
    """What may go before anything is known of a path, in bytes (RFC 9002 section 7.2)."""
    return min(10 * max_datagram_size, max(14_720, 2 * max_datagram_size))


class RunCongestionControl(QuicCongestionControl):
    """What `recovery.BulkRecovery` needs of a congestion control beyond aioquic's interface."""

    congestion_events = 0
    """How often losses have reduced the window."""

    def set_max_datagram_size(self, size: int) -> None:
        """Use packets of another size from now on."""
        raise NotImplementedError

    def begin_pass(self, now: float) -> None:
        """Something may be sent now: the last chance to think about the window."""

    def on_run_acked(self, *, now: float, size: int, sent_time: float) -> None:
        """Packets of `size` bytes together are acknowledged, the last one sent at `sent_time`."""
        raise NotImplementedError

    def begin_path(self, now: float) -> None:
        """Begin afresh: what was sent until `now` says nothing of the path that is used now."""
        raise NotImplementedError


class CubicControl(RunCongestionControl):
    """The default."""

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self._max_datagram_size = max_datagram_size
        self._rtt = 0.0
        self._recovery_began = -math.inf
        """What was sent until then belongs to a window that is reduced already."""
        self._active_at = math.inf
        """When something was last sent or acknowledged."""
        self._judged_at = -math.inf
        self._timed_until = -math.inf
        """Up to when the curve's clock ran, or was stopped."""
        self._in_flight = 0
        """Bytes, when the last acknowledgement came."""
        self._is_used = True
        self._cubic = CubicCurve()
        self._restart()

    @property
    def in_slow_start(self) -> bool:
        """Whether the window is below all that is known to be too much."""
        return self.ssthresh is None or self.congestion_window < self.ssthresh

    @override
    def set_max_datagram_size(self, size: int) -> None:
        self._max_datagram_size = size

    @override
    def begin_path(self, now: float) -> None:
        self._recovery_began = now
        self._rtt = 0.0
        self._restart()

    @override
    def begin_pass(self, now: float) -> None:
        silence = now - self._active_at
        if not self.bytes_in_flight and silence > max(IDLE_SECONDS, IDLE_ROUND_TRIPS * self._rtt):
            self._restart()
            self._active_at = now

    @override
    def on_packet_sent(self, *, packet: QuicSentPacket) -> None:
        self._active_at = packet.sent_time or 0.0
        if not self.bytes_in_flight:
            self._stop_clock(self._active_at)
        self.bytes_in_flight += packet.sent_bytes

    @override
    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        self.on_run_acked(now=now, size=packet.sent_bytes, sent_time=packet.sent_time or 0.0)

    @override
    def on_run_acked(self, *, now: float, size: int, sent_time: float) -> None:
        if now != self._judged_at:
            # Before the first packet of an acknowledgement is taken off what is in flight.
            self._judge(now)
        self.bytes_in_flight -= size
        self._active_at = now
        if sent_time <= self._recovery_began:
            return
        window = self.congestion_window
        if not self.in_slow_start:
            if self._is_used:
                self.congestion_window = self._cubic.grow(
                    window, size, now, self._rtt, self._max_datagram_size
                )
            return
        if self.ssthresh is None:
            self._hystart.on_acked(sent_time, now)
        if self._is_used:
            window += size // self._hystart.divisor
            self.congestion_window = window if self.ssthresh is None else min(window, self.ssthresh)
        if self._hystart.phase is Phase.OVER and self.ssthresh is None:
            self.ssthresh = self.congestion_window

    @override
    def on_rtt_measurement(self, *, now: float, rtt: float) -> None:
        if now - rtt < self._recovery_began and not self._rtt:
            return  # of the path before
        self._rtt = rtt
        if self.ssthresh is None and self._hystart.on_rtt(rtt):
            self._settle()

    @override
    def on_packets_expired(self, *, packets: Iterable[QuicSentPacket]) -> None:
        self.bytes_in_flight -= sum(packet.sent_bytes for packet in packets)

    @override
    def on_packets_lost(self, *, now: float, packets: Iterable[QuicSentPacket]) -> None:
        last_sent = -math.inf
        for packet in packets:
            self.bytes_in_flight -= packet.sent_bytes
            last_sent = max(last_sent, packet.sent_time or 0.0)
        if last_sent <= self._recovery_began:
            return
        self._recovery_began = now
        self.congestion_events += 1
        if self.ssthresh is None:
            self._settle()
        window = self.congestion_window
        self._cubic.on_congestion(window)
        self.congestion_window = self.ssthresh = max(int(window * BETA), self._least)

    @override
    def on_persistent_congestion(self) -> None:
        self.congestion_window = self._least
        self._recovery_began = -math.inf
        self._cubic.restart()

    @property
    def _least(self) -> int:
        return K_MINIMUM_WINDOW * self._max_datagram_size

    def _judge(self, now: float) -> None:
        """Say whether the window is what limits the sender; if not, it does not grow."""
        in_flight, window = self.bytes_in_flight, self.congestion_window
        self._in_flight = in_flight
        # Half of it in slow start, which doubles it; pacing leaves up to a fifth free afterwards.
        self._is_used = (
            in_flight * 2 >= window if self.in_slow_start else in_flight * 4 >= window * 3
        )
        if not self._is_used:
            self._stop_clock(now)
        self._judged_at = self._timed_until = now

    def _stop_clock(self, now: float) -> None:
        """Nobody used the window until `now`, since it was last judged or all was acknowledged."""
        self._cubic.pause(now - self._timed_until)
        self._timed_until = now

    def _settle(self) -> None:
        """Take what was sent for the window: slow start is ahead of it, as pacing holds it back."""
        self.congestion_window = min(self.congestion_window, max(self._in_flight, self._least))

    def _restart(self) -> None:
        """Forget all that was learnt of the path."""
        self.congestion_window = initial_window(self._max_datagram_size)
        self.ssthresh = None
        self._hystart = HyStart()
        self._cubic.restart()


register_congestion_control(ALGORITHM, CubicControl)
