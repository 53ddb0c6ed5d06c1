"""Per-address dial backoff: an address that failed is left alone for a while.

After the n-th failure in a row it waits base + n² seconds, at most a maximum
(go-libp2p `p2p/net/swarm/dial_sync.go`: 5 s, 1 s, 5 min). sans-IO: `now` is an argument.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.swarm.settings import DialSettings


@dataclass(frozen=True, slots=True)
class Failure:
    """What is remembered of an address."""

    count: int
    """Failures in a row."""
    until: float
    """The time before which it is left alone."""
    cause: str
    """The last failure, for people."""


class Backoff:
    """The failures of all peers' addresses; bounded, the oldest are forgotten first."""

    def __init__(self, settings: DialSettings) -> None:
        self._settings = settings
        self._peers: OrderedDict[PeerId, OrderedDict[Multiaddr, Failure]] = OrderedDict()

    def __len__(self) -> int:
        """How many failures are remembered."""
        return sum(map(len, self._peers.values()))

    def delay(self, count: int) -> float:
        """Seconds to wait after `count` failures in a row."""
        return min(self._settings.backoff_base + count * count, self._settings.backoff_max)

    def failed(self, peer: PeerId, address: Multiaddr, cause: str, now: float) -> None:
        """Remember that a dial failed."""
        failures = self._peers.setdefault(peer, OrderedDict())
        self._peers.move_to_end(peer)
        before = failures.pop(address, None)
        count = before.count + 1 if before is not None else 1
        failures[address] = Failure(count, now + self.delay(count), cause)
        if len(failures) > self._settings.max_addresses:
            failures.popitem(last=False)
        if len(self._peers) > self._settings.max_backoff_peers:
            self._peers.popitem(last=False)

    def waiting(self, peer: PeerId, address: Multiaddr, now: float) -> Failure | None:
        """Return the failure because of which `address` must not be dialled yet."""
        failures = self._peers.get(peer)
        failure = failures.get(address) if failures is not None else None
        return failure if failure is not None and failure.until > now else None

    def clear(self) -> None:
        """Forget all failures: they were another network's."""
        self._peers.clear()

    def succeeded(self, peer: PeerId) -> None:
        """Forget the peer's failures: it is there, and may have come back elsewhere too."""
        self._peers.pop(peer, None)
