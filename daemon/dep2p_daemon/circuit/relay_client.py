"""The relays through which peers reach us: reservations made, kept and made again.

https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#reservation

Each relay has one task, its keeper, from `add` or `connect` to `disconnect`. What it does when
is `keeper.Keeper`'s table; here are the connection, the exchange and the telling.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final, Self

import structlog

from dep2p_daemon.circuit.addresses import circuit_addresses, ways_to_relay
from dep2p_daemon.circuit.events import RelayChanged, RelaySource, RelayState, RelayStatus
from dep2p_daemon.circuit.hop import Granted, reach_relay, reserve
from dep2p_daemon.circuit.keeper import Keeper, KeeperSettings
from dep2p_daemon.circuit.kept_relay import KeptRelay
from dep2p_daemon.errors import (
    Dep2pError,
    InvalidArgumentError,
    LocalError,
    MultiaddrError,
    NotFoundError,
    PreconditionError,
    ResourceLimitError,
)
from dep2p_daemon.multiaddr import parse_relay_address
from dep2p_daemon.swarm.dialing import DialPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

    from dep2p_daemon.circuit.transport import CircuitTransport
    from dep2p_daemon.events import EventBus
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.muxed import Connection
    from dep2p_daemon.swarm.swarm import Swarm

log = structlog.get_logger(__name__)

DEFECT_PAUSE: Final = 60.0
"""Seconds a keeper rests after a defect in it; ours: a log line a minute is enough."""

_MAX_ADDRESSES: Final = 4
"""Addresses remembered for one relay; the ones given last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RelayClientSettings:
    """How relays are kept. Times in seconds."""

    keeper: KeeperSettings = field(default_factory=KeeperSettings)
    relay_timeout: float = 10.0
    """For the connection to a relay."""
    alone_timeout: float = 5.0
    """The same while no relay is held and nobody waits (go-libp2p's): QUIC's own pauses grow, and
    a fresh attempt finds a relay that has just started sooner."""
    reserve_timeout: float = 15.0
    """For a relay's answer to RESERVE."""
    max_relays: int = 16
    """Relays kept at a time; ours: two are enough for most."""


