"""Who may reserve and who may be connected: the relay's accounting, without I/O.

https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md

Every answer is a grant or a `Refusal` with the status for the wire and, where a cap bites, its
name. Times are `now`, in seconds of any clock that does not jump; the caller says what time it
is. Nothing here waits, so that a check and its booking are one step: a circuit's place is
taken for both peers before the relay opens the stop stream, and given back by `release`.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

import structlog

from dep2p_daemon.circuit.messages import Status
from dep2p_daemon.multiaddr import site_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr

log = structlog.get_logger(__name__)

_Key = TypeVar("_Key")

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


class AccessPolicy(Protocol):
    """Who may use the relay. An error in it refuses: it fails closed."""

    def allow_reserve(self, peer: PeerId, address: Multiaddr) -> bool:
        """Whether `peer`, connected from `address`, may hold a reservation."""
        ...

    def allow_connect(self, source: PeerId, address: Multiaddr, target: PeerId) -> bool:
        """Whether `source`, connected from `address`, may be connected to `target`."""
        ...


class AllowAll:
    """The open relay: everybody may."""

    def allow_reserve(self, peer: PeerId, address: Multiaddr) -> bool:
        """Say yes."""
        return True

    def allow_connect(self, source: PeerId, address: Multiaddr, target: PeerId) -> bool:
        """Say yes."""
        return True


@dataclass(frozen=True, kw_only=True, slots=True)
class AdmissionLimits:
    """The caps of a relay. The field names are the limit names in refusals and logs."""

    max_reservations: int = 128
    """Reservations in total."""
    max_reservations_per_ip: int = 8
    """Reservations from one IPv4 address or one IPv6 /64."""
    reservation_ttl: float = 3600.0
    """Seconds from a reservation, or its refresh, to its end."""
    max_circuits: int = 100
    """Circuits in total."""
    max_circuits_per_source: int = 5
    """Circuits that one peer may open."""
    max_circuits_per_target: int = 50
    """Circuits that may be open to one peer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Client:
    """Who asks, and how it is connected to the relay."""

    peer: PeerId
    address: Multiaddr
    """The remote address of its connection."""
    ip: IpAddress | None
    """The same as an IP address; None where there is none."""
    relayed: bool
    """The connection itself comes through a relay."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A no, and why."""

    status: Status
    reason: str
    """UPPER_SNAKE, for logs and counters; finer than the status."""
    limit: str | None = None
    """The name of the cap that bites."""


@dataclass(slots=True)
class Reservation:
    """A live promise to connect others to `peer`."""

    peer: PeerId
    address: Multiaddr
    site: str
    """What it is counted under: the IP address, or the IPv6 /64."""
    created_at: float
    expires_at: float
    refreshed: bool = False
    """It was held already before the last RESERVE."""


@dataclass(frozen=True, slots=True)
class CircuitPlace:
    """A booked place for one circuit, to be given back with `Admission.release`."""

    number: int
    source: PeerId
    target: PeerId


