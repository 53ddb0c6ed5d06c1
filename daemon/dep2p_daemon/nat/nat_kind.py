"""What stands between a node and the others, in one word: for metrics, trails and peers."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from dep2p_daemon.nat.observed import MappingBehaviour

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from ipaddress import IPv4Address, IPv6Address

    from dep2p_daemon.multiaddr import Multiaddr


class NatKind(enum.Enum):
    """RFC 4787, section 4.1, as far as anybody can tell. The names are a contract."""

    UNKNOWN = "UNKNOWN"
    """Too few observers have told."""
    NONE = "NONE"
    """A public address of the machine's own; a firewall may stand before it."""
    ENDPOINT_INDEPENDENT = "ENDPOINT_INDEPENDENT"
    """One outer address towards everybody: "cone"."""
    ADDRESS_DEPENDENT = "ADDRESS_DEPENDENT"
    """Another address or port for each destination: "symmetric"."""
    NO_UDP = "NO_UDP"
    """TCP addresses only are known: UDP is blocked, or turned off."""


_OF_MAPPING = {
    MappingBehaviour.UNKNOWN: NatKind.UNKNOWN,
    MappingBehaviour.ENDPOINT_INDEPENDENT: NatKind.ENDPOINT_INDEPENDENT,
    MappingBehaviour.ADDRESS_DEPENDENT: NatKind.ADDRESS_DEPENDENT,
}


def own_kind(
    candidates: Sequence[Multiaddr],
    mapping: MappingBehaviour,
    interfaces: Collection[IPv4Address | IPv6Address],
) -> NatKind:
    """Return our own kind.

    Args:
        candidates: our public addresses.
        mapping: what observers tell of the NAT's mapping of UDP over IPv4.
        interfaces: this machine's IP addresses.
    """
    udp = [address for address in candidates if address.transport == "quic-v1"]
    if not udp:
        return NatKind.NO_UDP if candidates else NatKind.UNKNOWN
    if any(address.ip in interfaces for address in udp):
        return NatKind.NONE
    return _OF_MAPPING[mapping]


def apparent_kind(accepted: Sequence[Multiaddr]) -> NatKind:
    """Return what a peer's addresses show of its NAT; one address alone shows nothing."""
    udp = [address for address in accepted if address.transport == "quic-v1"]
    if not udp:
        return NatKind.NO_UDP if accepted else NatKind.UNKNOWN
    ports: dict[object, set[int | None]] = {}
    for address in udp:
        ports.setdefault(address.ip, set()).add(address.port)
    # Several ports of one IP address: one for each observer.
    several = any(len(found) > 1 for found in ports.values())
    return NatKind.ADDRESS_DEPENDENT if several else NatKind.UNKNOWN
