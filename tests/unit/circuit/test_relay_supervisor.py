"""The number of relays that is wanted, through restarts, dead ways, sleep and blocked UDP."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from tests.circuit_nodes import Node, memory, node, talk
from tests.memory_transport import MemoryConnection, MemoryNetwork
from tests.virtual_time import virtual_time

from dep2p_daemon.circuit.events import RelayChanged, RelaySource, RelayState
from dep2p_daemon.circuit.messages import HOP_PROTOCOL
from dep2p_daemon.circuit.relay_choice import ChoiceSettings
from dep2p_daemon.circuit.relay_server import RelayServerSettings
from dep2p_daemon.circuit.relay_supervisor import RelaySupervisor, SupervisorSettings
from dep2p_daemon.errors import AuthenticationError, Dep2pError, UnreachableError
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.protocols import ping
from dep2p_daemon.swarm.events import AddressesChanged, NetworkChange, NetworkChanged

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.muxed import Connection

KEYS = [PrivateKey.from_seed(bytes([n]) * 32) for n in range(100, 106)]


def quic(number: int) -> Multiaddr:
    return Multiaddr.for_udp(f"192.0.2.{number + 1}", 4001)


def tcp(number: int) -> Multiaddr:
    return Multiaddr.for_tcp(f"192.0.2.{number + 1}", 4001)


def full(number: int) -> Multiaddr:
    return quic(number).with_peer_id(KEYS[number].peer_id)


def now() -> float:
    return asyncio.get_running_loop().time()


@asynccontextmanager
async def relay(network: MemoryNetwork, number: int, *listen: Multiaddr) -> AsyncIterator[Node]:
    async with node(
        memory(network),
        *(listen or (quic(number),)),
        key=KEYS[number],
        relay=RelayServerSettings(),
        identify=True,
    ) as made:
        ping.register(made.swarm)
        yield made


@asynccontextmanager
async def supervised(
    network: MemoryNetwork, **choice: float
) -> AsyncIterator[tuple[Node, RelaySupervisor]]:
    settings = SupervisorSettings(choice=ChoiceSettings(**choice))  # type: ignore[arg-type]
    async with (
        node(memory(network), identify=True) as client,
        RelaySupervisor(client.client, client.swarm, client.events, settings) as supervisor,
    ):
        ping.register(client.swarm)
        yield client, supervisor


def reserved(client: Node) -> set[PeerId]:
    return {s.peer_id for s in client.client.relays if s.state is RelayState.RESERVED}


async def until_reserved(client: Node, *numbers: int, within: float) -> None:
    wanted = {KEYS[number].peer_id for number in numbers}
    async with asyncio.timeout(within):
        while reserved(client) != wanted:
            await client.next(RelayChanged)


def way_of(client: Node, number: int) -> Connection:
    found = client.swarm.best_connection(KEYS[number].peer_id)
    assert found is not None
    return found


@virtual_time
async def test_connected_peers_that_relay_fill_up_to_the_wanted_number() -> None:
    network = MemoryNetwork()
    async with AsyncExitStack() as stack:
        for number in range(3):
            await stack.enter_async_context(relay(network, number))
        client, _ = await stack.enter_async_context(supervised(network))
        for number in range(3):
            await client.swarm.dial(KEYS[number].peer_id, [quic(number)])
        await asyncio.sleep(10)
        assert len(reserved(client)) == 2
        assert {s.source for s in client.client.relays} == {RelaySource.DISCOVERED}
        await asyncio.sleep(600)
        assert len(reserved(client)) == 2, "enough is enough"


@virtual_time
async def test_peers_that_do_not_relay_are_not_asked() -> None:
    network = MemoryNetwork()
    async with (
        node(memory(network), quic(0), key=KEYS[0], identify=True),
        supervised(network) as (client, _),
    ):
        await client.swarm.dial(KEYS[0].peer_id, [quic(0)])
        await asyncio.sleep(60)
        assert client.client.relays == ()


@virtual_time
async def test_configured_relays_are_all_held_and_wanted_ones_none_beside() -> None:
    network = MemoryNetwork()
    async with AsyncExitStack() as stack:
        for number in range(4):
            await stack.enter_async_context(relay(network, number))
        client, _ = await stack.enter_async_context(supervised(network))
        for number in range(3):
            client.client.add(full(number))
        await client.swarm.dial(KEYS[3].peer_id, [quic(3)])
        await asyncio.sleep(60)
        assert reserved(client) == {key.peer_id for key in KEYS[:3]}
        assert {s.source for s in client.client.relays} == {RelaySource.CONFIGURED}


@virtual_time
async def test_losing_one_of_two_relays_costs_no_reachability_and_it_comes_back() -> None:
    network = MemoryNetwork()
    async with (
        relay(network, 0) as stays,
        supervised(network) as (client, _),
        node(memory(network)) as dialler,
    ):
        async with relay(network, 1):
            client.client.add(full(0))
            client.client.add(full(1))
            await until_reserved(client, 0, 1, within=1)
            await asyncio.sleep(60)
        assert await talk(dialler, client, b"at once", through=stays) == b"at once"
        await asyncio.sleep(10)
        assert reserved(client) == {KEYS[0].peer_id}
        async with relay(network, 1):
            await until_reserved(client, 0, 1, within=61)


@virtual_time
async def test_a_relay_that_starts_a_minute_after_the_node_is_held_within_five_seconds() -> None:
    for extra in (0.0, 0.7, 1.9, 3.1):
        network = MemoryNetwork()
        network.dead |= {quic(0), tcp(0)}
        async with supervised(network) as (client, _):
            client.client.add(full(0))
            await asyncio.sleep(60 + extra)
            network.dead.clear()
            async with relay(network, 0):
                # A dial that was swallowed does not come to life: the next attempt must find it.
                await until_reserved(client, 0, within=8)


@virtual_time
async def test_a_discovered_relay_stands_in_for_a_configured_one_and_goes_when_it_is_back() -> None:
    network = MemoryNetwork()
    async with (
        relay(network, 0),
        relay(network, 2),
        supervised(network) as (client, _),
    ):
        client.client.add(full(0))
        client.client.add(full(1))
        await client.swarm.dial(KEYS[2].peer_id, [quic(2)])
        await until_reserved(client, 0, 2, within=10)
        async with relay(network, 1):
            await until_reserved(client, 0, 1, within=70)
            await asyncio.sleep(60)
            assert reserved(client) == {KEYS[0].peer_id, KEYS[1].peer_id}
            assert client.swarm.best_connection(KEYS[2].peer_id) is not None, "only let go"


def hang(there: Node, client: Node) -> None:
    """Let the relay's end of the connection take no more streams, as a lost way would."""
    (connection,) = there.swarm.connections(client.peer)
    assert isinstance(connection, MemoryConnection)
    connection._inbound.put_nowait = lambda item: None  # type: ignore[method-assign]


