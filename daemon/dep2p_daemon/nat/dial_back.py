"""Dialling a client back for AutoNAT: which of its addresses, from where, for how long."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from dep2p_daemon.errors import Dep2pError, DialTimeoutError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from ipaddress import IPv4Address, IPv6Address

    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.muxed import Connection
    from dep2p_daemon.nat.fresh_dial import FreshDial
    from dep2p_daemon.swarm.swarm import Swarm

LOWEST_PORT: Final = 1024
"""Below it live the services that answer one small packet with large ones; 443 is QUIC's own."""


class DialBack:
    """Dials clients back, from an address they have not heard of where this machine has two."""

    def __init__(
        self,
        swarm: Swarm,
        dial: FreshDial,
        *,
        is_public: Callable[[Multiaddr], bool],
        foreign_source_timeout: float,
        timeout: float,
    ) -> None:
        """`foreign_source_timeout` and `timeout` are seconds, from the other and the same IP."""
        self._swarm = swarm
        self._dial = dial
        self._is_public = is_public
        self._foreign_source_timeout = foreign_source_timeout
        self._timeout = timeout

    def may_dial(self, address: Multiaddr | None, client: Connection) -> bool:
        """Whether we dial `address` for the peer at the other end of `client`."""
        if address is None or address.is_circuit or address.ip is None or not address.port:
            return False
        bare = address.without_peer_id()
        return (
            address.peer_id in (None, client.remote_peer)
            and bare.transport in ("quic-v1", "tcp")
            and (address.port >= LOWEST_PORT or address.port == 443)
            and self._is_public(bare)
            and bare not in self._swarm.own_addresses
            and self._has_family(address.ip.version)
        )

    @asynccontextmanager
    async def connection(self, address: Multiaddr, client: Connection) -> AsyncIterator[Connection]:
        """A connection to `client`'s peer at `address`, which ends with the block.

        Raises:
            UnreachableError, AuthenticationError: there is none to be had.
        """
        address = address.without_peer_id()
        for source in self._foreign_sources(address, client):
            try:
                async with self._dialled(
                    address, client, source, self._foreign_source_timeout
                ) as made:
                    yield made
                    return
            except _NotDialledError:
                continue
        try:
            async with self._dialled(address, client, None, self._timeout) as made:
                yield made
        except _NotDialledError as error:
            raise error.cause from None

    @asynccontextmanager
    async def _dialled(
        self,
        address: Multiaddr,
        client: Connection,
        source: IPv4Address | IPv6Address | None,
        timeout: float,
    ) -> AsyncIterator[Connection]:
        dialling = self._dial(address, client.remote_peer, source=source)
        try:
            async with asyncio.timeout(timeout):
                made = await dialling.__aenter__()
        except TimeoutError:
            cause = DialTimeoutError(f"no answer from {address} within {timeout:g} s")
            raise _NotDialledError(cause) from None
        except Dep2pError as error:
            raise _NotDialledError(error) from error
        try:
            yield made
        finally:
            await dialling.__aexit__(None, None, None)

    def _foreign_sources(
        self, address: Multiaddr, client: Connection
    ) -> Iterable[IPv4Address | IPv6Address]:
        """At most one address of this machine that the client's packets did not go to."""
        near, target = client.local_address.ip, address.ip
        for own in self._swarm.own_addresses:
            ip = own.ip
            if (
                ip is not None
                and target is not None
                and not own.is_circuit
                and ip.version == target.version
                and ip != near
                and near is not None
                and not near.is_unspecified
                and self._is_public(own)
                and any(ip in network for network in self._swarm.networks())
                and not own.is_loopback
            ):
                return (ip,)
        return ()

    def _has_family(self, version: int) -> bool:
        """Whether this machine gets anywhere with that family: else we would slander peers."""
        return any(
            own.ip is not None
            and own.ip.version == version
            and not own.is_circuit
            and (self._is_public(own) or (version == 4 and not own.is_loopback))
            for own in self._swarm.own_addresses
        )


class _NotDialledError(Exception):
    """Tells a failed dial from what went wrong inside the block."""

    def __init__(self, cause: Dep2pError) -> None:
        super().__init__(str(cause))
        self.cause = cause if isinstance(cause, UnreachableError) else _as_unreachable(cause)


def _as_unreachable(cause: Dep2pError) -> UnreachableError:
    return UnreachableError(cause.message, reason=cause.reason, remedy=cause.remedy)
