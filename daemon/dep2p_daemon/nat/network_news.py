"""News that make a punch worth another try: our network changed, or the peer is elsewhere."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from dep2p_daemon.swarm.events import NetworkChanged, PeerIdentified

if TYPE_CHECKING:
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.swarm.swarm import Swarm


async def changed_within(swarm: Swarm, peer: PeerId, seconds: float) -> bool:
    """Wait; return True at once when the peer's or our own way to the network changes."""
    known = _places(swarm, peer)
    with swarm.events.subscribe() as events, suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while True:
                event = await events.next()
                if isinstance(event, NetworkChanged) and event.online:
                    return True
                identified = isinstance(event, PeerIdentified) and event.peer_id == peer
                if identified and not _places(swarm, peer) <= known:
                    return True
    return False


def _places(swarm: Swarm, peer: PeerId) -> frozenset[Multiaddr]:
    """Where a peer says it is, circuits apart."""
    return frozenset(a for a in swarm.peerstore.addresses(peer) if not a.is_circuit)
