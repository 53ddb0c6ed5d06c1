"""What NATs and firewalls do to our packets, in the terms of RFC 4787, from what peers told.

https://www.rfc-editor.org/rfc/rfc4787 sections 4.1 (mapping) and 5 (filtering). Everything here
is as good as its witnesses: two observers can agree by chance, and a server may lie.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dep2p_daemon.nat.reachability import Outcome

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from ipaddress import IPv4Address, IPv6Address

    from dep2p_daemon.multiaddr import Multiaddr


class Mapping(enum.Enum):
    """Which external address and port a socket gets; named as in the public API."""

    UNKNOWN = "UNKNOWN"
    """Nobody, or only one IP address, has told."""
    NONE = "NONE"
    """Peers see the machine's own address: there is no NAT."""
    ENDPOINT_INDEPENDENT = "ENDPOINT_INDEPENDENT"
    """The same towards everybody: "cone"."""
    ADDRESS_DEPENDENT = "ADDRESS_DEPENDENT"
    """Another one for each IP address, if not for each port too ("symmetric")."""
    ADDRESS_AND_PORT_DEPENDENT = "ADDRESS_AND_PORT_DEPENDENT"
    """Another one for each port of one IP address: surely "symmetric"."""


class Filtering(enum.Enum):
    """Whose packets come in; named as in the public API."""

    UNKNOWN = "UNKNOWN"
    ENDPOINT_INDEPENDENT = "ENDPOINT_INDEPENDENT"
    """Everybody's, also of those whom we never sent anything to."""
    ADDRESS_DEPENDENT = "ADDRESS_DEPENDENT"
    """Those of IP addresses that we sent to, from any port. Strangers' packets may come in too:
    none has tried."""
    ADDRESS_AND_PORT_DEPENDENT = "ADDRESS_AND_PORT_DEPENDENT"
    """Those of the very address and port that we sent to, as far as peers can tell."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one observer sees as the address of one of our listening sockets."""

    local: Multiaddr
    observer: Multiaddr
    """Where the observer is."""
    observed: Multiaddr


def mapping(seen: Iterable[Seen], own: Collection[IPv4Address | IPv6Address]) -> Mapping:
    """Return the mapping behaviour towards the observers of one transport and IP version.

    Args:
        seen: what they see.
        own: the IP addresses of this machine's interfaces.
    """
    sockets: dict[int | None, list[Seen]] = defaultdict(list)
    for one in seen:
        sockets[one.local.port].append(one)
    # Of several sockets the worst tells: it is what a peer may meet.
    order = list(Mapping)
    found = (_mapping_of_socket(of_one, own) for of_one in sockets.values())
    return max(found, key=order.index, default=Mapping.UNKNOWN)


def _mapping_of_socket(seen: list[Seen], own: Collection[IPv4Address | IPv6Address]) -> Mapping:
    if all(one.observed.ip in own and one.observed.port == one.local.port for one in seen):
        return Mapping.NONE
    by_observer: dict[object, set[Multiaddr]] = defaultdict(set)
    for one in seen:
        by_observer[one.observer.ip].add(one.observed)
    if any(len(addresses) > 1 for addresses in by_observer.values()):
        return Mapping.ADDRESS_AND_PORT_DEPENDENT
    if len(by_observer) < 2:
        return Mapping.UNKNOWN
    different = len({address for addresses in by_observer.values() for address in addresses})
    return Mapping.ENDPOINT_INDEPENDENT if different == 1 else Mapping.ADDRESS_DEPENDENT


def filtering(outcomes: Collection[Outcome]) -> Filtering:
    """Return the filtering behaviour that dial-backs to addresses of one transport show."""
    if Outcome.PROOF in outcomes:
        return Filtering.ENDPOINT_INDEPENDENT
    if Outcome.HINT in outcomes:
        return Filtering.ADDRESS_DEPENDENT
    if Outcome.FAILURE in outcomes:
        return Filtering.ADDRESS_AND_PORT_DEPENDENT
    return Filtering.UNKNOWN
