"""Port 0 in listen addresses: one number that is free for UDP and TCP on all of them.

People open one port in a firewall, so QUIC and TCP listen on the same number.
"""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from dep2p_daemon.errors import ConfigError
from dep2p_daemon.multiaddr import Multiaddr

if TYPE_CHECKING:
    from collections.abc import Sequence

ATTEMPTS: Final = 16
"""Numbers to try; ours: each is free for UDP already, and seldom taken for TCP."""

_KINDS: Final = {"quic-v1": socket.SOCK_DGRAM, "tcp": socket.SOCK_STREAM}


def has_open_port(addresses: Sequence[Multiaddr]) -> bool:
    """Whether any of `addresses` leaves the port to us."""
    return any(address.port == 0 for address in addresses)


def with_free_port(addresses: Sequence[Multiaddr]) -> tuple[Multiaddr, ...]:
    """Return `addresses` with one free number in place of each port 0.

    Somebody may take it before it is bound for good: then try again.

    Raises:
        ConfigError: no number is free for all of them, or this machine has no such address.
    """
    wanted = [address for address in addresses if address.port == 0]
    for _ in range(ATTEMPTS if wanted else 0):
        port = _port_free_for_all(wanted)
        if port is not None:
            return tuple(
                with_port(address, port) if address.port == 0 else address for address in addresses
            )
    if not wanted:
        return tuple(addresses)
    raise ConfigError(
        f"no port is free on all of {', '.join(map(str, wanted))}",
        reason="NO_FREE_PORT",
        remedy="choose one yourself with --port",
    )


def with_port(address: Multiaddr, port: int) -> Multiaddr:
    """Return a listen address with another port."""
    make = Multiaddr.for_udp if address.transport == "quic-v1" else Multiaddr.for_tcp
    return make(str(address.host), port)


def _port_free_for_all(addresses: Sequence[Multiaddr]) -> int | None:
    """Bind the first address to any port, and the others to the same number."""
    port = 0
    with ExitStack() as stack:
        for address in addresses:
            ip = address.ip
            assert ip is not None, "listen addresses are IP addresses: Config checks it"
            family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
            probe = stack.enter_context(socket.socket(family, _KINDS[str(address.transport)]))
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if probe.type == socket.SOCK_STREAM:
                # As a listener has it: connections of an earlier one do not hold the number.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((str(ip), port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return None
                raise ConfigError(
                    f"cannot listen on {ip}: {error.strerror or error}",
                    reason="LISTEN_FAILED",
                    remedy="name an address that this machine has with --listen, or leave it out "
                    "to listen on all of them",
                    address=address,
                ) from error
            port = probe.getsockname()[1]
    return port
