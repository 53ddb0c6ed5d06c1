"""Holds the wanted number of reservations: finds relays, compares them, notices when they die.

`relay_client` keeps each relay that it is given; this decides which it is given beside those that
the user named (`relay_choice`), and looks after all of them:

  1. A connected peer whose identify lists the hop protocol is a candidate; bootstrap peers too.
  2. Round trips of held relays and candidates are measured with ping. A held relay that does not
     answer gets a second connection before the first is given up.
  3. When the network changed, or the machine's own addresses did, all held relays are looked at at
     once, with less patience, and those that failed are tried again.
  4. A relay that is held over TCP though it has a QUIC address is tried over QUIC now and then:
     a network that dropped UDP may have been left.
  5. Relays that were known before the last restart are candidates, if the peerstore has them.
"""

from __future__ import annotations

import asyncio
import enum
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, Self

import structlog

from dep2p_daemon.circuit.addresses import ways_to_relay
from dep2p_daemon.circuit.events import (
    RelayChanged,
    RelayHostStatus,
    RelaySource,
    RelayState,
    RelayStatus,
)
from dep2p_daemon.circuit.messages import HOP_PROTOCOL
from dep2p_daemon.circuit.relay_choice import ChoiceSettings, Held, RelayChoice
from dep2p_daemon.circuit.relay_host import RelayHost, RelayPins
from dep2p_daemon.circuit.relay_search import RelaySearch
from dep2p_daemon.errors import AuthenticationError, Dep2pError, NotFoundError
from dep2p_daemon.muxed import Direction
from dep2p_daemon.protocols import ping
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
    interval: float = 2.0
    """Between two looks at what is held."""
    check_interval: float = 10.0
    """Between two pings of a held relay; ours: a dead way is noticed within 15 s."""
    check_timeout: float = 4.0
    """For a held relay's answer."""
    hurried_timeout: float = 2.0
    """The same right after a change of network; four round trips where they are longer."""
    hurry: float = 10.0
    """How long a change counts as right before."""
    candidate_interval: float = 300.0
    """Between two pings of a relay that is not held."""
    renew_timeout: float = 5.0
    """For a new connection to a relay that did not answer, or over QUIC."""
    udp_interval: float = 30.0
    """Between two tries over QUIC of a relay that is held over TCP, up to a fifth more or less."""
    remembered: float = 7 * 24 * 3600.0
    """A relay's address is kept in the peerstore so long after a reservation there."""
    linger: float = 600.0
    """A replaced connection is closed once it carries nothing, or after this time."""


