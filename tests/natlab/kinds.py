"""The kinds of NAT and firewall, in the terms of RFC 4787, and how a host's place is written."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from tests.natlab.namespaces import NatlabError


class Mapping(Enum):
    """Which external port a socket gets (RFC 4787, 4.1)."""

    NONE = "none"
    """No translation."""
    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"
    BLOCKED = "blocked"
    """Nothing gets out."""


class Filtering(Enum):
    """Whose packets come in (RFC 4787, 5)."""

    NONE = "none"
    """Everybody's, at any time."""
    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"
    BLOCKED = "blocked"


@dataclass(frozen=True)
class Kind:
    """What one box does to UDP."""

    mapping: Mapping
    filtering: Filtering
    words: str


_M, _F = Mapping, Filtering
KINDS: Final = {
    "none": Kind(_M.NONE, _F.NONE, "public addresses, no NAT, no firewall"),
    "full-cone": Kind(
        _M.ENDPOINT_INDEPENDENT,
        _F.ENDPOINT_INDEPENDENT,
        "one external port per socket; anyone may send to it",
    ),
    "restricted-cone": Kind(
        _M.ENDPOINT_INDEPENDENT,
        _F.ADDRESS_DEPENDENT,
        "one external port per socket; only addresses sent to may answer",
    ),
    "port-restricted": Kind(
        _M.ENDPOINT_INDEPENDENT,
        _F.ADDRESS_AND_PORT_DEPENDENT,
        "one external port per socket; only address and port sent to may answer",
    ),
    "symmetric": Kind(
        _M.ADDRESS_AND_PORT_DEPENDENT,
        _F.ADDRESS_AND_PORT_DEPENDENT,
        "a new random external port for each destination address and port",
    ),
    "udp-blocked": Kind(_M.BLOCKED, _F.BLOCKED, "port-restricted for TCP; drops all UDP"),
    "ipv6-firewall": Kind(
        _M.NONE,
        _F.ADDRESS_AND_PORT_DEPENDENT,
        "a global IPv6 address and no IPv4, behind a stateful firewall without translation",
    ),
    "masquerade": Kind(
        _M.ENDPOINT_INDEPENDENT,
        _F.ADDRESS_AND_PORT_DEPENDENT,
        "a bare Linux masquerade with open INPUT (see README: traps)",
    ),
    "cgnat": Kind(
        _M.ENDPOINT_INDEPENDENT,
        _F.ADDRESS_AND_PORT_DEPENDENT,
        "double NAT: port-restricted+port-restricted",
    ),
}
"""Every kind that can be asked for."""

IPV6_FIREWALL: Final = "ipv6-firewall"
NATS: Final = tuple(kind for kind in KINDS if kind not in ("none", "cgnat", IPV6_FIREWALL))
"""Those that one box does to IPv4."""
_ALIASES: Final = {"cgnat": "port-restricted+port-restricted"}


@dataclass(frozen=True)
class Place:
    """Where a host is."""

    nats: tuple[str, ...]
    """Kinds of NAT from the host outwards: none, the home's, the home's and the carrier's."""
    ipv6: bool = False
    """It has a global IPv6 address behind the home's firewall."""
    other: str | None = None
    """The host whose LAN, or whose carrier NAT, it shares."""

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read KIND, HOME+CARRIER, either with /ipv6-firewall, @HOST or KIND@HOST.

        Raises:
            NatlabError: it is none of these, or names no kind we have.
        """
        kind, at, other = text.partition("@")
        kind, slash, second = kind.partition("/")
        kind = _ALIASES.get(kind, kind)
        ipv6 = kind == IPV6_FIREWALL
        nats = tuple(part for part in kind.split("+") if part and part != "none" and not ipv6)
        for nat in nats:
            if nat not in NATS:
                raise NatlabError(
                    f"unknown kind {nat!r}; known: {', '.join(KINDS)}, HOME+CARRIER, "
                    "KIND/ipv6-firewall, @HOST, KIND@HOST"
                )
        shared = bool(at) and (not other or len(nats) > 1 or kind in ("none", IPV6_FIREWALL))
        second_wrong = bool(slash) and (second != IPV6_FIREWALL or len(nats) != 1 or bool(at))
        if not text or len(nats) > 2 or shared or second_wrong:
            raise NatlabError(
                f"bad place {text!r}; write KIND, HOME+CARRIER, KIND/ipv6-firewall, @HOST or "
                "KIND@HOST"
            )
        return cls(nats, ipv6 or bool(slash), other or None)


def can_punch(one: str, other: str) -> bool:
    """Whether two hosts in these places can reach each other by punching UDP.

    That is the laboratory's table: a mapping that depends on the endpoint cannot be predicted,
    so the other side must let in what comes from any port of an address it sent to.
    """
    both = Place.parse(one), Place.parse(other)
    if all(_has_ipv6(place) for place in both):
        return True
    if any(place.ipv6 and not place.nats for place in both):
        return False
    kinds = [{KINDS[nat] for nat in place.nats} for place in both]
    if any(kind.mapping is Mapping.BLOCKED for side in kinds for kind in side):
        return False
    for side, opposite in (kinds, kinds[::-1]):
        unpredictable = any(kind.mapping is Mapping.ADDRESS_AND_PORT_DEPENDENT for kind in side)
        strict = any(kind.filtering is Filtering.ADDRESS_AND_PORT_DEPENDENT for kind in opposite)
        if unpredictable and strict:
            return False
    return True


def _has_ipv6(place: Place) -> bool:
    return place.ipv6 or not (place.nats or place.other)
