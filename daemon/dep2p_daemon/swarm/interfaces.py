"""The IP addresses of this machine's interfaces.

On Linux the kernel is asked over rtnetlink (RTM_GETADDR, rtnetlink(7)): all addresses of all
interfaces with their prefix lengths in one answer. Elsewhere the resolver is asked for the
host's own name, which finds less. `ways_out` has the routes.
"""

from __future__ import annotations

import socket
import struct
import sys
from ipaddress import (
    IPv4Interface,
    IPv6Interface,
    ip_interface,
)
from typing import TYPE_CHECKING, Final, TypeAlias

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = structlog.get_logger(__name__)

IPInterface: TypeAlias = IPv4Interface | IPv6Interface
"""An address together with the network it is in."""

_NLMSG_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_IFADDRMSG: Final = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_RTATTR: Final = struct.Struct("=HH")  # length, type
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_RTM_NEWADDR: Final = 20
_RTM_GETADDR: Final = 22
_NLM_F_REQUEST_DUMP: Final = 0x301
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_F_UNUSABLE: Final = 0x08 | 0x20 | 0x40  # duplicate found, deprecated, tentative
_RECEIVE_BYTES: Final = 64 * 1024
_ANSWER_TIMEOUT: Final = 1.0
"""Seconds; the kernel answers at once or not at all."""


def interface_addresses() -> tuple[IPInterface, ...]:
    """Return the usable addresses, those of loopback last. Never raises; () when none is found."""
    try:
        found = _ask_kernel() if sys.platform == "linux" else _ask_resolver()
    except OSError as error:
        _log.warning("the interfaces' addresses cannot be read", error=str(error))
        return ()
    return tuple(sorted(dict.fromkeys(found), key=lambda interface: interface.ip.is_loopback))


def _ask_kernel() -> list[IPInterface]:
    family = socket.AF_NETLINK if sys.platform == "linux" else 0
    request = _NLMSG_HEADER.pack(
        _NLMSG_HEADER.size + _IFADDRMSG.size, _RTM_GETADDR, _NLM_F_REQUEST_DUMP, 1, 0
    ) + _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    found: list[IPInterface] = []
    with socket.socket(family, socket.SOCK_RAW, 0) as netlink:
        netlink.settimeout(_ANSWER_TIMEOUT)
        netlink.bind((0, 0))
        netlink.send(request)
        while True:
            for kind, body in messages(netlink.recv(_RECEIVE_BYTES)):
                if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    return found
                if kind == _RTM_NEWADDR and (interface := parse_address(body)) is not None:
                    found.append(interface)


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Split a netlink datagram into (type, body); what is malformed ends it."""
    offset = 0
    while offset + _NLMSG_HEADER.size <= len(data):
        length, kind, *_ = _NLMSG_HEADER.unpack_from(data, offset)
        if not _NLMSG_HEADER.size <= length <= len(data) - offset:
            return
        yield kind, data[offset + _NLMSG_HEADER.size : offset + length]
        offset += length + 3 & ~3


def parse_address(body: bytes) -> IPInterface | None:
    """Parse the body of an RTM_NEWADDR; None for one that cannot be used."""
    if len(body) < _IFADDRMSG.size:
        return None
    family, prefix, flags, _scope, _index = _IFADDRMSG.unpack_from(body)
    attributes = parse_attributes(body, _IFADDRMSG.size)
    if attributes is None:
        return None
    # On a point-to-point link IFA_ADDRESS is the other end and IFA_LOCAL ours.
    raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
    size = {socket.AF_INET: 4, socket.AF_INET6: 16}.get(family)
    if raw is None or len(raw) != size or flags & _IFA_F_UNUSABLE or prefix > size * 8:
        return None
    return ip_interface((raw, prefix))


def parse_attributes(body: bytes, offset: int) -> dict[int, bytes] | None:
    """Parse the attributes (type to value) from `offset` on; None when they are malformed."""
    attributes: dict[int, bytes] = {}
    while offset + _RTATTR.size <= len(body):
        length, kind = _RTATTR.unpack_from(body, offset)
        if not _RTATTR.size <= length <= len(body) - offset:
            return None
        attributes[kind] = body[offset + _RTATTR.size : offset + length]
        offset += length + 3 & ~3
    return attributes


def _ask_resolver() -> list[IPInterface]:
    found = [ip_interface("127.0.0.1/8"), ip_interface("::1/128")]
    for *_, address in socket.getaddrinfo(socket.gethostname(), None):
        found.append(ip_interface(str(address[0]).partition("%")[0]))
    return found
