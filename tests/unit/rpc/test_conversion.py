"""Messages from the daemon's objects: every event has one, absent stays absent."""

from __future__ import annotations

import time
from ipaddress import IPv4Address
from typing import Any

import pytest
from typing_extensions import override

from dep2p.v1 import event_pb2, peer_pb2, relay_pb2
from dep2p_daemon.circuit import events as circuit_events
from dep2p_daemon.daemon import Stopping
from dep2p_daemon.errors import ConnectionClosedError
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.muxed import CircuitLimits, Connection, Direction, Stream
from dep2p_daemon.nat import paths, reachability
from dep2p_daemon.nat.port_mapping import status as port_mapping_status
from dep2p_daemon.nat.port_mapping.terms import Endpoint, Port, Protocol, Transport
from dep2p_daemon.rpc import conversion
from dep2p_daemon.swarm import events as swarm_events
from dep2p_daemon.swarm.peerstore import Peerstore

US, PEER, RELAY = (PrivateKey.from_seed(bytes([n]) * 32) for n in (1, 2, 3))
ADDRESS = Multiaddr.parse("/ip4/203.0.113.10/udp/4001/quic-v1")


class StillConnection(Connection):
    """One that nothing happens on."""

    def __init__(self, **more: Any) -> None:
        super().__init__(
            local_peer=US.peer_id,
            remote_peer=PEER.peer_id,
            remote_key=PEER.public_key,
            direction=Direction.INBOUND,
            local_address=ADDRESS,
            remote_address=ADDRESS,
            security="libp2p-tls",
            muxer="quic",
            **more,
        )

    @property
    @override
    def streams(self) -> tuple[Stream, ...]:
        return ()

    @property
    @override
    def is_closed(self) -> bool:
        return False

    @override
    async def open_stream(self) -> Stream:
        raise NotImplementedError

    @override
    async def accept_stream(self) -> Stream:
        raise NotImplementedError

    @override
    async def close(self, code: int = 0, message: str = "") -> None:
        raise NotImplementedError

    @override
    async def wait_closed(self) -> ConnectionClosedError:
        raise NotImplementedError


class StillSwarm:
    """What conversion asks a swarm."""

    def __init__(self, *connections: Connection) -> None:
        self._connections = connections

    def connections(self, peer: object) -> tuple[Connection, ...]:
        return self._connections

    def best_connection(self, peer: object) -> Connection | None:
        return self._connections[0] if self._connections else None


class StillDaemon:
    """What conversion asks a daemon."""

    def __init__(self, *connections: Connection) -> None:
        self.swarm = StillSwarm(*connections)
        self.peerstore = Peerstore(None)

    def addresses(self) -> tuple[Multiaddr, ...]:
        return (ADDRESS.with_peer_id(US.peer_id),)


def has(message: Any, *fields: str) -> list[str]:
    """Those of the fields that are present."""
    return [field for field in fields if message.HasField(field)]


def message_of(event: object, *connections: Connection) -> event_pb2.Event | None:
    daemon: Any = StillDaemon(*connections)
    return conversion.event_message(daemon, event)


RELAY_STATUS = circuit_events.RelayStatus(
    peer_id=RELAY.peer_id, address=ADDRESS, state=circuit_events.RelayState.BACKOFF
)
CIRCUIT = circuit_events.CircuitStatus(
    circuit_id="7",
    source=US.peer_id,
    target=PEER.peer_id,
    source_to_target_bytes=10,
    target_to_source_bytes=20,
    opened_at=1000.5,
    limits=None,
)
RESERVATION = circuit_events.ReservationStatus(
    peer_id=PEER.peer_id, address=ADDRESS, created_at=1.0, expires_at=3601.25
)
GATEWAY = port_mapping_status.GatewayStatus(
    version=4,
    gateway=IPv4Address("192.168.1.1"),
    protocol=Protocol.NAT_PMP,
    mappings=(
        port_mapping_status.PortMapping(
            port=Port(Transport.UDP, 4001),
            external=Endpoint(IPv4Address("198.51.100.7"), 40000),
            expires_at=1000.0,
        ),
        port_mapping_status.PortMapping(
            port=Port(Transport.TCP, 4001), external=None, expires_at=0.0, error="NO_RESOURCES"
        ),
    ),
)
EVENTS: dict[str, object] = {
    "connection_opened": swarm_events.ConnectionOpened(StillConnection()),
    "connection_closed": swarm_events.ConnectionClosed(
        StillConnection(), ConnectionClosedError("it was idle", reason="IDLE_TIMEOUT")
    ),
    "peer_identified": swarm_events.PeerIdentified(PEER.peer_id, StillConnection()),
    "addresses_changed": swarm_events.AddressesChanged((ADDRESS,)),
    "reachability_changed": reachability.ReachabilityChanged(
        reachability.Verdict.PUBLIC,
        (reachability.AddressReachability(ADDRESS, reachability.Verdict.PUBLIC, 2),),
    ),
    "relay_changed": circuit_events.RelayChanged(RELAY_STATUS),
    "circuit_opened": circuit_events.CircuitOpened(CIRCUIT),
    "circuit_closed": circuit_events.CircuitClosed(CIRCUIT),
    "reservation_changed": circuit_events.ReservationChanged(
        RESERVATION, circuit_events.ReservationChange.REFRESHED
    ),
    "path_changed": paths.PathChanged(PEER.peer_id, StillConnection(), "relayed"),
    "network_changed": swarm_events.NetworkChanged(
        swarm_events.NetworkChange.MOVED, ("192.0.2.7",), ("192.0.2.1",)
    ),
    "port_mapping_changed": port_mapping_status.PortMappingChanged((GATEWAY,)),
    "stopping": Stopping("signal"),
}


