"""Holds the wanted number of reservations: finds relays, compares them, notices when they die.

`relay_client` keeps each relay that it is given; this decides which it is given beside those that
the user named (`relay_choice`), and looks after all of them:

  1. A connected peer whose identify lists the hop protocol is a candidate; bootstrap peers too.
  2. Round trips of held relays and candidates are measured, and those that are held have to answer
     (`relay_check`).
  3. When the network changed, or the machine's own addresses did, all held relays are looked at at
     once, with less patience, and those that failed are tried again.
  4. Relays that were known before the last restart are candidates, if the peerstore has them.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, Self

import structlog

from dep2p_daemon.circuit.events import (
    RelayChanged,
    RelayHostStatus,
    RelaySource,
    RelayState,
    RelayStatus,
)
from dep2p_daemon.circuit.messages import HOP_PROTOCOL
from dep2p_daemon.circuit.relay_check import CheckSettings, RelayChecks
from dep2p_daemon.circuit.relay_choice import ChoiceSettings, Held, RelayChoice
from dep2p_daemon.circuit.relay_host import RelayHost, RelayPins
from dep2p_daemon.circuit.relay_search import RelaySearch
from dep2p_daemon.errors import Dep2pError, NotFoundError
from dep2p_daemon.muxed import Direction
from dep2p_daemon.swarm.dialing import DialPolicy
from dep2p_daemon.swarm.events import AddressesChanged, NetworkChanged, PeerIdentified

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from dep2p_daemon.circuit.relay_client import RelayClient
    from dep2p_daemon.events import EventBus
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.muxed import Connection
    from dep2p_daemon.swarm.dialing import DnsResolver
    from dep2p_daemon.swarm.swarm import Swarm

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class SupervisorSettings:
    """How relays are looked after. Times in seconds."""

    choice: ChoiceSettings = field(default_factory=ChoiceSettings)
    checks: CheckSettings = field(default_factory=CheckSettings)
    interval: float = 2.0
    """Between two looks at what is held and what is due."""
    remembered: float = 7 * 24 * 3600.0
    """A relay's address is kept in the peerstore so long after a reservation there."""


