"""Has the default gateways map our listening ports, and tells the swarm where they are outside.

One task for each IP version looks for the gateway, keeps the mappings there (`GatewayKeeper`), and
begins anew when the network has changed. IPv4 ports are mapped where our address is private; for
IPv6, PCP opens the gateway's firewall. Nothing is sent to anybody but the default gateway, apart
from UPnP's search (`lan.py`). Where a gateway says our ports are, we tell peers; what several
AutoNAT servers could not connect to is taken back, for a gateway may err or lie.
"""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

import structlog

from dep2p_daemon.errors import Dep2pError
from dep2p_daemon.nat.candidates import is_public
from dep2p_daemon.nat.port_mapping.channel import open_channel
from dep2p_daemon.nat.port_mapping.clients import CLIENTS
from dep2p_daemon.nat.port_mapping.gateway import default_gateway
from dep2p_daemon.nat.port_mapping.keeper import GatewayKeeper, KeeperSettings
from dep2p_daemon.nat.port_mapping.status import GatewayStatus, PortMappingChanged
from dep2p_daemon.nat.port_mapping.terms import Endpoint, Port, Transport, multiaddr_of
from dep2p_daemon.nat.reachability import AddressReachability, Verdict
from dep2p_daemon.swarm.events import AddressesChanged, NetworkChanged

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.nat.port_mapping.channel import Channel
    from dep2p_daemon.nat.port_mapping.clients import ClientKind
    from dep2p_daemon.nat.port_mapping.gateway import Gateway
    from dep2p_daemon.nat.port_mapping.terms import IPAddress, Protocol
    from dep2p_daemon.swarm.swarm import Swarm

_log = structlog.get_logger(__name__)

VERSIONS: Final = (4, 6)
MAX_PORTS: Final = 8
"""Mapped at one gateway."""
MAX_KNOWN_GATEWAYS: Final = 8
"""Whose protocol is remembered; the oldest is forgotten first."""
_ANY: Final = Port(Transport.UDP, 1)
"""Stands for every port where only the address counts."""
_TRANSPORTS: Final = {"quic-v1": Transport.UDP, "tcp": Transport.TCP}

