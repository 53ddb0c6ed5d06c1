"""From the daemon's objects to the API's messages; nothing here decides anything."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from dep2p.v1 import event_pb2, peer_pb2, relay_pb2, stream_service_pb2
from dep2p_daemon.circuit import events as circuit_events
from dep2p_daemon.daemon import Daemon, Stopping
from dep2p_daemon.muxed import Direction
from dep2p_daemon.nat.paths import PathChanged
from dep2p_daemon.nat.port_mapping.status import PortMappingChanged
from dep2p_daemon.nat.reachability import ReachabilityChanged
from dep2p_daemon.rpc.network_conversion import port_mapping_changed, reachability_changed
from dep2p_daemon.swarm import events as swarm_events

if TYPE_CHECKING:
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.muxed import CircuitLimits, Connection, Stream

_DIRECTIONS = {
    Direction.INBOUND: peer_pb2.DIRECTION_INBOUND,
    Direction.OUTBOUND: peer_pb2.DIRECTION_OUTBOUND,
}

_PATHS = {"direct": peer_pb2.PATH_DIRECT, "relayed": peer_pb2.PATH_RELAYED}


def timestamp(unix: float) -> Timestamp:
    """Unix time in seconds."""
    stamp = Timestamp()
    stamp.FromNanoseconds(int(unix * 1e9))
    return stamp


def optional_timestamp(unix: float | None) -> Timestamp | None:
    """Absent where there is none."""
    return None if unix is None else timestamp(unix)


def milliseconds(seconds: float | None) -> float | None:
    """Absent where it was not measured."""
    return None if seconds is None else seconds * 1e3


def path_of(connection: Connection) -> peer_pb2.Path.ValueType:
    """Which way its packets go."""
    return _PATHS[connection.path]


def limits_message(limits: CircuitLimits) -> peer_pb2.Limits:
    """What a relay announced, for no particular circuit."""
    return peer_pb2.Limits(duration_seconds=limits.duration, data_bytes=limits.data)


def remaining_limits(connection: Connection) -> peer_pb2.Limits | None:
    """What the relay announced for this connection, and what is left of it."""
    limits = connection.limits
    if limits is None:
        return None
    message = limits_message(limits)
    if limits.duration is not None:
        age = time.time() - connection.opened_at
        message.remaining_seconds = max(0.0, limits.duration - age)
    if limits.data is not None:
        used = max(connection.traffic.received, connection.traffic.sent)
        message.remaining_bytes = max(0, limits.data - used)
    return message


def connection_message(connection: Connection) -> peer_pb2.Connection:
    """One connection as it is now."""
    return peer_pb2.Connection(
        connection_id=connection.id,
        peer_id=str(connection.remote_peer),
        path=path_of(connection),
        direction=_DIRECTIONS[connection.direction],
        local_address=str(connection.local_address),
        remote_address=str(connection.remote_address),
        relay=None if connection.relay is None else str(connection.relay),
        rtt_ms=milliseconds(connection.rtt),
        limits=remaining_limits(connection),
        security=connection.security,
        muxer=connection.muxer,
        stream_count=len(connection.streams),
        open_time=timestamp(connection.opened_at),
        received_bytes=connection.traffic.received,
        sent_bytes=connection.traffic.sent,
        datagram_bytes=connection.datagram_size,
    )


def stream_info(stream: Stream) -> stream_service_pb2.StreamInfo:
    """One stream and the connection that carries it."""
    return stream_service_pb2.StreamInfo(
        protocol=stream.protocol,
        direction=_DIRECTIONS[stream.direction],
        connection=connection_message(stream.connection),
    )


def peer_message(daemon: Daemon, peer: PeerId) -> peer_pb2.Peer:
    """What is known of a peer: by the swarm now, by the peerstore from before."""
    connections = daemon.swarm.connections(peer)
    best = daemon.swarm.best_connection(peer)
    message = peer_pb2.Peer(
        peer_id=str(peer),
        connected=best is not None,
        path=peer_pb2.PATH_UNSPECIFIED if best is None else path_of(best),
        addresses=[str(address) for address in daemon.peerstore.addresses(peer)],
        protocols=sorted(daemon.peerstore.protocols(peer)),
        rtt_ms=None if best is None else milliseconds(best.rtt),
        connection_count=len(connections),
    )
    info = daemon.peerstore.get(peer)
    if info is not None:
        message.agent_version = info.agent_version
        message.protocol_version = info.protocol_version
        if info.last_seen is not None:
            message.last_seen_time.CopyFrom(timestamp(info.last_seen))
    return message


def relay_message(status: circuit_events.RelayStatus) -> relay_pb2.Relay:
    """A relay that we use."""
    return relay_pb2.Relay(
        peer_id=str(status.peer_id),
        address=str(status.address),
        state=relay_pb2.Relay.State.Value(f"STATE_{status.state.value}"),
        expire_time=optional_timestamp(status.expires_at),
        circuit_addresses=[str(address) for address in status.circuit_addresses],
        limits=None if status.limits is None else limits_message(status.limits),
        last_error=status.last_error,
        last_error_reason=status.last_error_reason,
        next_try_time=optional_timestamp(status.next_try_at),
        rtt_ms=milliseconds(status.rtt),
        source=relay_pb2.Relay.Source.Value(f"SOURCE_{status.source.value}"),
        remote_address="" if status.remote_address is None else str(status.remote_address),
    )


def relay_host_message(status: circuit_events.RelayHostStatus) -> relay_pb2.Relay:
    """A relay of which only host and port are known."""
    return relay_pb2.Relay(
        address=status.host,
        state=relay_pb2.Relay.State.Value(f"STATE_{status.state.value}"),
        last_error=status.last_error,
        last_error_reason=status.last_error_reason,
        next_try_time=optional_timestamp(status.next_try_at),
        source=relay_pb2.Relay.SOURCE_CONFIGURED,
    )


def circuit_message(circuit: circuit_events.CircuitStatus) -> event_pb2.Circuit:
    """A circuit that we relay."""
    return event_pb2.Circuit(
        circuit_id=circuit.circuit_id,
        source=str(circuit.source),
        target=str(circuit.target),
        source_to_target_bytes=circuit.source_to_target_bytes,
        target_to_source_bytes=circuit.target_to_source_bytes,
        open_time=timestamp(circuit.opened_at),
        close_reason="" if circuit.close_reason is None else circuit.close_reason.value,
    )


def reservation_message(
    reservation: circuit_events.ReservationStatus, change: circuit_events.ReservationChange
) -> event_pb2.ReservationChanged:
    """A reservation at us."""
    return event_pb2.ReservationChanged(
        peer_id=str(reservation.peer_id),
        change=event_pb2.ReservationChanged.Change.Value(f"CHANGE_{change.value}"),
        expire_time=timestamp(reservation.expires_at),
    )


def event_message(daemon: Daemon, event: object) -> event_pb2.Event | None:
    """What a watcher is told of an event of the bus; None for what is not its concern."""
    message = event_pb2.Event(time=timestamp(time.time()))
    match event:
        case swarm_events.ConnectionOpened(connection):
            message.connection_opened.CopyFrom(connection_message(connection))
        case swarm_events.ConnectionClosed(connection, error):
            message.connection_closed.connection.CopyFrom(connection_message(connection))
            message.connection_closed.reason = error.reason
            message.connection_closed.message = error.message
        case swarm_events.PeerIdentified(peer_id=peer_id):
            message.peer_identified.CopyFrom(peer_message(daemon, peer_id))
        case swarm_events.AddressesChanged():
            addresses = [str(address) for address in daemon.addresses()]
            message.addresses_changed.CopyFrom(event_pb2.AddressesChanged(addresses=addresses))
        case circuit_events.RelayChanged(status):
            message.relay_changed.CopyFrom(relay_message(status))
        case circuit_events.RelayHostChanged(host):
            message.relay_changed.CopyFrom(relay_host_message(host))
        case circuit_events.CircuitOpened(circuit):
            message.circuit_opened.CopyFrom(circuit_message(circuit))
        case circuit_events.CircuitClosed(circuit):
            message.circuit_closed.CopyFrom(circuit_message(circuit))
        case circuit_events.ReservationChanged(reservation, change):
            message.reservation_changed.CopyFrom(reservation_message(reservation, change))
        case PathChanged(connection=connection, previous=previous):
            message.path_changed.connection.CopyFrom(connection_message(connection))
            message.path_changed.previous = _PATHS[previous]
        case ReachabilityChanged(verdict, verdicts):
            message.reachability_changed.CopyFrom(reachability_changed(verdict, verdicts))
        case PortMappingChanged(status):
            message.port_mapping_changed.CopyFrom(port_mapping_changed(status))
        case swarm_events.NetworkChanged(change, sources, gateways):
            message.network_changed.CopyFrom(
                event_pb2.NetworkChanged(
                    change=event_pb2.NetworkChanged.Change.Value(f"CHANGE_{change.value}"),
                    sources=sources,
                    gateways=gateways,
                )
            )
        case Stopping(reason):
            message.stopping.CopyFrom(event_pb2.Stopping(reason=reason))
        case _:
            return None
    return message


def snapshot(daemon: Daemon) -> list[event_pb2.Event]:
    """Return the state now, told as the events that would have led to it."""
    swarm = daemon.swarm
    created = circuit_events.ReservationChange.CREATED
    events: list[object] = [swarm_events.AddressesChanged(swarm.own_addresses)]
    if daemon.reachability is not None:
        watch = daemon.reachability
        events.append(ReachabilityChanged(watch.verdict, watch.addresses))
    if daemon.port_mapper is not None:
        events.append(PortMappingChanged(daemon.port_mapper.status))
    events += (circuit_events.RelayHostChanged(host) for host in daemon.relay_supervisor.hosts)
    events += (circuit_events.RelayChanged(status) for status in daemon.relay_client.relays)
    events += (swarm_events.ConnectionOpened(connection) for connection in swarm.connections())
    events += (
        swarm_events.PeerIdentified(peer, connection)
        for peer in swarm.connected_peers()
        if daemon.peerstore.protocols(peer)
        and (connection := swarm.best_connection(peer)) is not None
    )
    if daemon.relay_server is not None:
        events += (
            circuit_events.ReservationChanged(reservation, created)
            for reservation in daemon.relay_server.reservations
        )
        events += (circuit_events.CircuitOpened(c) for c in daemon.relay_server.circuits)
    messages = [event_message(daemon, event) for event in events]
    for message in messages:
        assert message is not None
        message.snapshot = True
    return [message for message in messages if message is not None]