class Admission:
    """The books: reservations by peer and site, circuits by source and target."""

    def __init__(self, limits: AdmissionLimits, access: AccessPolicy) -> None:
        self.limits = limits
        self._access = access
        self._closing = False
        self._reservations: dict[PeerId, Reservation] = {}
        self._per_site: Counter[str] = Counter()
        self._circuits: dict[int, CircuitPlace] = {}
        self._per_source: Counter[PeerId] = Counter()
        self._per_target: Counter[PeerId] = Counter()
        self._numbers = itertools.count(1)

    @property
    def reservations(self) -> tuple[Reservation, ...]:
        """All that have not been ended, expired ones not yet collected among them."""
        return tuple(self._reservations.values())

    @property
    def circuit_count(self) -> int:
        """The number of booked places."""
        return len(self._circuits)

    def next_expiry(self) -> float | None:
        """When the first reservation expires; None when there is none."""
        return min((r.expires_at for r in self._reservations.values()), default=None)

    def close(self) -> None:
        """Refuse everything from now on."""
        self._closing = True

    def reserve(self, client: Client, now: float, *, grace: float = 0.0) -> Reservation | Refusal:
        """Make a reservation, or refresh the one `client` holds, for the TTL and `grace` seconds.

        A refresh never fails for capacity. Call `expire` first: what has expired still counts.
        """
        refusal = self._refuse_any(
            client, lambda: self._access.allow_reserve(client.peer, client.address)
        )
        if refusal is not None:
            return refusal
        if client.ip is None:
            return Refusal(Status.RESERVATION_REFUSED, "NO_IP_ADDRESS")
        site = site_of(client.ip)
        held = self._reservations.get(client.peer)
        if held is None:
            refusal = self._refuse_reservation(site)
            if refusal is not None:
                return refusal
            held = Reservation(client.peer, client.address, site, created_at=now, expires_at=now)
            self._reservations[client.peer] = held
            self._per_site[site] += 1
        else:
            held.refreshed = True
            held.address = client.address
            # A peer that moved is counted at its new site if there is room, else at the old
            # one: its reservation stands in any case and no count leaves its cap.
            if site != held.site and self._per_site[site] < self.limits.max_reservations_per_ip:
                _decrement(self._per_site, held.site)
                self._per_site[site] += 1
                held.site = site
        held.expires_at = now + self.limits.reservation_ttl + grace
        return held

    def connect(self, client: Client, target: PeerId, now: float) -> CircuitPlace | Refusal:
        """Book a place for a circuit from `client` to `target`, for both of them at once."""
        refusal = self._refuse_any(
            client, lambda: self._access.allow_connect(client.peer, client.address, target)
        )
        if refusal is not None:
            return refusal
        if client.peer == target:
            return Refusal(Status.PERMISSION_DENIED, "CONNECT_TO_SELF")
        held = self._reservations.get(target)
        if held is None or held.expires_at <= now:
            return Refusal(Status.NO_RESERVATION, "NO_RESERVATION")
        for count, limit in (
            (len(self._circuits), "max_circuits"),
            (self._per_source[client.peer], "max_circuits_per_source"),
            (self._per_target[target], "max_circuits_per_target"),
        ):
            if count >= getattr(self.limits, limit):
                return Refusal(Status.RESOURCE_LIMIT_EXCEEDED, "TOO_MANY_CIRCUITS", limit)
        place = CircuitPlace(next(self._numbers), client.peer, target)
        self._circuits[place.number] = place
        self._per_source[place.source] += 1
        self._per_target[place.target] += 1
        return place

    def release(self, place: CircuitPlace) -> None:
        """Give a place back. Idempotent."""
        if self._circuits.pop(place.number, None) is not None:
            _decrement(self._per_source, place.source)
            _decrement(self._per_target, place.target)

    def end_reservation(self, peer: PeerId) -> Reservation | None:
        """Forget the reservation of `peer` (it disconnected) and return it."""
        held = self._reservations.pop(peer, None)
        if held is not None:
            _decrement(self._per_site, held.site)
        return held

    def expire(self, now: float) -> tuple[Reservation, ...]:
        """Forget and return the reservations that have expired."""
        expired = tuple(r for r in self._reservations.values() if r.expires_at <= now)
        for reservation in expired:
            self.end_reservation(reservation.peer)
        return expired

    def _refuse_any(self, client: Client, allowed: Callable[[], bool]) -> Refusal | None:
        """Return the refusals that RESERVE and CONNECT share."""
        if self._closing:
            return Refusal(Status.PERMISSION_DENIED, "RELAY_CLOSING")
        if client.relayed:
            return Refusal(Status.PERMISSION_DENIED, "RELAYED_CONNECTION")
        try:
            if allowed():
                return None
        except Exception:
            # The policy is somebody else's code; what it cannot decide is refused.
            log.exception("access policy failed", peer=str(client.peer))
            return Refusal(Status.PERMISSION_DENIED, "ACCESS_POLICY_FAILED")
        return Refusal(Status.PERMISSION_DENIED, "ACCESS_DENIED")

    def _refuse_reservation(self, site: str) -> Refusal | None:
        for count, limit in (
            (len(self._reservations), "max_reservations"),
            (self._per_site[site], "max_reservations_per_ip"),
        ):
            if count >= getattr(self.limits, limit):
                return Refusal(Status.RESERVATION_REFUSED, "TOO_MANY_RESERVATIONS", limit)
        return None


def _decrement(counter: Counter[_Key], key: _Key) -> None:
    """Count one less, and drop the key at zero: the books do not grow with strangers."""
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
