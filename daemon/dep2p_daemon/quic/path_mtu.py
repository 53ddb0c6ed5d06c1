"""Which size of datagram a path carries (RFC 8899): a search upwards, one probe at a time.

Every path carries 1200 bytes. Larger steps are probed in turn, up to what is wanted and what
the peer takes; where one does not get through, what lies between it and the last that did is
searched by halves. sans-IO: sizes to probe come out, the fates of probes and of large packets
go in.
"""

from __future__ import annotations

from typing import Final

BASE_SIZE: Final = 1200
"""What every path carries (RFC 9000 section 14)."""
STEPS: Final = (1452, 8952, 16_000, 32_000, 65_000)
"""Ethernet with IPv6 (and so with IPv4); jumbo frames; loopback in steps."""
BETWEEN: Final = (1232, 1352, 1372, 1400, 1432)
"""What else is common: IPv6's least MTU, 1400 bytes, WireGuard, other tunnels."""
MAX_SIZE: Final = STEPS[-1]
PROBES: Final = 3
"""Probes of one size before it is taken not to get through (RFC 8899's MAX_PROBES)."""
WINDOW_PACKETS: Final = 4
"""Packets of a size that the congestion window must hold before the size is probed.

With fewer in flight loss is noticed late. And who sends little has no use for large ones.
"""
RAISE_INTERVAL: Final = 600.0
"""Seconds after which a search that ended below what is wanted is taken up again (RFC 8899's
PMTU_RAISE_TIMER). Nothing is sent for that alone."""
BLACK_HOLE_LOSSES: Final = 3
"""Times in a row that large packets were found lost and none got through, until the path is taken
for one that carries them no more (RFC 8899 section 4.3)."""


class PathMtu:
    """The search of one connection on its path."""

    def __init__(self, wanted: int) -> None:
        """Search up to `wanted` bytes of UDP payload."""
        self.size = BASE_SIZE
        """Largest datagram known to get through."""
        self.is_probing = False
        """Whether a probe is under way."""
        self._wanted = wanted
        self._too_large: int | None = None
        """The smallest size that did not get through."""
        self._probe: int | None = None
        """What is being probed; None: a probe under way is of an earlier search."""
        self._probes = 0
        self._raise_at: float | None = None
        self._losses = 0

    def restart(self) -> None:
        """Begin anew: the path has changed, or what got through does so no more."""
        self.size = BASE_SIZE
        self._probes = self._losses = 0
        self._too_large = self._probe = self._raise_at = None

    def limit(self, size: int) -> None:
        """Note that the peer takes no more than `size`."""
        self._wanted = min(self._wanted, max(size, BASE_SIZE))

    # The search

    def due(self, now: float, window: int) -> int | None:
        """Size of the probe that should be sent now, if any.

        Args:
            now: the time.
            window: the congestion window in bytes.
        """
        if self.is_probing or self.size >= self._wanted:
            return None
        size = self._next()
        if size is None:  # the search is over
            if self._raise_at is None:
                self._raise_at = now + RAISE_INTERVAL
            if now < self._raise_at:
                return None
            self._too_large = self._raise_at = None
            size = self._next()
        return size if size is not None and size * WINDOW_PACKETS <= window else None

    def _next(self) -> int | None:
        sizes = sorted({*STEPS, self._wanted})
        if self._too_large is None:
            return next((size for size in sizes if self.size < size <= self._wanted), None)
        sizes = sorted({*sizes, *BETWEEN})
        left = [size for size in sizes if self.size < size < min(self._too_large, self._wanted)]
        return left[len(left) // 2] if left else None

    def probe_sent(self, size: int) -> None:
        """A probe is under way."""
        self.is_probing = True
        self._probe = size

    def probe_acknowledged(self, size: int) -> bool:
        """A probe got through; returns whether `size` grew."""
        self.is_probing = False
        if size != self._probe:
            return False
        self._probes = 0
        self.size = size
        return True

    def probe_lost(self, size: int) -> None:
        """A probe did not get through: by chance, or because of its size."""
        self.is_probing = False
        if size == self._probe:
            self._probes += 1
            if self._probes >= PROBES:
                self.refused(size)

    def refused(self, size: int) -> None:
        """Note that `size` is too large: three probes were lost, or the own interface said so."""
        self._too_large = size
        self._probes = 0
        self._probe = None

    # Black holes

    @property
    def is_suspected(self) -> bool:
        """Whether large packets were lost, and none has got through since."""
        return self._losses > 0

    @property
    def is_black_hole(self) -> bool:
        """Whether large packets seem to vanish on this path."""
        return self._losses >= BLACK_HOLE_LOSSES

    def large_lost(self) -> None:
        """Packets beyond BASE_SIZE were found lost, all at a time. Probes do not count."""
        self._losses += 1

    def large_acknowledged(self) -> None:
        """A packet beyond BASE_SIZE got through."""
        self._losses = 0
