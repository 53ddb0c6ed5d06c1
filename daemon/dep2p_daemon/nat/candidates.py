"""Which addresses may be punched and dialled on a peer's word, and which of ours to offer.

A DCUtR message makes its receiver send packets to addresses of the sender's choosing. So only
public unicast addresses of a transport of ours count; no port below 1024 but 443, where the
services live that answer one small packet with large ones; nothing that is a relay or ourselves;
and only few IP addresses, since a peer has one or two of a kind.
"""

from __future__ import annotations

import enum
import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dep2p_daemon.multiaddr import Multiaddr

_GLOBAL_V6: Final = ipaddress.ip_network("2000::/3")
"""IANA gives out nothing else for global unicast (RFC 4291, section 2.4)."""

_NOT_UNICAST_V4: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",  # RFC 1122, "this network"
        "192.0.0.0/24",  # RFC 6890, protocol assignments
        "198.18.0.0/15",  # RFC 2544, benchmarks
        "224.0.0.0/3",  # multicast, reserved, broadcast
    )
)
_TUNNELS_V6: Final = tuple(
    # The IPv4 address inside could be anybody's: 6to4 (RFC 3056), Teredo (RFC 4380).
    ipaddress.ip_network(text)
    for text in ("2002::/16", "2001::/32")
)
_LOWEST_PORT: Final = 1024
_SERVICE_PORTS: Final = frozenset({443})


class Rejection(enum.Enum):
    """Why an address of a peer is not used."""

    NO_TRANSPORT = "NO_TRANSPORT"
    """Not an IP address with QUIC or TCP: a name, another transport."""
    CIRCUIT = "CIRCUIT"
    FOREIGN_PEER = "FOREIGN_PEER"
    """Ends in the id of another peer."""
    NOT_PUBLIC = "NOT_PUBLIC"
    """Private, loopback, link-local, multicast, reserved or unspecified."""
    SERVICE_PORT = "SERVICE_PORT"
    OWN_ADDRESS = "OWN_ADDRESS"
    RELAY_ADDRESS = "RELAY_ADDRESS"
    TOO_MANY_IPS = "TOO_MANY_IPS"
    TOO_MANY = "TOO_MANY"


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateLimits:
    """How much of a peer's word is believed, over all rounds of one attempt."""

    max_addresses: int = 8
    """Addresses that are punched or dialled."""
    max_ips_per_family: int = 2
    """Different IPv4 addresses among them, and as many IPv6 /64 networks."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An address of a peer and whether it may be used."""

    address: Multiaddr
    rejection: Rejection | None = None


def is_public(address: Multiaddr) -> bool:
    """Whether `address` has an IP address of public unicast: one that the Internet routes."""
    ip = address.ip
    if ip is None or address.is_private or address.is_unspecified:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None or "ip6zone" in address.protocols:
            return False
        return ip in _GLOBAL_V6 and not any(ip in network for network in _TUNNELS_V6)
    return not any(ip in network for network in _NOT_UNICAST_V4)


@dataclass(slots=True)
class CandidateFilter:
    """Judges what one peer claims during one attempt; what was accepted once stays accepted.

    sans-IO. `is_public` is a parameter because tests run on one machine.
    """

    peer_id: object
    limits: CandidateLimits = field(default_factory=CandidateLimits)
    is_public: Callable[[Multiaddr], bool] = is_public
    own: frozenset[Multiaddr] = frozenset()
    """Our own addresses, without `/p2p`."""
    relays: frozenset[Multiaddr] = frozenset()
    """Where the relays that we are connected with are, without `/p2p`."""
    accepted: dict[Multiaddr, None] = field(default_factory=dict)
    _networks: dict[int, set[object]] = field(default_factory=dict)

    def anew(self) -> CandidateFilter:
        """Return one with the same rules that has accepted nothing yet."""
        return CandidateFilter(self.peer_id, self.limits, self.is_public, self.own, self.relays)

    def judge(self, addresses: Iterable[Multiaddr]) -> tuple[Candidate, ...]:
        """Return each address, without `/p2p`, with what was decided."""
        return tuple(self._judge(address) for address in addresses)

    def _judge(self, address: Multiaddr) -> Candidate:
        bare = address.without_peer_id()
        if bare in self.accepted:
            return Candidate(bare)
        rejection = self._rejection(address, bare)
        if rejection is None:
            self.accepted[bare] = None
        return Candidate(bare, rejection)

    def _rejection(self, address: Multiaddr, bare: Multiaddr) -> Rejection | None:
        if bare.is_circuit:
            return Rejection.CIRCUIT
        if address.peer_id is not None and address.peer_id != self.peer_id:
            return Rejection.FOREIGN_PEER
        ip, port = bare.ip, bare.port
        if bare.transport not in ("quic-v1", "tcp") or ip is None or port is None:
            return Rejection.NO_TRANSPORT
        if not self.is_public(bare):
            return Rejection.NOT_PUBLIC
        if port < _LOWEST_PORT and port not in _SERVICE_PORTS:
            return Rejection.SERVICE_PORT
        if bare in self.own:
            return Rejection.OWN_ADDRESS
        if bare in self.relays:
            return Rejection.RELAY_ADDRESS
        if len(self.accepted) >= self.limits.max_addresses:
            return Rejection.TOO_MANY
        network: object = ip
        if isinstance(ip, ipaddress.IPv6Address):
            network = ipaddress.ip_network((ip, 64), strict=False)
        networks = self._networks.setdefault(ip.version, set())
        if network not in networks and len(networks) >= self.limits.max_ips_per_family:
            return Rejection.TOO_MANY_IPS
        networks.add(network)
        return None
