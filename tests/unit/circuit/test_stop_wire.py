"""The client's side of the stop protocol, against relays that do not keep to it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from tests.circuit_nodes import Node, memory, node, talk
from tests.memory_transport import MemoryNetwork
from tests.virtual_time import virtual_time

from dep2p_daemon.circuit.messages import (
    HOP_PROTOCOL,
    STOP_PROTOCOL,
    HopConnect,
    HopStatus,
    Status,
    StopConnect,
    StopStatus,
    decode_hop,
    decode_stop,
    encode_hop,
    encode_stop,
)
from dep2p_daemon.circuit.relay_server import RelayServerSettings
from dep2p_daemon.circuit.transport import CircuitSettings
from dep2p_daemon.errors import (
    AuthenticationError,
    ConfigError,
    InvalidArgumentError,
    MultiaddrError,
    PreconditionError,
    ProtocolViolationError,
    RelayRefusedError,
    StreamResetError,
    UnreachableError,
)
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.muxed import CircuitLimits, Connection, Stream, read_message, write_message
from dep2p_daemon.swarm.events import ConnectionOpened
from dep2p_daemon.tcp.upgrade import upgrade

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

RELAY_ADDRESS = Multiaddr.parse("/ip4/192.0.2.1/tcp/4001")
CLAIMED = PrivateKey.from_seed(b"c" * 32)
OTHER = PrivateKey.from_seed(b"o" * 32)


class Scene:
    """A node under test, and a relay whose every word is the test's."""

    def __init__(self, network: MemoryNetwork, relay: Node, client: Node) -> None:
        self.network = network
        self.relay = relay
        self.client = client

    @property
    def circuit(self) -> Multiaddr:
        return self.relay.address / f"/p2p-circuit/p2p/{CLAIMED.peer_id}"

    async def offer(self, message: bytes) -> Stream:
        """Open a stop stream to the client and send `message`."""
        stream = await self.relay.swarm.open_stream(self.client.peer, [STOP_PROTOCOL])
        await write_message(stream, message)
        return stream

    async def offered(self, message: bytes) -> StopStatus:
        """Return the client's answer; check that a refusal ends the stream."""
        stream = await self.offer(message)
        answer = decode_stop(await read_message(stream, 4096))
        assert isinstance(answer, StopStatus)
        if answer.status != Status.OK:
            assert await stream.read() == b""
        stream.reset()
        return answer

    def answer_hop(self, answer: Callable[[Stream], Awaitable[None]]) -> None:
        async def handle(stream: Stream) -> None:
            assert decode_hop(await read_message(stream, 4096)) == HopConnect(CLAIMED.peer_id)
            await answer(stream)
            await asyncio.sleep(3600)

        self.relay.swarm.set_handler(HOP_PROTOCOL, handle)

    async def dial(self) -> None:
        await self.client.swarm.dial(CLAIMED.peer_id, [self.circuit])


@asynccontextmanager
async def scene(
    *, trusted: bool = True, settings: CircuitSettings | None = None
) -> AsyncIterator[Scene]:
    network = MemoryNetwork()
    async with (
        node(memory(network), RELAY_ADDRESS) as relay,
        node(memory(network), circuit=settings) as client,
    ):
        await client.swarm.dial(relay.peer, [relay.address])
        if trusted:
            client.circuits.accept_from(relay.peer)
        yield Scene(network, relay, client)


CONNECT = encode_stop(StopConnect(CLAIMED.peer_id, CircuitLimits(60.0, None)))


