"""The relay's side of the hop protocol, message by message, over a network in memory."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from tests.circuit_nodes import Node, memory, node
from tests.memory_transport import MemoryNetwork
from tests.virtual_time import virtual_time

from dep2p_daemon.circuit.events import CircuitOpened, ReservationChanged
from dep2p_daemon.circuit.messages import (
    HOP_PROTOCOL,
    STOP_PROTOCOL,
    HopConnect,
    HopMessage,
    HopReserve,
    HopStatus,
    Status,
    StopConnect,
    StopMessage,
    StopStatus,
    decode_hop,
    decode_stop,
    encode_hop,
    encode_stop,
)
from dep2p_daemon.circuit.relay_server import RelayServerSettings
from dep2p_daemon.circuit.voucher import Voucher
from dep2p_daemon.errors import StreamResetError
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.muxed import CloseCode, Stream, read_exactly, read_message, write_message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

RELAY_ADDRESS = Multiaddr.parse("/ip4/192.0.2.1/tcp/4001")
STRANGER = PrivateKey.from_seed(b"x" * 32).peer_id


class Scene:
    """A relay with two clients that speak by hand: `alice` dials, `bob` is dialled."""

    def __init__(self, network: MemoryNetwork, relay: Node, alice: Node, bob: Node) -> None:
        self.network = network
        self.relay = relay
        self.alice = alice
        self.bob = bob
        self.offers: asyncio.Queue[Stream] = asyncio.Queue()

    async def open(self, client: Node) -> Stream:
        await client.swarm.dial(self.relay.peer, [self.relay.address])
        return await client.swarm.open_stream(self.relay.peer, [HOP_PROTOCOL])

    async def ask(self, client: Node, message: HopMessage | bytes) -> tuple[Stream, HopStatus]:
        stream = await self.open(client)
        raw = message if isinstance(message, bytes) else encode_hop(message)
        await write_message(stream, raw)
        return stream, await status_from(stream)

    def answer_stop(self, answer: Callable[[Stream], Awaitable[None]]) -> None:
        """Let bob answer the relay's offers so; the streams are in `offers` then."""

        async def handle(stream: Stream) -> None:
            await answer(stream)
            self.offers.put_nowait(stream)
            await asyncio.sleep(3600)

        self.bob.swarm.remove_handler(STOP_PROTOCOL)
        self.bob.swarm.set_handler(STOP_PROTOCOL, handle)


async def status_from(stream: Stream) -> HopStatus:
    answer = decode_hop(await read_message(stream, 4096))
    assert isinstance(answer, HopStatus)
    return answer


async def offer_from(stream: Stream) -> StopMessage:
    return decode_stop(await read_message(stream, 4096))


async def accept(stream: Stream) -> None:
    await offer_from(stream)
    await write_message(stream, encode_stop(StopStatus(Status.OK)))


@asynccontextmanager
async def scene(settings: RelayServerSettings | None = None) -> AsyncIterator[Scene]:
    network = MemoryNetwork()
    async with (
        node(memory(network), RELAY_ADDRESS, relay=settings or RelayServerSettings()) as relay,
        node(memory(network)) as alice,
        node(memory(network)) as bob,
    ):
        yield Scene(network, relay, alice, bob)


async def assert_ended(stream: Stream) -> None:
    """The relay has closed its half of the stream and left nothing open."""
    assert await stream.read() == b""
    await stream.aclose()
    assert stream.closed


@virtual_time
async def test_a_reservation_says_when_it_ends_where_the_relay_is_and_is_vouched_for() -> None:
    async with scene() as s:
        stream, status = await s.ask(s.bob, HopReserve())
        await assert_ended(stream)
        assert status.status == Status.OK
        assert status.limits is None, "nothing is limited, so no limit is announced"
        assert status.reservation is not None
        assert status.reservation.addresses == (RELAY_ADDRESS.with_peer_id(s.relay.peer),)
        changed = await s.relay.next(ReservationChanged)
        assert status.reservation.expires_at == pytest.approx(changed.reservation.expires_at, abs=2)
        voucher = Voucher.open(
            status.reservation.voucher, relay=s.relay.peer, peer=s.bob.peer, now=0
        )
        assert voucher.expires_at == status.reservation.expires_at


