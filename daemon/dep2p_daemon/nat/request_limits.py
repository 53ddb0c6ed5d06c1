"""How often peers may have us dial for them (AutoNAT v1 and v2).

sans-IO: times are seconds of one monotonic clock. The counts are of a sliding minute, so what is
remembered is never more than the limit for all peers.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dep2p_daemon.identity.peer_id import PeerId

WINDOW = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestLimits:
    """Requests per minute, and at once. The defaults are go-libp2p's for AutoNAT v2."""

    per_minute: int = 60
    per_peer: int = 12
    with_data: int = 12
    """Of all peers together: dials of addresses that are not the asking peer's own."""
    concurrent_per_peer: int = 2


class RequestLimiter:
    """Counts requests; each that is admitted must be `finished`."""

    def __init__(self, limits: RequestLimits) -> None:
        self._limits = limits
        self._admitted: deque[tuple[float, PeerId]] = deque()
        self._with_data: deque[float] = deque()
        self._running: Counter[PeerId] = Counter()

    def admit(self, peer: PeerId, now: float) -> bool:
        """Take a request, or not."""
        while self._admitted and self._admitted[0][0] <= now - WINDOW:
            self._admitted.popleft()
        limits = self._limits
        if (
            len(self._admitted) >= limits.per_minute
            or sum(asker == peer for _, asker in self._admitted) >= limits.per_peer
            or self._running[peer] >= limits.concurrent_per_peer
        ):
            if not self._running[peer]:
                del self._running[peer]
            return False
        self._admitted.append((now, peer))
        self._running[peer] += 1
        return True

    def admit_data(self, now: float) -> bool:
        """Let an admitted request have a foreign address dialled, or not."""
        while self._with_data and self._with_data[0] <= now - WINDOW:
            self._with_data.popleft()
        if len(self._with_data) >= self._limits.with_data:
            return False
        self._with_data.append(now)
        return True

    def finished(self, peer: PeerId) -> None:
        """A request that was admitted has ended."""
        self._running[peer] -= 1
        if not self._running[peer]:
            del self._running[peer]