class _Again(enum.Enum):
    """What came of another connection to a relay."""

    CONNECTED = "connected"
    REFUSED = "refused"
    """Its machine says that nobody listens, or somebody else does: the old connection has no other
    end any more."""
    SILENT = "silent"


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
        self._checked_at: dict[PeerId, float] = {}
        self._answered_at: dict[PeerId, float] = {}
        self._udp_at: dict[PeerId, float] = {}
        self._changed_at = float("-inf")
        """The last change of network."""
        self._busy: set[tuple[str, PeerId]] = set()
        self._wake = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        self._background: set[asyncio.Task[None]] = set()

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
        return peer

    def look(self) -> None:
        """Check every held relay now: something about the network changed."""
        self._changed_at = asyncio.get_running_loop().time()
        self._checked_at.clear()
        self._udp_at.clear()
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
            self._check_all(loop.time())
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

    def _check_all(self, now: float) -> None:
        """Start the checks that are due: pings, and tries over QUIC."""
        settings = self._settings
        kept = {status.peer_id: status for status in self._client.relays}
        known = kept.keys() | self._choice.candidates.keys()
        for times in (self._checked_at, self._answered_at, self._udp_at):
            for peer in times.keys() - known:
                del times[peer]
        for peer, status in kept.items():
            if status.state is not RelayState.RESERVED:
                continue
            if (
                self._checked_at.get(peer, -settings.check_interval)
                <= now - settings.check_interval
            ):
                self._checked_at[peer] = now
                self._start("check", peer, self._check(peer))
            if self._udp_at.setdefault(peer, self._next_udp(now)) <= now:
                self._udp_at[peer] = self._next_udp(now)
                if (address := self._missing_quic(status)) is not None:
                    self._start("quic", peer, self._try_quic(peer, address))
        for peer in self._choice.candidates.keys() - kept.keys():
            last = self._checked_at.get(peer)
            if last is None or last <= now - settings.candidate_interval:
                self._checked_at[peer] = now
                self._start("check", peer, self._measure_candidate(peer))

    def _next_udp(self, now: float) -> float:
        return now + self._settings.udp_interval * self._random.uniform(0.8, 1.2)

    # --------------------------------------------------------------- one relay

    async def _measure_candidate(self, peer: PeerId) -> None:
        connection = self._swarm.best_connection(peer, DialPolicy.DIRECT)
        rtt = None if connection is None else await self._ping(connection)
        if rtt is not None:
            self._choice.measured(peer, rtt, asyncio.get_running_loop().time())
            self._wake.set()

    async def _check(self, peer: PeerId) -> None:
        """Ping a held relay; when it is silent, connect anew and then give the old way up."""
        connection = self._swarm.best_connection(peer, DialPolicy.DIRECT)
        if connection is None or connection.is_closed:
            self._client.refresh(peer)
            return
        began = asyncio.get_running_loop().time()
        rtt = await self._ping(connection)
        if rtt is not None:
            now = asyncio.get_running_loop().time()
            self._choice.measured(peer, rtt, now)
            self._answered_at[peer] = now
            if self._changed_at > began:
                self._checked_at.pop(peer, None)  # what answered was the network of before
                self._wake.set()
            return
        if connection.is_closed:
            return  # its keeper knows
        log.info("a relay does not answer", relay=str(peer), connection=connection.id)
        self._checked_at.pop(peer, None)
        came = await self._connect_again(peer, ways_to_relay(self._client.addresses_of(peer)))
        # While nobody answers at all the network is away, and what runs may outlive that.
        if came in (_Again.CONNECTED, _Again.REFUSED) or self._network_works(apart_from=peer):
            await connection.close()

    def _network_works(self, *, apart_from: PeerId) -> bool:
        """Whether another relay has answered since this one fell silent, more or less."""
        settings = self._settings
        since = asyncio.get_running_loop().time() - (
            settings.check_interval + settings.check_timeout
        )
        return any(
            answered >= since for peer, answered in self._answered_at.items() if peer != apart_from
        )

    def _missing_quic(self, status: RelayStatus) -> Multiaddr | None:
        """The QUIC address of a relay that is held over something else."""
        direct = [c for c in self._swarm.connections(status.peer_id) if not c.relayed]
        if any(c.remote_address.transport == "quic-v1" for c in direct):
            return None
        known = (
            *self._client.addresses_of(status.peer_id),
            *self._swarm.peerstore.addresses(status.peer_id),
        )
        return next((a for a in known if a.transport == "quic-v1" and not a.is_circuit), None)

    async def _try_quic(self, peer: PeerId, address: Multiaddr) -> None:
        old = [c for c in self._swarm.connections(peer) if not c.relayed]
        if await self._connect_again(peer, (address,)) is _Again.CONNECTED:
            log.info("UDP works again", relay=str(peer), address=str(address))
            for connection in old:
                self._spawn(self._retire(connection), f"retire {connection.id}")

    async def _connect_again(self, peer: PeerId, addresses: Sequence[Multiaddr]) -> _Again:
        """Make another connection to a relay and have the reservation refreshed over it."""
        try:
            async with asyncio.timeout(self._settings.renew_timeout):
                await self._swarm.dial(peer, addresses, policy=DialPolicy.DIRECT, force_new=True)
        except (Dep2pError, TimeoutError) as error:
            log.debug("relay: no new connection", relay=str(peer), error=str(error))
            reasons = error.metadata.get("reasons") if isinstance(error, Dep2pError) else None
            gone = reasons == "CONNECTION_REFUSED" or isinstance(error, AuthenticationError)
            return _Again.REFUSED if gone else _Again.SILENT
        self._client.refresh(peer)
        return _Again.CONNECTED

    async def _retire(self, connection: Connection) -> None:
        """Close a replaced connection once nothing runs over it."""
        ends = asyncio.get_running_loop().time() + self._settings.linger
        while not connection.is_closed:
            await asyncio.sleep(self._settings.interval)
            if not connection.streams or asyncio.get_running_loop().time() >= ends:
                await connection.close()

    async def _ping(self, connection: Connection) -> float | None:
        """Return the round trip in seconds; None when there was no answer in time."""
        settings = self._settings
        timeout = settings.check_timeout
        if asyncio.get_running_loop().time() - self._changed_at < settings.hurry:
            timeout = min(timeout, max(settings.hurried_timeout, 4 * (connection.rtt or 0.0)))
        try:
            async with (
                asyncio.timeout(timeout),
                aclosing(ping.ping(self._swarm, connection)) as round_trips,
            ):
                async for rtt in round_trips:
                    return rtt
        except (Dep2pError, TimeoutError):
            return None
        return None

    # ------------------------------------------------------------------- tasks

    def _start(self, what: str, peer: PeerId, work: Coroutine[Any, Any, None]) -> None:
        """Run one check of a kind per relay at a time."""
        key = (what, peer)
        if key in self._busy:
            work.close()
            return
        self._busy.add(key)
        self._spawn(work, f"{what} {peer}").add_done_callback(lambda _: self._busy.discard(key))

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
