"""Dials from sockets that have never sent anything, under an identity made for the purpose.

A dial-back from the listening socket would come through the very hole that the client's own
packets made, and a second connection between the same two identities would supplant the first.
So each dial has a transport of its own. With `source` it leaves from that address of this
machine: a NAT that filters by address shows itself only to an address it has not heard of.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Protocol

from dep2p_daemon.errors import ConfigError, InvalidArgumentError, UnreachableError
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.quic.settings import QuicSettings
from dep2p_daemon.quic.transport import QuicTransport
from dep2p_daemon.tcp.settings import TcpSettings
from dep2p_daemon.tcp.transport import TcpTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from ipaddress import IPv4Address, IPv6Address

    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.muxed import Connection

MEMORY_BYTES: Final = 1024 * 1024
"""Unread bytes of one dial; nothing is expected but a few messages."""


class FreshDial(Protocol):
    """Connects to an address from a fresh socket; the connection ends with the block."""

    def __call__(
        self,
        address: Multiaddr,
        peer: PeerId,
        *,
        source: IPv4Address | IPv6Address | None = None,
    ) -> AbstractAsyncContextManager[Connection]:
        """Dial.

        Raises:
            UnreachableError, AuthenticationError: as `Transport.dial`; also when `source` is
                no address of this machine.
        """
        ...


class SocketDial:
    """`FreshDial` over real sockets."""

    def __init__(self) -> None:
        self._key = PrivateKey.generate()

    @asynccontextmanager
    async def __call__(
        self,
        address: Multiaddr,
        peer: PeerId,
        *,
        source: IPv4Address | IPv6Address | None = None,
    ) -> AsyncIterator[Connection]:
        """Dial; see `FreshDial`. The caller sets the deadline."""
        async with self._transport(address) as transport:
            if source is not None:
                host = str(source)
                own = (
                    Multiaddr.for_udp(host, 0)
                    if address.transport == "quic-v1"
                    else Multiaddr.for_tcp(host, 0)
                )
                try:
                    await transport.listen(own)  # a dial leaves from the listening socket
                except ConfigError as error:
                    raise UnreachableError(
                        f"{source} is not an address of this machine", reason="NO_SUCH_SOURCE"
                    ) from error
            connection = await transport.dial(address, peer)
            try:
                yield connection
            finally:
                await connection.close()

    def _transport(self, address: Multiaddr) -> QuicTransport | TcpTransport:
        if address.transport == "quic-v1":
            return QuicTransport(self._key, QuicSettings(receive_memory=MEMORY_BYTES))
        if address.transport == "tcp":
            return TcpTransport(self._key, TcpSettings(receive_memory=MEMORY_BYTES))
        raise InvalidArgumentError(f"{address} is neither a QUIC nor a TCP address")
