"""Whether an Initial may open a connection: caps, and Retry under load (RFC 9000 section 8.1)."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dep2p_daemon.multiaddr import site_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from dep2p_daemon.quic.settings import QuicSettings


class Verdict(enum.Enum):
    """What to do with an Initial of a new connection."""

    ACCEPT = "accept"
    RETRY = "retry"
    """Ask the client to prove its address first; keeps no state."""
    DROP = "drop"
    """Say nothing: the client tries again by itself."""
    REFUSE = "refuse"
    """Tell the client that there is no room."""


class RateLimiter:
    """A token bucket. Knows no clock."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float | None = None) -> None:
        """Allow `rate` a second, and `burst` (default: one second's worth) at once."""
        self._rate = rate
        self._burst = max(1.0, rate if burst is None else burst)
        self._tokens = self._burst
        self._at: float | None = None

    def allow(self, now: float) -> bool:
        """Take one token, if there is one."""
        if self._at is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


@dataclass(slots=True)
class _HalfOpen:
    """Handshakes in progress of clients that have, or have not, proven their address."""

    total: int = 0
    per_group: dict[str, int] = field(default_factory=dict)


class Admission:
    """Counts inbound handshakes in progress on one endpoint.

    Clients that brought a Retry token and those that did not are counted apart. An address that
    is not proven may be forged, and a client that was told to retry leaves its first attempt
    behind as a ghost: neither must take the room of those who have proven theirs.
    """

    def __init__(self, settings: QuicSettings) -> None:
        self._settings = settings
        self._unproven = _HalfOpen()
        self._proven = _HalfOpen()

    @property
    def half_open(self) -> int:
        """Handshakes in progress."""
        return self._unproven.total + self._proven.total

    def judge(self, host: str, *, validated: bool, connections: int) -> Verdict:
        """Decide on a new connection from `host`.

        Args:
            host: the client's IP address, not yet proven unless `validated`.
            validated: a valid Retry token came with the Initial.
            connections: those that the transport has already.
        """
        settings = self._settings
        if connections >= settings.max_connections:
            return Verdict.REFUSE
        counted, most, otherwise = (
            (self._proven, settings.max_half_open, Verdict.DROP)
            if validated
            else (self._unproven, settings.retry_threshold, Verdict.RETRY)
        )
        of_group = counted.per_group.get(site_of(host), 0)
        if counted.total >= most or of_group >= settings.max_half_open_per_ip:
            return otherwise
        return Verdict.ACCEPT

    def opened(self, host: str, *, validated: bool) -> Callable[[], None]:
        """Count a handshake; the result, called once, counts it out, whatever came of it."""
        counted, group = self._proven if validated else self._unproven, site_of(host)
        counted.total += 1
        counted.per_group[group] = counted.per_group.get(group, 0) + 1

        def finished() -> None:
            counted.total -= 1
            counted.per_group[group] -= 1
            if not counted.per_group[group]:
                del counted.per_group[group]

        return finished