class RelayClient:
    """Keeps reservations. An async context manager that owns the keepers.

    `transport` is told which relays may bring circuits; without it none may, and the node only
    holds its reservations. Leaving ends the keepers; the reservations end with the connections,
    which are the swarm's.
    """

    def __init__(
        self,
        swarm: Swarm,
        events: EventBus,
        settings: RelayClientSettings | None = None,
        *,
        transport: CircuitTransport | None = None,
        random: Random | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._swarm = swarm
        self._events = events
        self._transport = transport
        self._settings = settings or RelayClientSettings()
        self._random = random or Random()
        self._wall_clock = wall_clock
        self._relays: dict[PeerId, KeptRelay] = {}
        self._told_addresses: tuple[Multiaddr, ...] = ()
        self._tasks = asyncio.TaskGroup()

    @property
    def relays(self) -> tuple[RelayStatus, ...]:
        """The relays, sorted by peer id."""
        return tuple(self._status(self._relays[peer]) for peer in sorted(self._relays))

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._swarm.observe(self)
        self._swarm.add_address_source(self.circuits_to)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for relay in self._relays.values():
            if relay.task is not None:
                relay.task.cancel()
            relay.fail_waiters(PreconditionError("the node is stopping", reason="STOPPING"))
        await self._tasks.__aexit__(None, None, None)

    def add(
        self, address: Multiaddr, *, source: RelaySource = RelaySource.CONFIGURED
    ) -> RelayStatus:
        """Keep a relay from now on, whether or not it can be reached yet.

        Raises:
            MultiaddrError, InvalidArgumentError: not a relay's address.
            ResourceLimitError: too many relays.
        """
        relay = self._wanted(address, source)
        relay.kept = True
        return self._status(relay)

    async def connect(self, address: Multiaddr) -> RelayStatus:
        """Return once the relay has granted a reservation, which is kept from then on.

        A relay that is new here and fails is forgotten; one that is kept already goes on being
        tried. Cancelling is failing.

        Raises:
            MultiaddrError, InvalidArgumentError: not a relay's address.
            UnreachableError: the relay cannot be reached, or did not answer.
            RelayRefusedError: the relay said no; `reason` is its status.
            PreconditionError: reason RELAY_NOT_SUPPORTED, the peer is no relay.
            ResourceLimitError: too many relays.
        """
        relay = self._wanted(address, RelaySource.REQUESTED)
        if relay.reserved is None:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            relay.waiters.append(waiter)
            relay.nudge.set()
            try:
                await waiter
            except BaseException:
                with suppress(ValueError):
                    relay.waiters.remove(waiter)
                if not relay.kept and not relay.waiters:
                    self._forget(relay)
                raise
        return self._status(relay)

    async def disconnect(self, peer: PeerId) -> None:
        """Give the reservation up and forget the relay.

        The protocol has no word for it: the connection is closed, and with it the circuits
        that this relay carries for us.

        Raises:
            NotFoundError: no such relay.
        """
        relay = self._relays.get(peer)
        if relay is None:
            raise NotFoundError(
                f"{peer} is not among this node's relays",
                reason="RELAY_NOT_FOUND",
                remedy="see `dep2pctl relay list`",
                relay=peer,
            )
        self._forget(relay)
        await self._swarm.disconnect(peer)

    def release(self, peer: PeerId) -> None:
        """Forget a relay and leave the connection to it open. Idempotent.

        The relay keeps our reservation until it ends, which does no harm.
        """
        relay = self._relays.get(peer)
        if relay is not None:
            self._forget(relay)

    def refresh(self, peer: PeerId) -> None:
        """Try now: to refresh the reservation over the newest connection, or to make it."""
        relay = self._relays.get(peer)
        if relay is not None:
            relay.nudge.set()

    def try_again(self) -> None:
        """Try the relays now that are waiting after a failure: another network may lead there."""
        for relay in self._relays.values():
            if relay.keeper.state is RelayState.BACKOFF:
                relay.nudge.set()

    def addresses_of(self, peer: PeerId) -> tuple[Multiaddr, ...]:
        """Return the addresses at which a relay of ours is dialled, without `/p2p`."""
        relay = self._relays.get(peer)
        return () if relay is None else tuple(relay.addresses)

    def circuits_to(self, peer: PeerId) -> tuple[Multiaddr, ...]:
        """Return the addresses under which `peer` is reached if it uses a relay that we use too.

        The swarm tries them for a peer that is dialled by its id alone. A relay at which we hold
        nothing now may hold a reservation of the peer all the same.
        """
        relays = [relay for relay in self._relays.values() if relay.peer != peer]
        relays.sort(key=lambda relay: relay.reserved is None)
        return tuple(
            relay.addresses[0].with_peer_id(relay.peer) / "/p2p-circuit" for relay in relays
        )

    # The swarm tells of connections (`SwarmObserver`).

    async def connection_opened(self, connection: Connection) -> None:
        """A keeper knows of the connections that it makes."""

    def connection_closed(self, connection: Connection) -> None:
        """Wake the keeper of a reservation that may have ended with the connection.

        One that is backing off sleeps on: a relay that hangs up must not make us try again.
        """
        relay = self._relays.get(connection.remote_peer)
        if relay is not None and relay.reserved is not None:
            relay.nudge.set()

    def node_changed(self) -> None:
        """Nothing here hangs on our own addresses or protocols."""

    def _wanted(self, address: Multiaddr, source: RelaySource) -> KeptRelay:
        address = parse_relay_address(str(address))
        peer = address.peer_id
        if peer is None or peer == self._swarm.local_peer:
            raise InvalidArgumentError(
                f"{address} is this node's own address",
                reason="RELAY_IS_SELF",
                remedy="give another node's address: a relay is a third machine",
                address=address,
            )
        reached = address.without_peer_id()
        if reached.peer_id is not None:
            raise MultiaddrError(
                f"{address} does not say where the relay is",
                remedy=f"write its whole address: /ip4/203.0.113.10/udp/4001/quic-v1{address}",
                address=address,
            )
        relay = self._relays.get(peer)
        if relay is not None:
            if reached in relay.addresses:
                relay.addresses.remove(reached)
            relay.addresses.insert(0, reached)
            del relay.addresses[_MAX_ADDRESSES:]
            relay.source = min(relay.source, source, key=list(RelaySource).index)
            if relay.reserved is not None:
                self._tell(relay)
            return relay
        if len(self._relays) >= self._settings.max_relays:
            raise ResourceLimitError(
                f"this node keeps {len(self._relays)} relays, which is all that max_relays allows",
                remedy="give one up with `dep2pctl relay disconnect`",
                limit="max_relays",
                allowed=self._settings.max_relays,
            )
        keeper = Keeper(self._settings.keeper, self._random)
        relay = self._relays[peer] = KeptRelay(peer, [reached], keeper, kept=False, source=source)
        if self._transport is not None:
            self._transport.accept_from(peer)
        self._tell(relay)
        relay.task = self._tasks.create_task(self._keep(relay), name=f"relay {peer}")
        return relay

    def _forget(self, relay: KeptRelay) -> None:
        if self._relays.get(relay.peer) is not relay:
            return
        del self._relays[relay.peer]
        if self._transport is not None:
            self._transport.refuse_from(relay.peer)
        if relay.task is not None:
            relay.task.cancel()
        relay.fail_waiters(
            LocalError(
                f"the relay {relay.peer} was given up meanwhile",
                reason="RELAY_GIVEN_UP",
                relay=relay.peer,
            )
        )
        relay.keeper.release()
        self._tell(relay)

    async def _keep(self, relay: KeptRelay) -> None:
        """The keeper's task: step after step until it is cancelled."""
        while True:
            try:
                await self._step(relay)
            except Exception:
                # A defect of this relay's keeper is not to end the others', nor the daemon.
                log.exception("relay keeper failed", relay=str(relay.peer))
                await asyncio.sleep(DEFECT_PAUSE)

    async def _step(self, relay: KeptRelay) -> None:
        """Attempt, or wait for what comes next."""
        keeper = relay.keeper
        if keeper.next_try_at is None:
            await self._attempt(relay)
            return
        if not self._lost(relay):
            with suppress(TimeoutError):
                async with asyncio.timeout_at(keeper.deadline()):
                    await relay.nudge.wait()
        if self._lost(relay):
            keeper.lost(self._now(relay))
            self._tell(relay)
            self._wake_others()
        else:
            keeper.due(self._now(relay))
            if keeper.state is RelayState.CONNECTING:
                self._tell(relay)

    def _now(self, relay: KeptRelay) -> float:
        """Return the loop's time for the keeper, and note what it is in Unix time."""
        now = asyncio.get_running_loop().time()
        relay.to_unix = self._wall_clock() - now
        return now

    def _lost(self, relay: KeptRelay) -> bool:
        """Whether the reservation went with the last direct connection to the relay."""
        return (
            relay.reserved is not None
            and self._swarm.best_connection(relay.peer, DialPolicy.DIRECT) is None
        )

    @property
    def _alone(self) -> bool:
        """Whether no reservation is held: nobody behind a relay can reach us."""
        return all(relay.reserved is None for relay in self._relays.values())

    def _wake_others(self) -> None:
        """The last reservation is gone: relays that were silent are asked again now."""
        if not self._alone:
            return
        for relay in self._relays.values():
            if relay.keeper.state is RelayState.BACKOFF and relay.silent:
                relay.nudge.set()

    async def _attempt(self, relay: KeptRelay) -> None:
        """Reserve or refresh once, and tell all who wait for it how it went."""
        settings = self._settings
        patient = relay.waiters or not self._alone
        try:
            connection = await reach_relay(
                self._swarm,
                relay.peer,
                ways_to_relay(relay.addresses),
                settings.relay_timeout if patient else settings.alone_timeout,
            )
            now = self._wall_clock()
            granted = await reserve(
                self._swarm, connection, timeout=settings.reserve_timeout, now=now
            )
        except Dep2pError as error:
            self._failed(relay, error)
        except Exception:
            # The keeper is this relay's supervisor: a defect must not end it in silence.
            log.exception("relay attempt failed", relay=str(relay.peer))
            self._failed(
                relay,
                LocalError("an internal error; the daemon's log has it", relay=relay.peer),
            )
        else:
            self._granted(relay, connection, granted, granted.expires_at - now)

    def _granted(
        self, relay: KeptRelay, connection: Connection, granted: Granted, time_to_live: float
    ) -> None:
        fresh = relay.keeper.state is not RelayState.RESERVED
        relay.kept = True
        relay.connection = connection
        relay.granted = granted
        relay.error = relay.logged = None
        relay.keeper.granted(time_to_live, self._now(relay))
        log.log(
            logging.INFO if fresh else logging.DEBUG,
            "reservation made" if fresh else "reservation refreshed",
            relay=str(relay.peer),
            seconds=round(time_to_live),
        )
        self._tell(relay)
        for waiter in relay.take_waiters():
            waiter.set_result(None)

    def _failed(self, relay: KeptRelay, error: Dep2pError) -> None:
        relay.error = error
        relay.keeper.failed(self._now(relay), alone=self._alone and relay.silent)
        loud = relay.is_news(error, asyncio.get_running_loop().time())
        log.log(
            logging.WARNING if loud else logging.DEBUG,
            "reservation failed",
            relay=str(relay.peer),
            reason=error.reason,
            error=str(error),
            state=relay.keeper.state.value,
        )
        self._tell(relay)
        relay.fail_waiters(error)

    def _tell(self, relay: KeptRelay) -> None:
        """Publish the relay's status, and the addresses of all relays where they changed."""
        self._events.publish(RelayChanged(self._status(relay)))
        addresses = tuple(
            address for other in self._relays.values() for address in self._addresses(other)
        )
        if addresses != self._told_addresses:
            self._told_addresses = addresses
            self._swarm.set_circuit_addresses(addresses)

    def _addresses(self, relay: KeptRelay) -> tuple[Multiaddr, ...]:
        granted = relay.reserved
        if granted is None:
            return ()
        return circuit_addresses(relay.addresses, granted.addresses, relay=relay.peer)

    def _status(self, relay: KeptRelay) -> RelayStatus:
        keeper = relay.keeper
        to_unix = relay.to_unix
        granted = relay.reserved
        own = self._swarm.local_peer
        return RelayStatus(
            peer_id=relay.peer,
            address=relay.addresses[0],
            state=keeper.state,
            expires_at=None if keeper.expires_at is None else keeper.expires_at + to_unix,
            circuit_addresses=tuple(a.with_peer_id(own) for a in self._addresses(relay)),
            limits=granted.limits if granted is not None else None,
            last_error=str(relay.error) if relay.error is not None else "",
            last_error_reason=relay.error.reason if relay.error is not None else "",
            next_try_at=None if keeper.next_try_at is None else keeper.next_try_at + to_unix,
            rtt=relay.connection.rtt if relay.connection is not None else None,
            source=relay.source,
            remote_address=(
                relay.connection.remote_address
                if granted is not None and relay.connection is not None
                else None
            ),
        )
