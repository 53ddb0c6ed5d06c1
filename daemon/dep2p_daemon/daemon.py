"""The one place that wires the rooms together, and starts and stops them in order.

Start: data directory and its lock, key, peerstore, transports, swarm, circuits, protocols, relay
client and server, and only then the listening sockets: whoever connects finds all of it. Stop is
the reverse; the API (`rpc.server.RpcServer`) is started after it and stopped before.
"""

from __future__ import annotations

import asyncio
import os
import stat
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import structlog

from dep2p_daemon.circuit.admission import AdmissionLimits
from dep2p_daemon.circuit.relay_choice import ChoiceSettings
from dep2p_daemon.circuit.relay_client import RelayClient
from dep2p_daemon.circuit.relay_host import RelayPins
from dep2p_daemon.circuit.relay_server import RelayServer, RelayServerSettings
from dep2p_daemon.circuit.relay_supervisor import RelaySupervisor, SupervisorSettings
from dep2p_daemon.circuit.transport import CircuitSettings, CircuitTransport
from dep2p_daemon.discovery import bootstrap
from dep2p_daemon.discovery.dns import Resolver
from dep2p_daemon.discovery.mdns import Mdns
from dep2p_daemon.errors import ConfigError
from dep2p_daemon.events import EventBus
from dep2p_daemon.identity import key_file
from dep2p_daemon.listen_ports import has_open_port, with_free_port, with_port
from dep2p_daemon.lock_file import LockFile
from dep2p_daemon.nat.address_watch import AddressWatch
from dep2p_daemon.nat.autonat1 import Autonat1Server
from dep2p_daemon.nat.autonat2_server import AutonatServer
from dep2p_daemon.nat.fresh_dial import SocketDial
from dep2p_daemon.nat.hole_punch import HolePuncher
from dep2p_daemon.nat.netcheck import Netcheck
from dep2p_daemon.nat.paths import PathSettings, PathWatch
from dep2p_daemon.nat.port_mapping.mapper import PortMapper
from dep2p_daemon.nat.reachability_watch import ReachabilityWatch
from dep2p_daemon.ops.metrics import Metrics
from dep2p_daemon.ops.metrics_server import MetricsServer
from dep2p_daemon.protocols import echo, perf, ping
from dep2p_daemon.protocols.identify import Identify
from dep2p_daemon.quic.settings import QuicSettings
from dep2p_daemon.quic.transport import QuicTransport
from dep2p_daemon.swarm.network_watch import NetworkWatch
from dep2p_daemon.swarm.peerstore import Peerstore
from dep2p_daemon.swarm.settings import SwarmSettings
from dep2p_daemon.swarm.swarm import Swarm
from dep2p_daemon.tcp.settings import TcpSettings
from dep2p_daemon.tcp.transport import TcpTransport

if TYPE_CHECKING:
    from pathlib import Path

    from dep2p_daemon.identity.keys import PrivateKey
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.ops.config import Config, LimitsSection, QuicSection, RelayServerSection

log = structlog.get_logger(__name__)

LISTEN_ATTEMPTS: Final = 4
"""Ports chosen by us that somebody else took before we bound them."""


@dataclass(frozen=True, slots=True)
class Stopping:
    """The daemon ends; published by the API's server, as the last event."""

    reason: str


