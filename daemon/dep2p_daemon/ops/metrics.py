"""The daemon's counters and gauges, in Prometheus' terms.

https://prometheus.io/docs/instrumenting/writing_exporters/

Counters are fed from the event bus, gauges are read when somebody asks: nothing here is in a
packet's way. The label values are words of ours, never a peer's, so that their number is bounded.
prometheus-client is imported when the first reader comes: most nodes never have one, and neither
its start nor its memory should be theirs.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import TYPE_CHECKING, Final, TypeAlias

from dep2p_daemon import __version__
from dep2p_daemon.circuit.events import CircuitClosed, CircuitOpened, ReservationChanged
from dep2p_daemon.nat.paths import PathChanged
from dep2p_daemon.nat.trail import Outcome, StepKind, TrailEnded
from dep2p_daemon.swarm.events import ConnectionOpened

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from dep2p_daemon.daemon import Daemon
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.muxed import Connection
    from dep2p_daemon.nat.trail import Trail

READ_SECONDS: Final = 5.0
"""How long a reader in another thread waits for the loop."""

Labels: TypeAlias = "tuple[str, ...]"
Counts: TypeAlias = "Counter[Labels]"


class EventCounts:
    """What happened since the start, by label values. Fed by the event bus, in the loop."""

    def __init__(self) -> None:
        self.connections: Counts = Counter()
        """By path, transport and direction."""
        self.direct_dials: Counts = Counter()
        """By outcome and both sides' kinds of NAT."""
        self.hole_punches: Counts = Counter()
        """By outcome, both sides' kinds of NAT, and transport."""
        self.path_changes: Counts = Counter()
        """By the new path."""
        self.circuits: Counts = Counter()
        self.circuit_ends: Counts = Counter()
        """By reason."""
        self.reservation_changes: Counts = Counter()
        """By what happened."""
        self.relayed_bytes = 0
        """By circuits that have ended."""

    def take(self, event: object) -> None:
        """Count an event."""
        match event:
            case ConnectionOpened(connection):
                self.connections[_kind_of(connection)] += 1
            case TrailEnded(trail, transport):
                self._take_trail(trail, transport)
            case PathChanged():
                self.path_changes[(event.path,)] += 1
            case CircuitOpened():
                self.circuits[()] += 1
            case CircuitClosed(circuit):
                reason = circuit.close_reason
                self.circuit_ends[("unknown" if reason is None else reason.value.lower(),)] += 1
                self.relayed_bytes += circuit.source_to_target_bytes
                self.relayed_bytes += circuit.target_to_source_bytes
            case ReservationChanged(change=change):
                self.reservation_changes[(change.value.lower(),)] += 1
            case _:
                pass

    def _take_trail(self, trail: Trail, transport: str) -> None:
        nats = (trail.own_nat.value.lower(), trail.peer_nat.value.lower())
        dialled_through = False
        for step in trail.steps:
            if step.kind is StepKind.DIRECT_DIAL:
                outcome = (step.outcome or Outcome.ABANDONED).value.lower()
                dialled_through = step.outcome is Outcome.DIRECT
                self.direct_dials[(outcome, *nats)] += 1
        if dialled_through:
            return  # there was nothing left to punch for
        reason = "unknown" if trail.reason is None else trail.reason.value.lower()
        self.hole_punches[(reason, *nats, transport or _punched(trail))] += 1


def _punched(trail: Trail) -> str:
    """The transport that was tried in vain."""
    transports = {
        address.transport or "none"
        for step in trail.steps
        if step.kind is StepKind.PUNCH
        for address in step.addresses
    }
    return transports.pop() if len(transports) == 1 else ("both" if transports else "none")


def _transport_of(address: Multiaddr | None) -> str:
    if address is None:
        return "none"
    if address.is_circuit:
        address = address.split_circuit()[0]
    return address.transport or "none"


def _kind_of(connection: Connection) -> Labels:
    return (
        connection.path,
        _transport_of(connection.remote_address),
        connection.direction.name.lower(),
    )


