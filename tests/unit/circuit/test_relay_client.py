"""Reservations that are kept: refreshed, and made again after whatever happens to the relay."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from tests.circuit_nodes import Node, memory, node, talk
from tests.memory_transport import MemoryNetwork
from tests.virtual_time import virtual_time

from dep2p_daemon.circuit.admission import AdmissionLimits
from dep2p_daemon.circuit.events import (
    RelayChanged,
    RelayState,
    RelayStatus,
    ReservationChange,
    ReservationChanged,
)
from dep2p_daemon.circuit.keeper import Keeper
from dep2p_daemon.circuit.messages import (
    HOP_PROTOCOL,
    HopStatus,
    ReservationGrant,
    Status,
    encode_hop,
)
from dep2p_daemon.circuit.relay_client import RelayClientSettings
from dep2p_daemon.circuit.relay_server import RelayServerSettings
from dep2p_daemon.circuit.voucher import Voucher
from dep2p_daemon.errors import (
    AuthenticationError,
    Dep2pError,
    InvalidArgumentError,
    LocalError,
    MultiaddrError,
    NotFoundError,
    PreconditionError,
    ProtocolViolationError,
    RelayRefusedError,
    ResourceLimitError,
    UnreachableError,
)
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.muxed import CircuitLimits, read_message, write_message
from dep2p_daemon.rpc.conversion import timestamp
from dep2p_daemon.swarm.events import AddressesChanged

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dep2p_daemon.muxed import Stream

RELAY_KEY = PrivateKey.from_seed(b"r" * 32)
RELAY = RELAY_KEY.peer_id
RELAY_ADDRESS = Multiaddr.parse("/ip4/192.0.2.1/tcp/4001")
FULL = RELAY_ADDRESS.with_peer_id(RELAY)
OTHER_ADDRESS = Multiaddr.parse("/ip4/192.0.2.1/udp/4001/quic-v1")


def now() -> float:
    return asyncio.get_running_loop().time()


@asynccontextmanager
async def relay_on(
    network: MemoryNetwork, settings: RelayServerSettings | None = None
) -> AsyncIterator[Node]:
    async with node(
        memory(network), RELAY_ADDRESS, key=RELAY_KEY, relay=settings or RelayServerSettings()
    ) as relay:
        yield relay


async def until(client: Node, state: RelayState) -> RelayStatus:
    changed = await client.next(RelayChanged, lambda event: event.status.state is state)
    return changed.status


@virtual_time
async def test_connecting_reserves_and_tells_where_others_reach_us() -> None:
    network = MemoryNetwork()
    settings = RelayServerSettings(circuit_duration=120.0)
    async with relay_on(network, settings), node(memory(network)) as client:
        status = await client.client.connect(FULL)
        circuit = f"{FULL}/p2p-circuit"
        assert status.state is RelayState.RESERVED
        assert (status.peer_id, status.address) == (RELAY, RELAY_ADDRESS)
        assert [str(a) for a in status.circuit_addresses] == [f"{circuit}/p2p/{client.peer}"]
        assert [str(a) for a in client.swarm.own_addresses] == [circuit]
        assert status.limits == CircuitLimits(120.0, None)
        assert status.expires_at == pytest.approx(time.time() + 3600, abs=5)
        assert status.next_try_at is not None
        assert 0.65 * 3600 - 5 < status.next_try_at - time.time() < 0.8 * 3600 + 5
        assert (status.last_error, status.last_error_reason) == ("", "")
        assert client.client.relays == (status,)


@virtual_time
async def test_a_reservation_is_refreshed_for_days_without_a_gap() -> None:
    network = MemoryNetwork()
    async with (
        relay_on(network) as relay,
        node(memory(network)) as client,
        node(memory(network)) as dialler,
    ):
        await client.client.connect(FULL)
        await asyncio.sleep(2 * 86_400)
        changes = [event.change for event in relay.so_far(ReservationChanged)]
        assert changes[0] is ReservationChange.CREATED
        assert set(changes[1:]) == {ReservationChange.REFRESHED}
        assert 2 * 24 / 0.8 - 1 <= len(changes) <= 2 * 24 / 0.65 + 1
        assert await talk(dialler, client, b"still there", through=relay) == b"still there"
        assert len(client.so_far(AddressesChanged)) == 1, "an address that stays is not withdrawn"


@virtual_time
async def test_a_relay_that_restarts_is_reserved_at_again_at_once() -> None:
    network = MemoryNetwork()
    async with node(memory(network)) as client, node(memory(network)) as dialler:
        async with relay_on(network):
            await client.client.connect(FULL)
            await asyncio.sleep(60)
        lost = now()
        backoff = await until(client, RelayState.BACKOFF)
        assert now() - lost < 5
        assert backoff.last_error_reason == "RELAY_UNREACHABLE"
        assert str(RELAY_ADDRESS) in backoff.last_error
        assert backoff.expires_at is None
        assert backoff.circuit_addresses == ()
        assert client.swarm.own_addresses == (), "an address that leads nowhere is withdrawn"
        assert backoff.next_try_at is not None
        await asyncio.sleep(0.3)
        async with relay_on(network) as relay:
            status = await until(client, RelayState.RESERVED)
            assert now() - lost < 8
            assert status.last_error == ""
            assert await talk(dialler, client, b"again", through=relay) == b"again"


@pytest.mark.parametrize(("others", "longest", "shortest"), [(0, 3.0, 2.4), (1, 60.0, 48.0)])
def test_a_relay_that_stays_away_is_tried_for_ever_and_often_when_it_is_the_only_one(
    others: int, longest: float, shortest: float
) -> None:
    @virtual_time
    async def check() -> None:
        network = MemoryNetwork()
        other = Multiaddr.parse("/ip4/192.0.2.2/tcp/4001")
        async with (
            node(memory(network), other, relay=RelayServerSettings()) as another,
            node(memory(network)) as client,
        ):
            async with relay_on(network):
                if others:
                    await client.client.connect(another.address)
                await client.client.connect(FULL)
                await asyncio.sleep(60)
            await asyncio.sleep(20_000)
            dials = [at for at, to in network.dials if to == RELAY_ADDRESS and at > now() - 10_000]
            assert 10_000 / longest * 0.9 <= len(dials) <= 10_000 / shortest * 1.1
            back = now()
            async with relay_on(network):
                client.so_far(RelayChanged)
                await until(client, RelayState.RESERVED)
                assert now() - back <= longest

    check()


@virtual_time
async def test_a_lost_connection_alone_is_made_again_at_once() -> None:
    network = MemoryNetwork()
    async with relay_on(network) as relay, node(memory(network)) as client:
        await client.client.connect(FULL)
        await asyncio.sleep(60)
        (connection,) = relay.swarm.connections(client.peer)
        assert len(relay.so_far(ReservationChanged)) == 1
        client.so_far(RelayChanged)
        lost = now()
        await connection.close()
        await until(client, RelayState.CONNECTING)
        await until(client, RelayState.RESERVED)
        assert now() - lost < 0.1
        await relay.next(ReservationChanged, lambda event: event.change is ReservationChange.ENDED)
        assert len(relay.relay.reservations) == 1


@virtual_time
async def test_a_relay_that_refuses_and_hangs_up_is_not_asked_faster_for_it() -> None:
    network = MemoryNetwork()

    async def refuse(stream: Stream) -> None:
        await read_message(stream, 4096)
        await write_message(stream, encode_hop(HopStatus(Status.RESERVATION_REFUSED)))
        await stream.close_write()
        await asyncio.sleep(0.1)
        await stream.connection.close()

    async with (
        node(memory(network), RELAY_ADDRESS, key=RELAY_KEY) as relay,
        node(memory(network)) as client,
    ):
        relay.swarm.set_handler(HOP_PROTOCOL, refuse)
        client.client.add(FULL)
        await asyncio.sleep(600)
        assert 14 <= len(network.dials) <= 20


@virtual_time
async def test_a_second_connection_to_the_relay_keeps_the_reservation() -> None:
    network = MemoryNetwork()
    async with relay_on(network) as relay, node(memory(network)) as client:
        await client.client.connect(FULL)
        (first,) = client.swarm.connections(RELAY)
        client.so_far(RelayChanged)
        await client.swarm.dial(RELAY, [RELAY_ADDRESS], force_new=True)
        await first.close()
        await asyncio.sleep(10)
        assert client.client.relays[0].state is RelayState.RESERVED
        assert len(relay.relay.reservations) == 1
        states = {event.status.state for event in client.so_far(RelayChanged)}
        assert states == {RelayState.RESERVED}


@virtual_time
async def test_a_refusal_is_raised_and_the_relay_forgotten() -> None:
    network = MemoryNetwork()
    settings = RelayServerSettings(admission=AdmissionLimits(max_reservations=0))
    async with relay_on(network, settings), node(memory(network)) as client:
        with pytest.raises(RelayRefusedError) as raised:
            await client.client.connect(FULL)
        assert raised.value.reason == "RESERVATION_REFUSED"
        assert "max_reservations_per_ip" in raised.value.remedy
        assert client.client.relays == ()
        last = await until(client, RelayState.DISCONNECTED)
        assert last.last_error_reason == "RESERVATION_REFUSED"


@virtual_time
async def test_a_relay_of_the_configuration_is_kept_though_it_refuses_or_is_away() -> None:
    network = MemoryNetwork()
    async with node(memory(network)) as client:
        status = client.client.add(FULL)
        assert status.state is RelayState.CONNECTING
        await until(client, RelayState.BACKOFF)
        await asyncio.sleep(30)
        async with relay_on(network):
            await until(client, RelayState.RESERVED)


@virtual_time
async def test_connecting_to_a_relay_in_backoff_tries_at_once_and_keeps_it_when_it_fails() -> None:
    network = MemoryNetwork()
    async with node(memory(network)) as client:
        client.client.add(FULL)
        await asyncio.sleep(600)
        before = now()
        with pytest.raises(UnreachableError) as raised:
            await client.client.connect(FULL)
        assert raised.value.reason == "RELAY_UNREACHABLE"
        assert now() == before
        assert len(client.client.relays) == 1
        async with relay_on(network):
            assert (await client.client.connect(FULL)).state is RelayState.RESERVED
            assert now() == before


@virtual_time
async def test_two_who_connect_at_once_share_one_attempt() -> None:
    network = MemoryNetwork()
    async with relay_on(network) as relay, node(memory(network)) as client:
        both = await asyncio.gather(client.client.connect(FULL), client.client.connect(FULL))
        assert both[0] == both[1]
        await client.client.connect(FULL)
        await asyncio.sleep(60)
        assert len(relay.so_far(ReservationChanged)) == 1


@virtual_time
async def test_a_caller_that_gives_up_leaves_nothing_behind() -> None:
    network = MemoryNetwork()
    network.dead.add(RELAY_ADDRESS)
    async with node(memory(network)) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await client.client.connect(FULL)
        assert client.client.relays == ()
        await asyncio.sleep(100)
        assert len(network.dials) == 1


@virtual_time
async def test_a_caller_that_gives_up_does_not_take_the_relay_from_another() -> None:
    network = MemoryNetwork()
    network.latency[RELAY_ADDRESS] = 3.0
    async with relay_on(network), node(memory(network)) as client, asyncio.TaskGroup() as tasks:
        patient = tasks.create_task(client.client.connect(FULL))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await client.client.connect(FULL)
        assert (await patient).state is RelayState.RESERVED


@virtual_time
async def test_disconnecting_gives_the_reservation_up_on_both_sides() -> None:
    network = MemoryNetwork()
    async with (
        relay_on(network) as relay,
        node(memory(network)) as client,
        node(memory(network)) as dialler,
    ):
        await client.client.connect(FULL)
        await client.client.disconnect(RELAY)
        assert client.client.relays == ()
        assert client.swarm.own_addresses == ()
        assert (await until(client, RelayState.DISCONNECTED)).circuit_addresses == ()
        await relay.next(ReservationChanged, lambda event: event.change is ReservationChange.ENDED)
        with pytest.raises(RelayRefusedError):
            await talk(dialler, client, b"hello", through=relay)
        await asyncio.sleep(600)
        assert client.swarm.connections(RELAY) == ()
        with pytest.raises(NotFoundError):
            await client.client.disconnect(RELAY)
        assert (await client.client.connect(FULL)).state is RelayState.RESERVED


@virtual_time
async def test_disconnecting_ends_the_wait_of_those_who_connect() -> None:
    network = MemoryNetwork()
    network.dead.add(RELAY_ADDRESS)
    async with node(memory(network)) as client, asyncio.TaskGroup() as tasks:

        async def connect() -> None:
            with pytest.raises(LocalError) as raised:
                await client.client.connect(FULL)
            assert raised.value.reason == "RELAY_GIVEN_UP"

        tasks.create_task(connect())
        await asyncio.sleep(1)
        await client.client.disconnect(RELAY)


@virtual_time
async def test_the_end_of_the_node_ends_the_wait_of_those_who_connect() -> None:
    network = MemoryNetwork()
    network.dead.add(RELAY_ADDRESS)
    async with asyncio.TaskGroup() as tasks, node(memory(network)) as client:

        async def connect() -> None:
            with pytest.raises(PreconditionError) as raised:
                await client.client.connect(FULL)
            assert raised.value.reason == "STOPPING"

        tasks.create_task(connect())
        await asyncio.sleep(1)


@virtual_time
async def test_a_peer_that_is_no_relay_is_said_to_be_none() -> None:
    network = MemoryNetwork()
    async with (
        node(memory(network), RELAY_ADDRESS, key=RELAY_KEY),
        node(memory(network)) as client,
    ):
        with pytest.raises(PreconditionError) as raised:
            await client.client.connect(FULL)
        assert raised.value.reason == "RELAY_NOT_SUPPORTED"


@virtual_time
async def test_addresses_that_cannot_be_a_relays_are_refused_with_the_right_form() -> None:
    network = MemoryNetwork()
    async with node(memory(network)) as client:
        for address, kind in (
            (RELAY_ADDRESS, MultiaddrError),
            (FULL / f"/p2p-circuit/p2p/{client.peer}", MultiaddrError),
            (Multiaddr.parse(f"/p2p/{RELAY}"), MultiaddrError),
            (RELAY_ADDRESS.with_peer_id(client.peer), InvalidArgumentError),
        ):
            with pytest.raises(kind) as raised:
                await client.client.connect(address)
            assert raised.value.remedy
        assert client.client.relays == ()


@virtual_time
async def test_a_peer_that_uses_the_same_relay_is_reached_by_its_id_alone() -> None:
    network = MemoryNetwork()
    async with (
        relay_on(network) as relay,
        node(memory(network)) as one,
        node(memory(network)) as other,
    ):
        await other.client.connect(FULL)
        with pytest.raises(UnreachableError):
            await one.swarm.dial(other.peer)
        await one.client.connect(FULL)
        connection = await one.swarm.dial(other.peer)
        assert connection.relay == RELAY
        assert one.client.circuits_to(RELAY) == ()
        with pytest.raises(RelayRefusedError, match="target peer not connected to relay"):
            await one.swarm.dial(FOREIGN.peer_id)
        await one.client.disconnect(RELAY)
        assert one.client.circuits_to(other.peer) == ()
        assert relay.relay.reservations


@virtual_time
async def test_the_number_of_relays_is_bounded() -> None:
    network = MemoryNetwork()
    settings = RelayClientSettings(max_relays=2)
    async with node(memory(network), client=settings) as client:
        peers = [PrivateKey.from_seed(bytes([n]) * 32).peer_id for n in range(3)]
        for peer in peers[:2]:
            client.client.add(RELAY_ADDRESS.with_peer_id(peer))
        with pytest.raises(ResourceLimitError) as raised:
            client.client.add(RELAY_ADDRESS.with_peer_id(peers[2]))
        assert raised.value.metadata["limit"] == "max_relays"
        assert [status.peer_id for status in client.client.relays] == sorted(peers[:2])


@virtual_time
async def test_a_relay_has_the_addresses_that_were_given_the_last_one_first() -> None:
    network = MemoryNetwork()
    async with relay_on(network), node(memory(network)) as client:
        await client.client.connect(FULL)
        status = await client.client.connect(OTHER_ADDRESS.with_peer_id(RELAY))
        assert status.address == OTHER_ADDRESS
        assert [a.transport for a in status.circuit_addresses] == ["circuit"] * 2
        assert len(client.swarm.own_addresses) == 2


def grant(client: Node, **changes: object) -> HopStatus:
    """What an honest relay answers, and what of it is different."""
    expires_at = int(time.time()) + 600
    values = {
        "expires_at": expires_at,
        "addresses": (FULL,),
        "voucher": Voucher(RELAY, client.peer, expires_at).seal(RELAY_KEY),
        **changes,
    }
    return HopStatus(Status.OK, ReservationGrant(**values))  # type: ignore[arg-type]


async def answered(answer: HopStatus, client: Node, network: MemoryNetwork) -> RelayStatus:
    async def handle(stream: Stream) -> None:
        await read_message(stream, 4096)
        await write_message(stream, encode_hop(answer))
        await stream.aclose()

    async with node(memory(network), RELAY_ADDRESS, key=RELAY_KEY) as relay:
        relay.swarm.set_handler(HOP_PROTOCOL, handle)
        return await client.client.connect(FULL)


FOREIGN = PrivateKey.from_seed(b"f" * 32)


@virtual_time
async def test_a_grant_is_taken_with_what_can_be_used_of_it() -> None:
    network = MemoryNetwork()
    async with node(memory(network)) as client:
        odd = (
            RELAY_ADDRESS,
            RELAY_ADDRESS.with_peer_id(FOREIGN.peer_id),
            FULL / "/p2p-circuit" / f"/p2p/{RELAY}",
            OTHER_ADDRESS.with_peer_id(RELAY),
        )
        status = await answered(grant(client, addresses=odd, voucher=b""), client, network)
        assert [str(a) for a in status.circuit_addresses] == [
            f"{a}/p2p/{RELAY}/p2p-circuit/p2p/{client.peer}" for a in (RELAY_ADDRESS, OTHER_ADDRESS)
        ]


@virtual_time
async def test_a_grant_without_addresses_leaves_the_one_that_was_dialled() -> None:
    network = MemoryNetwork()
    async with node(memory(network)) as client:
        status = await answered(grant(client, addresses=()), client, network)
        assert [str(a) for a in status.circuit_addresses] == [
            f"{FULL}/p2p-circuit/p2p/{client.peer}"
        ]


@virtual_time
async def test_a_grant_for_ages_is_taken_for_thirty_days() -> None:
    """What a relay writes there must not make times that the API cannot tell."""
    network = MemoryNetwork()
    async with node(memory(network)) as client:
        ages = grant(client, expires_at=2**64 - 1, voucher=b"")
        status = await answered(ages, client, network)
        assert status.expires_at is not None
        assert status.expires_at - time.time() == pytest.approx(30 * 24 * 3600, abs=5)
        assert timestamp(status.expires_at).seconds == int(status.expires_at)


@pytest.mark.parametrize(
    ("changes", "kind", "reason"),
    [
        ({"expires_at": 1000}, ProtocolViolationError, "RESERVATION_EXPIRED"),
        (
            {"voucher": Voucher(RELAY, FOREIGN.peer_id, 2**40).seal(RELAY_KEY)},
            AuthenticationError,
            "VOUCHER_PEER_MISMATCH",
        ),
        ({"voucher": b"no envelope"}, ProtocolViolationError, "ENVELOPE_MALFORMED"),
    ],
)
def test_a_grant_that_is_none_is_refused(
    changes: dict[str, object], kind: type[Dep2pError], reason: str
) -> None:
    @virtual_time
    async def check() -> None:
        network = MemoryNetwork()
        async with node(memory(network)) as client:
            with pytest.raises(kind) as raised:
                await answered(grant(client, **changes), client, network)
            assert raised.value.reason == reason

    check()


@virtual_time
async def test_an_ok_without_a_reservation_is_none() -> None:
    network = MemoryNetwork()
    async with node(memory(network)) as client:
        with pytest.raises(ProtocolViolationError) as raised:
            await answered(HopStatus(Status.OK), client, network)
        assert raised.value.reason == "RESERVATION_MISSING"


@virtual_time
async def test_a_defect_in_a_keeper_ends_neither_it_nor_the_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed, defects = Keeper.failed, 0

    def once_broken(keeper: Keeper, now: float, *, alone: bool = False) -> None:
        nonlocal defects
        defects += 1
        if defects == 1:
            raise ZeroDivisionError("a defect")
        failed(keeper, now, alone=alone)

    monkeypatch.setattr(Keeper, "failed", once_broken)
    async with node(memory(MemoryNetwork())) as client:
        client.client.add(FULL)  # nobody is there
        assert (await until(client, RelayState.BACKOFF)).last_error_reason
    assert defects == 2


async def test_a_defect_in_an_attempt_does_not_end_the_keeper() -> None:
    network = MemoryNetwork()

    class Broken(Exception):
        pass

    network.failures[RELAY_ADDRESS] = Broken("a defect")
    async with node(memory(network)) as client:
        client.client.add(FULL)
        assert (await until(client, RelayState.BACKOFF)).last_error_reason
        del network.failures[RELAY_ADDRESS]
        async with relay_on(network):
            await until(client, RelayState.RESERVED)
