"""Searches for the relays that are configured by host and port, until each is found.

What is found is handed to the relay client, which keeps it like any other configured relay.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from dep2p_daemon.circuit.events import RelayHostChanged, RelayHostStatus, RelayState
from dep2p_daemon.circuit.relay_host import RelayHost, RelayPins, find_relays
from dep2p_daemon.errors import Dep2pError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from dep2p_daemon.circuit.relay_client import RelayClient
    from dep2p_daemon.events import EventBus
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.swarm.dialing import DnsResolver
    from dep2p_daemon.swarm.swarm import Swarm

log = structlog.get_logger(__name__)

LONGEST_PAUSE = 3.0
"""Seconds between two searches for one relay: one that starts is found within 5 s."""


class RelaySearch:
    """The searches that go on. Its owner runs `find` in a task for each host."""

    def __init__(
        self,
        client: RelayClient,
        swarm: Swarm,
        events: EventBus,
        *,
        resolver: DnsResolver,
        pins: RelayPins,
        random: Random,
        wall_clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._swarm = swarm
        self._events = events
        self._resolver = resolver
        self._pins = pins
        self._random = random
        self._wall_clock = wall_clock
        self._hosts: dict[RelayHost, RelayHostStatus] = {}
        self._searching: dict[RelayHost, asyncio.Task[None]] = {}

    @property
    def hosts(self) -> tuple[RelayHostStatus, ...]:
        """The relays that are not found yet."""
        return tuple(self._hosts.values())

    async def locate(self, host: RelayHost) -> tuple[Multiaddr, ...]:
        """Find out now who the relay at `host` is, and pin it; return its full addresses.

        Raises:
            UnreachableError, AuthenticationError: as `find_relays`.
        """
        return await find_relays(host, self._swarm, self._resolver, self._pins)

    def forget(self, host: RelayHost) -> PeerId | None:
        """Give up the search for a host, and return who is pinned there; None while unknown.

        Raises:
            NotFoundError: it is not searched for, and nobody is pinned there.
        """
        searching = self._searching.get(host)
        peer = self._pins.get(host)
        if searching is not None:
            searching.cancel()
            self._tell(host, RelayState.DISCONNECTED)
        elif peer is None:
            raise NotFoundError(
                f"{host} is not among this node's relays",
                reason="RELAY_NOT_FOUND",
                remedy="see `dep2pctl relay list`",
                relay=host,
            )
        return peer

    def unpin(self, peer: PeerId) -> bool:
        """Forget that `peer` was found at a host; False when it was at none."""
        return self._pins.unpin(peer)

    async def find(self, host: RelayHost) -> None:
        """Find out who the relay at `host` is, however long it takes, and hold it then."""
        task = asyncio.current_task()
        assert task is not None
        self._searching[host] = task
        try:
            await self._find(host)
        finally:
            self._searching.pop(host, None)

    async def _find(self, host: RelayHost) -> None:
        pause = LONGEST_PAUSE / 4
        while True:
            self._tell(host, RelayState.CONNECTING)
            try:
                for address in await find_relays(host, self._swarm, self._resolver, self._pins):
                    self._client.add(address)
            except Dep2pError as error:
                pause = min(2 * pause, LONGEST_PAUSE)
                wait = pause * self._random.uniform(0.8, 1.0)
                self._tell(host, RelayState.BACKOFF, error=error, wait=wait)
                await asyncio.sleep(wait)
            else:
                self._tell(host, RelayState.DISCONNECTED)
                return

    def _tell(
        self,
        host: RelayHost,
        state: RelayState,
        *,
        error: Dep2pError | None = None,
        wait: float | None = None,
    ) -> None:
        before = self._hosts.pop(host, None)
        if error is None and state is RelayState.CONNECTING and before is not None:
            # The reason of the last failure stays to be seen while the next try runs.
            last_error, reason = before.last_error, before.last_error_reason
        else:
            last_error = str(error) if error is not None else ""
            reason = error.reason if error is not None else ""
        status = RelayHostStatus(
            host=str(host),
            state=state,
            last_error=last_error,
            last_error_reason=reason,
            next_try_at=None if wait is None else self._wall_clock() + wait,
        )
        if error is not None and (before is None or before.last_error_reason != error.reason):
            log.info("a relay is not found", host=str(host), reason=error.reason, error=str(error))
        if state is not RelayState.DISCONNECTED:
            self._hosts[host] = status
        self._events.publish(RelayHostChanged(status))
