from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from dep2p.v1 import (
    event_pb2,
    node_service_pb2,
    peer_pb2,
    peer_service_pb2,
    relay_pb2,
    stream_service_pb2,
)
from dep2pctl.as_json import as_json, enum_name

if TYPE_CHECKING:
    from google.protobuf.message import Message


def test_a_direct_connection_has_nulls_where_nothing_is() -> None:
    connection = peer_pb2.Connection(
        connection_id="c1",
        peer_id="12D3",
        path=peer_pb2.PATH_DIRECT,
        direction=peer_pb2.DIRECTION_OUTBOUND,
        remote_address="/ip4/127.0.0.1/udp/1/quic-v1",
        sent_bytes=2**63,
    )
    value = as_json(connection)
    assert value["path"] == "direct"
    assert value["direction"] == "outbound"
    assert value["relay"] is None
    assert value["rtt_ms"] is None
    assert value["limits"] is None
    assert value["open_time"] is None
    assert value["sent_bytes"] == 2**63
    assert value["received_bytes"] == 0


def test_a_relayed_connection_tells_relay_limits_and_times() -> None:
    connection = peer_pb2.Connection(
        path=peer_pb2.PATH_RELAYED,
        relay="12D3Relay",
        rtt_ms=0.0,
        limits=peer_pb2.Limits(data_bytes=131072, remaining_bytes=5),
    )
    connection.open_time.FromJsonString("2026-01-02T03:04:05.5Z")
    value = as_json(connection)
    assert value["relay"] == "12D3Relay"
    assert value["rtt_ms"] == 0.0
    assert value["limits"] == {
        "duration_seconds": None,
        "data_bytes": 131072,
        "remaining_seconds": None,
        "remaining_bytes": 5,
    }
    assert value["open_time"] == "2026-01-02T03:04:05.500Z"


def test_an_event_has_the_one_member_that_happened() -> None:
    event = event_pb2.Event(snapshot=True, relay_changed=relay_pb2.Relay(peer_id="12D3"))
    value = as_json(event)
    assert value.keys() == {"time", "snapshot", "relay_changed"}
    assert value["relay_changed"]["state"] is None
    assert value["relay_changed"]["circuit_addresses"] == []


def test_nested_enums_lose_their_prefix() -> None:
    relay = relay_pb2.Relay(state=relay_pb2.Relay.STATE_RESERVED)
    assert as_json(relay)["state"] == "reserved"
    changed = event_pb2.ReservationChanged(change=event_pb2.ReservationChanged.CHANGE_ENDED)
    assert as_json(changed)["change"] == "ended"


def test_an_enum_value_of_a_newer_daemon_is_null() -> None:
    relay = relay_pb2.Relay.FromString(b"\x18\x63")  # state = 99
    assert as_json(relay)["state"] is None
    assert enum_name(peer_pb2.Path.DESCRIPTOR, 0) is None


@pytest.mark.parametrize(
    "message",
    [
        peer_pb2.Peer(),
        peer_pb2.Connection(limits=peer_pb2.Limits()),
        relay_pb2.Relay(),
        node_service_pb2.Node(addresses=["/x"]),
        event_pb2.Event(connection_closed=event_pb2.ConnectionClosed()),
        event_pb2.Event(lost=event_pb2.Lost(count=3)),
        peer_service_pb2.PingResponse(),
        peer_service_pb2.MeasureThroughputResponse(),
        stream_service_pb2.StreamInfo(),
    ],
    ids=lambda message: message.DESCRIPTOR.name,
)
def test_every_field_is_there_under_its_name(message: Message) -> None:
    value = as_json(message)
    json.dumps(value)
    for field in message.DESCRIPTOR.fields:
        oneof = field.containing_oneof
        if oneof is None or len(oneof.fields) == 1 or message.HasField(field.name):
            assert field.name in value
