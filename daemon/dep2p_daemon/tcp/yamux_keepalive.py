"""Pings of a Yamux session: is the peer there, and how far away?"""

from __future__ import annotations

from typing import Final

from dep2p_daemon.errors import ConnectionClosedError

MIN_RTT: Final = 0.001
"""Seconds. Shorter round trips say more about the two event loops than about the way."""


class Keepalive:
    """When to ping, what came back, and when silence has lasted too long. Times in seconds."""

    __slots__ = ("_interval", "_last_received", "_min_rtt", "_next", "_sent", "_timeout", "_value")

    def __init__(self, now: float, *, interval: float, timeout: float) -> None:
        self._interval = interval
        self._timeout = timeout
        self._next = now
        self._sent: float | None = None
        self._value = 0
        self._last_received = now
        self._min_rtt: float | None = None

    @property
    def base_rtt(self) -> float:
        """The shortest round trip so far, at least MIN_RTT; 0 while none is known."""
        return 0.0 if self._min_rtt is None else max(self._min_rtt, MIN_RTT)

    @property
    def last_received(self) -> float:
        """When something last came from the peer."""
        return self._last_received

    def received(self, now: float) -> None:
        """Something came from the peer."""
        self._last_received = now

    def answered(self, value: int, now: float) -> float | None:
        """An answer came: return its round trip, None if it answers nothing that we asked."""
        if self._sent is None or value != self._value:
            return None
        rtt = now - self._sent
        self._sent = None
        self._min_rtt = rtt if self._min_rtt is None else min(rtt, self._min_rtt)
        return rtt

    def deadline(self) -> float:
        """When `handle_timer` is due."""
        if self._sent is None:
            return self._next
        return max(self._sent, self._last_received) + self._timeout

    def handle_timer(self, now: float) -> int | None:
        """Return the value of a ping to send now, None if none is due.

        Raises:
            ConnectionClosedError: nothing at all came for too long after a ping. Its answer
                may queue behind bulk data, so any byte is a sign of life.
        """
        if self._sent is not None:
            silence = now - max(self._sent, self._last_received)
            if silence >= self._timeout:
                raise ConnectionClosedError(
                    f"the peer did not answer for {silence:.0f} s",
                    reason="KEEPALIVE_TIMEOUT",
                    remote=True,
                )
            return None
        if now < self._next:
            return None
        self._next = now + self._interval
        self._sent = now
        self._value = (self._value + 1) & 0xFFFFFFFF
        return self._value
