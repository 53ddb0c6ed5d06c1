from __future__ import annotations

import pytest

from dep2p.v1.event_pb2 import (
    AddressesChanged,
    Circuit,
    ConnectionClosed,
    Event,
    Lost,
    NetworkChanged,
    PathChanged,
    ReservationChanged,
    Stopping,
)
from dep2p.v1.network_pb2 import (
    REACHABILITY_PRIVATE,
    REACHABILITY_PUBLIC,
    AddressReachability,
    Gateway,
    PortMapping,
    PortMappingChanged,
    ReachabilityChanged,
)
from dep2p.v1.node_service_pb2 import Node
from dep2p.v1.peer_pb2 import (
    DIRECTION_INBOUND,
    PATH_DIRECT,
    PATH_RELAYED,
    Connection,
    Limits,
    Peer,
)
from dep2p.v1.relay_pb2 import Relay
from dep2pctl import views

NOW = 1_000_000.0
RELAYED = Connection(
    connection_id="c1",
    peer_id="12D3Peer",
    path=PATH_RELAYED,
    direction=DIRECTION_INBOUND,
    remote_address="/ip4/1.2.3.4/tcp/1/p2p/12D3Relay/p2p-circuit",
    relay="12D3Relay",
    rtt_ms=3.5,
    stream_count=2,
    security="/noise",
    muxer="/yamux/1.0.0",
)
RELAYED.open_time.seconds = int(NOW) - 61


def test_a_connections_row_fits_its_headers() -> None:
    row = views.connection_row(RELAYED, NOW)
    assert dict(zip(views.CONNECTION_HEADERS, row, strict=True)) == {
        "ID": "c1",
        "PEER": "12D3Peer",
        "PATH": "relayed",
        "DIR": "in",
        "RTT": "3.50 ms",
        "STREAMS": 2,
        "AGE": "1m1s",
        "REMOTE ADDRESS": "/ip4/1.2.3.4/tcp/1/p2p/12D3Relay/p2p-circuit",
    }


def test_a_dialled_connection_tells_its_relay_and_limits() -> None:
    fields = dict(views.connection_fields(RELAYED))
    assert fields["relay"] == "12D3Relay"
    assert fields["limits"] == "none"
    limited = Connection()
    limited.CopyFrom(RELAYED)
    limited.limits.CopyFrom(
        Limits(duration_seconds=120, remaining_seconds=60, data_bytes=131072, remaining_bytes=1000)
    )
    assert dict(views.connection_fields(limited))["limits"] == (
        "2m (1m left), 131.1 kB each way (1.0 kB left)"
    )
    assert "relay" not in dict(views.connection_fields(Connection()))


def test_a_peers_row_fits_its_headers() -> None:
    peer = Peer(peer_id="12D3Peer", agent_version="js-libp2p", connection_count=1)
    row = views.peer_row(peer)
    assert row == ("12D3Peer", "-", "-", 1, "js-libp2p")
    assert len(row) == len(views.PEER_HEADERS)
    assert dict(views.peer_fields(peer, NOW))["last seen"] is None
    peer.last_seen_time.seconds = int(NOW) - 5
    assert dict(views.peer_fields(peer, NOW))["last seen"] == "5s ago"


def test_a_relays_row_tells_its_state_and_why() -> None:
    relay = Relay(peer_id="12D3Relay", state=Relay.STATE_BACKOFF, last_error="timeout")
    row = dict(zip(views.RELAY_HEADERS, views.relay_row(relay, NOW), strict=True))
    assert (row["STATE"], row["EXPIRES"], row["LAST ERROR"]) == ("backoff", None, "timeout")
    relay.expire_time.seconds = int(NOW) + 3600
    assert dict(zip(views.RELAY_HEADERS, views.relay_row(relay, NOW), strict=True))["EXPIRES"] == (
        "in 1h"
    )


def test_only_a_relay_counts_reservations() -> None:
    assert "reservations" not in dict(views.node_fields(Node(), NOW))
    relay = Node(relay_server_enabled=True, reservation_count=3)
    assert dict(views.node_fields(relay, NOW))["reservations"] == 3


@pytest.mark.parametrize(
    ("event", "part"),
    [
        (Event(connection_opened=RELAYED), "12D3Peer relayed /ip4/"),
        (Event(connection_closed=ConnectionClosed(connection=RELAYED, reason="IDLE")), "IDLE"),
        (Event(peer_identified=Peer(peer_id="12D3", agent_version="go")), "12D3 go"),
        (Event(addresses_changed=AddressesChanged(addresses=["/a", "/b"])), "/a /b"),
        (Event(relay_changed=Relay(peer_id="12D3", last_error="no")), "12D3 -: no"),
        (Event(circuit_opened=Circuit(source="a", target="b")), "a -> b"),
        (
            Event(circuit_closed=Circuit(source="a", target="b", close_reason="COMPLETED")),
            "a -> b COMPLETED: 0 B there, 0 B back",
        ),
        (
            Event(
                reservation_changed=ReservationChanged(
                    peer_id="12D3", change=ReservationChanged.CHANGE_CREATED
                )
            ),
            "12D3 created",
        ),
        (
            Event(path_changed=PathChanged(connection=RELAYED, previous=PATH_DIRECT)),
            "12D3Peer direct -> relayed /ip4/",
        ),
        (
            Event(
                reachability_changed=ReachabilityChanged(
                    reachability=REACHABILITY_PUBLIC,
                    addresses=[
                        AddressReachability(address="/ip4/1", reachability=REACHABILITY_PRIVATE),
                        AddressReachability(address="/ip4/2", reachability=REACHABILITY_PUBLIC),
                    ],
                )
            ),
            "public /ip4/2",
        ),
        (
            Event(
                network_changed=NetworkChanged(
                    change=NetworkChanged.CHANGE_MOVED, sources=["192.0.2.7", "2001:db8::7"]
                )
            ),
            "moved 192.0.2.7 2001:db8::7",
        ),
        (
            Event(
                port_mapping_changed=PortMappingChanged(
                    gateways=[
                        Gateway(
                            ip_version=4,
                            address="192.168.1.1",
                            protocol="upnp",
                            mappings=[
                                PortMapping(external_address="/ip4/1/tcp/2"),
                                PortMapping(transport="udp", port=3, error="NO_RESOURCES"),
                            ],
                        ),
                        Gateway(ip_version=6, error="NO_GATEWAY", message="there is none"),
                    ]
                )
            ),
            "IPv4 by upnp at 192.168.1.1: /ip4/1/tcp/2, udp 3 not mapped (NO_RESOURCES); "
            "IPv6: there is none",
        ),
        (Event(stopping=Stopping(reason="signal")), "signal"),
        (Event(lost=Lost(count=7)), "7 events"),
    ],
    ids=lambda value: value.WhichOneof("event") if isinstance(value, Event) else "",
)
def test_every_event_is_one_line(event: Event, part: str) -> None:
    text = views.event_text(event)
    assert part in text
    assert (event.WhichOneof("event") or "?") in text
    assert "\n" not in text


def test_no_kind_of_event_is_without_a_text() -> None:
    """A new member of the oneof wants a line in `_event_details`, and a row above."""
    tested = 14
    assert len(Event.DESCRIPTOR.oneofs_by_name["event"].fields) == tested


def test_an_event_of_a_newer_daemon_is_shown_as_unknown() -> None:
    assert "unknown" in views.event_text(Event())


def test_snapshot_events_are_marked() -> None:
    assert views.event_text(Event(snapshot=True, lost=Lost())).startswith("now ")
