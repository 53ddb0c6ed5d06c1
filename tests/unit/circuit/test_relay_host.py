"""Relays by `host:port`: who they are is found out once, and believed from then on."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from tests.circuit_nodes import Node, memory, node
from tests.memory_transport import MemoryNetwork
from tests.virtual_time import virtual_time

from dep2p_daemon.circuit.events import RelayChanged, RelayHostChanged, RelayState
from dep2p_daemon.circuit.relay_host import MAX_PINS, RelayHost, RelayPins
from dep2p_daemon.circuit.relay_server import RelayServerSettings
from dep2p_daemon.circuit.relay_supervisor import RelaySupervisor
from dep2p_daemon.errors import ConfigError, MultiaddrError, UnreachableError
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

KEY = PrivateKey.from_seed(b"h" * 32)
OTHER = PrivateKey.from_seed(b"o" * 32)
QUIC = Multiaddr.parse("/ip4/192.0.2.9/udp/4001/quic-v1")
TCP = Multiaddr.parse("/ip4/192.0.2.9/tcp/4001")
HOST = RelayHost.parse("relay.example.com:4001")


class Names:
    """A name service: `relay.example.com` is 192.0.2.9, and may have dnsaddr records."""

    def __init__(self, *records: str) -> None:
        self.records = [Multiaddr.parse(record) for record in records]

    async def resolve(self, address: Multiaddr) -> tuple[Multiaddr, ...]:
        if not address.is_dns:
            return (address,)
        assert address.host == "relay.example.com"
        if address.protocols[0] == "dnsaddr":
            if not self.records:
                raise UnreachableError("no such name")
            return tuple(self.records)
        return (Multiaddr.parse(str(address).replace("/dns/relay.example.com", "/ip4/192.0.2.9")),)


@asynccontextmanager
async def client_of(
    network: MemoryNetwork, names: Names, pins: RelayPins | None = None
) -> AsyncIterator[tuple[Node, RelaySupervisor]]:
    async with (
        node(memory(network), resolver=names) as client,
        RelaySupervisor(
            client.client, client.swarm, client.events, resolver=names, pins=pins
        ) as supervisor,
    ):
        yield client, supervisor


@asynccontextmanager
async def relay_at(
    network: MemoryNetwork, *addresses: Multiaddr, key: PrivateKey = KEY
) -> AsyncIterator[Node]:
    async with node(memory(network), *addresses, key=key, relay=RelayServerSettings()) as relay:
        yield relay


async def reserved(client: Node) -> str:
    event = await client.next(RelayChanged, lambda e: e.status.state is RelayState.RESERVED)
    return str(event.status.peer_id)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("relay.example.com:4001", "/dns/relay.example.com/udp/4001/quic-v1"),
        ("RELAY.example.com:4001", "/dns/relay.example.com/udp/4001/quic-v1"),
        ("203.0.113.10:4001", "/ip4/203.0.113.10/udp/4001/quic-v1"),
        ("[2001:db8::1]:4001", "/ip6/2001:db8::1/udp/4001/quic-v1"),
        ("localhost:1", "/dns/localhost/udp/1/quic-v1"),
    ],
)
def test_host_and_port(text: str, address: str) -> None:
    assert RelayHost.looks_like_one(text)
    host = RelayHost.parse(text)
    assert str(host.address) == address
    assert RelayHost.parse(str(host)) == host


def test_a_dnsaddr_names_all_its_relays() -> None:
    host = RelayHost.parse("/dnsaddr/relays.example.com")
    assert (host.host, host.port, str(host)) == (
        "relays.example.com",
        None,
        "/dnsaddr/relays.example.com",
    )


@pytest.mark.parametrize(
    "text", ["relay", "relay:0", "relay:65536", ":4001", "a b:1", "/ip4/1.2.3.4"]
)
def test_what_is_no_host_and_port(text: str) -> None:
    with pytest.raises(MultiaddrError) as raised:
        RelayHost.parse(text)
    assert raised.value.remedy


@virtual_time
async def test_who_answers_first_is_the_relay_from_then_on() -> None:
    network, pins = MemoryNetwork(), RelayPins(None)
    async with relay_at(network, QUIC), client_of(network, Names(), pins) as (client, supervisor):
        supervisor.add(HOST)
        assert await reserved(client) == str(KEY.peer_id)
        assert pins.get(HOST) == KEY.peer_id
        assert supervisor.hosts == ()
    async with (
        relay_at(network, QUIC, key=OTHER),
        client_of(network, Names(), pins) as (client, supervisor),
    ):
        supervisor.add(HOST)
        failed = await client.next(RelayChanged, lambda e: e.status.state is RelayState.BACKOFF)
        assert failed.status.last_error_reason == "RELAY_PEER_MISMATCH"
        assert failed.status.peer_id == KEY.peer_id


@virtual_time
async def test_where_udp_is_blocked_it_is_found_over_tcp() -> None:
    network = MemoryNetwork()
    network.dead.add(QUIC)
    async with relay_at(network, QUIC, TCP), client_of(network, Names()) as (client, supervisor):
        supervisor.add(HOST)
        assert await reserved(client) == str(KEY.peer_id)


@virtual_time
async def test_records_that_name_the_relay_are_believed_before_who_answers() -> None:
    network, pins = MemoryNetwork(), RelayPins(None)
    elsewhere = Multiaddr.parse("/ip4/192.0.2.33/udp/4001/quic-v1")
    names = Names(str(elsewhere.with_peer_id(KEY.peer_id)))
    async with (
        relay_at(network, QUIC, key=OTHER),
        relay_at(network, elsewhere),
        client_of(network, names, pins) as (client, supervisor),
    ):
        supervisor.add(HOST)
        assert await reserved(client) == str(KEY.peer_id)
        assert pins.get(HOST) is None


@virtual_time
async def test_a_dnsaddr_without_relays_is_said_and_asked_again() -> None:
    network, names = MemoryNetwork(), Names(str(QUIC))
    async with relay_at(network, QUIC), client_of(network, names) as (client, supervisor):
        supervisor.add(RelayHost.parse("/dnsaddr/relay.example.com"))
        failed = await client.next(RelayHostChanged, lambda e: e.status.state is RelayState.BACKOFF)
        assert failed.status.last_error_reason == "NO_PEERS_AT_ADDRESS"
        names.records = [QUIC.with_peer_id(KEY.peer_id)]
        assert await reserved(client) == str(KEY.peer_id)


@virtual_time
async def test_a_relay_that_starts_later_is_found_within_five_seconds() -> None:
    network = MemoryNetwork()
    async with client_of(network, Names()) as (client, supervisor):
        supervisor.add(HOST)
        await asyncio.sleep(60)
        (status,) = supervisor.hosts
        assert status.host == "relay.example.com:4001"
        assert status.last_error
        async with relay_at(network, QUIC), asyncio.timeout(5):
            assert await reserved(client) == str(KEY.peer_id)


def test_pins_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "relay-pins.json"
    RelayPins(path).pin(HOST, KEY.peer_id)
    assert RelayPins(path).get(HOST) == KEY.peer_id
    assert json.loads(path.read_text()) == {"relay.example.com:4001": str(KEY.peer_id)}


@pytest.mark.parametrize("text", ["{", "[]", '{"relay:1": "nobody"}', "\x00"])
def test_pins_that_cannot_be_read_do_not_mean_that_anybody_is_trusted(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "relay-pins.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        RelayPins(path)
    assert str(path) in raised.value.message


def test_pins_are_bounded() -> None:
    pins = RelayPins(None)
    for number in range(MAX_PINS + 5):
        pins.pin(RelayHost(f"r{number}", 1), KEY.peer_id)
    assert pins.get(RelayHost("r4", 1)) is None
    assert pins.get(RelayHost("r5", 1)) == KEY.peer_id
