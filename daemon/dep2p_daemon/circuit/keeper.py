"""When to reserve, refresh and try again at one relay: a state table, without I/O.

Times are `now` in seconds of a clock that does not jump. A reservation's end is told by the
relay's wall clock; the caller turns it into a time to live first, so that two clocks that
disagree do not matter.

- A refresh is due well before the end, at a random moment, so that the clients of a restarted
  relay do not come back in step. Until it succeeds the old reservation stands.
- A lost connection is followed by an attempt at once, unless it was lost right after the
  last one: then, and after every failure, by waiting, twice as long each time up to a maximum.
  It never gives up. While the node holds no relay at all (`alone`) the maximum is small: nobody
  can reach it then.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dep2p_daemon.circuit.events import RelayState

if TYPE_CHECKING:
    from random import Random


class Signal(enum.Enum):
    """What can happen to a relay of ours."""

    GRANTED = "granted"
    """The relay made or refreshed the reservation."""
    FAILED = "failed"
    """An attempt to reserve or to refresh failed."""
    LOST = "lost"
    """The connection that held the reservation ended."""
    LOST_AGAIN = "lost again"
    """The same, and it had not lasted."""
    EXPIRED = "expired"
    """The reservation ended before a refresh succeeded."""
    DUE = "due"
    """The time to try again has come, or somebody asks for it now."""
    RELEASED = "released"
    """We do not want this relay any more."""


_S = RelayState
TRANSITIONS: Final[dict[tuple[RelayState, Signal], RelayState]] = {
    (_S.CONNECTING, Signal.GRANTED): _S.RESERVED,
    (_S.CONNECTING, Signal.FAILED): _S.BACKOFF,
    (_S.CONNECTING, Signal.RELEASED): _S.DISCONNECTED,
    (_S.RESERVED, Signal.GRANTED): _S.RESERVED,
    (_S.RESERVED, Signal.FAILED): _S.RESERVED,
    (_S.RESERVED, Signal.LOST): _S.CONNECTING,
    (_S.RESERVED, Signal.LOST_AGAIN): _S.BACKOFF,
    (_S.RESERVED, Signal.EXPIRED): _S.CONNECTING,
    (_S.RESERVED, Signal.DUE): _S.RESERVED,
    (_S.RESERVED, Signal.RELEASED): _S.DISCONNECTED,
    (_S.BACKOFF, Signal.DUE): _S.CONNECTING,
    (_S.BACKOFF, Signal.RELEASED): _S.DISCONNECTED,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class KeeperSettings:
    """Times in seconds."""

    backoff_base: float = 1.0
    """The wait after the first failure; it doubles with each further one."""
    backoff_max: float = 60.0
    """The longest wait while another relay is held."""
    backoff_max_alone: float = 3.0
    """The longest wait while none is: a relay that comes back is found within 5 s."""
    refresh_from: float = 0.65
    """A refresh is due at a random moment from this part of the reservation's life ..."""
    refresh_to: float = 0.8
    """... to this one. What is left then is for retries."""
    min_refresh: float = 1.0
    """The shortest wait between two refreshes, however short the relay's reservations are."""
    lasting: float = 10.0
    """A reservation that held so long was a success; its loss is followed by a try at once."""


class Keeper:
    """One relay's state, and the time of its next step."""

    def __init__(self, settings: KeeperSettings, random: Random) -> None:
        self._settings = settings
        self._random = random
        self._failures = 0
        self._granted_at = 0.0
        self.state = RelayState.CONNECTING
        self.expires_at: float | None = None
        """When the reservation ends; None when there is none."""
        self.next_try_at: float | None = None
        """When the next refresh or attempt is due; None while one is under way."""

    def granted(self, time_to_live: float, now: float) -> None:
        """The relay made or refreshed the reservation."""
        if self.state is RelayState.RESERVED:
            self._failures = 0
        else:
            self._granted_at = now
        self._step(Signal.GRANTED)
        settings = self._settings
        part = self._random.uniform(settings.refresh_from, settings.refresh_to)
        self.expires_at = now + time_to_live
        self.next_try_at = now + max(settings.min_refresh, time_to_live * part)

    def failed(self, now: float, *, alone: bool = False) -> None:
        """An attempt, or a refresh, failed. `alone`: no relay is held, and this one was silent."""
        self._step(Signal.FAILED)
        self._wait_longer(now, alone=alone)

    def lost(self, now: float) -> None:
        """The connection that held the reservation ended."""
        lasted = now - self._granted_at >= self._settings.lasting
        again = self._failures > 0 and not lasted
        self._failures = 0 if lasted else self._failures
        self._step(Signal.LOST_AGAIN if again else Signal.LOST)
        self.expires_at = self.next_try_at = None
        if again:
            self._wait_longer(now)
        elif not lasted:
            self._failures = 1

    def due(self, now: float) -> None:
        """The time that `deadline` gave has come, or somebody asks for a try now."""
        expired = self.expires_at is not None and self.expires_at <= now
        self._step(Signal.EXPIRED if expired else Signal.DUE)
        if expired:
            self.expires_at = None
        self.next_try_at = None

    def release(self) -> None:
        """We do not want this relay any more."""
        self._step(Signal.RELEASED)
        self.expires_at = self.next_try_at = None

    def deadline(self) -> float | None:
        """Return when to call `due`; None when an attempt is to be made now, or never again."""
        times = [t for t in (self.next_try_at, self.expires_at) if t is not None]
        return min(times) if self.next_try_at is not None else None

    def _step(self, signal: Signal) -> None:
        self.state = TRANSITIONS[self.state, signal]

    def _wait_longer(self, now: float, *, alone: bool = False) -> None:
        self._failures += 1
        settings = self._settings
        longest = settings.backoff_max_alone if alone else settings.backoff_max
        # The exponent is bounded: a relay that is away for weeks must not overflow a float.
        wait = settings.backoff_base * 2.0 ** min(self._failures - 1, 32)
        self.next_try_at = now + min(wait, longest) * self._random.uniform(0.8, 1.0)
