"""When to start which attempt of a dial (RFC 8305 and the rules of `ranking.py`).

sans-IO: the caller says what happened and when; `due` gives the attempts to start now and
`deadline` the time to ask again. An attempt that fails lets the next one of its group start at
once; when nothing runs any more, the next one of any group does.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from dep2p_daemon.swarm.ranking import Candidate, Group

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.swarm.settings import DialSettings


class DialPlan:
    """The schedule of one dial to one peer."""

    def __init__(self, settings: DialSettings) -> None:
        self._settings = settings
        self._waiting: dict[Group, deque[Candidate]] = {group: deque() for group in Group}
        self._next_start: dict[Group, float] = {}
        self._running: dict[Multiaddr, Candidate] = {}
        self._known: set[Multiaddr] = set()
        self._resolving = 0
        self._direct_seen = False

    @property
    def running(self) -> tuple[Candidate, ...]:
        """The attempts under way, oldest first."""
        return tuple(self._running.values())

    @property
    def exhausted(self) -> bool:
        """True when nothing runs, waits or is being resolved: the dial has failed."""
        return not (self._running or self._resolving or any(self._waiting.values()))

    def add(self, candidates: Iterable[Candidate], now: float) -> None:
        """Take more addresses in, in ranked order; those already known are ignored."""
        for candidate in candidates:
            if candidate.address in self._known or len(self._known) >= self._settings.max_addresses:
                continue
            self._known.add(candidate.address)
            self._waiting[candidate.group].append(candidate)
            self._direct_seen |= candidate.group is not Group.CIRCUIT
        for group in Group:
            if self._waiting[group] and group not in self._next_start:
                self._next_start[group] = now + self._head_start(group)

    def resolving(self) -> None:
        """A name is being resolved: it may bring more (direct) addresses."""
        self._resolving += 1

    def resolved(self, candidates: Iterable[Candidate], now: float) -> None:
        """A name was resolved to `candidates`, or to nothing."""
        self._resolving -= 1
        self.add(candidates, now)
        self._wake_idle(now)

    def due(self, now: float) -> Candidate | None:
        """Return the next attempt to start at `now`, which then counts as running."""
        if len(self._running) >= self._settings.max_concurrent:
            return None
        for group in Group:
            if self._waiting[group] and self._next_start[group] <= now:
                candidate = self._waiting[group].popleft()
                self._running[candidate.address] = candidate
                self._next_start[group] = now + self._stagger(group)
                return candidate
        return None

    def failed(self, candidate: Candidate, now: float) -> None:
        """An attempt ended without a connection."""
        del self._running[candidate.address]
        self._next_start[candidate.group] = now
        self._wake_idle(now)

    def deadline(self) -> float | None:
        """Return when `due` has something to say again, unless something happens before."""
        if len(self._running) >= self._settings.max_concurrent:
            return None
        return min(
            (self._next_start[group] for group in Group if self._waiting[group]), default=None
        )

    def stop(self, *, keep_direct: bool = False) -> tuple[Candidate, ...]:
        """Start nothing any more; return the running attempts that should be ended.

        `keep_direct`: a circuit won; direct attempts that run already may still improve on it.
        """
        for waiting in self._waiting.values():
            waiting.clear()
        return tuple(
            candidate
            for candidate in self.running
            if not keep_direct or candidate.group is Group.CIRCUIT
        )

    def _wake_idle(self, now: float) -> None:
        """Nothing runs: what would have waited longest need not."""
        if self._running or self._resolving:
            return
        for group in Group:
            if self._waiting[group]:
                self._next_start[group] = min(self._next_start[group], now)
                return

    def _head_start(self, group: Group) -> float:
        if group is Group.LOCAL:
            return 0.0
        if group is Group.CIRCUIT:
            direct = self._direct_seen or self._resolving > 0
            return self._settings.circuit_delay if direct else 0.0
        local = len(self._waiting[Group.LOCAL])
        return min(local * self._settings.local_stagger, self._settings.public_stagger)

    def _stagger(self, group: Group) -> float:
        if group is Group.LOCAL:
            return self._settings.local_stagger
        return self._settings.public_stagger
