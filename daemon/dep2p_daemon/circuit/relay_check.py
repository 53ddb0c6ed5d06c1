"""Looks after the relays that are held, and measures those that could be: pings and second tries.

A held relay that does not answer gets a second connection before the first is given up. One that
is held over TCP though it has a QUIC address is tried over QUIC now and then.
"""

from __future__ import annotations

import asyncio
import enum
import math
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog

from dep2p_daemon.circuit.addresses import ways_to_relay
from dep2p_daemon.circuit.events import RelayState, RelayStatus
from dep2p_daemon.errors import AuthenticationError, Dep2pError, ProtocolNotSupportedError
from dep2p_daemon.protocols import ping
from dep2p_daemon.swarm.dialing import DialPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from random import Random

    from dep2p_daemon.circuit.relay_choice import RelayChoice
    from dep2p_daemon.circuit.relay_client import RelayClient
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.muxed import Connection
    from dep2p_daemon.swarm.swarm import Swarm

    Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]

log = structlog.get_logger(__name__)

RETIRE_INTERVAL: Final = 2.0
"""Seconds between two looks whether a replaced connection still carries something."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckSettings:
    """How relays are looked after. Times in seconds."""

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
    linger: float = 600.0
    """A replaced connection is closed once it carries nothing, or after this time."""


class _Again(enum.Enum):
    """What came of another connection to a relay."""

    CONNECTED = "connected"
    REFUSED = "refused"
    """Its machine says that nobody listens, or somebody else does: the old connection has no other
    end any more."""
    SILENT = "silent"


class RelayChecks:
    """The checks of a `RelaySupervisor`, in its tasks."""

    def __init__(
        self,
        client: RelayClient,
        swarm: Swarm,
        choice: RelayChoice,
        settings: CheckSettings,
        *,
        random: Random,
        spawn: Spawn,
        on_news: Callable[[], None],
    ) -> None:
        """Prepare.

        Args:
            client: its relays are checked.
            swarm: has the connections.
            choice: its candidates are measured; it is told the round trips.
            settings: how often, how long.
            random: for the pauses.
            spawn: runs a check, under a name.
            on_news: called when something was found out.
        """
        self._client = client
        self._swarm = swarm
        self._choice = choice
        self._settings = settings
        self._random = random
        self._spawn = spawn
        self._on_news = on_news
        self._checked_at: dict[PeerId, float] = {}
        self._answered_at: dict[PeerId, float] = {}
        self._udp_at: dict[PeerId, float] = {}
        self._changed_at = float("-inf")
        """The last change of network."""
        self._busy: set[tuple[str, PeerId]] = set()

    def hurry(self) -> None:
        """The network changed: all checks are due, with less patience for a while."""
        self._changed_at = asyncio.get_running_loop().time()
        self._checked_at.clear()
        self._udp_at.clear()

    def start_due(self, now: float) -> None:
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
            self._on_news()

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
                self._on_news()
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
            await asyncio.sleep(RETIRE_INTERVAL)
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
        except ProtocolNotSupportedError:
            return math.inf if connection.rtt is None else connection.rtt  # an answer, too
        except (Dep2pError, TimeoutError):
            return None
        return None

    def _start(self, what: str, peer: PeerId, work: Coroutine[Any, Any, None]) -> None:
        """Run one check of a kind per relay at a time."""
        key = (what, peer)
        if key in self._busy:
            work.close()
            return
        self._busy.add(key)
        self._spawn(work, f"{what} {peer}").add_done_callback(lambda _: self._busy.discard(key))
