"""Which path a peer's new streams take, and the end of relayed connections that have a better one.

A direct connection takes the place of a relayed one for all new streams at once (the swarm's
`best_connection`). The relayed one is closed when its last stream has ended, or after a grace
time. Between our own nodes a path set will one day carry the streams themselves across.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from dep2p_daemon.muxed import CloseCode, Direction
from dep2p_daemon.nat.liveness import LivenessSettings, check, guard, may_carry
from dep2p_daemon.swarm.dialing import DialPolicy
from dep2p_daemon.swarm.events import NetworkChanged

if TYPE_CHECKING:
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.muxed import Connection
    from dep2p_daemon.swarm.swarm import Swarm

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PathChanged:
    """New streams to a peer take another path: relayed became direct, or the other way round."""

    peer: PeerId
    connection: Connection
    """What new streams use from now on."""
    previous: str
    """"direct" or "relayed"."""

    @property
    def path(self) -> str:
        """What it is now: "direct" or "relayed"."""
        return self.connection.path


@dataclass(frozen=True, kw_only=True, slots=True)
class PathSettings:
    """Times in seconds."""

    relayed_linger: float = 2.0
    """A relayed connection that is not needed any more is closed once it was without streams
    for this long: the peer needs a moment to learn of the direct one too."""
    relayed_grace: float | None = 3600.0
    """It is closed after this even if streams are left on it; None: never. A stream cannot change
    its connection: closing cuts what a program is in the middle of, so it has an hour."""
    liveness: LivenessSettings = field(default_factory=LivenessSettings)
    """When a direct connection counts as dead."""
    doubted: LivenessSettings = field(default_factory=lambda: LivenessSettings(timeout=1.0))
    """The same, when there is a reason to believe it."""


class PathWatch:
    """Publishes `PathChanged`; closes relayed connections that are not needed; notices dead ones.

    A `SwarmObserver`; its tasks are the swarm's.
    """

    def __init__(self, swarm: Swarm, settings: PathSettings | None = None) -> None:
        self._swarm = swarm
        self._settings = settings or PathSettings()
        self._paths: dict[PeerId, str] = {}
        swarm.observe(self)
        swarm.may_carry = self._may_carry
        swarm.spawn(self._follow_events())

    async def connection_opened(self, connection: Connection) -> None:
        """Note the path; a direct connection retires the relayed ones that were there.

        Where there is a relay to fall back to, the direct one is watched. A peer that comes
        through a relay although there is a direct one may know that its path is dead.
        """
        peer = connection.remote_peer
        self._note(peer)
        if connection.relayed:
            direct = self._swarm.best_connection(peer, DialPolicy.DIRECT)
            if direct is not None and connection.direction is Direction.INBOUND:
                await check(self._swarm, direct, self._settings.doubted)
            return
        relayed = [other for other in self._swarm.connections(peer) if other.relayed]
        for other in relayed:
            self._swarm.spawn(self._retire(other))
        known = self._swarm.peerstore.addresses(peer)
        if relayed or any(address.is_circuit for address in known):
            await guard(self._swarm, connection, self._settings.liveness)

    def connection_closed(self, connection: Connection) -> None:
        """Note the path that is left."""
        self._note(connection.remote_peer)

    def node_changed(self) -> None:
        """Our addresses and protocols change no path."""

    async def _follow_events(self) -> None:
        """After a change of network each direct connection shows at once whether it lives on."""
        with self._swarm.events.subscribe() as events:
            while True:
                event = await events.next()
                if isinstance(event, NetworkChanged) and event.online:
                    for connection in self._swarm.connections():
                        if not connection.relayed:
                            self._swarm.spawn(self._look_at(connection))

    async def _look_at(self, connection: Connection) -> None:
        own = self._swarm.own_addresses
        held = {address.split_circuit()[0].peer_id for address in own if address.is_circuit}
        # Those with the relays that we hold have their own supervisor.
        if connection.remote_peer not in held:
            await check(self._swarm, connection, self._settings.liveness)

    async def _may_carry(self, connection: Connection) -> bool:
        return await may_carry(self._swarm, connection, self._settings.liveness)

    def _note(self, peer: PeerId) -> None:
        best = self._swarm.best_connection(peer)
        if best is None:
            self._paths.pop(peer, None)
            return
        previous = self._paths.get(peer)
        self._paths[peer] = best.path
        if previous is None or previous == best.path:
            return
        _log.info(
            "path changed",
            peer=str(peer),
            path=best.path,
            previous=previous,
            connection=best.id,
            address=str(best.remote_address),
        )
        self._swarm.events.publish(PathChanged(peer, best, previous))

    async def _retire(self, connection: Connection) -> None:
        settings = self._settings
        now = asyncio.get_running_loop().time
        grace = math.inf if settings.relayed_grace is None else settings.relayed_grace
        deadline = now() + grace
        while not connection.is_closed:
            idle = not connection.streams
            await asyncio.sleep(min(settings.relayed_linger, max(0.0, deadline - now())))
            if self._swarm.best_connection(connection.remote_peer, DialPolicy.DIRECT) is None:
                return  # the direct one has gone again
            if idle and not connection.streams:
                await connection.close(CloseCode.SUPPLANTED, "there is a direct connection")
            elif now() >= deadline:
                _log.info(
                    "relayed connection closed with streams on it",
                    peer=str(connection.remote_peer),
                    connection=connection.id,
                    streams=len(connection.streams),
                    reason="SUPPLANTED",
                    seconds=grace,
                )
                await connection.close(
                    CloseCode.SUPPLANTED,
                    f"the stream was on a relayed connection, which is closed {grace:g} s after "
                    "there is a direct one (nat.relayed_grace): open it again",
                )
