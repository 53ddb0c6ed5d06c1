"""The settings of hole punching, and how often a peer may make us punch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class PunchSettings:
    """Limits and deadlines. Times in seconds."""

    max_addresses: int = 8
    """Addresses of a peer that one attempt touches, all its rounds together."""
    max_ips_per_family: int = 2
    """Different IP addresses among them, for each of IPv4 and IPv6."""
    probes_per_address: int = 40
    """Random packets to one address in one round. `max_addresses` times this bounds the random
    packets of a whole attempt."""
    probe_interval: tuple[float, float] = (0.010, 0.200)
    """Bounds of the random pause between two of them (the spec's)."""
    exchange_timeout: float = 10.0
    """For CONNECT, CONNECT and SYNC of one round, the stream's opening included."""
    dial_timeout: float = 5.0
    """For the plain dial that comes before the punching."""
    dial_head_start: float = 0.4
    """What that dial gets, at least, before the punching begins beside it; four round trips
    where they are longer."""
    round_time: float = 0.5
    """A round but the last gets this at least, and five round trips where they are longer."""
    late_dial: float = 0.25
    """After this at least, and two and a half round trips where they are longer, the side that
    waits to be dialled dials too."""
    peer_dial: float = 2.0
    """What a peer that named no address we may use gets to dial one of ours."""
    act_timeout: float = 5.0
    """For the last round, and for each dial (go-libp2p's)."""
    retry_delays: tuple[float, ...] = (30.0, 120.0, 600.0)
    """Pauses after attempts that failed, while the relayed connection lives; the last one is
    repeated."""
    change_settle: float = 2.0
    """Until the next attempt after the peer's or our own network changed."""
    max_attempts: int = 32
    """Attempts under way with all peers together."""
    rounds_burst: int = 12
    """Rounds that one peer may cause in a row, whichever side begins them ..."""
    rounds_interval: float = 10.0
    """... and afterwards one per this time."""


MAX_PEERS = 512
"""Peers whose rounds are counted; the one that asked longest ago goes first."""


class RoundLimiter:
    """Token buckets of the peers that cause us to punch. sans-IO."""

    def __init__(self, settings: PunchSettings) -> None:
        self._settings = settings
        self._buckets: dict[object, tuple[float, float]] = {}

    def allows(self, peer: object, now: float, *, rounds: int = 1) -> bool:
        """Take the tokens of so many rounds; False when there are not as many."""
        settings = self._settings
        tokens, then = self._buckets.pop(peer, (float(settings.rounds_burst), now))
        tokens = min(settings.rounds_burst, tokens + (now - then) / settings.rounds_interval)
        allowed = tokens >= rounds
        self._buckets[peer] = (tokens - rounds if allowed else tokens, now)
        if len(self._buckets) > MAX_PEERS:
            del self._buckets[next(iter(self._buckets))]
        return allowed
