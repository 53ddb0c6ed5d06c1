"""Which discovered relays to take and which to let go: decisions, without I/O.

Relays that somebody named are held whatever they are like; this is about the others. While fewer
relays than wanted hold a reservation for us, the nearest candidates fill up. Once there are
enough, a much nearer one may replace the farthest: it is taken first, and only when it has
granted a reservation the other one is let go.

Times are `now` in seconds of a clock that does not jump.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from dep2p_daemon.circuit.events import RelaySource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr

MAX_UNWANTED: Final = 256
"""Relays given up by request that are remembered; ours."""

_UNMEASURED: Final = float("inf")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoiceSettings:
    """Times in seconds."""

    wanted: int = 2
    """Reservations to hold (go-libp2p's `desiredRelays`)."""
    settle: float = 2.0
    """A candidate is taken after this time, so that those that come together are compared."""
    nearer_factor: float = 0.7
    """A replacement's round trip is at most this part of the replaced one's ..."""
    nearer_by: float = 0.01
    """... and this much less: who is nearly as near is no reason to change."""
    min_hold: float = 300.0
    """A relay is held this long before it may be replaced."""
    retry_base: float = 30.0
    """A candidate that failed n times is left alone for this time, doubled n - 1 times ..."""
    retry_max: float = 3600.0
    """... but never longer than this (go-libp2p's)."""
    max_candidates: int = 20
    """go-libp2p's."""
    max_age: float = 1800.0
    """A round trip older than this is not known any more (go-libp2p's `maxCandidateAge`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A relay that is kept now, as its keeper tells."""

    peer: PeerId
    source: RelaySource
    reserved: bool
    failing: bool
    """Its last attempt failed; it is tried again."""
    idle: bool
    """No connection of ours goes through it: letting it go cuts nothing."""
    rtt: float | None


@dataclass(slots=True)
class Candidate:
    """A relay that could be taken."""

    peer: PeerId
    address: Multiaddr
    """Where it was reached, without `/p2p`."""
    found_at: float
    seen_at: float
    rtt: float = _UNMEASURED
    measured_at: float = 0.0
    failures: int = 0
    not_before: float = 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now."""

    take: tuple[Candidate, ...] = ()
    release: tuple[PeerId, ...] = ()


@dataclass(slots=True)
class RelayChoice:
    """The candidates, and how they compare with what is held."""

    settings: ChoiceSettings
    candidates: dict[PeerId, Candidate] = field(default_factory=dict)
    unwanted: set[PeerId] = field(default_factory=set)
    """Relays that the user gave up: they are no candidates, until they are asked for again."""
    _taken_at: dict[PeerId, float] = field(default_factory=dict)

    def offer(self, peer: PeerId, address: Multiaddr, now: float) -> None:
        """A connected peer relays. Of too many candidates the one seen longest ago goes."""
        known = self.candidates.get(peer)
        if known is not None:
            known.address, known.seen_at = address, now
            return
        if self.settings.max_candidates <= 0 or peer in self.unwanted:
            return
        while len(self.candidates) >= self.settings.max_candidates:
            oldest = min(self.candidates.values(), key=lambda candidate: candidate.seen_at)
            del self.candidates[oldest.peer]
        self.candidates[peer] = Candidate(peer, address, found_at=now, seen_at=now)

    def give_up(self, peer: PeerId) -> None:
        """The user does not want this relay."""
        self.candidates.pop(peer, None)
        if len(self.unwanted) >= MAX_UNWANTED:
            self.unwanted.pop()
        self.unwanted.add(peer)

    def measured(self, peer: PeerId, rtt: float, now: float) -> None:
        """A round trip to a candidate was measured, in seconds."""
        candidate = self.candidates.get(peer)
        if candidate is not None:
            candidate.rtt, candidate.measured_at, candidate.seen_at = rtt, now, now

    def failed(self, peer: PeerId, now: float) -> None:
        """A candidate refused, or was not there: leave it alone for a while."""
        candidate = self.candidates.get(peer)
        if candidate is not None:
            candidate.failures += 1
            wait = self.settings.retry_base * 2.0 ** min(candidate.failures - 1, 16)
            candidate.not_before = now + min(wait, self.settings.retry_max)

    def succeeded(self, peer: PeerId) -> None:
        """A candidate granted a reservation: its failures are forgotten."""
        candidate = self.candidates.get(peer)
        if candidate is not None:
            candidate.failures, candidate.not_before = 0, 0.0

    def decide(self, held: Sequence[Held], now: float) -> Decision:
        """Return what to take and what to release; both are empty when all is well."""
        kept = {relay.peer for relay in held}
        self._taken_at = {peer: self._taken_at.get(peer, now) for peer in kept}
        free = sorted(
            (
                candidate
                for candidate in self.candidates.values()
                if candidate.peer not in kept
                and candidate.not_before <= now
                and candidate.found_at + self.settings.settle <= now
            ),
            key=lambda candidate: (candidate.failures, self._rtt(candidate, now)),
        )
        # One that is being asked for the first time, or again after a loss, is as good as held.
        expected = [relay for relay in held if relay.reserved or not relay.failing]
        missing = self.settings.wanted - len(expected)
        failing = [
            relay for relay in held if relay.failing and relay.source is RelaySource.DISCOVERED
        ]
        if missing > 0:
            take = tuple(free[:missing])
            # Who fails makes room for who has not been tried; alone, it goes on trying.
            return Decision(take, tuple(relay.peer for relay in failing[: len(take)]))
        if failing:
            return Decision(release=tuple(relay.peer for relay in failing))
        spare = sum(relay.reserved for relay in held) - self.settings.wanted
        if spare > 0:
            return Decision(release=self._farthest(held, spare))
        if len(expected) == self.settings.wanted:
            return Decision(take=self._nearer(held, free, now))
        return Decision()

    def _farthest(self, held: Sequence[Held], count: int) -> tuple[PeerId, ...]:
        loose = [
            relay
            for relay in held
            if relay.source is RelaySource.DISCOVERED and relay.reserved and relay.idle
        ]
        loose.sort(key=lambda relay: -(relay.rtt if relay.rtt is not None else _UNMEASURED))
        return tuple(relay.peer for relay in loose[:count])

    def _nearer(
        self, held: Sequence[Held], free: Sequence[Candidate], now: float
    ) -> tuple[Candidate, ...]:
        settings = self.settings
        loose = [
            relay.rtt
            for relay in held
            if relay.source is RelaySource.DISCOVERED
            and relay.reserved
            and relay.rtt is not None
            and now - self._taken_at[relay.peer] >= settings.min_hold
        ]
        if not loose or not free:
            return ()
        limit = min(max(loose) * settings.nearer_factor, max(loose) - settings.nearer_by)
        best = min(free, key=lambda candidate: self._rtt(candidate, now))
        return (best,) if self._rtt(best, now) <= limit else ()

    def _rtt(self, candidate: Candidate, now: float) -> float:
        fresh = now - candidate.measured_at <= self.settings.max_age
        return candidate.rtt if fresh else _UNMEASURED
