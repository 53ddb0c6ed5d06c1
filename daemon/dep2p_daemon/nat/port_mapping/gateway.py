"""The default gateways of this machine, from Linux' /proc/net/route and /proc/net/ipv6_route.

Asking the kernel which of our addresses leads there sends nothing: a UDP socket that is connected
has only looked up its route. Elsewhere than on Linux no gateway is found.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dep2p_daemon.nat.port_mapping.terms import IPAddress

_ROUTES_V4: Final = Path("/proc/net/route")
_ROUTES_V6: Final = Path("/proc/net/ipv6_route")
_USABLE: Final = 0x1 | 0x2  # RTF_UP and RTF_GATEWAY, linux/route.h
_REJECT: Final = 0x200
_SOMEWHERE_V6: Final = "2001:db8::1"
"""A documentation address: only the default route leads there."""
_ANY_PORT: Final = 9


@dataclass(frozen=True, slots=True)
class Route:
    """A default route."""

    gateway: IPAddress
    interface: str
    metric: int


@dataclass(frozen=True, slots=True)
class Gateway:
    """The default gateway, and our address on the way to it."""

    address: IPAddress
    interface: str
    local: IPAddress


def parse_ipv4_routes(text: str) -> list[Route]:
    """Return the default routes of a /proc/net/route, the best first; odd lines are skipped."""
    routes = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        try:
            interface, destination, gateway, flags = fields[0], *(int(f, 16) for f in fields[1:4])
            metric, mask = int(fields[6]), int(fields[7], 16)
            # The kernel prints the address as a number in this machine's byte order.
            address = IPv4Address(struct.pack("=I", gateway))
        except (IndexError, ValueError, struct.error):
            continue
        if destination == mask == 0 and _is_usable(flags, address):
            routes.append(Route(address, interface, metric))
    return sorted(routes, key=lambda route: route.metric)


def parse_ipv6_routes(text: str) -> list[Route]:
    """Return the default routes of a /proc/net/ipv6_route, the best first."""
    routes = []
    for line in text.splitlines():
        fields = line.split()
        try:
            destination, length = int(fields[0], 16), int(fields[1], 16)
            source_length = int(fields[3], 16)
            address = IPv6Address(bytes.fromhex(fields[4]))
            metric, flags, interface = int(fields[5], 16), int(fields[8], 16), fields[9]
        except (IndexError, ValueError):
            continue
        if destination == length == source_length == 0 and _is_usable(flags, address):
            routes.append(Route(address, interface, metric))
    return sorted(routes, key=lambda route: route.metric)


def default_gateway(version: int) -> Gateway | None:
    """The default gateway of an IP version, 4 or 6; None without one. Reads small files."""
    if version == 4:
        path, parse = _ROUTES_V4, parse_ipv4_routes
    else:
        path, parse = _ROUTES_V6, parse_ipv6_routes
    try:
        routes = parse(path.read_text())
    except OSError:
        return None
    if not routes:
        return None
    local = _local_address(version, routes[0])
    return None if local is None else Gateway(routes[0].gateway, routes[0].interface, local)


def socket_address(gateway: Gateway, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """The gateway's port as `socket.connect` takes it; raises OSError: the interface is gone."""
    if gateway.address.version == 4:
        return str(gateway.address), port
    scope = socket.if_nametoindex(gateway.interface) if gateway.address.is_link_local else 0
    return str(gateway.address), port, 0, scope


def _is_usable(flags: int, address: IPAddress) -> bool:
    return (
        flags & _USABLE == _USABLE
        and not flags & _REJECT
        and not (address.is_unspecified or address.is_multicast or address.is_loopback)
    )


def _local_address(version: int, route: Route) -> IPAddress | None:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    # Towards a link-local gateway IPv6 would choose a link-local source: nobody outside knows it.
    target = str(route.gateway) if version == 4 else _SOMEWHERE_V6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target, _ANY_PORT))
            return ip_address(probe.getsockname()[0].partition("%")[0])
    except (OSError, ValueError):
        return None
