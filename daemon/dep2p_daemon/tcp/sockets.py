"""TCP sockets: listening ones, and ones that dial from a listening port.

A dial leaves from the listening port where it can (`SO_REUSEPORT`), so that the address that
the peer observes is one where we can be reached. `SO_REUSEPORT` would also let a second daemon
of the same user bind the same port, and the kernel would deal connections out to both. So a
listening socket binds and listens without it, which fails if the port has a listener, and sets
it only then: the kernel looks at it when a dialling socket binds next to it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, Final

from dep2p_daemon.errors import (
    ConfigError,
    DialTimeoutError,
    InvalidArgumentError,
    UnreachableError,
)
from dep2p_daemon.multiaddr import Multiaddr

if TYPE_CHECKING:
    from collections.abc import Sequence

_SOURCE_UNUSABLE: Final = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EINVAL})
"""A dial that fails so from the listening port is tried again from any port."""

_BIND_REMEDIES: Final = {
    errno.EADDRINUSE: "stop the other program on this port, or choose another one",
    errno.EADDRNOTAVAIL: "use an address of this machine, or 0.0.0.0 for all of them",
    errno.EACCES: "use a port above 1023, or grant CAP_NET_BIND_SERVICE",
}

_CONNECT_FAILURES: Final = {
    errno.ECONNREFUSED: ("CONNECTION_REFUSED", "check that the peer runs and listens on this port"),
    errno.EHOSTUNREACH: ("NO_ROUTE", "check the address and this machine's network"),
    errno.ENETUNREACH: ("NO_ROUTE", "check the address and this machine's network"),
    errno.ETIMEDOUT: ("DIAL_TIMEOUT", "check the address, and firewalls on the way"),
}


def socket_address(address: Multiaddr) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Return the family, host and port of `/ip4|ip6/<host>/tcp/<port>`.

    Raises:
        InvalidArgumentError: it is another kind of address, or one with a name to resolve.
    """
    ip, port = address.ip, address.port
    if address.transport != "tcp" or ip is None or port is None:
        raise InvalidArgumentError(
            f"{address} is not a TCP address with an IP",
            reason="NOT_A_TCP_ADDRESS",
            remedy="use /ip4/<address>/tcp/<port>",
            address=address,
        )
    zone = address.value("ip6zone")
    host = f"{ip}%{zone}" if zone else str(ip)
    return (socket.AF_INET if ip.version == 4 else socket.AF_INET6), (host, port)


def multiaddr_of(name: Sequence[object]) -> Multiaddr:
    """Return what `getsockname` or `getpeername` gave as a multiaddr."""
    host, port = str(name[0]), name[1]
    assert isinstance(port, int)
    return Multiaddr.for_tcp(host.partition("%")[0], port)


def listening_socket(address: Multiaddr, backlog: int) -> socket.socket:
    """Bind `address` (port 0: any) and listen. The caller closes the socket.

    Raises:
        ConfigError: it cannot be bound; says why.
        InvalidArgumentError: not a TCP address.
    """
    family, name = socket_address(address)
    sock = _socket(family)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Connections of an earlier process that still linger do not hold the port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(name)
        sock.listen(backlog)
        _set_reuse_port(sock)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"cannot listen on {address}: {_text(error)}",
            reason="LISTEN_FAILED",
            remedy=_BIND_REMEDIES.get(error.errno or 0, ""),
            address=address,
        ) from error
    return sock


async def connect(address: Multiaddr, source: tuple[str, int] | None) -> socket.socket:
    """Connect to `address`, from `source` if that can be. The caller closes the socket.

    Raises:
        UnreachableError: nobody answered, or the address refused.
        InvalidArgumentError: not a TCP address.
    """
    family, name = socket_address(address)
    for origin in (source, None) if source is not None else (None,):
        try:
            return await _connect(family, name, origin)
        except OSError as error:
            if origin is not None and error.errno in _SOURCE_UNUSABLE:
                continue
            reason, remedy = _CONNECT_FAILURES.get(error.errno or 0, ("CONNECT_FAILED", ""))
            kind = DialTimeoutError if error.errno == errno.ETIMEDOUT else UnreachableError
            raise kind(
                f"cannot connect to {address}: {_text(error)}",
                reason=reason,
                remedy=remedy,
                address=address,
            ) from error
    raise AssertionError("the dial from any port has returned or raised")


async def connect_from(address: Multiaddr, source: tuple[str, int]) -> socket.socket:
    """Connect to `address` from `source` and from nowhere else. The caller closes the socket.

    Raises:
        OSError: as connect(2) has it.
        InvalidArgumentError: not a TCP address.
    """
    family, name = socket_address(address)
    return await _connect(family, name, source)


async def _connect(
    family: socket.AddressFamily, name: tuple[str, int], source: tuple[str, int] | None
) -> socket.socket:
    sock = _socket(family)
    try:
        if source is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _set_reuse_port(sock)
            sock.bind(source)
        await asyncio.get_running_loop().sock_connect(sock, name)
        if sock.getsockname()[:2] == sock.getpeername()[:2]:
            # Between equal ports of one host TCP lets a socket connect to itself.
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    except BaseException:
        sock.close()
        raise
    return sock


def reset_at_close(sock: socket.socket, *, on: bool = True) -> None:
    """Have `close` end the connection at once: its two ports are free for another one then."""
    linger = struct.pack("ii", on, 0)  # `struct linger`: for 0 seconds
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def _text(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


def _socket(family: socket.AddressFamily) -> socket.socket:
    return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


def _set_reuse_port(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
