"""How an endpoint sends, and which refusals of the network mean that a dial cannot work."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dep2p_daemon.udp.demultiplexer import SocketAddress

UNREACHABLE: Final = frozenset(
    {
        errno.EACCES,
        errno.EADDRNOTAVAIL,
        errno.EAFNOSUPPORT,
        errno.ECONNREFUSED,
        errno.EHOSTUNREACH,
        errno.EINVAL,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EPERM,
    }
)
"""Errors that end a dial at once; established connections ride them out."""


class DatagramSender(Protocol):
    """What an endpoint sends through: `udp.socket.UdpSocket`, or a test."""

    @property
    def is_blocked(self) -> bool:
        """True while nothing new should be sent."""
        ...

    def send(
        self, datagrams: Sequence[bytes], destination: SocketAddress, local: bytes | None = None
    ) -> int:
        """Send datagrams, or drop them; returns 0 or an errno."""
        ...


def send_all(
    sender: DatagramSender,
    datagrams: list[tuple[bytes, SocketAddress]],
    local: bytes | None,
) -> int:
    """Send each datagram to its destination, as batches where there is one; 0 or an errno."""
    if not datagrams:
        return 0
    destination = datagrams[0][1]
    if all(address is destination or address == destination for _, address in datagrams):
        return sender.send([data for data, _ in datagrams], destination, local)
    error = 0
    for data, address in datagrams:
        error = sender.send([data], address, local) or error
    return error