class Daemon:
    """A running node. An async context manager; leaving it ends everything it started.

    Attributes are there between entering and leaving.
    """

    config: Config
    key: PrivateKey
    peer_id: PeerId
    events: EventBus
    peerstore: Peerstore
    swarm: Swarm
    identify: Identify
    relay_client: RelayClient
    relay_supervisor: RelaySupervisor
    address_watch: AddressWatch
    reachability: ReachabilityWatch | None
    """None when AutoNAT is turned off."""
    netcheck: Netcheck
    network: NetworkWatch
    hole_puncher: HolePuncher | None
    """None when hole punching is turned off."""
    port_mapper: PortMapper | None
    """None when port mapping is turned off."""
    relay_server: RelayServer | None
    """None unless this node relays for others."""
    quic: QuicTransport
    metrics: Metrics
    metrics_server: MetricsServer | None
    """None unless metrics are served over HTTP."""
    started_at: float
    """Unix time in seconds."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._stop_requested = asyncio.Event()
        self.stop_reason = ""
        """Why the stop was requested; empty before."""

    async def __aenter__(self) -> Self:
        """Start.

        Raises:
            ConfigError, PreconditionError: what is wrong, and what to do about it.
        """
        self.started_at = time.time()
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    async def _start(self, stack: AsyncExitStack) -> None:
        config = self.config
        directory = config.node.data_dir
        prepare_directory(directory, option="--data-dir")
        stack.enter_context(
            LockFile(
                directory / "lock", what=f"the data directory {directory}", option="--data-dir"
            )
        )
        self.key = key_file.load_or_create(config.key_path)
        self.peer_id = self.key.peer_id
        self.events = EventBus()
        self.metrics = Metrics(self)
        self.peerstore = await stack.enter_async_context(Peerstore(config.peerstore_path))
        resolver = Resolver()
        self.quic = quic = await stack.enter_async_context(
            QuicTransport(self.key, quic_settings(config.limits, config.quic))
        )
        tcp = await stack.enter_async_context(TcpTransport(self.key, tcp_settings(config.limits)))
        self.swarm = await stack.enter_async_context(
            Swarm(
                key=self.key,
                peerstore=self.peerstore,
                events=self.events,
                resolver=resolver,
                settings=swarm_settings(config.limits),
            )
        )
        circuits = await stack.enter_async_context(
            CircuitTransport(self.swarm, self.key, CircuitSettings(tcp=tcp_settings(config.limits)))
        )
        for transport in (quic, tcp, circuits):
            self.swarm.add_transport(transport)
        self._register_protocols()
        await self._start_nat(stack, quic, tcp)
        self.network = await stack.enter_async_context(NetworkWatch(self.swarm))
        self.relay_client = await stack.enter_async_context(
            RelayClient(self.swarm, self.events, transport=circuits)
        )
        choice = ChoiceSettings(wanted=config.relay_client.wanted)
        self.relay_supervisor = await stack.enter_async_context(
            RelaySupervisor(
                self.relay_client,
                self.swarm,
                self.events,
                SupervisorSettings(choice=choice),
                resolver=resolver,
                pins=RelayPins(config.relay_pins_path),
            )
        )
        self.netcheck = Netcheck(
            self.swarm,
            self.identify,
            SocketDial(),
            relays=lambda: self.relay_client.relays,
            reachability=self.reachability,
            port_mapping=lambda: "" if self.port_mapper is None else self.port_mapper.protocol,
            gateways=lambda: () if self.port_mapper is None else self.port_mapper.status,
        )
        self.relay_server = None
        if config.relay_server.enabled:
            settings = relay_server_settings(config.relay_server)
            self.relay_server = await stack.enter_async_context(
                RelayServer(self.swarm, self.events, settings)
            )
        self.swarm.set_announced(config.node.announce)
        await self._listen()
        for address in config.relays:
            self.relay_supervisor.add(address)
        self.port_mapper = None
        if config.nat.port_mapping:
            watch = self.reachability
            self.port_mapper = await stack.enter_async_context(
                PortMapper(self.swarm, verdicts=lambda: watch.addresses if watch else ())
            )
        if config.discovery.mdns:
            await stack.enter_async_context(Mdns(self.swarm, self.events))
        self.metrics_server = None
        if (serve_at := config.metrics.listen) is not None:
            self.metrics_server = await stack.enter_async_context(
                MetricsServer(self.metrics, str(serve_at.host), serve_at.port)
            )
        for address in config.node.bootstrap:
            self.swarm.spawn(bootstrap.connect(self.swarm, resolver, address))

    def _register_protocols(self) -> None:
        self.identify = Identify(self.swarm)
        self.identify.register()
        ping.register(self.swarm)
        echo.register(self.swarm)
        if self.config.perf.enabled:
            perf.register(self.swarm)

    async def _start_nat(
        self, stack: AsyncExitStack, quic: QuicTransport, tcp: TcpTransport
    ) -> None:
        grace = self.config.nat.relayed_grace
        PathWatch(self.swarm, PathSettings(relayed_grace=grace or None))
        self.address_watch = await stack.enter_async_context(
            AddressWatch(self.swarm, self.identify)
        )
        self.reachability = None
        if self.config.nat.autonat:
            dial = SocketDial()
            AutonatServer(self.swarm, dial).register()
            Autonat1Server(self.swarm, dial).register()
            self.reachability = await stack.enter_async_context(
                ReachabilityWatch(self.swarm, self.address_watch.candidates_to_confirm)
            )
        self.hole_puncher = None
        if self.config.nat.hole_punching:
            self.hole_puncher = await stack.enter_async_context(
                HolePuncher(self.swarm, self.identify, self.address_watch, prober=quic, tcp=tcp)
            )

    async def _listen(self) -> None:
        wanted = self.config.listen_addresses
        for attempt in range(1, LISTEN_ATTEMPTS + 1):
            try:
                bound = await self.swarm.listen(with_free_port(wanted))
                break
            except ConfigError:
                if attempt == LISTEN_ATTEMPTS or not has_open_port(wanted):
                    raise
        port = next((address.port for address in bound if address.port), 0)
        for address in self.config.optional_listen_addresses:
            chosen = with_port(address, port) if address.port == 0 else address
            try:
                await self.swarm.listen([chosen])
            except ConfigError as error:
                log.info(
                    "not listening on an optional address",
                    address=str(chosen),
                    reason=error.reason,
                    error=error.message,
                )

    def addresses(self) -> tuple[Multiaddr, ...]:
        """The full addresses (with `/p2p`) under which peers reach this node."""
        return tuple(address.with_peer_id(self.peer_id) for address in self.swarm.own_addresses)

    def request_stop(self, reason: str) -> None:
        """Ask whoever runs the daemon to end it; `reason` is "signal", "request", ...

        The first reason stays. Never blocks.
        """
        if not self._stop_requested.is_set():
            self.stop_reason = reason
            self._stop_requested.set()

    async def wait_stop_requested(self) -> str:
        """Wait for `request_stop`, and return its reason."""
        await self._stop_requested.wait()
        return self.stop_reason


def quic_settings(limits: LimitsSection, quic: QuicSection) -> QuicSettings:
    """Return the QUIC transport's settings for the configured limits."""
    return QuicSettings(
        fast_path=quic.fast_path,
        max_datagram_size=quic.max_datagram_size,
        prefer_chacha=quic.prefer_chacha,
        max_connections=limits.max_connections,
        max_inbound_streams=limits.max_inbound_streams_per_connection,
        receive_memory=limits.receive_memory,
    )


