"""The window over time of CUBIC (https://www.rfc-editor.org/rfc/rfc9438 section 4).

After a loss the window goes quickly back to where the loss was, lingers there, and then looks for
more, as a cubic function of time and not of round trips. On short or slow paths it is no less
than what an additive increase would have reached (section 4.3): of one packet in a round trip, and
not of 0.53, which would cost a quarter of the throughput where losses are frequent.
"""

from __future__ import annotations

from typing import Final

C: Final = 0.4
"""How steep the curve is, in packets a second cubed."""
BETA: Final = 0.7
"""What a loss leaves of the window."""
MAX_STEP: Final = 1.5
"""The window grows by no more than this factor in a round trip."""


class CubicCurve:
    """One connection's. Windows are bytes, times are seconds."""

    __slots__ = ("_began", "_estimate", "_fraction", "_k", "_window_at_loss")

    def __init__(self) -> None:
        self._began: float | None = None
        """When congestion avoidance began; None: it begins with the next growth."""
        self._window_at_loss: float | None = None
        """`W_max`: where the last loss was, or where it may be; None: nowhere yet."""
        self._k = 0.0
        """`K`: seconds from the beginning until the window is there again."""
        self._estimate = 0.0
        """`W_est`: the window that additive increase would have reached."""
        self._fraction = 0.0
        """Of a byte that the window should have grown by."""

    def on_congestion(self, window: int) -> None:
        """Packets were lost with this window, which is reduced now."""
        before = self._window_at_loss
        # Fast convergence (section 4.7): who gets less than before leaves room for others.
        is_less = before is not None and window < before
        self._window_at_loss = window * (1 + BETA) / 2 if is_less else window
        self._began = None

    def restart(self) -> None:
        """Forget where losses were: the next congestion avoidance begins where slow start ends."""
        self._window_at_loss = self._began = None

    def pause(self, seconds: float) -> None:
        """Let time stand still: nobody used the window (section 5.8)."""
        if self._began is not None:
            self._began += seconds

    def grow(self, window: int, acked: int, now: float, rtt: float, packet: int) -> int:
        """Return the window after `acked` bytes were acknowledged.

        Args:
            window: the present one.
            acked: bytes.
            now: the time.
            rtt: the round trip.
            packet: size of the packets that are being sent.
        """
        if self._began is None:
            self._begin(window, now, packet)
        elapsed = now - (self._began or 0.0)
        self._estimate += packet * acked / window
        if self._at(elapsed, packet) < self._estimate:
            return max(window, int(self._estimate))
        target = min(max(self._at(elapsed + rtt, packet), window), MAX_STEP * window)
        growth = (target - window) * min(1.0, acked / window) + self._fraction
        self._fraction = growth % 1
        return window + int(growth)

    def _begin(self, window: int, now: float, packet: int) -> None:
        self._window_at_loss = max(self._window_at_loss or 0.0, window)
        self._began, self._estimate = now, float(window)
        self._k = ((self._window_at_loss - window) / packet / C) ** (1 / 3)

    def _at(self, elapsed: float, packet: int) -> float:
        return C * packet * (elapsed - self._k) ** 3 + (self._window_at_loss or 0.0)