@virtual_time
async def test_a_refresh_is_vouched_for_anew() -> None:
    async with scene() as s:
        grants = []
        for _ in range(2):
            _, status = await s.ask(s.bob, HopReserve())
            assert status.reservation is not None
            grants.append(status.reservation)
        for grant in grants:
            voucher = Voucher.open(grant.voucher, relay=s.relay.peer, peer=s.bob.peer, now=0)
            assert voucher.expires_at == grant.expires_at
        assert len(s.relay.relay.reservations) == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xff\xff",
        b"\x08\x09",
        b"\x08\x01",
        b"\x08\x01\x12\x04\x0a\x02me",
        bytes(5000),
    ],
    ids=["no protobuf", "unknown type", "no peer", "bad peer id", "too long"],
)
def test_what_cannot_be_read_is_a_malformed_message(raw: bytes) -> None:
    @virtual_time
    async def check() -> None:
        async with scene() as s:
            stream, status = await s.ask(s.alice, raw)
            assert status == HopStatus(Status.MALFORMED_MESSAGE)
            await assert_ended(stream)

    check()


@virtual_time
async def test_a_status_is_not_a_request() -> None:
    async with scene() as s:
        stream, status = await s.ask(s.alice, HopStatus(Status.OK))
        assert status == HopStatus(Status.UNEXPECTED_MESSAGE)
        await assert_ended(stream)


@virtual_time
async def test_a_request_that_never_comes_is_not_waited_for_for_ever() -> None:
    async with scene() as s:
        stream = await s.open(s.alice)
        await stream.write(b"\x20\x08")
        with pytest.raises(StreamResetError):
            await stream.read()
        assert asyncio.get_running_loop().time() == pytest.approx(30, abs=1)


@virtual_time
async def test_a_message_that_is_cut_off_is_malformed() -> None:
    async with scene() as s:
        stream = await s.open(s.alice)
        await stream.write(b"\x20\x08")
        await stream.close_write()
        assert await status_from(stream) == HopStatus(Status.MALFORMED_MESSAGE)
        await assert_ended(stream)


@virtual_time
async def test_nobody_is_dialled_on_behalf_of_a_client() -> None:
    async with scene() as s:
        before = list(s.network.dials)
        stream, status = await s.ask(s.alice, HopConnect(STRANGER))
        assert status == HopStatus(Status.NO_RESERVATION)
        await assert_ended(stream)
        assert s.network.dials[len(before) :] == [(0.0, RELAY_ADDRESS)], "alice's own, no other"


@virtual_time
async def test_the_target_hears_who_asks_and_the_streams_become_the_pipe() -> None:
    async with scene(RelayServerSettings(circuit_duration=60)) as s:
        await s.ask(s.bob, HopReserve())
        heard: list[StopMessage] = []

        async def answer(stream: Stream) -> None:
            heard.append(await offer_from(stream))
            # The target may speak at once: the relay must not read past the status.
            await stream.write(b"\x04" + encode_stop(StopStatus(Status.OK)) + b"at once")

        s.answer_stop(answer)
        stream = await s.open(s.alice)
        # So may the dialler, before it has heard anything.
        connect = encode_hop(HopConnect(s.bob.peer))
        await stream.write(bytes([len(connect)]) + connect + b"before")
        status = await status_from(stream)
        assert status.status == Status.OK
        assert status.limits is not None
        assert await read_exactly(stream, 7) == b"at once"
        other = await s.offers.get()
        assert await read_exactly(other, 6) == b"before"
        assert heard == [StopConnect(s.alice.peer, status.limits)]
        assert (await s.relay.next(CircuitOpened)).circuit.source == s.alice.peer
        await other.close_write()
        assert await stream.read() == b""
        await stream.write(b"after")
        assert await read_exactly(other, 5) == b"after"


