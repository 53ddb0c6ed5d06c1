"""Keeps asking connected AutoNAT servers whether our addresses are public, and tells the result.

v2 servers first; those that speak v1 only while no other server is connected. Servers that our
listening sockets of the transport in question have not sent to are preferred: only their dials
show what a stranger would meet.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

import structlog

from dep2p_daemon.nat.autonat1 import Autonat1Client
from dep2p_daemon.nat.autonat1_message import PROTOCOL as AUTONAT1
from dep2p_daemon.nat.autonat2_client import AutonatClient, AutonatClientSettings
from dep2p_daemon.nat.autonat2_message import DIAL_REQUEST_PROTOCOL as AUTONAT2
from dep2p_daemon.nat.candidates import is_public
from dep2p_daemon.nat.contacts import Contacts
from dep2p_daemon.nat.reachability import (
    AddressReachability,
    Outcome,
    Reachability,
    ReachabilityChanged,
    ReachabilitySettings,
    Verdict,
    overall,
)
from dep2p_daemon.swarm.events import (
    AddressesChanged,
    ConnectionClosed,
    NetworkChanged,
    PeerIdentified,
)
from dep2p_daemon.swarm.interfaces import interface_addresses

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.muxed import Connection
    from dep2p_daemon.nat.autonat2_client import DialBackSeen
    from dep2p_daemon.swarm.swarm import Swarm

_log = structlog.get_logger(__name__)

MAX_AT_ONCE: Final = 4
"""Servers that are asked in one round, each about one address."""
MAX_SILENT: Final = 1024
"""Servers of AutoNAT v1 that gave no answer and are not asked again in this run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReachabilityWatchSettings:
    """Times in seconds."""

    reachability: ReachabilitySettings = field(default_factory=ReachabilitySettings)
    client: AutonatClientSettings = field(default_factory=AutonatClientSettings)
    settle: float = 2.0
    """Between a change (a new server, a new address) and the questions about it."""
    interval: float = 30.0
    """Between two looks for questions that are due."""