RELAY_HOST = circuit_events.RelayHostChanged(
    circuit_events.RelayHostStatus(
        host="relay.example.com:4001", state=circuit_events.RelayState.CONNECTING
    )
)
"""Told as a `relay_changed` too."""


def test_a_relay_that_is_still_looked_for_is_told_as_a_relay() -> None:
    message = message_of(RELAY_HOST)
    assert message is not None
    assert message.relay_changed.state == relay_pb2.Relay.STATE_CONNECTING


@pytest.mark.parametrize("kind", EVENTS)
def test_every_event_has_its_message(kind: str) -> None:
    message = message_of(EVENTS[kind])
    assert message is not None
    assert message.WhichOneof("event") == kind
    assert abs(message.time.ToNanoseconds() / 1e9 - time.time()) < 60


def test_every_kind_of_message_has_its_event() -> None:
    kinds = {f.name for f in event_pb2.Event.DESCRIPTOR.oneofs_by_name["event"].fields}
    assert kinds - {"lost"} == set(EVENTS), "lost is the watch's own"


def test_every_event_of_the_rooms_is_told() -> None:
    """A new event that nobody converts would be lost in silence."""
    told = {type(event).__name__ for event in (*EVENTS.values(), RELAY_HOST)} - {"Stopping"}
    published = {
        name
        for module in (swarm_events, circuit_events, paths, reachability, port_mapping_status)
        for name, value in vars(module).items()
        if isinstance(value, type)
        and value.__module__ == module.__name__
        and name.endswith(("Opened", "Closed", "Changed", "Identified"))
    }
    assert published == told


def test_what_a_gateway_maps_and_what_not() -> None:
    message = message_of(EVENTS["port_mapping_changed"])
    assert message is not None
    (gateway,) = message.port_mapping_changed.gateways
    assert (gateway.ip_version, gateway.address, gateway.protocol) == (4, "192.168.1.1", "nat-pmp")
    mapped, refused = gateway.mappings
    assert (mapped.transport, mapped.port) == ("udp", 4001)
    assert mapped.external_address == "/ip4/198.51.100.7/udp/40000/quic-v1"
    assert mapped.expire_time.seconds == 1000
    assert (refused.transport, refused.error) == ("tcp", "NO_RESOURCES")
    assert refused.external_address == ""
    assert not refused.HasField("expire_time")


def test_what_is_no_watchers_concern_is_left_out() -> None:
    assert message_of(object()) is None


@pytest.mark.parametrize("state", list(circuit_events.RelayState))
def test_every_state_of_a_relay_has_its_name(state: circuit_events.RelayState) -> None:
    status = circuit_events.RelayStatus(peer_id=RELAY.peer_id, address=ADDRESS, state=state)
    message = conversion.relay_message(status)
    assert relay_pb2.Relay.State.Name(message.state) == f"STATE_{state.name}"


@pytest.mark.parametrize("change", list(circuit_events.ReservationChange))
def test_every_change_of_a_reservation_has_its_name(
    change: circuit_events.ReservationChange,
) -> None:
    message = conversion.reservation_message(RESERVATION, change)
    names = event_pb2.ReservationChanged.Change
    assert names.Name(message.change) == f"CHANGE_{change.name}"
    assert message.expire_time.ToNanoseconds() == 3_601_250_000_000


def test_what_is_not_known_is_absent() -> None:
    relay = conversion.relay_message(RELAY_STATUS)
    assert has(relay, "expire_time", "next_try_time", "limits", "rtt_ms") == []
    connection = conversion.connection_message(StillConnection())
    assert has(connection, "relay", "rtt_ms", "limits") == []
    peer = message_of(EVENTS["peer_identified"])
    assert peer is not None
    assert peer.peer_identified.path == peer_pb2.PATH_UNSPECIFIED
    assert not peer.peer_identified.HasField("last_seen_time")


def test_a_circuit_that_is_open_has_no_reason() -> None:
    message = conversion.circuit_message(CIRCUIT)
    assert message.close_reason == ""
    assert (message.source_to_target_bytes, message.target_to_source_bytes) == (10, 20)
    assert message.open_time.ToNanoseconds() == 1_000_500_000_000


def test_limits_and_what_is_left_of_them() -> None:
    connection = StillConnection(
        relay=RELAY.peer_id, limits=CircuitLimits(duration=120.0, data=1000)
    )
    connection.opened_at = time.time() - 20
    connection.traffic.received, connection.traffic.sent = 100, 300
    connection.rtt = 0.05
    message = conversion.connection_message(connection)
    assert message.path == peer_pb2.PATH_RELAYED
    assert message.relay == str(RELAY.peer_id)
    assert message.rtt_ms == 50
    assert message.limits.duration_seconds == 120
    assert message.limits.data_bytes == 1000
    assert 90 < message.limits.remaining_seconds <= 100
    assert message.limits.remaining_bytes == 700, "of the fuller direction"
    connection.opened_at -= 200
    connection.traffic.sent = 2000
    message = conversion.connection_message(connection)
    assert (message.limits.remaining_seconds, message.limits.remaining_bytes) == (0, 0)


@pytest.mark.parametrize("limits", [CircuitLimits(None, 5), CircuitLimits(5.0, None)])
def test_a_limit_that_is_not_there_is_absent(limits: CircuitLimits) -> None:
    message = conversion.connection_message(StillConnection(relay=RELAY.peer_id, limits=limits))
    duration, data = ["duration_seconds", "remaining_seconds"], ["data_bytes", "remaining_bytes"]
    expected = data if limits.duration is None else duration
    assert has(message.limits, *duration, *data) == expected
