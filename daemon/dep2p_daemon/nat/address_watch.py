"""Feeds `ObservedAddresses` from identify, and tells the swarm what is confirmed.

Identify is asked again before a punch (`refresh`): a NAT may have been restarted meanwhile, and a
QUIC connection to a relay lives on without anybody telling us our new address.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

import structlog

from dep2p_daemon.errors import Dep2pError
from dep2p_daemon.nat.candidates import is_public
from dep2p_daemon.nat.nat_kind import NatKind, own_kind
from dep2p_daemon.nat.observed import MappingBehaviour, ObservedAddresses, ObservedSettings
from dep2p_daemon.swarm.dialing import DialPolicy
from dep2p_daemon.swarm.events import AddressesChanged, NetworkChanged, PeerIdentified
from dep2p_daemon.swarm.interfaces import interface_addresses

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.muxed import Connection
    from dep2p_daemon.protocols.identify import Identify
    from dep2p_daemon.swarm.swarm import Swarm

_log = structlog.get_logger(__name__)

MAX_OFFERED: Final = 16
"""Own addresses in one DCUtR message; the peer punches half of them at most."""
MAX_OBSERVED_SYMMETRIC: Final = 2
"""Of a mapping that differs by destination: the others are no better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AddressWatchSettings:
    """Times in seconds."""

    observed: ObservedSettings = field(default_factory=ObservedSettings)
    max_refreshed: int = 3
    """Observers that are asked again at a time."""
    refresh_timeout: float = 1.5
    """For their answers."""
    refresh_interval: float = 5.0
    """Answers younger than this are fresh enough."""
    tcp_timeout: float = 4.0
    """For the TCP connection to a relay that shows our TCP address ..."""
    tcp_hold: float = 20.0
    """... which is then held for so long, lest the NAT forgets it during the punch."""
    expiry_interval: float = 60.0
    """Between two looks for observations that have run out."""


