"""A check of the network: does UDP work, does TCP, what does the NAT do, who reaches us?

Everything is measured anew, with the relays and peers that are connected or configured:

1. Fresh sockets dial them over QUIC and TCP: does it get through at all?
2. Identify is asked again on connections from our listening sockets: how are those mapped?
3. AutoNAT servers dial us back: whose packets come in?
4. We dial our own outer address: does the NAT turn packets around (hairpin)?
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from dep2p_daemon.errors import Dep2pError
from dep2p_daemon.muxed import CloseCode
from dep2p_daemon.nat.behaviour import Filtering, Mapping, Seen, filtering, mapping
from dep2p_daemon.nat.candidates import is_public
from dep2p_daemon.nat.netcheck_report import (
    Ipv6Check,
    NetworkReport,
    RelayCheck,
    TargetCheck,
    TransportCheck,
)
from dep2p_daemon.nat.reachability import Outcome, Verdict
from dep2p_daemon.protocols import ping
from dep2p_daemon.swarm.events import PeerIdentified
from dep2p_daemon.swarm.interfaces import interface_addresses

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence

    from dep2p_daemon.circuit.events import RelayStatus
    from dep2p_daemon.events import Subscription
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.muxed import Connection
    from dep2p_daemon.nat.fresh_dial import FreshDial
    from dep2p_daemon.nat.port_mapping.status import GatewayStatus
    from dep2p_daemon.nat.reachability_watch import ReachabilityWatch
    from dep2p_daemon.protocols.identify import Identify
    from dep2p_daemon.swarm.swarm import Swarm

_log = structlog.get_logger(__name__)

UDP: Final = "quic-v1"
TCP: Final = "tcp"
AT_ONCE: Final = 2
"""Questions to one AutoNAT server; more are refused by go-libp2p's and ours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NetcheckSettings:
    """Times in seconds."""

    dial_timeout: float = 4.0
    """For one dial from a fresh socket."""
    ping_timeout: float = 3.0
    identify_timeout: float = 3.0
    hairpin_timeout: float = 2.0
    max_targets: int = 6
    """Relays and peers that are dialled."""
    max_dial_backs: int = 4
    """Dial-backs that are asked for, of one transport."""