async def refuse(stream: Stream) -> None:
    await offer_from(stream)
    await write_message(stream, encode_stop(StopStatus(Status.PERMISSION_DENIED)))


async def answer_with_a_connect(stream: Stream) -> None:
    await offer_from(stream)
    await write_message(stream, encode_stop(StopConnect(STRANGER)))


async def answer_with_noise(stream: Stream) -> None:
    await stream.write(b"\x03\xff\xff\xff")


async def hang_up(stream: Stream) -> None:
    stream.reset()


async def fall_asleep(stream: Stream) -> None:
    await asyncio.sleep(3600)


@pytest.mark.parametrize(
    "answer", [refuse, answer_with_a_connect, answer_with_noise, hang_up, fall_asleep]
)
def test_whatever_the_target_does_but_accept_is_a_failed_connection(
    answer: Callable[[Stream], Awaitable[None]],
) -> None:
    @virtual_time
    async def check() -> None:
        async with scene() as s:
            await s.ask(s.bob, HopReserve())
            s.answer_stop(answer)
            stream, status = await s.ask(s.alice, HopConnect(s.bob.peer))
            assert status == HopStatus(Status.CONNECTION_FAILED)
            await assert_ended(stream)
            assert s.relay.relay._admission.circuit_count == 0
            assert s.relay.relay.circuits == ()
            assert asyncio.get_running_loop().time() <= 31

    check()


@virtual_time
async def test_a_target_that_does_not_speak_stop_is_a_failed_connection() -> None:
    async with scene() as s:
        await s.ask(s.bob, HopReserve())
        s.bob.swarm.remove_handler(STOP_PROTOCOL)
        stream, status = await s.ask(s.alice, HopConnect(s.bob.peer))
        assert status == HopStatus(Status.CONNECTION_FAILED)
        await assert_ended(stream)
        assert s.relay.relay._admission.circuit_count == 0


@virtual_time
async def test_a_dialler_that_leaves_before_the_answer_leaves_nothing_behind() -> None:
    async with scene() as s:
        await s.ask(s.bob, HopReserve())
        asked = asyncio.Event()

        async def leave(stream: Stream) -> None:
            await offer_from(stream)
            asked.set()
            await asyncio.sleep(10)
            await write_message(stream, encode_stop(StopStatus(Status.OK)))

        s.answer_stop(leave)
        stream = await s.open(s.alice)
        await write_message(stream, encode_hop(HopConnect(s.bob.peer)))
        await asked.wait()
        stream.reset()
        stop = await s.offers.get()
        with pytest.raises(StreamResetError):
            await stop.read()
        assert s.relay.relay._admission.circuit_count == 0


@virtual_time
async def test_a_circuits_place_is_taken_before_the_target_is_asked() -> None:
    """Otherwise many diallers at once would all be let in."""
    settings = RelayServerSettings()
    async with scene(settings) as s:
        await s.ask(s.bob, HopReserve())
        waiting = asyncio.Event()

        async def wait(stream: Stream) -> None:
            await offer_from(stream)
            await waiting.wait()
            await write_message(stream, encode_stop(StopStatus(Status.OK)))

        s.answer_stop(wait)
        allowed = settings.admission.max_circuits_per_source
        async with asyncio.TaskGroup() as tasks:
            asked = [
                tasks.create_task(s.ask(s.alice, HopConnect(s.bob.peer)))
                for _ in range(allowed + 3)
            ]
            await asyncio.sleep(1)
            refused = [task.result()[1] for task in asked if task.done()]
            assert refused == [HopStatus(Status.RESOURCE_LIMIT_EXCEEDED)] * 3
            waiting.set()
        granted = [task.result()[1] for task in asked]
        assert granted.count(HopStatus(Status.OK)) == allowed


