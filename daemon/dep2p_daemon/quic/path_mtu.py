"""Which size of datagram a path carries (RFC 8899): a search upwards, one probe at a time.

Every path carries 1200 bytes. Common sizes above are probed in turn, up to what is wanted and
what the peer takes; the first that does not get through ends the search. sans-IO: sizes to
probe come out, the probes' fates go in.
"""

from __future__ import annotations

from typing import Final

BASE_SIZE: Final = 1200
"""What every path carries (RFC 9000 section 14)."""
COMMON_SIZES: Final = (1400, 1452, 8952, 16_000, 32_000, 65_000)
"""Most tunnels; Ethernet and IPv6; jumbo frames; loopback in steps."""
MAX_SIZE: Final = COMMON_SIZES[-1]
PROBES: Final = 3
"""Probes of one size before it is taken not to get through."""


class PathMtu:
    """The search of one connection on its path."""

    def __init__(self, wanted: int) -> None:
        """Search up to `wanted` bytes of UDP payload."""
        self.size = BASE_SIZE
        """Largest datagram known to get through."""
        self.is_probing = False
        """Whether a probe is under way."""
        self._wanted = wanted
        self._left: list[int] = []
        self._probes = 0
        self.restart()

    def restart(self) -> None:
        """Begin anew: the path has changed, or what got through does so no more."""
        self.size = BASE_SIZE
        common = [size for size in COMMON_SIZES if BASE_SIZE < size < self._wanted]
        self._left = [*common, self._wanted] if self._wanted > BASE_SIZE else []
        self._probes = 0

    def limit(self, size: int) -> None:
        """Note that the peer takes no more than `size`."""
        if size < self._wanted:
            self._wanted = max(size, BASE_SIZE)
            self._left = [step for step in self._left if step < self._wanted]
            if self.size < self._wanted:
                self._left.append(self._wanted)

    @property
    def wants_probe(self) -> bool:
        """Whether `next_probe` should be called."""
        return bool(self._left) and not self.is_probing

    def next_probe(self) -> int:
        """Size of the probe that is sent now."""
        self.is_probing = True
        self._probes += 1
        return self._left[0]

    def probe_acknowledged(self, size: int) -> bool:
        """A probe got through; returns whether `size` grew."""
        self.is_probing = False
        self._probes = 0
        if not self._left or self._left[0] != size:
            return False  # a search that has begun anew since
        self.size = self._left.pop(0)
        return True

    def probe_lost(self) -> None:
        """A probe did not get through."""
        self.is_probing = False
        if self._probes >= PROBES:
            self._left = []
