"""AutoNAT servers and clients against each other, and against peers that cheat, in memory."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING

import pytest
from tests.memory_nodes import CIRCUIT, KEYS, address_of, connected, peer, swarms
from tests.memory_transport import MemoryNetwork
from tests.virtual_time import virtual_time

from dep2p_daemon import multistream
from dep2p_daemon.errors import Dep2pError
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.muxed import read_message, write_message
from dep2p_daemon.nat import autonat1_message as v1
from dep2p_daemon.nat.autonat1 import Autonat1Client, Autonat1Server
from dep2p_daemon.nat.autonat2_client import AutonatClient
from dep2p_daemon.nat.autonat2_message import (
    DIAL_BACK_PROTOCOL,
    DIAL_REQUEST_PROTOCOL,
    DialDataRequest,
    DialDataResponse,
    DialRequest,
    DialResponse,
    DialStatus,
    RequestMessage,
    ResponseStatus,
    decode,
    encode,
    encode_dial_back,
)
from dep2p_daemon.nat.autonat2_server import (
    MAX_DIAL_DATA,
    MIN_DIAL_DATA,
    AutonatServer,
    AutonatServerSettings,
)
from dep2p_daemon.nat.reachability import Outcome
from dep2p_daemon.nat.request_limits import RequestLimits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from ipaddress import IPv4Address, IPv6Address

    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.muxed import Connection, Stream
    from dep2p_daemon.swarm.swarm import Swarm

OBSERVED = Multiaddr.for_udp("192.0.2.77", 4001)
"""With the IP from which the memory network has connections come."""
FOREIGN = address_of(0)
DIALLER = PrivateKey.from_seed(b"d" * 32)


class MemoryDial:
    """`FreshDial` on the memory network."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.network = network
        self.dialled: list[Multiaddr] = []

    @asynccontextmanager
    async def __call__(
        self, address: Multiaddr, peer: PeerId, *, source: IPv4Address | IPv6Address | None = None
    ) -> AsyncIterator[Connection]:
        self.dialled.append(address)
        connection = await self.network.transport(DIALLER).dial(address, peer)
        try:
            yield connection
        finally:
            await connection.close()


class Pair:
    """A client (0) that listens on its observed address too, and a server (1)."""

    client: Swarm
    server: Swarm
    connection: Connection
    stranger = True

    def __init__(self) -> None:
        self.network = MemoryNetwork()
        self.dial = MemoryDial(self.network)

    def serve(self, settings: AutonatServerSettings | None = None) -> None:
        AutonatServer(self.server, self.dial, settings, is_public=lambda _: True).register()

    def asker(self) -> AutonatClient:
        client = AutonatClient(self.client, is_stranger=lambda _: self.stranger)
        client.register()
        return client

    async def request(self, *addresses: Multiaddr | None, nonce: int = 7) -> DialResponse:
        """What a bare client is answered; it does not pay."""
        stream = await self.open()
        await write_message(stream, encode(DialRequest(addresses, nonce)))
        answer = decode(await read_message(stream, 8192))
        assert isinstance(answer, DialResponse)
        return answer

    async def open(self, protocol: str = DIAL_REQUEST_PROTOCOL) -> Stream:
        return await self.client.open_stream(
            self.server.local_peer, [protocol], connection=self.connection
        )


@asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    made = Pair()
    async with swarms(2, network=made.network) as (made.client, made.server):
        await made.client.listen([OBSERVED])
        made.connection, _ = await connected(made.client, made.server)
        yield made


@pytest.mark.parametrize(("stranger", "outcome"), [(True, Outcome.PROOF), (False, Outcome.HINT)])
async def test_a_nonce_that_comes_back_is_proof_if_a_stranger_brings_it(
    stranger: bool, outcome: Outcome
) -> None:
    async with pair() as made:
        made.serve()
        made.stranger = stranger
        found, seen = await made.asker().ask(made.connection, OBSERVED)
        assert found is outcome
        assert seen is not None
        assert seen.local == OBSERVED
        assert seen.stranger is stranger
        assert made.dial.dialled == [OBSERVED]


async def test_an_address_where_nobody_is_fails() -> None:
    async with pair() as made:
        made.serve()
        found, seen = await made.asker().ask(made.connection, Multiaddr.for_udp("192.0.2.77", 9999))
        assert (found, seen) == (Outcome.FAILURE, None)


@virtual_time
async def test_an_address_that_swallows_everything_fails_in_time() -> None:
    async with pair() as made:
        made.serve()
        made.network.dead.add(OBSERVED)
        began = asyncio.get_running_loop().time()
        found, _ = await made.asker().ask(made.connection, OBSERVED)
        assert found is Outcome.FAILURE
        assert asyncio.get_running_loop().time() - began < 15  # go-libp2p waits no longer


