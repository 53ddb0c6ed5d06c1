"""How this machine's packets leave for the Internet: interface, gateway and source address.

On Linux the kernel is asked over rtnetlink (RTM_GETROUTE, rtnetlink(7)) for the one route to a
documentation address, which only default routes lead to; nothing is sent there. Policy rules and
the halves of the Internet that a VPN claims are so taken into account. Elsewhere a UDP socket is
connected, which tells the source address.

The kernel also tells of changes. `RouteEvents` reads that news, and only says whether a change
of addresses or routes is worth a look, and whether it cut a way that was in use.
"""

from __future__ import annotations

import socket
import struct
import sys
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Final, Self

from dep2p_daemon.swarm.interfaces import messages, parse_attributes

if TYPE_CHECKING:
    from collections.abc import Iterable

_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr
_RTMSG: Final = struct.Struct("=BBBBBBBBI")
"""Family, length of the destination, of the source, TOS, table, protocol, scope, type, flags."""
_IFADDRMSG: Final = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_IFINFOMSG: Final = struct.Struct("=BxHiII")  # family, type, index, flags, change
_ATTRIBUTE: Final = struct.Struct("=HH")
_INDEX: Final = struct.Struct("=i")

_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_RTM_NEWADDR, _RTM_DELADDR = 20, 21
_RTM_NEWROUTE, _RTM_DELROUTE = 24, 25
_RTM_GETROUTE: Final = 26
_NEWS: Final = frozenset(
    {_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWADDR, _RTM_DELADDR, _RTM_NEWROUTE, _RTM_DELROUTE}
)
_NLM_F_REQUEST: Final = 1
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_VIA = 1, 4, 5, 7, 18
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFF_RUNNING: Final = 0x40
_GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # links; addresses and routes, IPv4 and IPv6
_RECEIVE_BYTES: Final = 64 * 1024
_MAX_READS: Final = 64
"""Datagrams of news taken at a time; what is left keeps the socket readable."""
_ANSWER_TIMEOUT: Final = 1.0

_FAR_AWAY: Final = (ip_address("203.0.113.1"), ip_address("2001:db8::1"))
"""Documentation addresses: only default routes lead there (RFC 5737, RFC 3849)."""
_ANY_PORT: Final = 9


@dataclass(frozen=True, slots=True)
class WayOut:
    """The way to the Internet of one IP version."""

    source: IPv4Address | IPv6Address
    """Our address on it."""
    interface: int
    """Its index; 0 where it is not known."""
    gateway: str
    """Empty where there is none, or it is not known."""


def ways_out() -> tuple[WayOut, ...]:
    """Return the ways out, one for each IP version at most; () without any. Never raises."""
    ask = _ask_kernel if sys.platform == "linux" else _ask_socket
    found: list[WayOut] = []
    for target in _FAR_AWAY:
        try:
            way = ask(target)
        except OSError:
            continue  # there is none
        if way is not None and not (way.source.is_loopback or way.source.is_link_local):
            found.append(way)
    return tuple(found)


def _ask_kernel(target: IPv4Address | IPv6Address) -> WayOut | None:
    family = socket.AF_INET if target.version == 4 else socket.AF_INET6
    body = _RTMSG.pack(family, target.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    body += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(target.packed), _RTA_DST) + target.packed
    header = _HEADER.pack(_HEADER.size + len(body), _RTM_GETROUTE, _NLM_F_REQUEST, 1, 0)
    with socket.socket(_netlink(), socket.SOCK_RAW, 0) as netlink:
        netlink.settimeout(_ANSWER_TIMEOUT)
        netlink.bind((0, 0))
        netlink.send(header + body)
        for kind, answer in messages(netlink.recv(_RECEIVE_BYTES)):
            if kind == _RTM_NEWROUTE:
                return parse_route(answer)
    return None


def parse_route(body: bytes) -> WayOut | None:
    """Parse the body of an RTM_NEWROUTE that answers a question for one destination."""
    if len(body) < _RTMSG.size:
        return None
    attributes = parse_attributes(body, _RTMSG.size)
    size = {int(socket.AF_INET): 4, int(socket.AF_INET6): 16}.get(body[0])
    source = (attributes or {}).get(_RTA_PREFSRC)
    if attributes is None or source is None or len(source) != size:
        return None
    gateway = attributes.get(_RTA_GATEWAY, b"")
    if (via := attributes.get(_RTA_VIA)) is not None:
        gateway = via[2:]  # behind its family: an IPv6 gateway of an IPv4 route (RFC 8950)
    index = attributes.get(_RTA_OIF, b"")
    return WayOut(
        source=ip_address(source),
        interface=_INDEX.unpack(index)[0] if len(index) == _INDEX.size else 0,
        gateway=str(ip_address(gateway)) if len(gateway) in (4, 16) else "",
    )


def _ask_socket(target: IPv4Address | IPv6Address) -> WayOut | None:
    family = socket.AF_INET if target.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((str(target), _ANY_PORT))
        return WayOut(ip_address(probe.getsockname()[0].partition("%")[0]), 0, "")


def _netlink() -> int:
    return socket.AF_NETLINK if sys.platform == "linux" else 0


class RouteEvents:
    """The kernel's news of links, addresses and routes. Closed by whoever opened it."""

    def __init__(self, netlink: socket.socket) -> None:
        """Use `open`."""
        self._socket = netlink

    @classmethod
    def open(cls) -> Self | None:
        """Begin to listen; None where the kernel has no such news, or none for us."""
        if sys.platform != "linux":
            return None
        kinds = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        try:
            netlink = socket.socket(_netlink(), kinds, 0)
        except OSError:
            return None
        try:
            netlink.bind((0, _GROUPS))
        except OSError:
            netlink.close()
            return None
        return cls(netlink)

    def fileno(self) -> int:
        """For the loop: readable when there is news."""
        return self._socket.fileno()

    def take(self, ways: Iterable[WayOut]) -> bool:
        """Read what there is; whether one of `ways` was cut, be it for a moment."""
        cut = False
        ways = tuple(ways)
        for _ in range(_MAX_READS):
            try:
                news = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                break
            except OSError:
                continue  # ENOBUFS: some news was lost; the look that follows finds the result
            cut = any(is_cut(kind, body, ways) for kind, body in messages(news)) or cut
        return cut

    def close(self) -> None:
        """Stop listening. Idempotent."""
        self._socket.close()


def is_cut(kind: int, body: bytes, ways: Iterable[WayOut]) -> bool:
    """Whether a message tells the end of one of `ways`: another network may follow.

    That is: its source address or its default route is gone, or its interface has no carrier.
    """
    if kind == _RTM_DELADDR and len(body) >= _IFADDRMSG.size:
        attributes = parse_attributes(body, _IFADDRMSG.size) or {}
        gone = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
        return any(way.source.packed == gone for way in ways)
    if kind == _RTM_DELROUTE and len(body) >= _RTMSG.size:
        family, destination_length = body[0], body[1]
        index = (parse_attributes(body, _RTMSG.size) or {}).get(_RTA_OIF)
        version = 4 if family == socket.AF_INET else 6
        return destination_length == 0 and any(
            way.source.version == version and _INDEX.pack(way.interface) == index for way in ways
        )
    if kind == _RTM_NEWLINK and len(body) >= _IFINFOMSG.size:
        _, _, index, flags, _ = _IFINFOMSG.unpack_from(body)
        return not flags & _IFF_RUNNING and any(way.interface == index for way in ways)
    return False