@virtual_time
async def test_a_circuit_is_taken_only_from_a_relay_where_we_hold_a_reservation() -> None:
    async with scene(trusted=False) as s:
        assert await s.offered(CONNECT) == StopStatus(Status.PERMISSION_DENIED)
        s.client.circuits.accept_from(s.relay.peer)
        assert await s.offered(CONNECT) == StopStatus(Status.OK)
        s.client.circuits.refuse_from(s.relay.peer)
        assert await s.offered(CONNECT) == StopStatus(Status.PERMISSION_DENIED)


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (b"\xff\xff\xff", Status.MALFORMED_MESSAGE),
        (b"\x08\x00", Status.MALFORMED_MESSAGE),
        (bytes(5000), Status.MALFORMED_MESSAGE),
        (encode_stop(StopStatus(Status.OK)), Status.UNEXPECTED_MESSAGE),
    ],
    ids=["no protobuf", "no peer", "too long", "not a CONNECT"],
)
def test_other_messages_are_answered_with_their_status(message: bytes, status: Status) -> None:
    @virtual_time
    async def check() -> None:
        async with scene() as s:
            assert await s.offered(message) == StopStatus(status)

    check()


@virtual_time
async def test_a_relay_cannot_bring_us_ourselves_or_itself() -> None:
    async with scene() as s:
        for peer in (s.client.peer, s.relay.peer):
            answer = await s.offered(encode_stop(StopConnect(peer)))
            assert answer == StopStatus(Status.PERMISSION_DENIED)


@virtual_time
async def test_an_offer_that_is_never_made_is_not_waited_for() -> None:
    async with scene() as s:
        stream = await s.relay.swarm.open_stream(s.client.peer, [STOP_PROTOCOL])
        with pytest.raises(StreamResetError):
            await stream.read()
        assert asyncio.get_running_loop().time() <= 10


@virtual_time
async def test_a_source_that_never_shakes_hands_is_not_waited_for() -> None:
    async with scene() as s:
        stream = await s.offer(CONNECT)
        assert decode_stop(await read_message(stream, 4096)) == StopStatus(Status.OK)
        with pytest.raises(StreamResetError):
            await drain(stream)
        assert asyncio.get_running_loop().time() <= 10
        assert s.client.swarm.connections(CLAIMED.peer_id) == ()


@virtual_time
async def test_circuits_that_are_being_set_up_are_bounded() -> None:
    settings = CircuitSettings(max_pending=5, max_pending_per_relay=3)
    async with scene(settings=settings) as s:
        pending = [await s.offer(CONNECT) for _ in range(3)]
        for stream in pending:
            assert decode_stop(await read_message(stream, 4096)) == StopStatus(Status.OK)
        assert await s.offered(CONNECT) == StopStatus(Status.RESOURCE_LIMIT_EXCEEDED)
        async with node(memory(s.network), Multiaddr.parse("/ip4/192.0.2.2/tcp/1")) as second:
            await s.client.swarm.dial(second.peer, [second.address])
            s.client.circuits.accept_from(second.peer)
            elsewhere = Scene(s.network, second, s.client)
            more = [await elsewhere.offer(CONNECT) for _ in range(2)]
            for stream in more:
                assert decode_stop(await read_message(stream, 4096)) == StopStatus(Status.OK)
            refused = await elsewhere.offered(CONNECT)
            assert refused == StopStatus(Status.RESOURCE_LIMIT_EXCEEDED)
            pending[0].reset()
            await asyncio.sleep(0.1)
            assert await elsewhere.offered(CONNECT) == StopStatus(Status.OK)


async def drain(stream: Stream) -> None:
    while await stream.read():
        pass


async def dialled_as(s: Scene, key: PrivateKey, tasks: asyncio.TaskGroup) -> Connection:
    """Be, behind the relay, the source of a circuit that is announced as CLAIMED's."""
    stream = await s.offer(CONNECT)
    assert decode_stop(await read_message(stream, 4096)) == StopStatus(Status.OK)
    return await upgrade(
        stream,
        key=key,
        initiator=True,
        expected_peer=s.client.peer,
        task_group=tasks,
        local_address=RELAY_ADDRESS,
        remote_address=RELAY_ADDRESS,
    )


async def inbound_circuit(s: Scene) -> Connection:
    opened = await s.client.next(ConnectionOpened, lambda event: event.connection.relayed)
    return opened.connection


@virtual_time
async def test_an_inbound_circuit_becomes_a_connection_with_the_peer_that_proves_itself() -> None:
    async with scene() as s, asyncio.TaskGroup() as tasks:
        await dialled_as(s, CLAIMED, tasks)
        connection = await inbound_circuit(s)
        assert connection.relay == s.relay.peer
        assert connection.limits == CircuitLimits(60.0, None)
        await connection.close()


