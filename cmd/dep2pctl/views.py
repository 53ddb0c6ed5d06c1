"""The API's resources as rows and lines for people."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Final

from dep2p.v1.network_pb2 import Reachability
from dep2p.v1.peer_pb2 import Direction, Path
from dep2p.v1.relay_pb2 import Relay
from dep2pctl.as_json import enum_name
from dep2pctl.network_views import gateway_text
from dep2pctl.output import byte_count, duration, milliseconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.timestamp_pb2 import Timestamp

    from dep2p.v1.event_pb2 import Circuit, Event
    from dep2p.v1.network_pb2 import ReachabilityChanged
    from dep2p.v1.node_service_pb2 import Node
    from dep2p.v1.peer_pb2 import Connection, Limits, Peer

CONNECTION_HEADERS: Final = ("ID", "PEER", "PATH", "DIR", "RTT", "STREAMS", "AGE", "REMOTE ADDRESS")
PEER_HEADERS: Final = ("PEER", "PATH", "RTT", "CONNECTIONS", "AGENT")
RELAY_HEADERS: Final = (
    "RELAY",
    "STATE",
    "SOURCE",
    "EXPIRES",
    "NEXT TRY",
    "RTT",
    "LIMITS",
    "LAST ERROR",
)

_PUBLIC: Final = Reachability.Value("REACHABILITY_PUBLIC")


def path_name(path: Path.ValueType) -> str:
    """Return direct, relayed, or - when not connected."""
    return enum_name(Path.DESCRIPTOR, path) or "-"


def state_name(relay: Relay) -> str:
    """Where we are with a relay, in lower case."""
    return enum_name(Relay.State.DESCRIPTOR, relay.state) or "-"


def limits_text(limits: Limits | None) -> str:
    """What a relay announced, with what is left of it."""
    if limits is None:
        return "none"
    parts: list[str] = []
    if limits.HasField("duration_seconds"):
        left = (
            f" ({duration(limits.remaining_seconds)} left)"
            if limits.HasField("remaining_seconds")
            else ""
        )
        parts.append(f"{duration(limits.duration_seconds)}{left}")
    if limits.HasField("data_bytes"):
        left = (
            f" ({byte_count(limits.remaining_bytes)} left)"
            if limits.HasField("remaining_bytes")
            else ""
        )
        parts.append(f"{byte_count(limits.data_bytes)} each way{left}")
    return ", ".join(parts) or "none"


def node_fields(node: Node, now: float) -> list[tuple[str, object]]:
    """The node as labels and values."""
    fields: list[tuple[str, object]] = [
        ("peer id", node.peer_id),
        ("version", node.version),
        ("preset", node.preset),
        ("up for", age(node.start_time, now)),
        ("addresses", list(node.addresses)),
        ("listening on", list(node.listen_addresses)),
        ("connections", f"{node.connection_count} (peers: {node.peer_count})"),
        ("streams", node.stream_count),
        ("protocols", list(node.protocols)),
    ]
    if node.relay_server_enabled:
        fields += [("reservations", node.reservation_count), ("circuits", node.circuit_count)]
    return [*fields, ("data directory", node.data_dir), ("process id", node.process_id)]


def connection_fields(connection: Connection) -> list[tuple[str, object]]:
    """A connection as labels and values."""
    fields: list[tuple[str, object]] = [
        ("peer id", connection.peer_id),
        ("path", path_name(connection.path)),
        ("remote address", connection.remote_address),
    ]
    if connection.HasField("relay"):
        fields.append(("relay", connection.relay))
    limits = connection.limits if connection.HasField("limits") else None
    if limits is not None or connection.HasField("relay"):
        fields.append(("limits", limits_text(limits)))
    return [
        *fields,
        ("round trip", milliseconds(_rtt(connection))),
        ("security", f"{connection.security}, {connection.muxer}"),
        ("connection", connection.connection_id),
    ]


def connection_row(connection: Connection, now: float) -> Sequence[object]:
    """A connection under CONNECTION_HEADERS."""
    direction = enum_name(Direction.DESCRIPTOR, connection.direction) or "-"
    return (
        connection.connection_id,
        connection.peer_id,
        path_name(connection.path),
        direction.removesuffix("bound"),
        milliseconds(_rtt(connection)),
        connection.stream_count,
        age(connection.open_time, now),
        connection.remote_address,
    )


def peer_row(peer: Peer) -> Sequence[object]:
    """A peer under PEER_HEADERS."""
    return (
        peer.peer_id,
        path_name(peer.path),
        milliseconds(_rtt(peer)),
        peer.connection_count,
        peer.agent_version,
    )


def peer_fields(peer: Peer, now: float) -> list[tuple[str, object]]:
    """A peer as labels and values."""
    seen = age(peer.last_seen_time, now) if peer.HasField("last_seen_time") else None
    return [
        ("peer id", peer.peer_id),
        ("connected", peer.connected),
        ("path", path_name(peer.path)),
        ("round trip", milliseconds(_rtt(peer))),
        ("addresses", list(peer.addresses)),
        ("agent", peer.agent_version),
        ("protocols", list(peer.protocols)),
        ("last seen", f"{seen} ago" if seen else None),
    ]


def relay_row(relay: Relay, now: float) -> Sequence[object]:
    """A relay under RELAY_HEADERS."""
    return (
        relay.peer_id or relay.address,
        state_name(relay),
        enum_name(Relay.Source.DESCRIPTOR, relay.source) or "-",
        _in(relay.expire_time, now) if relay.HasField("expire_time") else None,
        _in(relay.next_try_time, now) if relay.HasField("next_try_time") else None,
        milliseconds(relay.rtt_ms if relay.HasField("rtt_ms") else None),
        limits_text(relay.limits if relay.HasField("limits") else None),
        relay.last_error,
    )


def relay_fields(relay: Relay, now: float) -> list[tuple[str, object]]:
    """A relay as labels and values."""
    row = relay_row(relay, now)
    return [
        ("relay", relay.peer_id),
        ("state", row[1]),
        ("source", row[2]),
        ("reached at", relay.remote_address or relay.address),
        ("expires", row[3]),
        ("limits of circuits", row[6]),
        ("peers reach us at", list(relay.circuit_addresses)),
        *([("last error", relay.last_error)] if relay.last_error else []),
    ]


def event_text(event: Event) -> str:
    """An event as one line."""
    kind = event.WhichOneof("event") or "unknown"
    when = event.time.ToDatetime(datetime.UTC).astimezone().strftime("%H:%M:%S")
    mark = "now" if event.snapshot else when
    return f"{mark:<8}  {kind:<19}  {_event_details(event, kind)}".rstrip()


def _event_details(event: Event, kind: str) -> str:
    if kind == "connection_opened":
        return _connection_text(event.connection_opened)
    if kind == "connection_closed":
        closed = event.connection_closed
        return f"{_connection_text(closed.connection)}: {closed.message or closed.reason}"
    if kind == "peer_identified":
        peer = event.peer_identified
        return f"{peer.peer_id} {peer.agent_version}"
    if kind == "addresses_changed":
        return " ".join(event.addresses_changed.addresses)
    if kind == "relay_changed":
        relay = event.relay_changed
        error = f": {relay.last_error}" if relay.last_error else ""
        return f"{relay.peer_id} {state_name(relay)}{error}"
    if kind == "circuit_opened":
        return circuit_text(event.circuit_opened)
    if kind == "circuit_closed":
        return circuit_text(event.circuit_closed)
    if kind == "reservation_changed":
        changed = event.reservation_changed
        name = enum_name(type(changed).Change.DESCRIPTOR, changed.change)
        return f"{changed.peer_id} {name}"
    if kind == "path_changed":
        now, before = event.path_changed.connection, path_name(event.path_changed.previous)
        return f"{now.peer_id} {before} -> {path_name(now.path)} {now.remote_address}"
    if kind == "network_changed":
        network = event.network_changed
        name = enum_name(type(network).Change.DESCRIPTOR, network.change) or "-"
        return " ".join([name, *network.sources])
    if kind == "port_mapping_changed":
        return "; ".join(gateway_text(one) for one in event.port_mapping_changed.gateways)
    if kind == "reachability_changed":
        return reachability_text(event.reachability_changed)
    if kind == "stopping":
        return event.stopping.reason
    if kind == "lost":
        return f"{event.lost.count} events: this watcher is too slow"
    return ""


def reachability_text(changed: ReachabilityChanged) -> str:
    """The verdict on this node, and the addresses that strangers can connect to."""
    name = enum_name(Reachability.DESCRIPTOR, changed.reachability) or "-"
    public = [one.address for one in changed.addresses if one.reachability == _PUBLIC]
    return " ".join([name, *public])


def circuit_text(circuit: Circuit) -> str:
    """A circuit of ours as a relay, with what it carried."""
    text = f"{circuit.source} -> {circuit.target}"
    if circuit.close_reason:
        text += (
            f" {circuit.close_reason}: {byte_count(circuit.source_to_target_bytes)} there, "
            f"{byte_count(circuit.target_to_source_bytes)} back"
        )
    return text


def _connection_text(connection: Connection) -> str:
    return f"{connection.peer_id} {path_name(connection.path)} {connection.remote_address}"


def _in(until: Timestamp, now: float) -> str:
    """How far ahead a time is."""
    return f"in {duration(max(0.0, until.seconds + until.nanos / 1e9 - now))}"


def age(since: Timestamp, now: float) -> str:
    """How long ago a time was."""
    return duration(max(0.0, now - since.seconds - since.nanos / 1e9))


def _rtt(resource: Connection | Peer) -> float | None:
    return resource.rtt_ms if resource.HasField("rtt_ms") else None
