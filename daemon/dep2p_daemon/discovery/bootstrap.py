"""Bootstrap: the peers named in the configuration are connected to at start.

An address may name its peer, or be a `/dnsaddr` whose records do. Each is tried until it has
worked once; after that the connection is nobody's concern here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from dep2p_daemon.errors import Dep2pError, UnreachableError

if TYPE_CHECKING:
    from dep2p_daemon.discovery.dns import Resolver
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.swarm.swarm import Swarm

log = structlog.get_logger(__name__)

DIAL_SECONDS: Final = 30.0
FIRST_PAUSE: Final = 5.0
LONGEST_PAUSE: Final = 300.0
"""Seconds between two tries of one address; each pause is twice the one before."""


async def connect(swarm: Swarm, resolver: Resolver, address: Multiaddr) -> None:
    """Try `address` until a peer at it is connected. Never raises Dep2pError."""
    pause = FIRST_PAUSE
    while True:
        try:
            await _connect_once(swarm, resolver, address)
        except Dep2pError as error:
            log.warning(
                "bootstrap peer not reached",
                address=str(address),
                reason=error.reason,
                error=str(error),
                next_try_seconds=pause,
            )
        else:
            return
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


async def _connect_once(swarm: Swarm, resolver: Resolver, address: Multiaddr) -> None:
    if address.peer_id is not None:
        await swarm.dial(address.peer_id, (address.without_peer_id(),), timeout=DIAL_SECONDS)
        return
    named = [found for found in await resolver.resolve(address) if found.peer_id is not None]
    failed: Dep2pError = UnreachableError(
        f"no record at {address} names a peer",
        reason="NO_PEERS_AT_ADDRESS",
        remedy="each TXT record must be dnsaddr=<multiaddr>/p2p/<peer id>",
        address=address,
    )
    for found in named:
        assert found.peer_id is not None
        if found.peer_id == swarm.local_peer:
            continue
        try:
            await swarm.dial(found.peer_id, (found.without_peer_id(),), timeout=DIAL_SECONDS)
        except Dep2pError as error:
            failed = error
        else:
            return
    raise failed