@virtual_time
async def test_a_source_that_is_not_whom_the_relay_claims_is_refused() -> None:
    async with scene() as s, asyncio.TaskGroup() as tasks:
        connection = await dialled_as(s, OTHER, tasks)
        # The handshake is over for the initiator; then the responder finds the wrong peer id.
        async with asyncio.timeout(60):
            await connection.wait_closed()
        assert s.client.swarm.connections(CLAIMED.peer_id) == ()
        assert s.client.swarm.connections(OTHER.peer_id) == ()


@virtual_time
async def test_a_relay_that_connects_us_to_somebody_else_is_found_out() -> None:
    async with scene() as s, asyncio.TaskGroup() as tasks:

        async def answer(stream: Stream) -> None:
            await write_message(stream, encode_hop(HopStatus(Status.OK)))
            await upgrade(
                stream,
                key=OTHER,
                initiator=False,
                expected_peer=None,
                task_group=tasks,
                local_address=RELAY_ADDRESS,
                remote_address=RELAY_ADDRESS,
            )

        s.answer_hop(answer)
        with pytest.raises(AuthenticationError) as raised:
            await s.client.circuits.dial(s.circuit, CLAIMED.peer_id)
        assert raised.value.reason == "CIRCUIT_PEER_MISMATCH"
        assert str(s.relay.peer) in raised.value.message
        assert s.client.swarm.connections(CLAIMED.peer_id) == ()


@pytest.mark.parametrize("status", [s for s in Status if s not in (Status.OK, Status.UNUSED)])
def test_each_refusal_of_a_relay_reaches_the_dialler_by_its_name(status: Status) -> None:
    @virtual_time
    async def check() -> None:
        async with scene() as s:

            async def answer(stream: Stream) -> None:
                await write_message(stream, encode_hop(HopStatus(status)))

            s.answer_hop(answer)
            with pytest.raises(RelayRefusedError) as raised:
                await s.dial()
            assert (raised.value.reason, raised.value.status) == (status.name, status)
            assert raised.value.remedy
            (carrier,) = s.client.swarm.connections(s.relay.peer)
            assert carrier.streams == (), "a refused hop stream is not left open"

    check()


async def say_nothing(stream: Stream) -> None:
    await asyncio.sleep(3600)


async def reset(stream: Stream) -> None:
    stream.reset()


async def end(stream: Stream) -> None:
    await stream.aclose()


async def answer_with_noise(stream: Stream) -> None:
    await stream.write(b"\x03\xff\xff\xff")


async def answer_with_a_request(stream: Stream) -> None:
    await write_message(stream, encode_hop(HopConnect(OTHER.peer_id)))


async def say_yes_and_sleep(stream: Stream) -> None:
    await write_message(stream, encode_hop(HopStatus(Status.OK)))


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        (say_nothing, UnreachableError, "RELAY_TIMEOUT"),
        (reset, UnreachableError, "RELAY_BROKE_OFF"),
        (end, ProtocolViolationError, "UNEXPECTED_END"),
        (answer_with_noise, ProtocolViolationError, "MALFORMED_MESSAGE"),
        (answer_with_a_request, ProtocolViolationError, "UNEXPECTED_MESSAGE"),
        (say_yes_and_sleep, UnreachableError, "CIRCUIT_TIMEOUT"),
    ],
)
def test_a_relay_that_does_not_keep_to_the_protocol_is_an_error_in_time(
    answer: Callable[[Stream], Awaitable[None]], kind: type[Exception], reason: str
) -> None:
    @virtual_time
    async def check() -> None:
        async with scene() as s:
            s.answer_hop(answer)
            with pytest.raises(kind) as raised:
                await s.client.circuits.dial(s.circuit, CLAIMED.peer_id)
            assert getattr(raised.value, "reason", None) == reason
            assert asyncio.get_running_loop().time() < 20
            (carrier,) = s.client.swarm.connections(s.relay.peer)
            assert carrier.streams == ()

    check()


