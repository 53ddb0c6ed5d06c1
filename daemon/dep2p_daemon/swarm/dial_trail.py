"""The record of the last dials of each peer: every address tried, when, for how long, what came.

A `DialTrail` is frozen once its dial has ended. A `DialBook` keeps the last few of each peer.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.swarm.connections import DialPolicy

MAX_ATTEMPTS: Final = 32
"""Addresses kept of one dial."""
MAX_TRAILS_PER_PEER: Final = 4
MAX_PEERS: Final = 256
"""Peers whose dials are kept; the one whose last dial is oldest goes first."""
MAX_DETAIL_CHARS: Final = 300


class AttemptOutcome(enum.Enum):
    """What came of one address; named as in the public API."""

    CONNECTED = "CONNECTED"
    FAILED = "FAILED"
    GIVEN_UP = "GIVEN_UP"
    """Another address was faster, or the dial's deadline came."""
    NOT_TRIED = "NOT_TRIED"
    """Left out because it failed just now, or its name was not resolved."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DialAttempt:
    """One address of a dial."""

    address: Multiaddr
    outcome: AttemptOutcome
    began_after: float
    """Seconds from the dial's beginning."""
    duration: float
    """Seconds."""
    reason: str = ""
    """The reason code of a failure."""
    detail: str = ""
    """The failure in words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DialTrail:
    """One dial that has ended."""

    peer: PeerId
    policy: DialPolicy
    started_at: float
    """Unix time in seconds."""
    duration: float
    """Seconds until it was decided."""
    attempts: tuple[DialAttempt, ...] = ()
    """In the order of their ends."""
    connection_id: str = ""
    """The connection it led to; empty when it failed."""
    relayed: bool = False
    """Whether that connection goes through a relay."""
    reason: str = ""
    detail: str = ""
    """Why it failed."""
    remedy: str = ""


class DialBook:
    """The last dials of each peer, bounded."""

    def __init__(
        self, *, max_peers: int = MAX_PEERS, max_per_peer: int = MAX_TRAILS_PER_PEER
    ) -> None:
        self._max_peers = max_peers
        self._max_per_peer = max_per_peer
        self._trails: dict[PeerId, deque[DialTrail]] = {}

    def of(self, peer: PeerId) -> tuple[DialTrail, ...]:
        """The dials of `peer`, the latest last."""
        return tuple(self._trails.get(peer, ()))

    def add(self, trail: DialTrail) -> None:
        """Keep a dial that has ended."""
        trails = self._trails.pop(trail.peer, None) or deque(maxlen=self._max_per_peer)
        self._trails[trail.peer] = trails  # the peer with the latest dial is the last
        trails.append(trail)
        if len(self._trails) > self._max_peers:
            del self._trails[next(iter(self._trails))]

    def replace(self, old: DialTrail, new: DialTrail) -> None:
        """Keep `new` for `old`, where `old` is still kept."""
        trails = self._trails.get(old.peer, deque())
        for index, trail in enumerate(trails):
            if trail is old:
                trails[index] = new
                return
