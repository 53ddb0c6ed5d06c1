"""In which order, and how far apart, the addresses of a peer are tried.

The rules are go-libp2p's (`p2p/net/swarm/dial_ranker.go`) over RFC 8305 ("happy eyeballs"):

1. Addresses fall into groups: on this machine or a network we are on; public; private but of a
   network that is not ours; circuits.
2. Within a group QUIC comes before TCP, and IPv6 alternates with IPv4, IPv6 first.
3. A group's attempts start one stagger apart. Local ones start at once, public ones after the
   local ones had their turn, circuits after a head start for all direct ones.

sans-IO: `DialPlan` turns this order into starts, given `now`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from itertools import zip_longest
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.swarm.settings import DialSettings

IPNetwork: TypeAlias = IPv4Network | IPv6Network


class Group(enum.IntEnum):
    """Addresses that are tried in one staggered sequence; lower values first."""

    LOCAL = 0
    """This machine, or a network that we have an interface in."""
    PUBLIC = 1
    PRIVATE = 2
    """A private network that is not ours; a route may exist all the same."""
    CIRCUIT = 3


@dataclass(frozen=True, slots=True)
class Candidate:
    """An address to dial, without the peer's trailing `/p2p`."""

    address: Multiaddr
    group: Group
    timeout: float
    """Seconds one attempt may take."""


_PRIVATE: Final = tuple(
    map(
        ip_network,
        (
            "10.0.0.0/8",  # RFC 1918
            "172.16.0.0/12",
            "192.168.0.0/16",
            "169.254.0.0/16",  # RFC 3927, link-local
            "fc00::/7",  # RFC 4193, unique local
            "fe80::/10",  # RFC 4291, link-local
        ),
    )
)
_TRANSPORT_ORDER: Final = {"quic-v1": 0, "tcp": 1}


def group_of(address: Multiaddr, networks: Iterable[IPNetwork]) -> Group:
    """Sort `address` into its group; `networks` are those we have an interface in."""
    if address.is_circuit:
        return Group.CIRCUIT
    ip = address.ip
    if ip is None:
        return Group.PUBLIC
    if ip.is_loopback or any(ip in network for network in networks):
        return Group.LOCAL
    return Group.PRIVATE if any(ip in network for network in _PRIVATE) else Group.PUBLIC


def rank(
    addresses: Sequence[Multiaddr], *, networks: Sequence[IPNetwork], settings: DialSettings
) -> list[Candidate]:
    """Order `addresses`, best first; the order given decides between equals."""
    timeouts = {Group.LOCAL: settings.local_timeout, Group.CIRCUIT: settings.circuit_timeout}
    ranked: list[Candidate] = []
    grouped: dict[Group, list[Multiaddr]] = {group: [] for group in Group}
    for address in dict.fromkeys(addresses):
        grouped[group_of(address, networks)].append(address)
    for group, members in grouped.items():
        timeout = timeouts.get(group, settings.timeout)
        ranked.extend(Candidate(address, group, timeout) for address in _order(members))
    return ranked


def _order(addresses: Sequence[Multiaddr]) -> list[Multiaddr]:
    ordered: list[Multiaddr] = []
    by_transport: dict[int, list[Multiaddr]] = {}
    for address in addresses:
        # A circuit is as good as the way to its relay, which is what its address begins with.
        transport = next(
            (_TRANSPORT_ORDER[p] for p in address.protocols if p in _TRANSPORT_ORDER), 2
        )
        by_transport.setdefault(transport, []).append(address)
    for transport in sorted(by_transport):
        v6 = [address for address in by_transport[transport] if _is_v6(address)]
        v4 = [address for address in by_transport[transport] if not _is_v6(address)]
        for pair in zip_longest(v6, v4):
            ordered.extend(address for address in pair if address is not None)
    return ordered


def _is_v6(address: Multiaddr) -> bool:
    return address.protocols[:1] in {("ip6",), ("dns6",)}
