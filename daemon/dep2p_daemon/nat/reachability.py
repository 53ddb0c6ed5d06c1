"""What AutoNAT servers' dials tell of our addresses: public, private, or not known.

One vote for each address and server, the latest. Votes differ in weight:

- A *proof*: our nonce came back, over a connection from an IP address that our socket had sent
  nothing to (or the address is one of our own interfaces, so that no NAT is in the way).
- A *hint*: the nonce came back, but from an IP address that we had sent to. A NAT that filters by
  address lets that in and keeps strangers out: it proves nothing about them. Neither does the
  claim of an AutoNAT v1 server, unless more than three agree.
- A *failure*: the server says that it could not connect. Its word, and no more.

sans-IO: times are seconds of one monotonic clock.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from dep2p_daemon.multiaddr import Multiaddr


class Verdict(enum.Enum):
    """Whether strangers can connect to an address; named as in the public API."""

    UNKNOWN = "UNKNOWN"
    PUBLIC = "PUBLIC"
    PRIVATE = "PRIVATE"


class Outcome(enum.Enum):
    """One server's dial of one address."""

    PROOF = "PROOF"
    HINT = "HINT"
    CLAIM = "CLAIM"
    """An AutoNAT v1 server says that it connected."""
    FAILURE = "FAILURE"
    NOTHING = "NOTHING"
    """It did not dial, or the exchange broke: no vote, but the server was asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReachabilitySettings:
    """Times in seconds."""

    lifetime: float = 3600.0
    """A vote counts for so long."""
    ask_again: float = 120.0
    """Before one server is asked again about an address that nothing is decided about."""
    refresh: float = 900.0
    """The same once it is decided."""
    max_confidence: int = 3
    """Votes in agreement after which nobody else is asked."""
    agreeing_claims: int = 4
    """AutoNAT v1: "more than three peers"."""
    max_addresses: int = 16
    max_servers: int = 16
    """Of one address."""


@dataclass(frozen=True, slots=True)
class Vote:
    """What a server's dials told."""

    outcome: Outcome
    at: float
    """When it told that."""
    asked_at: float
    """When it was asked last."""


@dataclass(frozen=True, slots=True)
class AddressReachability:
    """What is known of one address."""

    address: Multiaddr
    verdict: Verdict
    confidence: int
    """0: nothing is known; the more the better, up to `max_confidence`."""
    hints: int = 0
    """Dials that came in from where we had sent to."""


@dataclass(frozen=True, slots=True)
class ReachabilityChanged:
    """The verdict on the node, or on one of its addresses, changed."""

    verdict: Verdict
    addresses: tuple[AddressReachability, ...]


@dataclass(slots=True)
class Reachability:
    """The votes on all addresses of this node."""

    settings: ReachabilitySettings = field(default_factory=ReachabilitySettings)
    _votes: dict[Multiaddr, dict[Hashable, Vote]] = field(default_factory=dict)

    def retain(self, addresses: Sequence[Multiaddr]) -> None:
        """Name the addresses to judge; votes on others are forgotten."""
        kept = addresses[: self.settings.max_addresses]
        self._votes = {address: self._votes.get(address, {}) for address in kept}

    def forget_all(self) -> None:
        """The network changed: no vote holds any more."""
        self._votes = {address: {} for address in self._votes}

    def record(self, address: Multiaddr, server: Hashable, outcome: Outcome, now: float) -> None:
        """Take what a server's dial told; of an address that is not judged, nothing."""
        votes = self._votes.get(address)
        if votes is None:
            return
        before = votes.pop(server, None)
        vote = Vote(outcome, now, now)
        if before is not None and (
            outcome is Outcome.NOTHING
            # After its proof we have sent to the server's IP address: it is no stranger any more.
            or (outcome is Outcome.HINT and before.outcome is Outcome.PROOF)
        ):
            vote = Vote(before.outcome, before.at, now)
        votes[server] = vote
        if len(votes) > self.settings.max_servers:
            del votes[next(iter(votes))]

    def due(self, address: Multiaddr, server: Hashable, now: float) -> bool:
        """Whether to ask `server` about `address` now."""
        votes = self._votes.get(address)
        if votes is None:
            return False
        settings = self.settings
        decided = self.of(address, now).confidence >= settings.max_confidence
        if decided:
            latest = max((vote.asked_at for vote in votes.values()), default=-settings.refresh)
            return now - latest >= settings.refresh
        vote = votes.get(server)
        if vote is None:
            return True
        again = settings.ask_again if vote.outcome is Outcome.NOTHING else settings.refresh
        return now - vote.asked_at >= again

    def outcomes(self, address: Multiaddr, now: float) -> tuple[Outcome, ...]:
        """The votes on one address that still count."""
        votes = self._votes.get(address, {}).values()
        return tuple(vote.outcome for vote in votes if now - vote.at < self.settings.lifetime)

    def of(self, address: Multiaddr, now: float) -> AddressReachability:
        """The verdict on one address."""
        fresh = self.outcomes(address, now)
        claims = fresh.count(Outcome.CLAIM)
        proofs = fresh.count(Outcome.PROOF)
        hints = fresh.count(Outcome.HINT)
        failures = fresh.count(Outcome.FAILURE)
        if claims >= self.settings.agreeing_claims:
            proofs += 1
        most = self.settings.max_confidence
        # A nonce that came back cannot be made up; that a dial failed, anybody can say.
        if proofs and proofs >= failures - hints:
            confidence = max(1, min(most, proofs - failures + hints))
            return AddressReachability(address, Verdict.PUBLIC, confidence, hints)
        against = failures - proofs - hints - claims
        if against > 0:
            return AddressReachability(address, Verdict.PRIVATE, min(most, against), hints)
        return AddressReachability(address, Verdict.UNKNOWN, 0, hints)

    def all(self, now: float) -> tuple[AddressReachability, ...]:
        """The verdicts on all addresses."""
        return tuple(self.of(address, now) for address in self._votes)

    def public(self, now: float) -> tuple[Multiaddr, ...]:
        """The addresses that strangers can connect to."""
        return tuple(one.address for one in self.all(now) if one.verdict is Verdict.PUBLIC)


def overall(addresses: Iterable[AddressReachability]) -> Verdict:
    """The verdict on the node: one public address is enough."""
    verdicts = {one.verdict for one in addresses}
    for verdict in (Verdict.PUBLIC, Verdict.PRIVATE):
        if verdict in verdicts:
            return verdict
    return Verdict.UNKNOWN
