"""Dialling: who is dialled, over which addresses, with whom the attempt is shared.

`Dialer` gathers a peer's addresses and shares one `Dial` among all who ask for the same at the
same time.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeAlias

import structlog

from dep2p_daemon.errors import (
    InvalidArgumentError,
)
from dep2p_daemon.swarm.backoff import Backoff
from dep2p_daemon.swarm.connections import DialPolicy
from dep2p_daemon.swarm.dial import Dial, DialContext, DnsResolver, without_peer
from dep2p_daemon.swarm.dial_errors import no_addresses
from dep2p_daemon.swarm.dial_trail import DialBook, DialTrail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.muxed import Connection
    from dep2p_daemon.swarm.settings import DialSettings

__all__ = ["AddressSource", "DialPolicy", "Dialer", "DnsResolver"]

_log = structlog.get_logger(__name__)

AddressSource: TypeAlias = "Callable[[PeerId], Iterable[Multiaddr]]"
"""Tells addresses of a peer, from memory, the best first."""


class Dialer:
    """Dials peers; owned by the swarm, which owns its tasks."""

    def __init__(
        self,
        context: DialContext,
        *,
        sources: Sequence[AddressSource],
        resolver: DnsResolver | None,
        settings: DialSettings,
    ) -> None:
        self._context = context
        self._sources = sources
        self._resolver = resolver
        self._settings = settings
        self._shared: dict[tuple[PeerId, DialPolicy], Dial] = {}
        self.backoff = Backoff(settings)
        self.trails = DialBook()

    async def dial(
        self,
        peer: PeerId,
        addresses: Sequence[Multiaddr],
        *,
        policy: DialPolicy,
        force_new: bool,
        timeout: float | None,
    ) -> Connection:
        """Make a connection to `peer`; see `Swarm.dial`."""
        explicit = tuple(without_peer(address, peer) for address in addresses)
        known = explicit or self._known_addresses(peer)
        usable = [address for address in known if policy.allows(relayed=address.is_circuit)]
        if not usable:
            error = no_addresses(peer, policy, known)
            self.trails.add(
                DialTrail(
                    peer=peer,
                    policy=policy,
                    started_at=time.time(),
                    duration=0.0,
                    reason=error.reason,
                    detail=error.message,
                    remedy=error.remedy,
                )
            )
            raise error
        dial = None if force_new else self._shared.get((peer, policy))
        if dial is None:
            dial = Dial(
                peer,
                policy=policy,
                wanted=force_new,
                context=self._context,
                resolver=self._resolver,
                backoff=self.backoff,
                settings=self._settings,
                book=self.trails,
                on_decided=self._forget,
            )
            if not force_new:
                self._shared[peer, policy] = dial
        dial.add(usable, explicit=bool(explicit))
        return await dial.wait(timeout)

    def _forget(self, dial: Dial) -> None:
        """A decided dial is not joined any more."""
        if self._shared.get((dial.peer, dial.policy)) is dial:
            del self._shared[dial.peer, dial.policy]

    def _known_addresses(self, peer: PeerId) -> tuple[Multiaddr, ...]:
        found: list[Multiaddr] = []
        for source in self._sources:
            for address in source(peer):
                try:
                    found.append(without_peer(address, peer))
                except InvalidArgumentError as error:
                    _log.debug("dial: address left out", address=str(address), reason=error.reason)
        return tuple(dict.fromkeys(found))
