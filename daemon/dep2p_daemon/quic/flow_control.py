"""Credit by consumption (RFC 9000 section 4): a peer may send what the application has room for.

A window moves on only as bytes are consumed, and grows only while its reader keeps up: when
half of it went within two round trips, the window is what limits the transfer.
"""

from __future__ import annotations


class ReceiveWindow:
    """The credit of one stream, or of all streams of a connection together."""

    __slots__ = ("_announced_at", "_maximum", "consumed", "limit", "size")

    def __init__(self, initial: int, maximum: int) -> None:
        self.size = initial
        """How far the limit is kept ahead of what was consumed, in bytes."""
        self._maximum = max(initial, maximum)
        self.limit = initial
        """The offset up to which the peer may send."""
        self.consumed = 0
        """Bytes that need no more memory: read, or dropped."""
        self._announced_at = 0.0

    def consume(self, count: int) -> bool:
        """Count consumed bytes (negative: they came back); True when credit is worth announcing.

        Worth it is half a window: fewer frames, and no silly windows.
        """
        self.consumed += count
        return self.consumed + self.size - self.limit >= self.size // 2

    def announce(self, now: float, rtt: float, may_grow: bool) -> int:
        """Move the limit on, growing the window where the reader deserves it; returns it."""
        if may_grow and self.size < self._maximum and now - self._announced_at < 2 * rtt:
            self.size = min(2 * self.size, self._maximum)
        self._announced_at = now
        self.limit = max(self.limit, self.consumed + self.size)
        return self.limit

    def keep_ahead_of(self, received: int) -> bool:
        """Lend credit for bytes that nobody reads; True when the limit is to be announced.

        Of a connection's streams some may be stalled: what lies unread on them is bounded by
        their own windows, and must not keep the others from receiving. The caller bounds it.
        """
        if self.limit - received >= self.size // 2:
            return False
        self.limit = received + self.size
        return True

    def keep_above(self, size: int) -> None:
        """Grow to at least `size`: a connection must not be narrower than one of its streams."""
        self.size = max(self.size, min(size, self._maximum))