class Metrics:
    """Counts from the daemon's first event to its end; `registry` is what readers take."""

    def __init__(self, daemon: Daemon) -> None:
        """`daemon` has its event bus already; the rest is looked at when somebody reads."""
        self._daemon = daemon
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._registry: CollectorRegistry | None = None
        self.counts = EventCounts()
        daemon.events.add_listener(self.counts.take)

    @property
    def registry(self) -> CollectorRegistry:
        """The registry, with all there is; any thread may read it."""
        if self._registry is None:
            from prometheus_client import CollectorRegistry, ProcessCollector

            self._registry = CollectorRegistry()
            self._registry.register(self)
            ProcessCollector(registry=self._registry)
        return self._registry

    def describe(self) -> Iterable[Metric]:
        """Nothing: names need not be known before the first reading (`registry`'s protocol)."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Return all metrics; from another thread than the loop's, by asking the loop."""
        if threading.get_ident() == self._thread:
            return self._families()
        reading = asyncio.run_coroutine_threadsafe(self._read(), self._loop)
        return reading.result(READ_SECONDS)

    async def _read(self) -> list[Metric]:
        return self._families()

    def _families(self) -> list[Metric]:
        return [
            *self._about_node(),
            *self._about_connections(),
            *self._about_nat(),
            *self._about_relays(),
            *self._about_relaying(),
        ]

    def _about_node(self) -> list[Metric]:
        daemon = self._daemon
        return [
            _gauge(
                "dep2p_build_info",
                "Always 1; the labels say what runs.",
                ("version", "preset"),
                {(__version__, daemon.config.node.preset): 1},
            )
        ]

    def _about_connections(self) -> list[Metric]:
        swarm, packets = self._daemon.swarm, self._daemon.quic.context.packets()
        connections = swarm.connections()
        kind = ("path", "transport", "direction")
        return [
            _gauge("dep2p_peers", "Connected peers.", (), {(): len(swarm.connected_peers())}),
            _gauge(
                "dep2p_connections", "Open connections.", kind, Counter(map(_kind_of, connections))
            ),
            _counter(
                "dep2p_connections_opened_total",
                "Connections made, by dialling or being dialled.",
                kind,
                self.counts.connections,
            ),
            _gauge(
                "dep2p_streams", "Open streams.", (), {(): sum(len(c.streams) for c in connections)}
            ),
            _counter(
                "dep2p_quic_packets_total",
                "QUIC packets by direction, and by whether they took our own code for bulk data "
                "(fast) or the QUIC library's (stock).",
                ("direction", "path"),
                {
                    ("sent", "fast"): packets.sent_fast,
                    ("sent", "stock"): packets.sent_stock,
                    ("received", "fast"): packets.received_fast,
                    ("received", "stock"): packets.received_stock,
                },
            ),
        ]

    def _about_nat(self) -> list[Metric]:
        counts = self.counts
        return [
            _counter(
                "dep2p_direct_dials_total",
                "Plain dials for a direct path beside a relayed one, by outcome and by what kind "
                "of NAT each side has.",
                ("outcome", "own_nat", "peer_nat"),
                counts.direct_dials,
            ),
            _counter(
                "dep2p_hole_punches_total",
                "Attempts to punch a hole: the outcome is direct, or the reason why not.",
                ("outcome", "own_nat", "peer_nat", "transport"),
                counts.hole_punches,
            ),
            _counter(
                "dep2p_path_changes_total",
                "Peers whose new streams take another path, by that path.",
                ("path",),
                counts.path_changes,
            ),
        ]

    def _about_relays(self) -> list[Metric]:
        relays = self._daemon.relay_client.relays
        return [
            _gauge(
                "dep2p_relays",
                "Relays that are used, by state and transport.",
                ("state", "transport"),
                Counter(
                    (relay.state.value.lower(), _transport_of(relay.remote_address))
                    for relay in relays
                ),
            )
        ]

    def _about_relaying(self) -> list[Metric]:
        server, counts = self._daemon.relay_server, self.counts
        if server is None:
            return []
        circuits = server.circuits
        moving = sum(c.source_to_target_bytes + c.target_to_source_bytes for c in circuits)
        return [
            _gauge(
                "dep2p_relay_server_reservations",
                "Reservations that peers hold here.",
                (),
                {(): len(server.reservations)},
            ),
            _counter(
                "dep2p_relay_server_reservation_changes_total",
                "Reservations made, refreshed and ended.",
                ("change",),
                counts.reservation_changes,
            ),
            _gauge("dep2p_relay_server_circuits", "Open circuits.", (), {(): len(circuits)}),
            _counter(
                "dep2p_relay_server_circuits_opened_total",
                "Circuits between peers.",
                (),
                counts.circuits or {(): 0},
            ),
            _counter(
                "dep2p_relay_server_circuits_closed_total",
                "Circuits that ended, by reason.",
                ("reason",),
                counts.circuit_ends,
            ),
            _counter(
                "dep2p_relay_server_bytes_total",
                "Bytes passed on between peers, both directions.",
                (),
                {(): counts.relayed_bytes + moving},
            ),
        ]


def _gauge(name: str, help: str, labels: Labels, values: Mapping[Labels, float]) -> Metric:
    from prometheus_client.metrics_core import GaugeMetricFamily

    family = GaugeMetricFamily(name, help, labels=labels)
    for label_values, value in sorted(values.items()):
        family.add_metric(label_values, value)
    return family


def _counter(name: str, help: str, labels: Labels, values: Mapping[Labels, float]) -> Metric:
    from prometheus_client.metrics_core import CounterMetricFamily

    family = CounterMetricFamily(name, help, labels=labels)
    for label_values, value in sorted(values.items()):
        family.add_metric(label_values, value)
    return family
