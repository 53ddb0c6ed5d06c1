from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from tests.memory_nodes import CIRCUIT, KEYS, address_of, connected, peer, swarms
from tests.virtual_time import virtual_time

from dep2p_daemon.errors import StreamResetError
from dep2p_daemon.identity.peer_record import PeerRecord
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.muxed import CloseCode, Stream
from dep2p_daemon.protocols import echo
from dep2p_daemon.protocols.identify import Identify, IdentifySettings
from dep2p_daemon.protocols.identify_message import (
    ID_PROTOCOL,
    PUSH_PROTOCOL,
    IdentifyInfo,
    decode,
    encode,
)
from dep2p_daemon.swarm.events import PeerIdentified

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.memory_transport import MemoryNetwork

    from dep2p_daemon.swarm.swarm import Swarm

PUBLIC = Multiaddr.parse("/ip4/198.51.100.7/tcp/4001")
LOOPBACK = Multiaddr.parse("/ip4/127.0.0.1/udp/4001/quic-v1")


@asynccontextmanager
async def identified(
    network: MemoryNetwork | None = None,
) -> AsyncIterator[tuple[tuple[Swarm, Identify], tuple[Swarm, Identify]]]:
    async with swarms(network=network) as (here, there):
        both = Identify(here), Identify(there)
        for identify in both:
            identify.register()
        yield (here, both[0]), (there, both[1])


async def read_all(stream: Stream) -> bytes:
    data = bytearray()
    while chunk := await stream.read():
        data += chunk
    return bytes(data)


@asynccontextmanager
async def liar(info: IdentifyInfo, *, closes: bool = True) -> AsyncIterator[tuple[Swarm, Identify]]:
    """A swarm whose one peer (number 1) answers identify with `info`, whatever that is."""

    async def answer(stream: Stream) -> None:
        await stream.write(encode(info))
        if closes:
            await stream.aclose()
        else:
            await stream.read()

    async with swarms() as (here, there):
        identify = Identify(here)
        identify.register()
        there.set_handler(ID_PROTOCOL, answer)
        yield here, identify


async def learn(here: Swarm, identify: Identify) -> bool:
    connection = await here.dial(peer(1), [address_of(1)])
    return await identify.wait_identified(connection)


@virtual_time
async def test_both_sides_learn_who_the_other_is() -> None:
    async with identified() as ((here, ours), (there, theirs)):
        echo.register(there)
        there.set_announced([PUBLIC])
        near, far = await connected(here, there)
        assert await ours.wait_identified(near)
        assert await theirs.wait_identified(far)
        known = here.peerstore.get(peer(1))
        assert known is not None
        assert known.agent_version == "dep2pd/0.1.0"
        assert known.protocol_version == "ipfs/0.1.0"
        assert known.protocols == {ID_PROTOCOL, PUSH_PROTOCOL, echo.PROTOCOL}
        assert set(here.peerstore.addresses(peer(1))) == {PUBLIC, address_of(1)}
        # The socket that a peer dialled from is none of its addresses.
        assert there.peerstore.addresses(peer(0)) == (address_of(0),)


@virtual_time
async def test_an_identified_peer_is_dialled_by_its_id_and_addressed_without_asking() -> None:
    async with identified() as ((here, ours), (there, _)):
        echo.register(there)
        near, _ = await connected(here, there)
        await ours.wait_identified(near)
        await here.disconnect(peer(1))
        connection = await here.dial(peer(1))
        await ours.wait_identified(connection)
        there.remove_handler(echo.PROTOCOL)
        # Lazy negotiation: no refusal before the first read.
        stream = await here.open_stream(peer(1), [echo.PROTOCOL])
        stream.reset()


@virtual_time
async def test_the_event_carries_what_the_peer_sees_of_us() -> None:
    async with identified() as ((here, _), (there, _)):
        with here.events.subscribe() as events:
            near, far = await connected(here, there)
            while not isinstance(event := await events.next(), PeerIdentified):
                pass
        assert event == PeerIdentified(peer(1), near, far.remote_address)