class RelaySupervisor:
    """Looks after a `RelayClient`'s relays. An async context manager that owns its tasks."""

    def __init__(
        self,
        client: RelayClient,
        swarm: Swarm,
        events: EventBus,
        settings: SupervisorSettings | None = None,
        *,
        resolver: DnsResolver | None = None,
        pins: RelayPins | None = None,
        random: Random | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._swarm = swarm
        self._events = events
        self._settings = settings or SupervisorSettings()
        self._random = random or Random()
        self._search: RelaySearch | None = None
        if resolver is not None:
            self._search = RelaySearch(
                client,
                swarm,
                events,
                resolver=resolver,
                pins=pins or RelayPins(None),
                random=self._random,
                wall_clock=wall_clock,
            )
        self._choice = RelayChoice(self._settings.choice)
        self._own: frozenset[Multiaddr] = frozenset()
        self._wake = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        self._background: set[asyncio.Task[None]] = set()
        self._checks = RelayChecks(
            client,
            swarm,
            self._choice,
            self._settings.checks,
            random=self._random,
            spawn=self._spawn,
            on_news=self._wake.set,
        )

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._own = _direct(self._swarm.own_addresses)
        self._swarm.add_address_source(self.circuits_to)
        self._recall()
        self._spawn(self._watch(), "relay supervisor: events")
        self._spawn(self._run(), "relay supervisor")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in tuple(self._background):
            task.cancel()
        await self._tasks.__aexit__(None, None, None)

    def circuits_to(self, peer: PeerId) -> tuple[Multiaddr, ...]:
        """Return circuits to `peer` through relays that we know and do not keep."""
        kept = {status.peer_id for status in self._client.relays}
        return tuple(
            candidate.address.with_peer_id(candidate.peer) / "/p2p-circuit"
            for candidate in self._choice.candidates.values()
            if candidate.peer not in kept and candidate.peer != peer
        )

    @property
    def hosts(self) -> tuple[RelayHostStatus, ...]:
        """The configured relays of which it is not known yet who they are."""
        return () if self._search is None else self._search.hosts

    def add(self, relay: Multiaddr | RelayHost) -> None:
        """Hold a configured relay from now on, whether or not it can be found yet.

        Raises:
            MultiaddrError, InvalidArgumentError, ResourceLimitError: as `RelayClient.add`.
        """
        if isinstance(relay, RelayHost):
            assert self._search is not None, "a relay by its host needs a resolver"
            self._spawn(self._search.find(relay), f"relay {relay}")
        else:
            self._client.add(relay)

    async def connect(self, relay: Multiaddr | RelayHost) -> RelayStatus:
        """Return once the relay has granted a reservation, as `RelayClient.connect`.

        Of a host, it is found out first who the relay there is; of several that its records name,
        the first that grants one is told, and the others are held too.

        Raises:
            UnreachableError, AuthenticationError: also when nobody is found at the host.
        """
        if isinstance(relay, RelayHost):
            assert self._search is not None, "a relay by its host needs a resolver"
            addresses = await self._search.locate(relay)
        else:
            addresses = (relay,)
        status: RelayStatus | None = None
        failed: Dep2pError | None = None
        for address in addresses:
            if status is not None:
                self._client.add(address, source=RelaySource.REQUESTED)
                continue
            try:
                status = await self._client.connect(address)
            except Dep2pError as error:
                failed = error
        if status is None:
            assert failed is not None
            raise failed
        self._choice.unwanted.discard(status.peer_id)
        return status

    async def disconnect(self, relay: PeerId | RelayHost) -> PeerId | None:
        """Give a relay up, as `RelayClient.disconnect`; return who it was, if that is known.

        It is not taken as a discovered one, and not remembered as the one at its host: who
        answers there next is believed again.

        Raises:
            NotFoundError: no such relay.
        """
        if isinstance(relay, RelayHost):
            assert self._search is not None, "a relay by its host needs a resolver"
            peer = self._search.forget(relay)
            if peer is None:
                return None
        else:
            peer = relay
        forgotten = self._search is not None and self._search.unpin(peer)
        try:
            await self._client.disconnect(peer)
        except NotFoundError:
            if not forgotten:
                raise
        self._choice.give_up(peer)
        # Not after a restart either.
        store = self._swarm.peerstore
        store.set_protocols(peer, store.protocols(peer) - {HOP_PROTOCOL})
        return peer

    def look(self) -> None:
        """Check every held relay now: something about the network changed."""
        self._checks.hurry()
        self._wake.set()

    # ------------------------------------------------------------------- news

    async def _watch(self) -> None:
        with self._events.subscribe() as subscription:
            self._take_candidates(self._swarm.connections())
            while True:
                event = await subscription.next()
                if subscription.take_lost():
                    self._take_candidates(self._swarm.connections())
                if isinstance(event, PeerIdentified):
                    self._take_candidates((event.connection,))
                elif isinstance(event, AddressesChanged):
                    self._take_own(event.addresses)
                elif isinstance(event, NetworkChanged) and event.online:
                    self.look()
                    self._client.try_again()
                elif isinstance(event, RelayChanged):
                    self._take_status(event.status)

    def _take_status(self, status: RelayStatus) -> None:
        peer = status.peer_id
        if status.state is RelayState.RESERVED:
            self._choice.succeeded(peer)
            self._swarm.peerstore.add_addresses(
                peer, [status.address], ttl=self._settings.remembered, source="relay"
            )
        self._wake.set()

    def _recall(self) -> None:
        """Take the relays that the peerstore knows from before; those seen last come first."""
        store, now = self._swarm.peerstore, asyncio.get_running_loop().time()
        known = [
            (info.last_seen or 0.0, info)
            for peer in store.peers()
            if peer != self._swarm.local_peer and HOP_PROTOCOL in store.protocols(peer)
            if (info := store.get(peer)) is not None
        ]
        known.sort(key=lambda one: -one[0])
        for _, info in known[: self._settings.choice.max_candidates]:
            told = [one.address for one in info.addresses]
            if (address := _first_dialable(told)) is not None:
                self._choice.offer(info.peer, address, now)

    def _take_candidates(self, connections: Iterable[Connection]) -> None:
        now = asyncio.get_running_loop().time()
        for connection in connections:
            peer = connection.remote_peer
            if connection.relayed or HOP_PROTOCOL not in self._swarm.peerstore.protocols(peer):
                continue
            address = self._dialable(connection)
            if address is not None:
                self._choice.offer(peer, address, now)
                self._wake.set()

    def _dialable(self, connection: Connection) -> Multiaddr | None:
        """Where the relay can be dialled: where we did, else what it says itself."""
        if connection.direction is Direction.OUTBOUND:
            return connection.remote_address
        return _first_dialable(self._swarm.peerstore.addresses(connection.remote_peer))

    def _take_own(self, addresses: Sequence[Multiaddr]) -> None:
        own = _direct(addresses)
        if own != self._own:
            self._own = own
            log.info("the machine's addresses changed: relays are checked")
            self.look()

    # --------------------------------------------------------------- the loop

    async def _run(self) -> None:
        settings = self._settings
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            self._checks.start_due(loop.time())
            self._act(loop.time())
            try:
                async with asyncio.timeout(settings.interval):
                    await self._wake.wait()
            except TimeoutError:
                continue
            # Changes come in bunches.
            await asyncio.sleep(settings.interval / 20)

    def _act(self, now: float) -> None:
        decision = self._choice.decide([self._held(s) for s in self._client.relays], now)
        for candidate in decision.take:
            log.info("a relay is taken", relay=str(candidate.peer), address=str(candidate.address))
            try:
                self._client.add(
                    candidate.address.with_peer_id(candidate.peer), source=RelaySource.DISCOVERED
                )
            except Dep2pError as error:
                log.info("a relay is not taken", relay=str(candidate.peer), reason=error.reason)
                self._choice.failed(candidate.peer, now)
        for peer in decision.release:
            log.info("a relay is let go", relay=str(peer))
            status = next((s for s in self._client.relays if s.peer_id == peer), None)
            if status is not None and status.last_error:
                self._choice.failed(peer, now)
            self._client.release(peer)

    def _held(self, status: RelayStatus) -> Held:
        through = any(c.relay == status.peer_id for c in self._swarm.connections())
        connection = self._swarm.best_connection(status.peer_id, DialPolicy.DIRECT)
        return Held(
            peer=status.peer_id,
            source=status.source,
            reserved=status.state is RelayState.RESERVED,
            failing=status.state is RelayState.BACKOFF,
            idle=not through,
            rtt=connection.rtt if connection is not None else status.rtt,
        )

    # ------------------------------------------------------------------- tasks

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        async def contained() -> None:
            try:
                await work
            except Exception:
                # One relay's trouble must not end the care for the others.
                log.exception("the relay supervisor failed at a task", task=name)

        task = self._tasks.create_task(contained(), name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        # Cancelled before its first step, the task would leave `work` behind unawaited.
        task.add_done_callback(lambda _: work.close())
        return task


def _first_dialable(addresses: Iterable[Multiaddr]) -> Multiaddr | None:
    return next((a for a in addresses if not a.is_circuit and a.transport is not None), None)


def _direct(addresses: Iterable[Multiaddr]) -> frozenset[Multiaddr]:
    return frozenset(address for address in addresses if not address.is_circuit)