async def until_closed(connection: Connection, *, within: float) -> None:
    async with asyncio.timeout(within):
        await connection.wait_closed()


@virtual_time
async def test_a_way_that_died_silently_is_replaced_before_it_is_given_up() -> None:
    network = MemoryNetwork()
    async with relay(network, 0) as there, supervised(network) as (client, _):
        client.client.add(full(0))
        await until_reserved(client, 0, within=1)
        await asyncio.sleep(60)
        old = way_of(client, 0)
        client.so_far(RelayChanged)
        hang(there, client)
        await until_closed(old, within=16)
        await asyncio.sleep(1)
        assert way_of(client, 0) is not old
        states = {event.status.state for event in client.so_far(RelayChanged)}
        assert states <= {RelayState.RESERVED}, "made before break"


@virtual_time
async def test_after_a_change_of_network_relays_are_checked_at_once_and_with_less_patience() -> (
    None
):
    network = MemoryNetwork()
    async with relay(network, 0) as there, supervised(network) as (client, _):
        client.client.add(full(0))
        await until_reserved(client, 0, within=1)
        await asyncio.sleep(61)
        old = way_of(client, 0)
        hang(there, client)
        client.events.publish(NetworkChanged(NetworkChange.SLEPT, ("192.0.2.99",), ()))
        await until_closed(old, within=2 + 0.5)
        assert reserved(client) == {KEYS[0].peer_id}