@virtual_time
async def test_a_relayed_peer_is_told_the_circuit_and_no_loopback_address() -> None:
    async with identified() as ((here, ours), (there, _)):
        await there.listen([CIRCUIT, LOOPBACK])
        near = await here.dial(peer(1), [CIRCUIT])
        stream = await here.open_stream(peer(1), [ID_PROTOCOL], connection=near)
        info = decode(await read_all(stream))
        assert info.observed_address == CIRCUIT
        assert LOOPBACK not in info.addresses
        assert info.signed_peer_record is not None
        assert PeerRecord.open(info.signed_peer_record).addresses == info.addresses
        await stream.aclose()
        await ours.wait_identified(near)


@virtual_time
async def test_a_peer_on_this_machine_is_told_the_loopback_addresses() -> None:
    async with identified() as ((here, ours), (there, _)):
        await there.listen([LOOPBACK])
        near = await here.dial(peer(1), [LOOPBACK])
        await ours.wait_identified(near)
        assert LOOPBACK in here.peerstore.addresses(peer(1))


@virtual_time
async def test_changes_are_pushed_together_to_those_who_were_told() -> None:
    async with identified() as ((here, ours), (there, theirs)):
        near, far = await connected(here, there)
        await ours.wait_identified(near)
        await theirs.wait_identified(far)
        with here.events.subscribe() as events:
            echo.register(there)
            there.set_announced([PUBLIC])
            there.set_handler("/another/1", echo.handle)
            event = await events.next()
            assert isinstance(event, PeerIdentified)
            known = here.peerstore.get(peer(1))
            assert known is not None
            assert {"/another/1", echo.PROTOCOL} <= known.protocols
            assert PUBLIC in here.peerstore.addresses(peer(1))
            # What is gone is gone there too.
            there.set_announced([])
            there.remove_handler("/another/1")
            await events.next()
            assert "/another/1" not in here.peerstore.protocols(peer(1))
            assert PUBLIC not in here.peerstore.addresses(peer(1))


@virtual_time
async def test_a_push_of_some_fields_leaves_the_others() -> None:
    async with identified() as ((here, ours), (there, _theirs)):
        near, far = await connected(here, there)
        await ours.wait_identified(near)
        stream = await there.open_stream(peer(0), [PUSH_PROTOCOL], connection=far)
        with here.events.subscribe() as events:
            await stream.write(encode(IdentifyInfo(protocols=("/only/1",))))
            await stream.close_write()
            await events.next()
            assert await stream.read() == b""
        known = here.peerstore.get(peer(1))
        assert known is not None
        assert known.protocols == {"/only/1"}
        assert known.agent_version == "dep2pd/0.1.0"
        assert here.peerstore.addresses(peer(1)) == (address_of(1),)


@virtual_time
async def test_pushes_beyond_the_rate_are_reset() -> None:
    async with identified() as ((here, _), (there, theirs)):
        _, far = await connected(here, there)
        await theirs.wait_identified(far)

        async def push() -> CloseCode | None:
            stream = await there.open_stream(peer(0), [PUSH_PROTOCOL], connection=far)
            try:
                await stream.write(encode(IdentifyInfo(agent_version="x")))
                await stream.close_write()
                await stream.read()
            except StreamResetError as error:
                return CloseCode(error.code)
            finally:
                stream.reset()
            return None

        first = [await push() for _ in range(IdentifySettings().push_burst)]
        assert first == [None] * 10
        assert await push() == CloseCode.RATE_LIMITED
        await asyncio.sleep(5.0)
        assert await push() is None
        assert await push() == CloseCode.RATE_LIMITED


@virtual_time
async def test_a_key_that_is_not_the_handshakes_is_not_believed() -> None:
    wrong = IdentifyInfo(
        public_key=KEYS[2].public_key.to_protobuf(), agent_version="liar", protocols=("/x/1",)
    )
    async with liar(wrong) as (here, identify):
        assert not await learn(here, identify)
        known = here.peerstore.get(peer(1))
        assert known is None or known.agent_version == ""
        assert len(here.connections()) == 1