@virtual_time
async def test_foreign_addresses_are_dialled_for_those_who_pay() -> None:
    async with pair() as made:
        made.serve()
        found, _ = await made.asker().ask(made.connection, FOREIGN)
        assert found is Outcome.PROOF
        assert made.dial.dialled == [FOREIGN]


async def test_the_price_is_in_the_specified_range_and_must_be_paid() -> None:
    async with pair() as made:
        made.serve()
        stream = await made.open()
        await write_message(stream, encode(DialRequest((None, FOREIGN), 7)))
        asked = decode(await read_message(stream, 8192))
        assert isinstance(asked, DialDataRequest)
        assert asked.index == 1
        assert MIN_DIAL_DATA <= asked.size <= MAX_DIAL_DATA
        await write_message(stream, encode(DialDataResponse(bytes(99))))
        with pytest.raises(Dep2pError):
            await read_message(stream, 8192)
        assert made.dial.dialled == []


@pytest.mark.parametrize(
    "address",
    [
        None,
        CIRCUIT,
        Multiaddr.parse("/dns/example.com/udp/4001/quic-v1"),
        Multiaddr.parse("/ip4/192.0.2.77/udp/4001"),
        Multiaddr.for_udp("192.0.2.77", 53),
        OBSERVED.with_peer_id(peer(5)),
        address_of(1),  # the server itself
        Multiaddr.for_udp("2001:db8::1", 4001),  # it has no IPv6
    ],
)
async def test_what_must_not_be_dialled_is_refused(address: Multiaddr | None) -> None:
    async with pair() as made:
        made.serve()
        answer = await made.request(address)
        assert answer.status == ResponseStatus.E_DIAL_REFUSED
        assert made.dial.dialled == []


@pytest.mark.parametrize(
    "text", ["10.0.0.1", "127.0.0.1", "192.168.1.1", "224.0.0.1", "100.64.0.1", "169.254.1.1"]
)
async def test_only_public_addresses_are_dialled(text: str) -> None:
    async with pair() as made:
        AutonatServer(made.server, made.dial).register()
        answer = await made.request(Multiaddr.for_udp(text, 4001))
        assert answer.status == ResponseStatus.E_DIAL_REFUSED
        assert made.dial.dialled == []


async def test_the_first_willing_address_is_dialled_and_no_other() -> None:
    async with pair() as made:
        made.serve()
        other = Multiaddr.for_udp("192.0.2.77", 4002)
        answer = await made.request(None, CIRCUIT, other, OBSERVED)
        assert answer == DialResponse(ResponseStatus.OK, 2, DialStatus.E_DIAL_ERROR)
        assert made.dial.dialled == [other]


async def test_a_client_that_does_not_take_dial_backs_is_told() -> None:
    async with pair() as made:
        made.serve()
        answer = await made.request(OBSERVED)
        assert answer == DialResponse(ResponseStatus.OK, 0, DialStatus.E_DIAL_BACK_ERROR)


async def test_relayed_peers_must_not_ask() -> None:
    async with pair() as made:
        made.serve()
        await made.server.listen([CIRCUIT])
        relayed = await made.client.dial(made.server.local_peer, [CIRCUIT], force_new=True)
        made.connection = relayed
        answer = await made.request(OBSERVED)
        assert answer.status == ResponseStatus.E_REQUEST_REJECTED
        assert made.dial.dialled == []


async def test_too_many_requests_are_rejected() -> None:
    async with pair() as made:
        made.serve(AutonatServerSettings(limits=RequestLimits(per_peer=2)))
        statuses = [(await made.request(OBSERVED)).status for _ in range(3)]
        assert statuses == [
            ResponseStatus.OK,
            ResponseStatus.OK,
            ResponseStatus.E_REQUEST_REJECTED,
        ]
        assert len(made.dial.dialled) == 2


async def test_too_many_foreign_dials_are_rejected() -> None:
    async with pair() as made:
        made.serve(AutonatServerSettings(limits=RequestLimits(with_data=0)))
        answer = await made.request(FOREIGN)
        assert answer.status == ResponseStatus.E_REQUEST_REJECTED


@pytest.mark.parametrize(
    "message", [b"\xff\xff", b"", encode(DialResponse(200)), encode(DialDataResponse(b"x" * 200))]
)
async def test_nonsense_is_reset(message: bytes) -> None:
    async with pair() as made:
        made.serve()
        stream = await made.open()
        await write_message(stream, message)
        with pytest.raises(Dep2pError):
            await read_message(stream, 8192)


# --------------------------------------------------------------------------- servers that cheat


