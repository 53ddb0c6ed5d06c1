"""What users read: refusals, and the addresses that go with a reservation."""

from __future__ import annotations

import pytest

from dep2p_daemon.circuit.addresses import circuit_addresses, reservation_addresses
from dep2p_daemon.circuit.messages import Status
from dep2p_daemon.circuit.refusals import connect_refused, reserve_refused
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr

RELAY, TARGET = (PrivateKey.from_seed(seed * 32).peer_id for seed in (b"r", b"t"))
LOOPBACK = Multiaddr.parse("/ip4/127.0.0.1/udp/4001/quic-v1")
LAN = Multiaddr.parse("/ip4/192.168.1.7/udp/4001/quic-v1")
PUBLIC = Multiaddr.parse("/ip4/8.8.4.4/udp/4001/quic-v1")
NAME = Multiaddr.parse("/dns4/relay.example.org/tcp/4001")
CIRCUIT = Multiaddr.parse(f"/ip4/8.8.8.8/tcp/1/p2p/{TARGET}/p2p-circuit")


def with_relay(*addresses: Multiaddr) -> tuple[Multiaddr, ...]:
    return tuple(address.with_peer_id(RELAY) for address in addresses)


def test_no_reservation_says_it_in_the_seeds_words_and_what_to_do() -> None:
    error = connect_refused(Status.NO_RESERVATION, relay=RELAY, target=TARGET)
    assert error.message.startswith("target peer not connected to relay")
    assert "dep2pctl relay connect" in error.remedy
    assert "relay list` shows reserved" in error.remedy
    assert (error.reason, error.status) == ("NO_RESERVATION", 204)
    assert error.metadata == {"relay": str(RELAY), "peer": str(TARGET), "status": "204"}


@pytest.mark.parametrize("status", [s for s in Status if s not in (Status.OK, Status.UNUSED)])
def test_each_status_has_a_reason_and_a_remedy_for_both_requests(status: Status) -> None:
    for error in (
        connect_refused(status, relay=RELAY, target=TARGET),
        reserve_refused(status, relay=RELAY),
    ):
        assert error.reason == status.name
        assert error.status == status
        assert str(RELAY) in error.message
        assert error.remedy
        assert "{" not in str(error)


def test_a_status_from_the_future_is_named_by_its_number() -> None:
    error = connect_refused(250, relay=RELAY, target=TARGET)
    assert error.reason == "STATUS_250"
    assert "status 250" in error.message
    assert str(TARGET) in error.message


@pytest.mark.parametrize(
    ("own", "over_loopback", "offered"),
    [
        ([LOOPBACK, LAN, PUBLIC, NAME], False, [PUBLIC, NAME]),
        ([LOOPBACK, LAN, PUBLIC], True, [PUBLIC]),
        ([LOOPBACK, LAN], False, [LAN]),
        ([LOOPBACK, LAN], True, [LOOPBACK]),
        ([LAN], True, [LAN]),
        ([LOOPBACK], False, []),
        ([LAN, CIRCUIT], False, [LAN]),
        ([], True, []),
    ],
)
def test_a_relay_offers_its_public_addresses_or_what_it_has(
    own: list[Multiaddr], over_loopback: bool, offered: list[Multiaddr]
) -> None:
    assert reservation_addresses(own, relay=RELAY, over_loopback=over_loopback) == with_relay(
        *offered
    )


def test_a_clients_circuit_addresses_begin_with_the_way_it_reached_the_relay_itself() -> None:
    found = circuit_addresses([LAN], with_relay(PUBLIC, LAN, NAME), relay=RELAY)
    assert [str(address) for address in found] == [
        f"{address}/p2p/{RELAY}/p2p-circuit" for address in (LAN, PUBLIC, NAME)
    ]


def test_a_relay_cannot_flood_its_client_with_addresses() -> None:
    many = with_relay(*(Multiaddr.for_tcp("8.8.8.8", port) for port in range(1, 100)))
    assert len(circuit_addresses([LAN], many, relay=RELAY)) == 8