@virtual_time
async def test_a_peer_that_is_no_relay_is_said_to_be_none() -> None:
    async with scene() as s:
        with pytest.raises(PreconditionError) as raised:
            await s.dial()
        assert raised.value.reason == "RELAY_NOT_SUPPORTED"
        assert "dep2p-relay-server" in raised.value.remedy


@virtual_time
async def test_a_relay_that_cannot_be_reached_is_named_with_the_time_and_what_to_check() -> None:
    async with scene() as s:
        gone = Multiaddr.parse("/ip4/8.8.4.4/udp/4001/quic-v1")
        s.network.dead.add(gone)
        circuit = gone.with_peer_id(OTHER.peer_id) / "/p2p-circuit"
        with pytest.raises(UnreachableError) as raised:
            await s.client.circuits.dial(circuit, CLAIMED.peer_id)
        error = raised.value
        assert error.reason == "RELAY_UNREACHABLE"
        assert str(gone) in error.message
        assert "tried for 8.0 s" in error.message
        assert "relay runs" in error.remedy
        assert "UDP and TCP port 4001" in error.remedy
        assert asyncio.get_running_loop().time() == pytest.approx(8.0)


@virtual_time
async def test_another_node_at_the_relays_address_is_said_to_be_there() -> None:
    async with scene() as s:
        circuit = RELAY_ADDRESS.with_peer_id(OTHER.peer_id) / "/p2p-circuit"
        with pytest.raises(AuthenticationError) as raised:
            await s.client.circuits.dial(circuit, CLAIMED.peer_id)
        assert raised.value.reason == "RELAY_PEER_MISMATCH"


@virtual_time
async def test_addresses_that_are_no_circuit_to_the_peer_are_refused() -> None:
    async with scene() as s:
        dial = s.client.circuits.dial
        peer = CLAIMED.peer_id
        nested = s.relay.address / f"/p2p-circuit/p2p/{OTHER.peer_id}/p2p-circuit"
        no_relay = RELAY_ADDRESS / "/p2p-circuit"
        through_itself = RELAY_ADDRESS.with_peer_id(peer) / "/p2p-circuit"
        through_us = RELAY_ADDRESS.with_peer_id(s.client.peer) / "/p2p-circuit"
        to_another = s.relay.address / f"/p2p-circuit/p2p/{OTHER.peer_id}"
        for address in (nested, no_relay, through_itself, through_us, to_another):
            with pytest.raises((InvalidArgumentError, MultiaddrError)):
                await dial(address, peer)
        with pytest.raises(ConfigError, match="relay connect"):
            await s.client.circuits.listen(s.circuit)
        assert not s.client.circuits.can_dial(RELAY_ADDRESS)
        assert s.client.circuits.can_dial(nested)


@virtual_time
async def test_a_relay_may_be_named_by_its_peer_id_alone_when_it_is_known() -> None:
    network = MemoryNetwork()
    async with (
        node(memory(network), RELAY_ADDRESS, relay=RelayServerSettings()) as relay,
        node(memory(network)) as listener,
        node(memory(network)) as dialler,
    ):
        await listener.client.connect(relay.address)
        bare = Multiaddr.parse(f"/p2p/{relay.peer}/p2p-circuit")
        with pytest.raises(UnreachableError):
            await dialler.swarm.dial(listener.peer, [bare])
        dialler.swarm.peerstore.add_addresses(relay.peer, [RELAY_ADDRESS], ttl=60, source="test")
        await dialler.swarm.dial(listener.peer, [bare])
        assert await talk(dialler, listener, b"hello", through=relay) == b"hello"


@virtual_time
async def test_leaving_closes_the_circuits_and_what_is_being_set_up() -> None:
    async with asyncio.TaskGroup() as tasks:
        async with scene() as s:
            await dialled_as(s, CLAIMED, tasks)
            connection = await inbound_circuit(s)
            half_open = await s.offer(CONNECT)
        assert connection.is_closed
        assert half_open.closed
