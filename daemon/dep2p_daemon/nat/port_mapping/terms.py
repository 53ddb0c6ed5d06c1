"""What is asked of a gateway and what it answers, whichever protocol carries it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeAlias

from dep2p_daemon.multiaddr import Multiaddr

IPAddress: TypeAlias = IPv4Address | IPv6Address

SILENT: Final = "GATEWAY_SILENT"
"""The reason of an error: no answer."""
NO_OUTER_ADDRESS: Final = "NETWORK_FAILURE"
"""The reason of a refusal, PCP's and NAT-PMP's name: the gateway has no address that is of use."""
MAX_RETRY: Final = 1800.0
"""Seconds: PCP's long one. Whatever a gateway says, we ask again after this."""
MIN_LIFETIME: Final = 8
"""Seconds; of less than that nothing could be renewed (RFC 6887, 11.2.1: at least 4 s apart)."""
MAX_LIFETIME: Final = 24 * 3600
"""Seconds; longer promises are not relied upon (RFC 6887, section 15)."""


class Protocol(enum.Enum):
    """How the gateway is spoken to."""

    PCP = "PCP"
    NAT_PMP = "NAT_PMP"
    UPNP = "UPNP"

    @property
    def word(self) -> str:
        """As in the public API: "pcp", "nat-pmp", "upnp"."""
        return self.value.lower().replace("_", "-")


class Transport(enum.IntEnum):
    """IANA's protocol numbers."""

    TCP = 6
    UDP = 17


@dataclass(frozen=True, slots=True, order=True)
class Port:
    """A port that we listen on."""

    transport: Transport
    number: int


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address and port outside."""

    ip: IPAddress
    port: int


@dataclass(frozen=True, slots=True)
class Granted:
    """The gateway maps the port."""

    external: Endpoint
    lifetime: int
    """Seconds, within `MIN_LIFETIME` and `MAX_LIFETIME`."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The gateway answered, and does not."""

    reason: str
    """UPPER_SNAKE: the RFC's name of the result code, or what is wrong with the answer."""
    retry_after: float
    """Seconds in which asking again is of no use."""


def is_usable(endpoint: Endpoint) -> bool:
    """Whether a gateway may have given this out: a unicast address and a port."""
    ip = endpoint.ip
    return endpoint.port > 0 and not (
        ip.is_unspecified
        or ip.is_loopback
        or ip.is_multicast
        or ip.is_link_local
        or (isinstance(ip, IPv4Address) and ip.is_reserved)
    )


def multiaddr_of(port: Port, external: Endpoint) -> Multiaddr:
    """Where peers reach a port of ours that is mapped there."""
    make = Multiaddr.for_udp if port.transport is Transport.UDP else Multiaddr.for_tcp
    return make(str(external.ip), external.port)


def granted(external: Endpoint, lifetime: int, version: int) -> Granted | Refused:
    """Check what the gateway says it gave."""
    if not is_usable(external) or external.ip.version != version:
        return Refused("EXTERNAL_ADDRESS_INVALID", MAX_RETRY)
    if lifetime < MIN_LIFETIME:
        return Refused("LIFETIME_TOO_SHORT", MAX_RETRY)
    return Granted(external, min(lifetime, MAX_LIFETIME))