class ReachabilityWatch:
    """Knows which of our addresses are public. An async context manager that owns its task."""

    def __init__(
        self,
        swarm: Swarm,
        candidates: Callable[[], Sequence[Multiaddr]],
        settings: ReachabilityWatchSettings | None = None,
        *,
        is_public: Callable[[Multiaddr], bool] = is_public,
    ) -> None:
        """`candidates` tells the addresses to judge, the best first."""
        self._swarm = swarm
        self._candidates = candidates
        self._settings = settings or ReachabilityWatchSettings()
        self._is_public = is_public
        self._now = asyncio.get_running_loop().time
        self._contacts = Contacts()
        self._client = AutonatClient(swarm, self._settings.client, is_stranger=self._is_stranger)
        self._client1 = Autonat1Client(swarm)
        self._votes = Reachability(self._settings.reachability)
        self._told: tuple[AddressReachability, ...] = ()
        self._silent: set[PeerId] = set()
        self._nudge = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        self._work: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._client.register()
        self._swarm.observe(self)
        await self._tasks.__aenter__()
        self._work = [
            self._tasks.create_task(self._follow_events()),
            self._tasks.create_task(self._ask_on()),
        ]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in self._work:
            task.cancel()
        await self._tasks.__aexit__(None, None, None)

    # ------------------------------------------------------------- what is known

    @property
    def verdict(self) -> Verdict:
        """Whether strangers reach this node at one address or more."""
        return overall(self.addresses)

    @property
    def addresses(self) -> tuple[AddressReachability, ...]:
        """The verdicts on the addresses."""
        return self._votes.all(self._now())

    def outcomes(self, address: Multiaddr) -> tuple[Outcome, ...]:
        """The votes on one address."""
        return self._votes.outcomes(address, self._now())

    def look_again(self) -> None:
        """Judge the addresses that this node has now, from now on."""
        self._votes.retain(self._candidates())

    def forget_all(self) -> None:
        """The network changed: ask anew."""
        self._votes.forget_all()
        self._nudge.set()
        self._tell()

    async def ask(
        self, server: Connection, address: Multiaddr
    ) -> tuple[Outcome, DialBackSeen | None]:
        """Have one v2 server dial one address now; the vote counts."""
        outcome, seen = await self._client.ask(server, address)
        if outcome is Outcome.HINT and self._is_on_interface(address):
            outcome = Outcome.PROOF  # no NAT is in the way, and firewalls filter by port too
        self._votes.record(address, server.remote_peer, outcome, self._now())
        self._tell()
        return outcome, seen

    def servers(self, protocol: str = AUTONAT2) -> tuple[Connection, ...]:
        """Direct connections with peers that dial back, one for each peer, the oldest."""
        found: dict[PeerId, Connection] = {}
        for connection in self._swarm.connections():
            peer = connection.remote_peer
            if (
                not connection.relayed
                and self._is_public(connection.remote_address)
                and protocol in self._swarm.peerstore.protocols(peer)
            ):
                found.setdefault(peer, connection)
        return tuple(found.values())

    # ----------------------------------------------------------- the swarm tells

    async def connection_opened(self, connection: Connection) -> None:
        """Whoever we are connected with is no stranger to our NAT."""
        # Later: a dial-back shows its nonce at once, and is judged by what was before it.
        await asyncio.sleep(self._settings.client.dial_back_timeout)
        self._contacts.note(connection.remote_address, self._now())

    def connection_closed(self, connection: Connection) -> None:
        """Nor for a while after."""
        self._contacts.note(connection.remote_address, self._now())

    def node_changed(self) -> None:
        """Our addresses or protocols changed; the event bus tells which."""

    # -------------------------------------------------------------------- asking

    async def _follow_events(self) -> None:
        with self._swarm.events.subscribe() as events:
            while True:
                event = await events.next()
                if isinstance(event, AddressesChanged | PeerIdentified | ConnectionClosed):
                    self._nudge.set()
                elif isinstance(event, NetworkChanged):
                    self.forget_all()

    async def _ask_on(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.interval):
                    await self._nudge.wait()
            await asyncio.sleep(self._settings.settle)
            self._nudge.clear()
            self._votes.retain(self._candidates())
            await asyncio.gather(*(self._vote(*question) for question in self._questions()))
            self._tell()

    def _questions(self) -> list[tuple[Connection, Multiaddr, bool]]:
        """Server, address and whether by v2; each server at most once in a round."""
        now = self._now()
        servers = [(server, True) for server in self.servers()]
        if not servers:
            servers = [
                (server, False)
                for server in self.servers(AUTONAT1)
                if server.remote_peer not in self._silent
            ]
        questions: list[tuple[Connection, Multiaddr, bool]] = []
        for address in (one.address for one in self._votes.all(now)):
            servers.sort(key=lambda one: one[0].remote_address.transport == address.transport)
            for pair in servers:
                server, v2 = pair
                if self._votes.due(address, server.remote_peer, now):
                    questions.append((server, address, v2))
                    servers.remove(pair)
                    self._nudge.set()  # there may be more to ask after this round
                    break
        return questions[:MAX_AT_ONCE]

    async def _vote(self, server: Connection, address: Multiaddr, v2: bool) -> None:
        if v2:
            outcome, _ = await self.ask(server, address)
        else:
            outcome = await self._client1.ask(server, address)
            if outcome is Outcome.NOTHING and len(self._silent) < MAX_SILENT:
                # js-libp2p's server takes the connection that is there for a new one, and closes
                # it before it has answered: asking again would cost the connection again.
                self._silent.add(server.remote_peer)
            self._votes.record(address, server.remote_peer, outcome, self._now())
        _log.debug(
            "autonat: vote",
            server=str(server.remote_peer),
            address=str(address),
            outcome=outcome.value,
        )

    def _tell(self) -> None:
        now = self._now()
        addresses = self._votes.all(now)
        if _verdicts(addresses) == _verdicts(self._told):
            return
        self._told = addresses
        verdict = overall(addresses)
        _log.info(
            "reachability changed",
            reachability=verdict.value.lower(),
            public=[str(address) for address in self._votes.public(now)],
        )
        self._swarm.set_confirmed(self._votes.public(now))
        self._swarm.events.publish(ReachabilityChanged(verdict, addresses))

    def _is_stranger(self, connection: Connection) -> bool:
        now = self._now()
        remote = connection.remote_address
        return not self._contacts.knows(remote, now) and not any(
            other is not connection
            and other.remote_address.ip == remote.ip
            and other.remote_address.transport == remote.transport
            and not other.relayed
            for other in self._swarm.connections()
        )

    def _is_on_interface(self, address: Multiaddr) -> bool:
        return any(interface.ip == address.ip for interface in interface_addresses())


def _verdicts(
    addresses: tuple[AddressReachability, ...],
) -> dict[Multiaddr, Verdict]:
    return {one.address: one.verdict for one in addresses if one.verdict is not Verdict.UNKNOWN}
