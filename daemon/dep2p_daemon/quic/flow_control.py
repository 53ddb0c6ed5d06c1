"""Credit by consumption (RFC 9000 section 4): a peer may send what the application has room for.

A window moves on only as bytes are consumed. It grows to three times what arrives and is consumed
in a round trip, and to more while that is itself growing: then the sender doubles its speed from
one round trip to the next, and must not meet the limit. What is judged is never less than a round
trip, and both ends of the buffer count: neither a burst of reads nor what a retransmission sets
free is taken for speed.
"""

from __future__ import annotations

from typing import Final

TRIPS: Final = 3.0
"""For how many round trips a window lasts: one for the bytes on their way, one while a lost packet
keeps them from the reader, and a quarter of the window is credit that is not announced yet."""
MAX_ACCELERATION: Final = 2.0
"""By what factor a sender may go faster from one round trip to the next: slow start's."""


class ReceiveWindow:
    """The credit of one stream, or of all streams of a connection together."""

    __slots__ = (
        "_arrived",
        "_maximum",
        "_measured_at",
        "_most_in_a_trip",
        "_taken",
        "consumed",
        "limit",
        "size",
    )

    def __init__(self, initial: int, maximum: int) -> None:
        self.size = initial
        """How far the limit is kept ahead of what was consumed, in bytes."""
        self._maximum = max(initial, maximum)
        self.limit = initial
        """The offset up to which the peer may send."""
        self.consumed = 0
        """Bytes that need no more memory: read, or dropped."""
        self._measured_at = 0.0
        self._arrived = self._taken = 0
        """What had arrived and been consumed at that time."""
        self._most_in_a_trip = 0.0
        """Bytes in a round trip, at the best of times."""

    def consume(self, count: int) -> bool:
        """Count consumed bytes (negative: they came back); True when credit is worth announcing.

        Worth it is a quarter of a window: few frames, no silly windows, and three quarters of it
        are always there to be used.
        """
        self.consumed += count
        return self.consumed + self.size - self.limit >= self.size // 4

    def announce(self, arrived: int, now: float, rtt: float, *, may_grow: bool) -> int:
        """Move the limit on, growing the window where the reader deserves it; returns it.

        Args:
            arrived: bytes received so far, in order or not.
            now: the time in seconds.
            rtt: the round trip in seconds; 0 while it is not known.
            may_grow: whether there is memory for a larger window.
        """
        needed = self._needed(arrived, now, rtt)
        if may_grow and needed > self.size:
            self.size = min(needed, self._maximum)
        self.limit = max(self.limit, self.consumed + self.size)
        return self.limit

    def keep_ahead_of(self, received: int, most: int) -> bool:
        """Lend credit for bytes that nobody reads; True when the limit is to be announced.

        Of a connection's streams some may be stalled: what lies unread on them is bounded by
        their own windows, and must not keep the others from receiving. `most` bytes in all may
        be unread.
        """
        limit = min(received + self.size, self.consumed + most)
        if self.limit - received >= self.size // 2 or limit <= self.limit:
            return False
        self.limit = limit
        return True

    def keep_above(self, size: int) -> None:
        """Grow to at least `size`: a connection must not be narrower than one of its streams."""
        self.size = max(self.size, min(size, self._maximum))

    def _needed(self, arrived: int, now: float, rtt: float) -> int:
        """Bytes that this reader's window should have; 0 while there is no telling."""
        elapsed = now - self._measured_at
        if rtt <= 0 or elapsed < rtt:
            return 0
        moved = min(self.consumed - self._taken, arrived - self._arrived)
        most, in_a_trip = self._most_in_a_trip, moved * rtt / elapsed
        self._measured_at, self._most_in_a_trip = now, max(most, in_a_trip)
        self._arrived, self._taken = arrived, self.consumed
        faster = in_a_trip / most if most > 0 else 1.0
        return int(TRIPS * in_a_trip * min(max(faster, 1.0), MAX_ACCELERATION))