async def asked(
    made: Pair, *answers: RequestMessage, nonce: int | None = None
) -> tuple[Outcome, bool]:
    """Ask a server that says `answers` whatever comes, and shows `nonce` before if it has one."""

    async def cheat(stream: Stream) -> None:
        request = decode(await read_message(stream, 8192))
        assert isinstance(request, DialRequest)
        if nonce is not None:
            async with made.dial(OBSERVED, made.client.local_peer) as connection:
                back = await connection.open_stream()
                await multistream.select(back, [DIAL_BACK_PROTOCOL])
                await write_message(back, encode_dial_back(nonce or request.nonce))
                refused: AbstractContextManager[object] = (
                    pytest.raises(Dep2pError) if nonce else nullcontext()
                )
                with refused:
                    assert await read_message(back, 100) == b""
        for answer in answers:
            await write_message(stream, encode(answer))
        await stream.aclose()

    made.server.set_handler(DIAL_REQUEST_PROTOCOL, cheat)
    outcome, seen = await made.asker().ask(made.connection, OBSERVED)
    return outcome, seen is not None


OK = DialResponse(ResponseStatus.OK, 0, DialStatus.OK)


@virtual_time
async def test_a_success_without_the_nonce_is_nothing() -> None:
    async with pair() as made:
        assert await asked(made, OK) == (Outcome.NOTHING, False)


@virtual_time
async def test_a_wrong_nonce_is_refused() -> None:
    async with pair() as made:
        assert await asked(made, OK, nonce=12345) == (Outcome.NOTHING, False)


async def test_a_nonce_counts_whatever_the_server_says() -> None:
    async with pair() as made:
        failed = DialResponse(ResponseStatus.OK, 0, DialStatus.E_DIAL_ERROR)
        assert await asked(made, failed, nonce=0) == (Outcome.PROOF, True)


@pytest.mark.parametrize(
    "answer",
    [
        DialResponse(ResponseStatus.E_INTERNAL_ERROR),
        DialResponse(ResponseStatus.E_DIAL_REFUSED),
        DialResponse(ResponseStatus.E_REQUEST_REJECTED),
        DialResponse(77, 0, DialStatus.E_DIAL_ERROR),
        DialResponse(ResponseStatus.OK, 3, DialStatus.E_DIAL_ERROR),
        DialResponse(ResponseStatus.OK, 0, 77),
        DialResponse(ResponseStatus.OK, 0, DialStatus.UNUSED),
        DialResponse(ResponseStatus.OK, 0, DialStatus.E_DIAL_BACK_ERROR),
        DialDataRequest(0, MAX_DIAL_DATA + 1),
        DialDataRequest(1, MIN_DIAL_DATA),
        DialDataResponse(b"x"),
    ],
)
async def test_other_answers_are_no_votes(answer: RequestMessage) -> None:
    async with pair() as made:
        assert await asked(made, answer) == (Outcome.NOTHING, False)


# --------------------------------------------------------------------------------------- version 1


@asynccontextmanager
async def old_pair() -> AsyncIterator[Pair]:
    async with pair() as made:
        Autonat1Server(made.server, made.dial, is_public=lambda _: True).register()
        yield made


async def test_v1_success_is_a_claim() -> None:
    async with old_pair() as made:
        assert await Autonat1Client(made.client).ask(made.connection, OBSERVED) is Outcome.CLAIM
        assert made.dial.dialled == [OBSERVED]


async def test_v1_failure() -> None:
    async with old_pair() as made:
        nobody = Multiaddr.for_udp("192.0.2.77", 9999)
        assert await Autonat1Client(made.client).ask(made.connection, nobody) is Outcome.FAILURE


async def test_v1_dials_the_peers_own_ip_only() -> None:
    async with old_pair() as made:
        assert await Autonat1Client(made.client).ask(made.connection, FOREIGN) is Outcome.NOTHING
        assert made.dial.dialled == []


async def v1_request(made: Pair, message: bytes) -> v1.DialResponse:
    stream = await made.open(v1.PROTOCOL)
    await write_message(stream, message)
    answer = v1.decode(await read_message(stream, 4096))
    assert isinstance(answer, v1.DialResponse)
    return answer


async def test_v1_nobody_asks_for_another() -> None:
    async with old_pair() as made:
        answer = await v1_request(made, v1.encode(v1.Dial(peer(4), (OBSERVED,))))
        assert answer.status is v1.Status.E_BAD_REQUEST
        assert made.dial.dialled == []


async def test_v1_relayed_peers_must_not_ask() -> None:
    async with old_pair() as made:
        await made.server.listen([CIRCUIT])
        made.connection = await made.client.dial(made.server.local_peer, [CIRCUIT], force_new=True)
        answer = await v1_request(made, v1.encode(v1.Dial(KEYS[0].peer_id, (OBSERVED,))))
        assert answer.status is v1.Status.E_DIAL_REFUSED
        assert made.dial.dialled == []


async def test_v1_too_many_requests_are_refused() -> None:
    async with old_pair() as made:
        request = v1.encode(v1.Dial(KEYS[0].peer_id, (OBSERVED,)))
        statuses = [(await v1_request(made, request)).status for _ in range(4)]
        assert statuses == [v1.Status.OK] * 3 + [v1.Status.E_DIAL_REFUSED]