@virtual_time
async def test_a_relay_that_failed_is_tried_again_when_the_network_changes() -> None:
    network = MemoryNetwork()
    network.dead.add(quic(0))
    network.dead.add(tcp(0))
    async with relay(network, 0), relay(network, 1), supervised(network) as (client, _):
        for number in (0, 1):
            client.client.add(full(number))
        await asyncio.sleep(300)  # with another relay held, pauses are long
        assert reserved(client) == {KEYS[1].peer_id}
        network.dead.clear()
        client.events.publish(NetworkChanged(NetworkChange.LOST, (), ()))
        client.events.publish(NetworkChanged(NetworkChange.MOVED, ("192.0.2.99",), ()))
        await until_reserved(client, 0, 1, within=1)


@virtual_time
async def test_relays_that_were_known_before_a_restart_are_candidates() -> None:
    network = MemoryNetwork()
    async with relay(network, 0), node(memory(network), identify=True) as client:
        # As the peerstore's file tells it.
        client.swarm.peerstore.set_protocols(KEYS[0].peer_id, [HOP_PROTOCOL])
        client.swarm.peerstore.add_addresses(KEYS[0].peer_id, [quic(0)], ttl=3600, source="relay")
        client.swarm.peerstore.set_protocols(KEYS[1].peer_id, [ping.PROTOCOL])
        client.swarm.peerstore.add_addresses(
            KEYS[1].peer_id, [quic(1)], ttl=3600, source="identify"
        )
        async with RelaySupervisor(client.client, client.swarm, client.events):
            await until_reserved(client, 0, within=5)
            assert len(client.client.relays) == 1


@virtual_time
async def test_when_the_machines_addresses_change_relays_are_checked_at_once() -> None:
    network = MemoryNetwork()
    async with relay(network, 0) as there, supervised(network) as (client, _):
        client.client.add(full(0))
        await until_reserved(client, 0, within=1)
        await asyncio.sleep(61)
        old = way_of(client, 0)
        hang(there, client)
        client.events.publish(AddressesChanged((Multiaddr.for_udp("192.0.2.99", 4001),)))
        await until_closed(old, within=4 + 1)


@virtual_time
async def test_where_udp_is_blocked_the_relay_is_held_over_tcp_until_udp_works_again() -> None:
    network = MemoryNetwork()
    network.dead.add(quic(0))
    async with (
        relay(network, 0, quic(0), tcp(0)) as there,
        supervised(network) as (client, _),
        node(memory(network)) as dialler,
    ):
        # The configuration names the QUIC address only.
        client.client.add(full(0))
        await until_reserved(client, 0, within=2)
        assert client.client.relays[0].remote_address == tcp(0)
        await asyncio.sleep(300)
        tries = [when for when, address in network.dials if address == quic(0)]
        assert 8 <= len(tries) <= 14
        old = way_of(client, 0)
        client.so_far(RelayChanged)
        network.dead.clear()
        over_quic = await client.next(
            RelayChanged, lambda event: event.status.remote_address == quic(0)
        )
        assert over_quic.status.state is RelayState.RESERVED
        assert await talk(dialler, client, b"over both", through=there) == b"over both"
        await until_closed(old, within=10)
        assert reserved(client) == {KEYS[0].peer_id}


@virtual_time
async def test_a_bare_peer_id_is_reached_through_a_relay_that_is_only_known() -> None:
    network = MemoryNetwork()
    async with (
        relay(network, 0),
        supervised(network) as (listener, _),
        supervised(network, wanted=0) as (dialler, _other),
    ):
        listener.client.add(full(0))
        await until_reserved(listener, 0, within=1)
        await dialler.swarm.dial(KEYS[0].peer_id, [quic(0)])
        await asyncio.sleep(5)
        assert dialler.client.relays == ()
        connection = await dialler.swarm.dial(listener.peer)
        assert connection.relay == KEYS[0].peer_id


@virtual_time
async def test_a_bare_peer_id_is_tried_at_every_known_relay_at_once() -> None:
    network = MemoryNetwork()
    network.dead |= {quic(1), tcp(1)}
    async with (
        relay(network, 0),
        relay(network, 2),
        supervised(network) as (listener, _),
        supervised(network) as (dialler, _other),
    ):
        listener.client.add(full(2))
        await until_reserved(listener, 2, within=1)
        # The first has no reservation of the listener, the second is down.
        for number in (0, 1, 2):
            dialler.client.add(full(number))
        await until_reserved(dialler, 0, 2, within=1)
        began = now()
        connection = await dialler.swarm.dial(listener.peer, timeout=5)
        assert connection.relay == KEYS[2].peer_id
        assert now() - began < 1.5


