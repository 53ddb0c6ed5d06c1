"""What a check of the network found, and what it means for connections with peers."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dep2p_daemon.nat.behaviour import Filtering, Mapping
from dep2p_daemon.nat.reachability import Verdict

if TYPE_CHECKING:
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.nat.port_mapping.status import GatewayStatus
    from dep2p_daemon.nat.reachability import AddressReachability


class Conclusion(enum.Enum):
    """The verdict; named as in the public API."""

    UNKNOWN = "UNKNOWN"
    """Too few peers to tell."""
    OFFLINE = "OFFLINE"
    UDP_BLOCKED = "UDP_BLOCKED"
    PUBLIC = "PUBLIC"
    PUNCHABLE = "PUNCHABLE"
    SYMMETRIC = "SYMMETRIC"


WORDS: Final = {
    Conclusion.UNKNOWN: "too few peers answered to tell; connect to a relay and one more public "
    "peer, and check again",
    Conclusion.OFFLINE: "no relay and no peer answered, over UDP or TCP: this machine is offline, "
    "or a firewall stops everything",
    Conclusion.UDP_BLOCKED: "UDP does not get through: relays and public peers are reached over "
    "TCP; hole punching over UDP is not possible, other peers stay behind a relay",
    Conclusion.PUBLIC: "peers connect to this node directly; hole punching is not needed",
    Conclusion.PUNCHABLE: "hole punching works with peers behind most NATs; with those behind a "
    "symmetric one, connections stay relayed",
    Conclusion.SYMMETRIC: "this NAT maps each destination differently (symmetric): hole punching "
    "works only with peers that filter loosely (full-cone, restricted-cone) or are public; "
    "others stay relayed",
}
_LOOSE: Final = (
    "hole punching works with every peer that has a UDP path, also behind a symmetric NAT"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetCheck:
    """A dial of a relay or a peer from a fresh socket."""

    peer: PeerId
    address: Multiaddr
    seconds: float | None
    """Until the connection was there; None: it never was."""
    error: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransportCheck:
    """UDP (QUIC) or TCP."""

    targets: tuple[TargetCheck, ...] = ()
    mapping: Mapping = Mapping.UNKNOWN
    """Over IPv4."""
    filtering: Filtering = Filtering.UNKNOWN

    @property
    def works(self) -> bool | None:
        """Whether anybody answered; None when there was nobody to ask."""
        return any(one.seconds is not None for one in self.targets) if self.targets else None


@dataclass(frozen=True, kw_only=True, slots=True)
class RelayCheck:
    """A relay that we use."""

    peer: PeerId
    address: Multiaddr
    rtt: float | None
    """Seconds; None: not connected, or it does not answer."""
    path: str = ""
    """The transport: "quic-v1" or "tcp"; empty when not connected."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ipv6Check:
    """IPv6."""

    address: bool
    """An interface has a global address."""
    works: bool | None
    """A relay or peer answered over it; None: none has such an address."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkReport:
    """All of it."""

    udp: TransportCheck
    tcp: TransportCheck
    hairpin: bool | None
    """Whether the NAT lets hosts behind it meet at its outside; None: not known, or no NAT."""
    ipv6: Ipv6Check
    relays: tuple[RelayCheck, ...]
    observed: tuple[Multiaddr, ...]
    """How peers see us."""
    addresses: tuple[AddressReachability, ...]
    """What AutoNAT says about our addresses."""
    reachability: Verdict
    port_mapping: str = ""
    """The protocol by which the router maps a port, or "none"; empty: not known."""
    gateways: tuple[GatewayStatus, ...] = ()
    """The routers that are asked to map ports; empty when port mapping is turned off."""
    seconds: float
    """What the check took."""

    @property
    def conclusion(self) -> Conclusion:
        """The verdict."""
        if self.udp.works is None and self.tcp.works is None:
            return Conclusion.UNKNOWN
        if not self.udp.works and not self.tcp.works:
            return Conclusion.OFFLINE
        if self.reachability is Verdict.PUBLIC:
            return Conclusion.PUBLIC
        if self.udp.works is False:
            return Conclusion.UDP_BLOCKED
        if self.udp.mapping in (Mapping.NONE, Mapping.ENDPOINT_INDEPENDENT):
            return Conclusion.PUNCHABLE
        if self.udp.mapping is Mapping.UNKNOWN:
            return Conclusion.UNKNOWN
        return Conclusion.SYMMETRIC

    @property
    def words(self) -> str:
        """The verdict for people, with what it means for hole punching."""
        conclusion = self.conclusion
        if conclusion is Conclusion.PUNCHABLE and self.udp.filtering in (
            Filtering.ENDPOINT_INDEPENDENT,
            Filtering.ADDRESS_DEPENDENT,
        ):
            return _LOOSE
        return WORDS[conclusion]
