from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from tests.memory_transport import MemoryNetwork
from tests.virtual_time import virtual_time

from dep2p_daemon.errors import (
    AuthenticationError,
    DialTimeoutError,
    InvalidArgumentError,
    PreconditionError,
    RelayRefusedError,
    ResourceLimitError,
    UnreachableError,
)
from dep2p_daemon.events import EventBus
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.swarm.dialing import DialPolicy
from dep2p_daemon.swarm.peerstore import Peerstore
from dep2p_daemon.swarm.settings import SwarmSettings
from dep2p_daemon.swarm.swarm import DEFAULT_SETTINGS, Swarm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

HERE, THERE, RELAY = (PrivateKey.from_seed(bytes([n]) * 32) for n in (1, 2, 3))
PEER = THERE.peer_id

TCP = Multiaddr.parse("/ip4/203.0.113.9/tcp/4001")
QUIC = Multiaddr.parse("/ip4/203.0.113.9/udp/4001/quic-v1")
OTHER = Multiaddr.parse("/ip4/203.0.113.10/udp/4001/quic-v1")
NAME = Multiaddr.parse("/dns4/peer.example/udp/4001/quic-v1")
CIRCUIT = Multiaddr.parse(f"/ip4/198.51.100.1/udp/4001/quic-v1/p2p/{RELAY.peer_id}/p2p-circuit")


class Names:
    """A name service of one entry."""

    def __init__(self, *addresses: Multiaddr, seconds: float = 0.0) -> None:
        self.addresses = addresses
        self.seconds = seconds
        self.given_up = 0

    async def resolve(self, address: Multiaddr) -> tuple[Multiaddr, ...]:
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return self.addresses


class Nodes:
    """A dialling swarm, and a listening one at `addresses`."""

    def __init__(self, network: MemoryNetwork, here: Swarm, there: Swarm) -> None:
        self.network = network
        self.here = here
        self.there = there

    def know(self, *addresses: Multiaddr) -> None:
        self.here.peerstore.add_addresses(PEER, addresses, ttl=3600.0, source="test")

    @property
    def dialled(self) -> list[Multiaddr]:
        return [address for _, address in self.network.dials]


@asynccontextmanager
async def nodes(
    *addresses: Multiaddr,
    settings: SwarmSettings = DEFAULT_SETTINGS,
    names: Names | None = None,
    network: MemoryNetwork | None = None,
) -> AsyncIterator[Nodes]:
    network = network or MemoryNetwork()
    made = []
    for key in (HERE, THERE):
        swarm = Swarm(
            key=key,
            peerstore=Peerstore(None),
            events=EventBus(),
            resolver=names,
            settings=settings,
        )
        swarm.add_transport(network.transport(key))
        made.append(swarm)
    async with made[0], made[1]:
        await made[1].listen(addresses)
        yield Nodes(network, made[0], made[1])
    for swarm in made:
        assert swarm.connections() == ()
        swarm.peerstore.close()