@virtual_time
async def test_a_relay_that_was_given_up_is_not_taken_again_until_it_is_asked_for() -> None:
    network = MemoryNetwork()
    async with relay(network, 0), supervised(network) as (client, supervisor):
        await client.swarm.dial(KEYS[0].peer_id, [quic(0)])
        await until_reserved(client, 0, within=10)
        await supervisor.disconnect(KEYS[0].peer_id)
        await client.swarm.dial(KEYS[0].peer_id, [quic(0)])
        await asyncio.sleep(600)
        assert client.client.relays == ()
        assert (await supervisor.connect(full(0))).source is RelaySource.REQUESTED


@virtual_time
async def test_a_relay_that_serves_no_pings_is_alive() -> None:
    network = MemoryNetwork()
    async with (
        node(memory(network), quic(0), key=KEYS[0], relay=RelayServerSettings(), identify=True),
        supervised(network) as (client, _),
    ):
        client.client.add(full(0))
        await until_reserved(client, 0, within=1)
        await asyncio.sleep(600)
        assert [address for _, address in network.dials] == [quic(0)]


@virtual_time
async def test_a_relay_that_is_silent_while_another_answers_is_given_up() -> None:
    network = MemoryNetwork()
    async with (
        relay(network, 0) as there,
        relay(network, 1),
        supervised(network) as (client, _),
    ):
        client.client.add(full(0))
        client.client.add(full(1))
        await until_reserved(client, 0, 1, within=1)
        await asyncio.sleep(60)
        hang(there, client)
        network.dead |= {quic(0), tcp(0)}
        await until_reserved(client, 1, within=10 + 4 + 5 + 1)


@virtual_time
async def test_while_nobody_answers_what_runs_is_left_alone() -> None:
    network = MemoryNetwork()
    async with relay(network, 0) as there, supervised(network) as (client, _):
        client.client.add(full(0))
        await until_reserved(client, 0, within=1)
        await asyncio.sleep(60)
        old = way_of(client, 0)
        hang(there, client)
        network.dead |= {quic(0), tcp(0)}
        await asyncio.sleep(25)
        assert not old.is_closed


@virtual_time
async def test_when_udp_stops_working_the_relay_is_held_over_tcp_without_a_gap() -> None:
    network = MemoryNetwork()
    async with (
        relay(network, 0, quic(0), tcp(0)) as there,
        supervised(network) as (client, _),
    ):
        client.client.add(full(0))
        await until_reserved(client, 0, within=1)
        assert client.client.relays[0].remote_address == quic(0)
        await asyncio.sleep(60)
        old = way_of(client, 0)
        client.so_far(RelayChanged)
        hang(there, client)
        network.dead.add(quic(0))
        await until_closed(old, within=10 + 4 + 1)
        await asyncio.sleep(1)
        assert client.client.relays[0].remote_address == tcp(0)
        states = {event.status.state for event in client.so_far(RelayChanged)}
        assert states <= {RelayState.RESERVED}


@pytest.mark.parametrize(
    "failure",
    [
        UnreachableError("connection refused", reason="CONNECTION_REFUSED"),
        AuthenticationError("somebody else answered", reason="PEER_ID_MISMATCH"),
    ],
    ids=["nobody listens", "somebody else does"],
)
def test_a_silent_relay_that_is_seen_to_be_gone_is_given_up_though_it_is_the_only_one(
    failure: Dep2pError,
) -> None:
    @virtual_time
    async def check() -> None:
        network = MemoryNetwork()
        async with relay(network, 0) as there, supervised(network) as (client, _):
            client.client.add(full(0))
            await until_reserved(client, 0, within=1)
            await asyncio.sleep(60)
            old = way_of(client, 0)
            hang(there, client)
            network.failures |= {quic(0): failure, tcp(0): failure}
            await until_closed(old, within=10 + 4 + 1)

    check()
