"""Whether an Initial may open a connection: caps, and Retry under load (RFC 9000 section 8.1)."""

from __future__ import annotations

import enum
import ipaddress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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


def address_group(host: str) -> str:
    """The part of an address that one owner is likely to have: the IPv4, or the IPv6 /64."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.version == 4:
        return str(address)
    return str(ipaddress.IPv6Network((address, 64), strict=False))


class Admission:
    """Counts inbound handshakes in progress on one endpoint."""

    def __init__(self, settings: QuicSettings) -> None:
        self._settings = settings
        self._per_group: dict[str, int] = {}
        self.half_open = 0

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
        if self.half_open >= settings.max_half_open:
            return Verdict.DROP if validated else Verdict.RETRY
        if self._per_group.get(address_group(host), 0) >= settings.max_half_open_per_ip:
            return Verdict.DROP if validated else Verdict.RETRY
        if self.half_open >= settings.retry_threshold and not validated:
            return Verdict.RETRY
        return Verdict.ACCEPT

    def opened(self, host: str) -> str:
        """Count a handshake; returns the key for `finished`."""
        group = address_group(host)
        self._per_group[group] = self._per_group.get(group, 0) + 1
        self.half_open += 1
        return group

    def finished(self, group: str) -> None:
        """Count a handshake out, whatever came of it."""
        self.half_open -= 1
        left = self._per_group[group] - 1
        if left:
            self._per_group[group] = left
        else:
            del self._per_group[group]