class AddressWatch:
    """Knows our public addresses. An async context manager that owns its task."""

    def __init__(
        self,
        swarm: Swarm,
        identify: Identify,
        settings: AddressWatchSettings | None = None,
        *,
        is_public: Callable[[Multiaddr], bool] = is_public,
    ) -> None:
        """`is_public` is a parameter because tests run on one machine."""
        self._swarm = swarm
        self._identify = identify
        self._settings = settings or AddressWatchSettings()
        self._is_public = is_public
        self._now = asyncio.get_running_loop().time
        self._refreshed_at = -self._settings.refresh_interval
        self._learning_tcp = False
        self._learning_mapping = False
        self._tasks = asyncio.TaskGroup()
        self._work: list[asyncio.Task[None]] = []
        self.observed = ObservedAddresses(self._settings.observed, is_public=is_public)

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._work = [
            self._tasks.create_task(self._follow_events()),
            self._tasks.create_task(self._expire()),
        ]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in self._work:
            task.cancel()
        await self._tasks.__aexit__(None, None, None)

    def candidates(self) -> tuple[Multiaddr, ...]:
        """Our addresses to offer for a punch, the best first; one observer's word is enough."""
        now = self._now()
        observed = [one.address for one in self.observed.candidates(now)]
        if self.mapping("quic-v1") is MappingBehaviour.ADDRESS_DEPENDENT:
            observed = observed[:MAX_OBSERVED_SYMMETRIC]
        own = [
            address
            for address in self._swarm.own_addresses
            if not address.is_circuit
            and address.transport in ("quic-v1", "tcp")
            and self._is_public(address)
        ]
        confirmed = self.observed.confirmed(now)
        first = [address for address in own if address not in confirmed]
        return tuple(dict.fromkeys([*first[: MAX_OFFERED // 2], *observed, *own]))[:MAX_OFFERED]

    def candidates_to_confirm(self) -> tuple[Multiaddr, ...]:
        """Our candidates, but for those that nothing but a confirmation of the past speaks for."""
        observed = {one.address for one in self.observed.candidates(self._now())}
        return tuple(
            address
            for address in self.candidates()
            if address in observed or self._swarm.vouched_without_confirmation(address)
        )

    def mapping(self, transport: str) -> MappingBehaviour:
        """What observers tell of our NAT's mapping, for "quic-v1" or "tcp"."""
        return self.observed.mapping(transport, self._now())

    def nat_kind(self) -> NatKind:
        """What stands between us and the others, in one word."""
        interfaces = {interface.ip for interface in interface_addresses()}
        return own_kind(self.candidates(), self.mapping("quic-v1"), interfaces)

    async def refresh(self, *, apart_from: object = None) -> None:
        """Ask some observers again how they see us; returns when they answered, or too late.

        `apart_from` is a peer that is not asked.
        """
        now = self._now()
        if now - self._refreshed_at < self._settings.refresh_interval:
            return
        self._refreshed_at = now
        observers: dict[object, Connection] = {}
        for connection in self._swarm.connections():
            if (
                not connection.relayed
                and connection.remote_peer != apart_from
                and self._is_public(connection.remote_address)
            ):
                observers.setdefault(connection.remote_peer, connection)
        asked = list(observers.values())[: self._settings.max_refreshed]
        await asyncio.gather(*(self._ask(connection) for connection in asked))
        await asyncio.sleep(0)  # our own task takes the events now

    def learn_tcp(self) -> None:
        """Have an observer see our TCP port too, where all are connected over QUIC only.

        Called for a peer that has no UDP; the address is among the candidates a moment later.
        """
        if self._learning_tcp or self._knows_tcp():
            return
        for connection in self._swarm.connections():
            addresses = [
                address
                for address in self._swarm.peerstore.addresses(connection.remote_peer)
                if address.transport == "tcp" and self._is_public(address)
            ]
            if addresses and not connection.relayed and self._is_public(connection.remote_address):
                self._learning_tcp = True
                showing = self._show_tcp(connection.remote_peer, addresses)
                self._spawn(showing)
                return

    def learn_mapping(self) -> None:
        """Have a second observer, where there is but one: an observer's own other IP address.

        Called when a punch is ahead; whether our NAT is symmetric is known a moment later.
        """
        if self._learning_mapping or self.mapping("quic-v1") is not MappingBehaviour.UNKNOWN:
            return
        for connection in self._swarm.connections():
            seen_from = connection.remote_address
            if connection.relayed or seen_from.transport != "quic-v1":
                continue
            others = [
                address
                for address in self._swarm.peerstore.addresses(connection.remote_peer)
                if address.transport == "quic-v1"
                and address.ip is not None
                and address.ip.version == 4
                and address.ip != seen_from.ip
                and self._is_public(address)
                and self._is_public(seen_from)
            ]
            if others:
                self._learning_mapping = True
                self._spawn(self._show(connection.remote_peer, others[:1]))
                return

    async def wait_tcp(self) -> None:
        """`learn_tcp`, and return when that address is known, or does not come in time."""
        self.learn_tcp()
        with self._swarm.events.subscribe() as events, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.refresh_timeout):
                while self._learning_tcp and not self._knows_tcp():
                    await events.next()
                    await asyncio.sleep(0)  # our own task takes the event now

    def _knows_tcp(self) -> bool:
        candidates = self.observed.candidates(self._now())
        return any(one.address.transport == "tcp" for one in candidates)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = [task for task in self._work if not task.done()]
        self._work.append(self._tasks.create_task(work))

    async def _show_tcp(self, peer: PeerId, addresses: Sequence[Multiaddr]) -> None:
        try:
            await self._connect_for(self._settings.tcp_hold, peer, addresses)
        finally:
            self._learning_tcp = False

    async def _show(self, peer: PeerId, addresses: Sequence[Multiaddr]) -> None:
        try:
            await self._connect_for(self._settings.refresh_timeout, peer, addresses)
        finally:
            self._learning_mapping = False

    async def _connect_for(
        self, seconds: float, peer: PeerId, addresses: Sequence[Multiaddr]
    ) -> None:
        """Identify tells what the peer sees there."""
        try:
            connection = await self._swarm.dial(
                peer,
                addresses,
                policy=DialPolicy.DIRECT,
                force_new=True,
                timeout=self._settings.tcp_timeout,
            )
            await asyncio.sleep(seconds)
            # A relay may have sent us a circuit over it meanwhile.
            self._swarm.retire(connection)
        except Dep2pError as error:
            _log.debug("no further observer", peer=str(peer), error=error.message)

    async def _ask(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(self._settings.refresh_timeout):
                await self._identify.refresh(connection)
        except (Dep2pError, TimeoutError) as error:
            _log.debug(
                "an observer did not answer",
                peer=str(connection.remote_peer),
                error=str(error),
            )

    async def _follow_events(self) -> None:
        with self._swarm.events.subscribe() as events:
            self.observed.set_listening(self._swarm.listen_addresses)
            while True:
                event = await events.next()
                if isinstance(event, AddressesChanged):
                    self.observed.set_listening(self._swarm.listen_addresses)
                elif isinstance(event, PeerIdentified):
                    self._take(event)
                elif isinstance(event, NetworkChanged):
                    self._begin_anew()

    def _begin_anew(self) -> None:
        """The network changed: how we looked from outside is void, and observers are asked anew."""
        self.observed.forget_all()
        self._refreshed_at = -self._settings.refresh_interval
        self._tell_swarm()
        self._spawn(self.refresh())

    def _take(self, event: PeerIdentified) -> None:
        connection, observed = event.connection, event.observed_address
        if observed is None or connection.relayed:
            return
        taken = self.observed.observe(
            local=connection.local_address,
            remote=connection.remote_address,
            observed=observed,
            now=self._now(),
        )
        if taken:
            _log.debug(
                "observed address",
                peer=str(connection.remote_peer),
                local=str(connection.local_address),
                observed=str(observed),
            )
            self._tell_swarm()

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(self._settings.expiry_interval)
            self._tell_swarm()

    def _tell_swarm(self) -> None:
        self._swarm.set_observed(self.observed.confirmed(self._now()))