NO_GATEWAY: Final = ("NO_GATEWAY", "there is no default route through a gateway")
NO_PORT: Final = ("NO_LISTENING_PORT", "nothing listens on an address that the gateway leads to")
NOT_NEEDED: Final = ("NOT_NEEDED", "this machine has a public address of its own")
NO_GLOBAL: Final = ("NO_GLOBAL_ADDRESS", "this machine has no global IPv6 address")
GATEWAY_BEHIND_NAT: Final = (
    "GATEWAY_BEHIND_NAT",
    "the gateway's outer address is not public: it is behind another NAT",
)
REFUTED: Final = (
    "EXTERNAL_ADDRESS_REFUTED",
    "peers cannot connect to where the gateway says our ports are",
)
MIN_REFUTATIONS: Final = 3
"""AutoNAT servers that agree; any single one may lie as well."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PortMapperSettings:
    """Times in seconds."""

    keeper: KeeperSettings = field(default_factory=KeeperSettings)
    retry: float = 600.0
    """Until a gateway that maps nothing is asked again, if the network does not change before."""
    route_interval: float = 15.0
    """Between two looks at the default route and at AutoNAT's verdicts; and until a gateway that
    did map, and does no more, is asked again (once in each `retry`)."""
    refuted_for: float = 600.0
    """Until an address that could not be connected to is told, and judged, again."""


class PortMapper:
    """An async context manager; leaving it removes the mappings, within a second."""

    def __init__(
        self,
        swarm: Swarm,
        settings: PortMapperSettings | None = None,
        *,
        find_gateway: Callable[[int], Gateway | None] = default_gateway,
        open_channel: Callable[[Gateway], Awaitable[Channel]] = open_channel,
        is_public: Callable[[Multiaddr], bool] = is_public,
        clients: Sequence[ClientKind] = CLIENTS,
        verdicts: Callable[[], Iterable[AddressReachability]] = tuple,
    ) -> None:
        """`verdicts` are AutoNAT's on our addresses.

        The other functions are parameters because tests run on one machine without a gateway.
        """
        self._swarm = swarm
        self._settings = settings or PortMapperSettings()
        self._find_gateway = find_gateway
        self._open_channel = open_channel
        self._is_public = is_public
        self._clients = clients
        self._verdicts = verdicts
        self._refuted: dict[Multiaddr, float] = {}
        """Addresses that are not told, and until when."""
        self._keepers: dict[int, GatewayKeeper] = {}
        self._spoken: dict[tuple[IPAddress, str], Protocol] = {}
        """What worked last at a gateway, by its address and interface."""
        self._idle = {version: GatewayStatus(version=version) for version in VERSIONS}
        self._changed = {version: asyncio.Event() for version in VERSIONS}
        self._retry_after = dict.fromkeys(VERSIONS, 0.0)
        """Seconds in which to not ask again the gateway that failed last; 0: it did not say."""
        self._patient_until = dict.fromkeys(VERSIONS, 0.0)
        """When a gateway that stops mapping may be asked again soon, the next time."""
        self._tasks = asyncio.TaskGroup()
        self._work: list[asyncio.Task[None]] = []
        self._told: tuple[GatewayStatus, ...] = ()
        self._network_changes = 0
        """So many so far: after one, a gateway may be another one at the same address."""

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._work = [self._tasks.create_task(self._follow_events(), name="port mapping")]
        for version in VERSIONS:
            self._work.append(self._tasks.create_task(self._serve(version), name="port mapping"))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in self._work:
            task.cancel()
        await self._tasks.__aexit__(None, None, None)
        keepers = tuple(self._keepers.values())
        try:
            await asyncio.gather(*(keeper.remove_all() for keeper in keepers))
        finally:
            for keeper in keepers:
                keeper.channel.close()
            self._keepers.clear()

    @property
    def status(self) -> tuple[GatewayStatus, ...]:
        """What is mapped where; one entry for each IP version."""
        return tuple(self._status(version) for version in VERSIONS)

    @property
    def protocol(self) -> str:
        """For netcheck: "pcp", "nat-pmp" or "upnp"; "none": nothing is mapped; "": not known."""
        status = self.status
        used = [one.protocol for one in status if one.protocol is not None]
        if used:
            return used[0].word
        return "none" if all(one.error for one in status) else ""

    @property
    def external_addresses(self) -> tuple[Multiaddr, ...]:
        """Where our ports are outside, if that is the Internet."""
        return tuple(
            address
            for keeper in self._keepers.values()
            for mapping in keeper.mappings
            if mapping.external is not None
            for address in (multiaddr_of(mapping.port, mapping.external),)
            if self._is_public(address) and address not in self._refuted
        )

    def _status(self, version: int) -> GatewayStatus:
        keeper = self._keepers.get(version)
        if keeper is None:
            return self._idle[version]
        status = keeper.status
        outside = [one.external for one in status.mappings if one.external is not None]
        if outside and not any(self._is_public(multiaddr_of(_ANY, one)) for one in outside):
            return _with_error(status, GATEWAY_BEHIND_NAT)
        told = [multiaddr_of(one.port, one.external) for one in status.mappings if one.external]
        if told and all(address in self._refuted for address in told):
            return _with_error(status, REFUTED)
        return status

    async def _follow_events(self) -> None:
        with self._swarm.events.subscribe() as events:
            while True:
                event = await events.next()
                if isinstance(event, NetworkChanged):
                    self._network_changes += 1
                    self._refuted.clear()
                    for keeper in self._keepers.values():
                        keeper.renew_all()
                if isinstance(event, AddressesChanged | NetworkChanged) or events.take_lost():
                    for changed in self._changed.values():
                        changed.set()

    def _judge(self) -> None:
        """Take back what AutoNAT servers could not connect to, for a while."""
        now = asyncio.get_running_loop().time()
        before = set(self._refuted)
        self._refuted = {one: until for one, until in self._refuted.items() if until > now}
        mapped = self.external_addresses
        for one in self._verdicts():
            if (
                one.address in mapped
                and one.verdict is Verdict.PRIVATE
                and one.confidence >= MIN_REFUTATIONS
            ):
                _log.info("a mapped address is refuted", address=str(one.address))
                self._refuted[one.address] = now + self._settings.refuted_for
        if set(self._refuted) != before:
            self._tell()

    # ------------------------------------------------------------------ one IP version

    async def _serve(self, version: int) -> None:
        while True:
            self._changed[version].clear()
            gateway = self._find_gateway(version)
            obstacle = self._obstacle(version, gateway)
            if gateway is None or obstacle is not None:
                self._set_idle(_idle(version, gateway, obstacle or NO_GATEWAY))
                await self._changed_or(version, self._settings.route_interval)
                continue
            try:
                await self._keep(version, gateway)
            except Dep2pError as error:
                idle = _idle(version, gateway, (error.reason, error.message))
            except OSError as error:
                idle = _idle(version, gateway, ("NETWORK_FAILURE", str(error)))
            except Exception:
                # A defect here must not take the daemon along.
                _log.exception("port mapping failed")
                idle = _idle(version, gateway, ("INTERNAL", "port mapping failed; see the log"))
            else:
                continue
            self._set_idle(idle)
            await self._until_changed_or_retry(version, gateway)

    async def _keep(self, version: int, gateway: Gateway) -> None:
        """Keep the ports mapped until the network has changed."""
        self._retry_after[version] = 0.0
        keeper = GatewayKeeper(
            gateway,
            await self._open_channel(gateway),
            self._settings.keeper,
            self._tell,
            clients=self._clients_for(gateway),
        )
        keeper.set_ports(self._ports(gateway))
        self._keepers[version] = keeper
        running = asyncio.create_task(keeper.run(), name="port mapping gateway")
        stopping = False
        try:
            while self._find_gateway(version) == gateway:
                if self._obstacle(version, gateway) is not None:
                    await _end(running)
                    await keeper.remove_all()
                    return
                keeper.set_ports(self._ports(gateway))
                self._judge()
                self._changed[version].clear()
                await self._changed_or(version, self._settings.route_interval, running)
                if running.done():
                    await running
        except asyncio.CancelledError:
            stopping = True  # `__aexit__` says goodbye and closes
            raise
        finally:
            await _end(running)
            if not stopping:
                self._drop(version)

    def _clients_for(self, gateway: Gateway) -> list[ClientKind]:
        """The protocols, what worked last time at this gateway first."""
        spoken = self._spoken.get((gateway.address, gateway.interface))
        return sorted(self._clients, key=lambda kind: kind.protocol is not spoken)

    def _drop(self, version: int) -> None:
        keeper = self._keepers.pop(version)
        keeper.channel.close()
        self._retry_after[version] = keeper.retry_after
        if keeper.client is not None:
            self._remember(keeper.gateway, keeper.client.protocol)
            # What was wrong before it worked is history, and news if it is wrong again.
            self._idle[version] = GatewayStatus(version=version)
            # One that maps and fails, over and over, must not keep us busy.
            now = asyncio.get_running_loop().time()
            if now >= self._patient_until[version]:
                self._patient_until[version] = now + self._settings.retry
                self._retry_after[version] = self._settings.route_interval
        self._tell()

    def _remember(self, gateway: Gateway, spoken: Protocol) -> None:
        known = (gateway.address, gateway.interface)
        self._spoken.pop(known, None)  # to the end: the first is forgotten first
        self._spoken[known] = spoken
        if len(self._spoken) > MAX_KNOWN_GATEWAYS:
            del self._spoken[next(iter(self._spoken))]

    def _obstacle(self, version: int, gateway: Gateway | None) -> tuple[str, str] | None:
        """Why there is nothing to map."""
        if gateway is None:
            return NO_GATEWAY
        public = self._is_public(multiaddr_of(_ANY, Endpoint(gateway.local, 1)))
        if version == 4 and public:
            return NOT_NEEDED
        if version == 6 and not public:
            return NO_GLOBAL
        return None if self._ports(gateway) else NO_PORT

    def _ports(self, gateway: Gateway) -> tuple[Port, ...]:
        """The ports of the sockets that the gateway's packets reach."""
        found = [
            Port(_TRANSPORTS[address.transport], address.port)
            for address in self._swarm.listen_addresses
            if address.transport in _TRANSPORTS
            and address.port
            and address.ip is not None
            and address.ip.version == gateway.local.version
            and (address.is_unspecified or address.ip == gateway.local)
        ]
        return tuple(dict.fromkeys(found))[:MAX_PORTS]

    async def _until_changed_or_retry(self, version: int, gateway: Gateway) -> None:
        """Wait until there is another gateway, or this one may have changed its mind."""
        now = asyncio.get_running_loop().time
        ports, network = self._ports(gateway), self._network_changes
        until = now() + (self._retry_after[version] or self._settings.retry)
        while (left := until - now()) > 0:
            self._changed[version].clear()
            await self._changed_or(version, min(left, self._settings.route_interval))
            if (
                self._find_gateway(version) != gateway
                or self._ports(gateway) != ports
                or self._network_changes != network
            ):
                return

    async def _changed_or(
        self, version: int, timeout: float, running: asyncio.Task[None] | None = None
    ) -> None:
        """Wait for a change of our addresses, for `running` to end, or `timeout` seconds."""
        change = asyncio.create_task(self._changed[version].wait())
        try:
            waiting = {change} if running is None else {change, running}
            await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            change.cancel()

    # ------------------------------------------------------------------ telling

    def _set_idle(self, status: GatewayStatus) -> None:
        if status != self._idle[status.version]:
            self._idle[status.version] = status
            _log.info(
                "no port mapping", ip_version=status.version, reason=status.error, why=status.detail
            )
        self._tell()

    def _tell(self) -> None:
        self._swarm.set_mapped(self.external_addresses)
        status = self.status
        if status != self._told:
            self._told = status
            self._swarm.events.publish(PortMappingChanged(status))


def _idle(version: int, gateway: Gateway | None, why: tuple[str, str]) -> GatewayStatus:
    address = None if gateway is None else gateway.address
    return GatewayStatus(version=version, gateway=address, error=why[0], detail=why[1])


def _with_error(status: GatewayStatus, why: tuple[str, str]) -> GatewayStatus:
    return dataclasses.replace(status, error=why[0], detail=why[1])


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
