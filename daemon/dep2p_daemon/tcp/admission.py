"""How many strangers may be shaking hands with us at a time."""

from __future__ import annotations

from collections import Counter
from typing import Final

from dep2p_daemon.multiaddr import site_of

LOG_INTERVAL: Final = 10.0
"""Seconds between two log lines about refused connections: a flood must not fill the log."""


class HalfOpen:
    """Counts inbound upgrades in progress, in total and for each IPv4 address or IPv6 /64."""

    def __init__(self, *, total: int, per_ip: int) -> None:
        self._limits = {"max_half_open": total, "max_half_open_per_ip": per_ip}
        self._by_network: Counter[str] = Counter()
        self._logged_at = -LOG_INTERVAL
        self.count = 0
        """Upgrades in progress."""

    def enter(self, host: str) -> str | None:
        """Count one more from `host`, or return the name of the limit that forbids it."""
        network = site_of(host)
        if self.count >= self._limits["max_half_open"]:
            return "max_half_open"
        if self._by_network[network] >= self._limits["max_half_open_per_ip"]:
            return "max_half_open_per_ip"
        self.count += 1
        self._by_network[network] += 1
        return None

    def leave(self, host: str) -> None:
        """One that entered has finished, well or not."""
        network = site_of(host)
        self.count -= 1
        self._by_network[network] -= 1
        if not self._by_network[network]:
            del self._by_network[network]

    def worth_logging(self, now: float) -> bool:
        """Whether a refusal at `now` (seconds) should be logged."""
        if now - self._logged_at < LOG_INTERVAL:
            return False
        self._logged_at = now
        return True
