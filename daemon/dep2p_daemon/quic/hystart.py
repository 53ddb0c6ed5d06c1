"""HyStart++ (https://www.rfc-editor.org/rfc/rfc9406): the end of slow start before its losses.

Slow start doubles the window until packets are lost, and by then up to a window of them is. Here
a round trip that has become longer tells that a queue is filling: growth goes on at a quarter of
its speed for five round trips, and ends for good unless the round trip shrinks again.

The RFC compares the shortest round trips of whole rounds. Acknowledged in batches and paced, a
round is a second's worth of doubling late; here every eight measurements are compared with the
round before. Jitter that this takes for a queue is undone by the next short round trip.
"""

from __future__ import annotations

import enum
import math
from typing import Final

MIN_THRESHOLD: Final = 0.004
"""How much longer a round trip must be, in seconds: this at least (`MIN_RTT_THRESH`)."""
MAX_THRESHOLD: Final = 0.016
"""And this at most (`MAX_RTT_THRESH`)."""
THRESHOLD_DIVISOR: Final = 8
"""In between, such a part of the round trip (`MIN_RTT_DIVISOR`)."""
SAMPLES: Final = 8
"""Measurements that are judged together (`N_RTT_SAMPLE`)."""
CONSERVATIVE_DIVISOR: Final = 4
"""By how much slower the conservative phase is (`CSS_GROWTH_DIVISOR`)."""
CONSERVATIVE_ROUNDS: Final = 5
"""How many rounds it lasts (`CSS_ROUNDS`)."""


class Phase(enum.Enum):
    """How fast the window may grow."""

    SLOW_START = enum.auto()
    CONSERVATIVE = enum.auto()
    OVER = enum.auto()


class HyStart:
    """Watches one slow start, from its beginning. A round is what is sent in a round trip."""

    __slots__ = (
        "_baseline",
        "_before",
        "_began",
        "_group",
        "_rounds",
        "_samples",
        "_this",
        "phase",
    )

    def __init__(self) -> None:
        self.phase = Phase.SLOW_START
        self._began = -math.inf
        """When the round began: it ends when something is acknowledged that was sent later."""
        self._this = self._before = math.inf
        """The shortest round trip of this round and of the one before."""
        self._group = math.inf
        """The shortest of the last few measurements, and how many these are."""
        self._samples = 0
        self._baseline = math.inf
        """The shortest round trip when the conservative phase began."""
        self._rounds = 0

    @property
    def divisor(self) -> int:
        """By how much slower than usual slow start is."""
        return CONSERVATIVE_DIVISOR if self.phase is Phase.CONSERVATIVE else 1

    def on_acked(self, sent_time: float, now: float) -> None:
        """A packet that was sent at `sent_time` was acknowledged."""
        if sent_time < self._began:
            return
        self._began = now
        self._before, self._this = self._this, math.inf
        if self.phase is Phase.CONSERVATIVE:
            self._rounds += 1
            if self._rounds > CONSERVATIVE_ROUNDS:
                self.phase = Phase.OVER

    def on_rtt(self, rtt: float) -> bool:
        """A round trip was measured; returns whether it begins the conservative phase."""
        self._this, self._group = min(self._this, rtt), min(self._group, rtt)
        self._samples += 1
        if self._samples < SAMPLES:
            return False
        shortest, self._group, self._samples = self._group, math.inf, 0
        return self._judge(shortest)

    def _judge(self, shortest: float) -> bool:
        if self.phase is Phase.SLOW_START:
            threshold = min(max(self._before / THRESHOLD_DIVISOR, MIN_THRESHOLD), MAX_THRESHOLD)
            if shortest >= self._before + threshold:
                self.phase, self._baseline, self._rounds = Phase.CONSERVATIVE, shortest, 0
                return True
        elif self.phase is Phase.CONSERVATIVE and shortest < self._baseline:
            self.phase = Phase.SLOW_START
        return False