async def failure(swarm: Swarm, addresses: Sequence[Multiaddr]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the caller looks at it
        await swarm.dial(PEER, addresses)
    return caught.value


@virtual_time
async def test_a_peer_is_dialled_once_and_then_remembered() -> None:
    async with nodes(QUIC) as made:
        connection = await made.here.dial(PEER, [QUIC])
        assert connection.remote_peer == PEER
        assert connection.path == "direct"
        assert await made.here.dial(PEER) is connection
        assert await made.here.dial(PEER, [TCP]) is connection
        assert made.dialled == [QUIC]
        assert made.here.connections(PEER) == (connection,)
        another = await made.here.dial(PEER, [QUIC], force_new=True)
        assert another is not connection
        assert made.here.best_connection(PEER) is another


@virtual_time
async def test_quic_goes_first_and_tcp_follows_when_it_is_silent() -> None:
    async with nodes(TCP, QUIC) as made:
        made.network.dead.add(QUIC)
        connection = await made.here.dial(PEER, [TCP, QUIC])
        assert connection.remote_address == TCP
        assert made.network.dials == [(0.0, QUIC), (0.25, TCP)]
        assert made.network.cancelled == [QUIC]


@virtual_time
async def test_a_refusal_lets_the_next_address_start_at_once() -> None:
    async with nodes(TCP) as made:
        await made.here.dial(PEER, [QUIC, TCP])
        assert made.network.dials == [(0.0, QUIC), (0.0, TCP)]


@pytest.mark.parametrize("tcp", [0.1, 0.05, 0.03])
def test_one_attempt_wins_the_race_however_close(tcp: float) -> None:
    @virtual_time
    async def race() -> None:
        async with nodes(QUIC, TCP) as made:
            made.network.latency.update({QUIC: 0.3, TCP: tcp})
            winner = await made.here.dial(PEER, [QUIC, TCP])
            await asyncio.sleep(1.0)
            assert made.here.connections() == (winner,)
            assert len(made.there.connections()) == 1
            assert made.network.cancelled == [TCP if winner.remote_address == QUIC else QUIC]

    race()


@virtual_time
async def test_a_circuit_waits_half_a_second_for_direct_addresses() -> None:
    async with nodes(CIRCUIT) as made:
        made.network.dead.add(QUIC)
        connection = await made.here.dial(PEER, [CIRCUIT, QUIC])
        assert connection.relay == RELAY.peer_id
        assert made.network.dials == [(0.0, QUIC), (0.5, CIRCUIT)]


@virtual_time
async def test_a_direct_attempt_that_runs_when_a_circuit_wins_may_improve_on_it() -> None:
    async with nodes(CIRCUIT, QUIC) as made:
        made.network.latency[QUIC] = 2.0
        first = await made.here.dial(PEER, [CIRCUIT, QUIC])
        assert first.path == "relayed"
        assert asyncio.get_running_loop().time() == 0.5
        await asyncio.sleep(1.6)
        best = made.here.best_connection(PEER)
        assert best is not None
        assert best.path == "direct"
        assert len(made.here.connections(PEER)) == 2


@virtual_time
async def test_policies_choose_among_addresses_and_connections() -> None:
    async with nodes(CIRCUIT, QUIC) as made:
        relayed = await made.here.dial(PEER, [CIRCUIT, QUIC], policy=DialPolicy.RELAYED)
        assert relayed.path == "relayed"
        assert await made.here.dial(PEER) is relayed
        direct = await made.here.dial(PEER, [CIRCUIT, QUIC], policy=DialPolicy.DIRECT)
        assert direct.path == "direct"
        assert await made.here.dial(PEER) is direct
        assert await made.here.dial(PEER, policy=DialPolicy.RELAYED) is relayed
        assert made.dialled == [CIRCUIT, QUIC]


@virtual_time
async def test_concurrent_dials_share_one_attempt() -> None:
    async with nodes(QUIC) as made:
        made.network.latency[QUIC] = 1.0
        made.know(QUIC)
        connections = await asyncio.gather(*(made.here.dial(PEER) for _ in range(5)))
        assert len(set(connections)) == 1
        assert made.dialled == [QUIC]


@virtual_time
async def test_one_callers_cancellation_leaves_the_others_dial_alone() -> None:
    async with nodes(QUIC) as made:
        made.network.latency[QUIC] = 1.0
        first = asyncio.create_task(made.here.dial(PEER, [QUIC]))
        second = asyncio.create_task(made.here.dial(PEER, [QUIC]))
        await asyncio.sleep(0.5)
        first.cancel()
        assert (await second).remote_peer == PEER
        assert first.cancelled()
        assert made.dialled == [QUIC]


@virtual_time
async def test_the_last_callers_cancellation_ends_the_dial() -> None:
    async with nodes(QUIC) as made:
        made.network.latency[QUIC] = 1.0
        callers = [asyncio.create_task(made.here.dial(PEER, [QUIC])) for _ in range(2)]
        await asyncio.sleep(0.5)
        for caller in callers:
            caller.cancel()
        await asyncio.wait(callers)
        await asyncio.sleep(0)
        assert made.network.cancelled == [QUIC]
        # A dial that was given up is no failure of the address, and can be made again.
        assert (await made.here.dial(PEER, [QUIC])).remote_peer == PEER


@virtual_time
async def test_a_joiner_brings_its_addresses_along() -> None:
    async with nodes(TCP) as made:
        made.network.dead.add(QUIC)
        first = asyncio.create_task(made.here.dial(PEER, [QUIC]))
        await asyncio.sleep(1.0)
        second = asyncio.create_task(made.here.dial(PEER, [TCP]))
        assert await first is await second


@virtual_time
async def test_names_are_resolved_and_other_peers_addresses_left_out() -> None:
    foreign = OTHER.with_peer_id(HERE.peer_id)
    names = Names(foreign, QUIC.with_peer_id(PEER), seconds=0.2)
    async with nodes(QUIC, names=names) as made:
        await made.here.dial(PEER, [NAME])
        assert made.network.dials == [(0.2, QUIC)]


@virtual_time
async def test_a_names_addresses_must_fit_the_policy() -> None:
    async with nodes(CIRCUIT, names=Names(CIRCUIT)) as made:
        with pytest.raises(UnreachableError, match="no address of this peer"):
            await made.here.dial(PEER, [NAME], policy=DialPolicy.DIRECT)
        assert (await made.here.dial(PEER, [NAME])).path == "relayed"


@virtual_time
async def test_a_name_service_that_is_silent_does_not_hold_the_others_up() -> None:
    names = Names(seconds=60.0)
    async with nodes(TCP, names=names) as made:
        await made.here.dial(PEER, [NAME, TCP])
        assert made.network.dials == [(0.0, TCP)]
        await asyncio.sleep(1.0)
        assert names.given_up == 1
        await made.here.disconnect(PEER)
        error = await failure(made.here, [NAME])
        assert isinstance(error, DialTimeoutError)
        assert "no answer from the name service" in str(error)


@virtual_time
async def test_a_bare_peer_id_uses_the_peerstore_and_other_sources() -> None:
    async with nodes(CIRCUIT) as made:
        error = await failure(made.here, [])
        assert isinstance(error, UnreachableError)
        assert error.reason == "NO_ADDRESSES"
        assert f"/p2p/{PEER}" in error.remedy
        made.know(QUIC)
        made.here.add_address_source(lambda peer: [CIRCUIT.with_peer_id(peer)])
        connection = await made.here.dial(PEER)
        assert connection.path == "relayed"
        assert made.dialled == [QUIC, CIRCUIT]


@virtual_time
async def test_a_failed_address_is_left_alone_unless_it_is_named() -> None:
    async with nodes() as made:
        made.know(QUIC)
        await failure(made.here, [])
        error = await failure(made.here, [])
        assert isinstance(error, UnreachableError)
        assert error.reason == "DIAL_BACKOFF"
        assert "connection refused" in error.message
        assert len(made.dialled) == 1
        await failure(made.here, [QUIC])
        assert len(made.dialled) == 2
        await asyncio.sleep(9.0)
        await failure(made.here, [])
        assert len(made.dialled) == 3


@virtual_time
async def test_silence_is_a_timeout_that_names_address_time_and_remedy() -> None:
    async with nodes() as made:
        made.network.dead.add(QUIC)
        error = await failure(made.here, [QUIC])
        assert isinstance(error, DialTimeoutError)
        assert error.reason == "DIAL_TIMEOUT"
        assert f"{QUIC}: no answer (15.0 s)" in error.message
        assert "UDP port 4001" in error.remedy
        assert error.metadata["waited_seconds"] == "15.0"
        assert str(QUIC) in error.metadata["addresses"]


@virtual_time
async def test_mixed_failures_are_all_listed() -> None:
    async with nodes() as made:
        made.network.dead.add(QUIC)
        error = await failure(made.here, [QUIC, TCP])
        assert type(error) is UnreachableError
        assert "tried 2 addresses in 15.0 s" in error.message
        assert f"{TCP}: connection refused" in error.message
        assert f"{QUIC}: no answer" in error.message


@virtual_time
async def test_the_callers_deadline_tells_how_far_the_dial_came() -> None:
    async with nodes() as made:
        made.network.dead.add(QUIC)
        with pytest.raises(DialTimeoutError) as caught:
            await made.here.dial(PEER, [QUIC, TCP], timeout=2.0)
        assert "within the 2.0 s" in caught.value.message
        assert f"{QUIC}: no answer yet (2.0 s)" in caught.value.message
        assert f"{TCP}: connection refused" in caught.value.message


@virtual_time
async def test_another_peer_at_the_address_is_an_authentication_error() -> None:
    async with nodes(QUIC) as made:
        stranger = PrivateKey.from_seed(b"s" * 32).peer_id
        with pytest.raises(AuthenticationError) as caught:
            await made.here.dial(stranger, [QUIC])
        assert str(PEER) in caught.value.message
        assert "peer id" in caught.value.remedy


@virtual_time
async def test_a_relays_refusal_tells_more_than_silence() -> None:
    async with nodes() as made:
        made.network.dead.add(QUIC)
        made.network.failures[CIRCUIT] = RelayRefusedError(
            "target peer not connected to relay",
            status=204,
            reason="NO_RESERVATION",
            remedy="start the listener",
            relay="R",
        )
        error = await failure(made.here, [QUIC, CIRCUIT])
        assert isinstance(error, RelayRefusedError)
        assert (error.status, error.reason, error.remedy) == (
            204,
            "NO_RESERVATION",
            "start the listener",
        )
        assert error.message.startswith("target peer not connected to relay; also tried")
        assert error.metadata["relay"] == "R"
        assert str(CIRCUIT) in error.metadata["addresses"]


@virtual_time
async def test_a_relays_refusal_is_asked_for_again_at_once() -> None:
    async with nodes(CIRCUIT) as made:
        made.know(CIRCUIT)
        made.network.failures[CIRCUIT] = RelayRefusedError("not yet", status=204)
        assert isinstance(await failure(made.here, []), RelayRefusedError)
        assert isinstance(await failure(made.here, []), RelayRefusedError)
        # The peer may reserve any moment.
        made.network.failures.clear()
        assert (await made.here.dial(PEER)).path == "relayed"


@virtual_time
async def test_what_no_transport_dials_is_told() -> None:
    async with nodes() as made:
        error = await failure(made.here, [Multiaddr.parse("/ip4/1.2.3.4/tcp/80/ws")])
        assert isinstance(error, PreconditionError)
        assert error.reason == "NO_TRANSPORT"


@virtual_time
async def test_a_transports_defect_is_one_attempts_failure() -> None:
    async with nodes(TCP) as made:
        made.network.failures[QUIC] = RuntimeError("a bug")
        assert (await made.here.dial(PEER, [QUIC, TCP])).remote_address == TCP


@virtual_time
async def test_wrong_targets_are_refused_before_anything_is_sent() -> None:
    async with nodes(QUIC) as made:
        with pytest.raises(InvalidArgumentError, match="this node itself"):
            await made.here.dial(HERE.peer_id, [QUIC])
        with pytest.raises(InvalidArgumentError, match="another peer"):
            await made.here.dial(PEER, [QUIC.with_peer_id(HERE.peer_id)])
        with pytest.raises(UnreachableError, match="the policy is DIRECT"):
            await made.here.dial(PEER, [CIRCUIT], policy=DialPolicy.DIRECT)
        assert made.dialled == []


@virtual_time
async def test_a_full_table_refuses_to_dial() -> None:
    async with nodes(QUIC, settings=SwarmSettings(max_connections_per_peer=1)) as made:
        await made.here.dial(PEER, [QUIC])
        with pytest.raises(ResourceLimitError) as caught:
            await made.here.dial(PEER, [QUIC], force_new=True)
        assert caught.value.metadata["limit"] == "max_connections_per_peer"


@virtual_time
async def test_leaving_the_swarm_ends_a_dial() -> None:
    async with nodes() as made:
        made.network.dead.add(QUIC)
        dial = asyncio.create_task(made.here.dial(PEER, [QUIC]))
        await asyncio.sleep(1.0)
    with pytest.raises(PreconditionError, match="stopping"):
        await dial
    with pytest.raises(PreconditionError, match="stopping"):
        await made.here.dial(PEER, [QUIC])
    assert made.network.cancelled == [QUIC]


def circuit_over(port: int) -> Multiaddr:
    return Multiaddr.parse(f"/ip4/198.51.100.1/tcp/{port}/p2p/{RELAY.peer_id}/p2p-circuit")


@virtual_time
async def test_a_relay_with_many_addresses_gets_one_circuit_after_they_were_raced() -> None:
    network = MemoryNetwork()
    dead, alive = circuit_over(1), circuit_over(2)
    ways = [address.split_circuit()[0].without_peer_id() for address in (dead, alive)]
    async with nodes(dead, alive, network=network) as made:
        relay = await network.transport(RELAY).listen(ways[1])
        network.dead.add(ways[0])
        connection = await made.here.dial(PEER, [dead, alive])
        assert connection.relay == RELAY.peer_id
        assert len(made.here.connections(PEER)) == 1
        assert [connection.path for connection in made.here.connections(RELAY.peer_id)] == [
            "direct"
        ]
        assert made.dialled == [*ways, dead]
        await relay.close()


@virtual_time
async def test_a_relay_that_answers_nowhere_is_named_with_all_its_addresses() -> None:
    async with nodes() as made:
        error = await failure(made.here, [circuit_over(1), circuit_over(2)])
        assert isinstance(error, UnreachableError)
        assert error.reason == "RELAY_UNREACHABLE"
        for port in (1, 2):
            assert f"/ip4/198.51.100.1/tcp/{port}: connection refused" in error.message
        assert made.here.connections() == ()


@virtual_time
async def test_a_circuit_address_without_a_relay_is_the_transports_to_judge() -> None:
    broken = Multiaddr.parse("/ip4/198.51.100.1/tcp/1/p2p-circuit")
    async with nodes(QUIC) as made:
        assert (await made.here.dial(PEER, [broken, QUIC])).remote_address == QUIC