@virtual_time
async def test_one_peer_cannot_have_endless_exchanges_under_way() -> None:
    async with scene(RelayServerSettings(max_pending_per_peer=3)) as s:
        idle = [await s.open(s.alice) for _ in range(3)]
        await asyncio.sleep(0.1)
        with pytest.raises(StreamResetError) as raised:
            await s.ask(s.alice, HopReserve())
        assert raised.value.code == CloseCode.RESOURCE_LIMIT_EXCEEDED
        _, status = await s.ask(s.bob, HopReserve())
        assert status.status == Status.OK, "others are not hindered"
        for open_stream in idle:
            open_stream.reset()
        await asyncio.sleep(0.1)
        _, status = await s.ask(s.alice, HopReserve())
        assert status.status == Status.OK


@virtual_time
async def test_circuits_that_run_are_no_exchanges_under_way() -> None:
    async with scene(RelayServerSettings(max_pending_per_peer=2)) as s:
        await s.ask(s.bob, HopReserve())
        s.answer_stop(accept)
        for _ in range(5):
            _, status = await s.ask(s.alice, HopConnect(s.bob.peer))
            assert status == HopStatus(Status.OK)
        assert len(s.relay.relay.circuits) == 5


@virtual_time
async def test_a_reservation_is_over_at_once_though_the_connections_streams_still_wind_up() -> None:
    async with scene() as s:
        await s.ask(s.bob, HopReserve())

        async def take_your_time(stream: Stream) -> None:
            await asyncio.sleep(3)

        s.relay.swarm.set_handler("/test/slow", take_your_time)
        slow = await s.bob.swarm.open_stream(s.relay.peer, ["/test/slow"])
        await s.open(s.alice)
        await slow.connection.close()
        _, status = await s.ask(s.alice, HopConnect(s.bob.peer))
        assert status == HopStatus(Status.NO_RESERVATION)
        assert s.relay.relay.reservations == ()


@virtual_time
async def test_a_request_that_outlives_its_connection_reserves_nothing() -> None:
    """Its end has been told already: nothing would end the reservation but its expiry."""
    async with scene() as s:
        await s.open(s.bob)
        (connection,) = s.relay.swarm.connections(s.bob.peer)
        (stream,) = connection.streams
        await connection.close()
        await s.relay.relay._reserve(stream)
        assert s.relay.relay.reservations == ()


@virtual_time
async def test_nothing_is_granted_over_a_connection_that_is_relayed_itself() -> None:
    async with scene() as s:
        _, status = await s.ask(s.bob, HopReserve())
        assert status.status == Status.OK
        # A second relay, which bob reaches through the first one.
        async with node(
            memory(s.network), Multiaddr.parse("/ip4/192.0.2.2/tcp/1"), relay=RelayServerSettings()
        ) as second:
            await second.client.connect(s.relay.address)
            carrier = await s.alice.swarm.dial(second.peer, [s.relay.circuit_to(second)])
            assert carrier.relayed
            for message in (HopReserve(), HopConnect(s.bob.peer)):
                stream = await s.alice.swarm.open_stream(
                    second.peer, [HOP_PROTOCOL], connection=carrier
                )
                await write_message(stream, encode_hop(message))
                assert await status_from(stream) == HopStatus(Status.PERMISSION_DENIED)
            assert second.relay.reservations == ()


@virtual_time
async def test_a_target_that_is_connected_only_through_a_relay_is_not_relayed_to() -> None:
    """Its reservation ended with its direct connection."""
    async with scene() as s:
        await s.ask(s.bob, HopReserve())
        (direct,) = s.bob.swarm.connections(s.relay.peer)
        await direct.close()
        _, status = await s.ask(s.alice, HopConnect(s.bob.peer))
        assert status == HopStatus(Status.NO_RESERVATION)


@virtual_time
async def test_hop_is_listed_only_by_a_relay_and_stop_by_every_node() -> None:
    async with scene() as s:
        assert {HOP_PROTOCOL, STOP_PROTOCOL} <= set(s.relay.swarm.protocols)
        assert HOP_PROTOCOL not in s.alice.swarm.protocols
        assert STOP_PROTOCOL in s.alice.swarm.protocols