def tcp_settings(limits: LimitsSection) -> TcpSettings:
    """Return the TCP transport's settings for the configured limits."""
    return TcpSettings(receive_memory=limits.receive_memory)


def swarm_settings(limits: LimitsSection) -> SwarmSettings:
    """Return the swarm's settings for the configured limits."""
    return SwarmSettings(
        max_connections=limits.max_connections,
        max_inbound_connections=limits.max_inbound_connections,
        max_inbound_connections_per_ip=limits.max_inbound_connections_per_ip,
        max_connections_per_peer=limits.max_connections_per_peer,
        max_inbound_streams=limits.max_inbound_streams,
        max_inbound_streams_per_connection=limits.max_inbound_streams_per_connection,
    )


def relay_server_settings(section: RelayServerSection) -> RelayServerSettings:
    """Return the relay server's settings; where the configuration has 0 there is no limit."""
    return RelayServerSettings(
        admission=AdmissionLimits(
            max_reservations=section.max_reservations,
            max_reservations_per_ip=section.max_reservations_per_ip,
            reservation_ttl=section.reservation_ttl,
            max_circuits=section.max_circuits,
            max_circuits_per_source=section.max_circuits_per_source,
            max_circuits_per_target=section.max_circuits_per_target,
        ),
        pair_rate=section.rate or None,
        total_rate=section.total_rate or None,
        circuit_duration=section.circuit_duration or None,
        circuit_data=section.circuit_data or None,
    )


def prepare_directory(directory: Path, *, option: str) -> None:
    """Make `directory` with mode 0700 where it is missing; refuse one that others may write to.

    Raises:
        ConfigError: it cannot be made or used; names `option`, which chooses another.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
        usable = os.access(directory, os.R_OK | os.W_OK | os.X_OK)
    except OSError as error:
        raise ConfigError(
            f"the directory {directory} cannot be made: {error.strerror}",
            reason="DIRECTORY_UNUSABLE",
            remedy=f"make it yourself, or name another with {option}",
            path=directory,
        ) from error
    if not usable:
        raise ConfigError(
            f"the directory {directory} is not writable for this user",
            reason="DIRECTORY_UNUSABLE",
            remedy=f"run: chown {os.getuid()} {directory}; or name another with {option}",
            path=directory,
        )
    # In a sticky directory such as /tmp, others can make files but not replace ours.
    if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
        raise ConfigError(
            f"other users may write to the directory {directory}",
            reason="DIRECTORY_MODE",
            remedy=f"run: chmod go-w {directory}",
            path=directory,
            mode=f"{stat.S_IMODE(status.st_mode):04o}",
        )