class Netcheck:
    """Checks the network; one check at a time is enough for everybody."""

    def __init__(
        self,
        swarm: Swarm,
        identify: Identify,
        dial: FreshDial,
        *,
        relays: Callable[[], Sequence[RelayStatus]],
        reachability: ReachabilityWatch | None,
        port_mapping: Callable[[], str] = lambda: "",
        gateways: Callable[[], tuple[GatewayStatus, ...]] = tuple,
        settings: NetcheckSettings | None = None,
        is_public: Callable[[Multiaddr], bool] = is_public,
    ) -> None:
        """`is_public` is a parameter because tests run on one machine."""
        self._swarm = swarm
        self._identify = identify
        self._dial = dial
        self._relays = relays
        self._reachability = reachability
        self._port_mapping = port_mapping
        self._gateways = gateways
        self._settings = settings or NetcheckSettings()
        self._is_public = is_public
        self._turn = asyncio.Lock()
        self._last: NetworkReport | None = None

    async def run(self) -> AsyncGenerator[str | NetworkReport, None]:
        """Yield what is being done, for people, and at the end the report. Leave with `aclose`.

        A second caller waits for the check that is under way, and gets its report.
        """
        if self._turn.locked():
            yield "waiting for a check that is under way"
        before = self._last
        async with self._turn:
            if self._last is not None and self._last is not before:
                yield self._last
                return
            async with aclosing(self._measure()) as steps:
                async for step in steps:
                    if isinstance(step, NetworkReport):
                        self._last = step
                    yield step

    async def _measure(self) -> AsyncGenerator[str | NetworkReport, None]:
        now = asyncio.get_running_loop().time
        began = now()
        targets = self._targets()
        yield f"dialling {len(targets)} relays and peers over UDP and TCP"
        (dialled, relays) = await asyncio.gather(
            self._dial_all(targets),
            asyncio.gather(*(self._check_relay(status) for status in self._relays())),
        )
        yield "asking peers how they see this node"
        seen = await self._ask_observers(targets)
        udp_seen = [one for one in seen if one.local.transport == UDP]
        tcp_seen = [one for one in seen if one.local.transport == TCP]
        own_ips = {interface.ip for interface in interface_addresses()}
        udp_mapping = mapping(_of_main_family(udp_seen), own_ips)
        tcp_mapping = mapping(_of_main_family(tcp_seen), own_ips)
        yield "asking peers to dial back"
        outcomes = await self._ask_dial_backs(seen)
        yield "dialling this node's own outer address"
        hairpin = await self._check_hairpin(udp_mapping, udp_seen)
        watch = self._reachability
        yield NetworkReport(
            udp=TransportCheck(
                targets=_of(dialled, UDP),
                mapping=udp_mapping,
                filtering=_filtering(outcomes, UDP),
            ),
            tcp=TransportCheck(
                targets=_of(dialled, TCP),
                mapping=tcp_mapping,
                filtering=_filtering(outcomes, TCP),
            ),
            hairpin=hairpin,
            port_mapping=self._port_mapping(),
            gateways=self._gateways(),
            ipv6=Ipv6Check(
                address=_has_ipv6(),
                works=_ipv6_works(dialled),
            ),
            relays=tuple(relays),
            observed=tuple(dict.fromkeys(one.observed for one in seen)),
            addresses=() if watch is None else watch.addresses,
            reachability=Verdict.UNKNOWN if watch is None else watch.verdict,
            seconds=now() - began,
        )

    # ------------------------------------------------------------ does it get through

    def _targets(self) -> dict[PeerId, tuple[Multiaddr, ...]]:
        """Relays first, then peers that are connected directly; with their public addresses."""
        known: dict[PeerId, list[Multiaddr]] = {}
        for status in self._relays():
            known.setdefault(status.peer_id, []).append(status.address)
        for connection in self._swarm.connections():
            if not connection.relayed and self._is_public(connection.remote_address):
                known.setdefault(connection.remote_peer, [])
        found: dict[PeerId, tuple[Multiaddr, ...]] = {}
        for peer, addresses in list(known.items())[: self._settings.max_targets]:
            every = [*addresses, *self._swarm.peerstore.addresses(peer)]
            usable = dict.fromkeys(address.without_peer_id() for address in every)
            found[peer] = tuple(one for one in usable if self._is_usable(one))
        return {peer: addresses for peer, addresses in found.items() if addresses}

    def _is_usable(self, address: Multiaddr) -> bool:
        return (
            not address.is_circuit
            and address.transport in (UDP, TCP)
            and address.ip is not None
            # Of IPv6 is told apart whether this machine has it, and whether it works.
            and (address.ip.version == 4 or _has_ipv6())
            and self._is_public(address)
        )

    async def _dial_all(
        self, targets: dict[PeerId, tuple[Multiaddr, ...]]
    ) -> tuple[TargetCheck, ...]:
        """One address of each peer for each transport and IP version."""
        chosen: dict[tuple[PeerId, str | None, int], Multiaddr] = {}
        for peer, addresses in targets.items():
            for address in addresses:
                assert address.ip is not None
                chosen.setdefault((peer, address.transport, address.ip.version), address)
        dials = (self._dial_one(peer, address) for (peer, _, _), address in chosen.items())
        return tuple(await asyncio.gather(*dials))

    async def _dial_one(self, peer: PeerId, address: Multiaddr) -> TargetCheck:
        now = asyncio.get_running_loop().time
        began = now()
        try:
            async with asyncio.timeout(self._settings.dial_timeout):
                async with self._dial(address, peer):
                    seconds = now() - began
                return TargetCheck(peer=peer, address=address, seconds=seconds)
        except TimeoutError:
            error = f"no answer within {self._settings.dial_timeout:g} s"
        except Dep2pError as failure:
            error = failure.message
        return TargetCheck(peer=peer, address=address, seconds=None, error=error)

    async def _check_relay(self, status: RelayStatus) -> RelayCheck:
        connection = self._swarm.best_connection(status.peer_id)
        rtt: float | None = None
        path = ""
        if connection is not None and not connection.relayed:
            path = connection.remote_address.transport or ""
            try:
                async with (
                    asyncio.timeout(self._settings.ping_timeout),
                    aclosing(ping.ping(self._swarm, connection)) as pings,
                ):
                    rtt = await anext(pings)
            except (Dep2pError, TimeoutError) as error:
                _log.debug("netcheck: no ping", relay=str(status.peer_id), error=str(error))
        return RelayCheck(peer=status.peer_id, address=status.address, rtt=rtt, path=path)

    # --------------------------------------------------------------- how are we seen

    async def _ask_observers(
        self, targets: dict[PeerId, tuple[Multiaddr, ...]]
    ) -> tuple[Seen, ...]:
        """What the peers at the other ends of direct connections see, asked now."""
        connections = [
            connection
            for connection in self._swarm.connections()
            if not connection.relayed and self._is_public(connection.remote_address)
        ]
        extra = await self._dial_over_tcp(targets, connections)
        found: dict[str, Seen] = {}
        try:
            with self._swarm.events.subscribe() as events:
                asked = asyncio.gather(*(self._identify_again(c) for c in (*connections, *extra)))
                collecting = asyncio.create_task(self._collect(events, found))
                try:
                    await asked
                    await asyncio.sleep(0)  # the collector takes the last events
                finally:
                    collecting.cancel()
        finally:
            for connection in extra:
                self._swarm.retire(connection, CloseCode.NONE, "checked")
        return tuple(found.values())

    async def _collect(self, events: Subscription, found: dict[str, Seen]) -> None:
        listening = {(address.transport, address.port) for address in self._swarm.listen_addresses}
        while True:
            event = await events.next()
            if not isinstance(event, PeerIdentified) or event.observed_address is None:
                continue
            connection = event.connection
            local = connection.local_address
            observed = event.observed_address.without_peer_id()
            if (
                not connection.relayed
                and (local.transport, local.port) in listening
                and observed.transport == local.transport
                and observed.port
                and self._is_public(observed)
                and self._is_public(connection.remote_address)
            ):
                found[connection.id] = Seen(local, connection.remote_address, observed)

    async def _identify_again(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(self._settings.identify_timeout):
                await self._identify.refresh(connection)
        except (Dep2pError, TimeoutError) as error:
            _log.debug("netcheck: no identify", error=str(error))

    async def _dial_over_tcp(
        self, targets: dict[PeerId, tuple[Multiaddr, ...]], connections: Iterable[Connection]
    ) -> tuple[Connection, ...]:
        """Connections from our TCP port, to those whom we reach over QUIC only."""
        have = {c.remote_peer for c in connections if c.remote_address.transport == TCP}
        dials = [
            self._dial_from_listening(peer, address)
            for peer, addresses in targets.items()
            if peer not in have
            for address in [one for one in addresses if one.transport == TCP][:1]
        ]
        return tuple(made for made in await asyncio.gather(*dials) if made is not None)

    async def _dial_from_listening(self, peer: PeerId, address: Multiaddr) -> Connection | None:
        try:
            return await self._swarm.dial(
                peer, (address,), force_new=True, timeout=self._settings.dial_timeout
            )
        except Dep2pError as error:
            _log.debug("netcheck: no TCP", address=str(address), error=str(error))
            return None

    # ----------------------------------------------------------------- who gets in

    async def _ask_dial_backs(self, seen: Sequence[Seen]) -> list[tuple[Multiaddr, Outcome]]:
        """Have AutoNAT servers dial what they or others see, or what our interfaces have."""
        watch = self._reachability
        if watch is None:
            return []
        watch.look_again()
        judged = [one.address for one in watch.addresses]
        addresses = tuple(dict.fromkeys([*(one.observed for one in seen), *judged]))
        # The mapping towards the server that is asked is the best that it can be asked about.
        own = {(one.observer, one.observed) for one in seen}
        asked: list[tuple[Connection, Multiaddr]] = []
        for transport in (UDP, TCP):
            pairs = [
                (server, address)
                for server in watch.servers()
                for address in addresses
                if address.transport == transport
            ]
            pairs.sort(key=lambda pair: (pair[0].remote_address, pair[1]) not in own)
            asked += pairs[: self._settings.max_dial_backs]
        turns = {server.id: asyncio.Semaphore(AT_ONCE) for server, _ in asked}

        async def ask(server: Connection, address: Multiaddr) -> tuple[Multiaddr, Outcome]:
            async with turns[server.id]:
                outcome, _ = await watch.ask(server, address)
            return address, outcome

        told = await asyncio.gather(*(ask(server, address) for server, address in asked))
        # What was found out before counts too: a server may have had enough of our questions.
        before = [(one, outcome) for one in judged for outcome in watch.outcomes(one)]
        return [*told, *before]

    async def _check_hairpin(self, behaviour: Mapping, seen: Sequence[Seen]) -> bool | None:
        if behaviour in (Mapping.NONE, Mapping.UNKNOWN):
            return None
        outer = next(_ipv4(seen), None)
        if outer is None:
            return None
        try:
            async with (
                asyncio.timeout(self._settings.hairpin_timeout),
                self._dial(outer.observed, self._swarm.local_peer),
            ):
                return True
        except (Dep2pError, TimeoutError):
            return False


def _has_ipv6() -> bool:
    ips = [interface.ip for interface in interface_addresses()]
    return any(ip.version == 6 and ip.is_global for ip in ips)


def _ipv4(seen: Iterable[Seen]) -> Iterator[Seen]:
    return (one for one in seen if one.observed.ip is not None and one.observed.ip.version == 4)


def _filtering(outcomes: Iterable[tuple[Multiaddr, Outcome]], transport: str) -> Filtering:
    """Of IPv4, where the NATs are; where nobody tells of that, of IPv6."""
    by_version: dict[int, list[Outcome]] = {4: [], 6: []}
    for address, outcome in outcomes:
        if address.transport == transport and address.ip is not None:
            by_version[address.ip.version].append(outcome)
    return filtering(by_version[4] or by_version[6])


def _of_main_family(seen: Sequence[Seen]) -> Sequence[Seen]:
    """IPv4, where the NATs are; on a machine without it IPv6."""
    return tuple(_ipv4(seen)) or seen


def _of(dialled: Iterable[TargetCheck], transport: str) -> tuple[TargetCheck, ...]:
    return tuple(one for one in dialled if one.address.transport == transport)


def _ipv6_works(dialled: Iterable[TargetCheck]) -> bool | None:
    over_ipv6 = [
        one for one in dialled if one.address.ip is not None and one.address.ip.version == 6
    ]
    return any(one.seconds is not None for one in over_ipv6) if over_ipv6 else None