@virtual_time
async def test_the_signed_record_is_believed_before_the_list() -> None:
    record = PeerRecord(peer(1), 7, (PUBLIC, LOOPBACK)).seal(KEYS[1])
    listed = Multiaddr.parse("/ip4/198.51.100.99/tcp/1")
    info = IdentifyInfo(addresses=(listed,), signed_peer_record=record)
    async with liar(info) as (here, identify):
        assert await learn(here, identify)
        assert here.peerstore.addresses(peer(1)) == (PUBLIC,)


@pytest.mark.parametrize(
    "record",
    [
        b"rubbish",
        PeerRecord(peer(2), 7, (PUBLIC,)).seal(KEYS[2]),
        PeerRecord(peer(1), 7, (PUBLIC,)).seal(KEYS[1])[:-1] + b"\0",
    ],
    ids=["malformed", "another peer's", "signature broken"],
)
def test_a_record_that_does_not_hold_is_ignored_and_the_list_used(record: bytes) -> None:
    listed = Multiaddr.parse("/ip4/198.51.100.99/tcp/1")

    @virtual_time
    async def run() -> None:
        info = IdentifyInfo(addresses=(listed, LOOPBACK), signed_peer_record=record)
        async with liar(info) as (here, identify):
            assert await learn(here, identify)
            assert here.peerstore.addresses(peer(1)) == (listed,)
            assert here.peerstore.addresses(peer(2)) == ()

    run()


@virtual_time
async def test_a_peer_that_never_closes_is_taken_at_what_it_said_in_time() -> None:
    async with liar(IdentifyInfo(agent_version="slow"), closes=False) as (here, identify):
        assert await learn(here, identify)
        assert asyncio.get_running_loop().time() == 5.0
        known = here.peerstore.get(peer(1))
        assert known is not None
        assert known.agent_version == "slow"


@virtual_time
async def test_a_peer_without_identify_stays_connected() -> None:
    async with swarms() as (here, there):
        identify = Identify(here)
        identify.register()
        near, _ = await connected(here, there)
        assert not await identify.wait_identified(near)
        assert not near.is_closed


@virtual_time
async def test_an_endless_answer_is_cut_off() -> None:
    async def flood(stream: Stream) -> None:
        while True:
            await stream.write(bytes(1000))

    async with swarms() as (here, there):
        identify = Identify(here)
        identify.register()
        there.set_handler(ID_PROTOCOL, flood)
        near, far = await connected(here, there)
        assert not await identify.wait_identified(near)
        await asyncio.sleep(1.0)
        assert far.streams == ()


@virtual_time
async def test_waiting_ends_with_the_connection() -> None:
    async with liar(IdentifyInfo(), closes=False) as (here, identify):
        connection = await here.dial(peer(1), [address_of(1)])
        waiting = asyncio.create_task(identify.wait_identified(connection))
        await asyncio.sleep(1.0)
        await connection.close()
        assert not await waiting
        assert not await identify.wait_identified(connection)


@pytest.mark.parametrize(
    "info",
    [
        IdentifyInfo(signed_peer_record=PeerRecord(peer(1), 7, (PUBLIC,)).seal(KEYS[1])),
        IdentifyInfo(addresses=(PUBLIC,)),
    ],
    ids=["signed", "listed"],
)
def test_addresses_are_kept_for_a_while_after_the_last_connection(info: IdentifyInfo) -> None:
    now = 0.0

    def clock() -> float:
        return now

    @virtual_time
    async def run() -> None:
        nonlocal now
        async with liar(info) as (here, identify):
            here.peerstore._clock = clock
            assert await learn(here, identify)
            now = 23 * 3600.0
            await here.disconnect(peer(1))
            now = 46 * 3600.0
            assert here.peerstore.addresses(peer(1)) == (PUBLIC,)
            now = 48 * 3600.0
            assert here.peerstore.addresses(peer(1)) == ()

    run()
