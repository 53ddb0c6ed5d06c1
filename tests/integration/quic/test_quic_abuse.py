"""What strangers can send to a running socket: no crash, no growth, no amplification."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from tests.waiting import turns, until

from dep2p_daemon.muxed import CloseCode
from dep2p_daemon.quic.settings import QuicSettings

MakeNode = Callable[..., Awaitable[Any]]
MakeStranger = Callable[[Any], "Stranger"]
LOOPBACK = "/ip4/127.0.0.1/udp/0/quic-v1"


class Stranger:
    """A raw UDP socket that talks to a node."""

    def __init__(self, node: Any) -> None:
        self.node = node
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.setblocking(False)
        self.sent = self.sent_bytes = 0
        self._before = node.transport.drivers[0].socket.counters.received

    async def send(self, *datagrams: bytes) -> None:
        """Send, and wait until the node has handled them."""
        counters = self.node.transport.drivers[0].socket.counters
        for datagram in datagrams:
            self.socket.sendto(datagram, ("127.0.0.1", self.node.address.port))
            self.sent += 1
            self.sent_bytes += len(datagram)
            await until(lambda: counters.received >= self._before + self.sent)
        await turns(3)

    def answers(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self.socket.recv(65536))
            except BlockingIOError:
                return found


def initial(*, version: int = 1, size: int = 1200, dcid: bytes | None = None) -> bytes:
    """A datagram that looks like a client's first, with rubbish for a payload."""
    dcid = os.urandom(8) if dcid is None else dcid
    head = b"\xc3" + version.to_bytes(4, "big") + bytes([len(dcid)]) + dcid + b"\x08" + bytes(8)
    rest = size - len(head) - 3
    return head + b"\x00" + (rest | 0x4000).to_bytes(2, "big") + os.urandom(rest)


@pytest.fixture
def make_stranger() -> Iterator[Callable[[Any], Stranger]]:
    strangers: list[Stranger] = []

    def make(node: Any) -> Stranger:
        strangers.append(Stranger(node))
        return strangers[-1]

    yield make
    for stranger in strangers:
        stranger.socket.close()


@pytest.fixture
async def node(make_node: MakeNode) -> Any:
    return await make_node(listen=LOOPBACK)


async def assert_alive(make_node: MakeNode, node: Any) -> None:
    ours, _ = await (await make_node()).dial(node)
    await ours.close()


async def test_random_datagrams_leave_nothing(
    make_node: MakeNode, node: Any, make_stranger: MakeStranger
) -> None:
    stranger = make_stranger(node)
    noise = random.Random(2)
    for length in [0, 1, 2, 5, 6, 7, 8, 16, 17, 21, 22, 40, 41, 64, 1199, 1200, 1400, 9000]:
        for first in range(0, 256, 3):
            await stranger.send((bytes([first]) + noise.randbytes(length))[:length])
    assert not node.endpoint.sessions
    assert node.endpoint.half_open == 0
    assert node.endpoint.known_connection_ids == 0
    answered = stranger.answers()
    assert sum(map(len, answered)) < stranger.sent_bytes / 20
    await assert_alive(make_node, node)


async def test_initials_of_rubbish_leave_nothing(
    make_node: MakeNode, node: Any, make_stranger: MakeStranger
) -> None:
    stranger = make_stranger(node)
    for _ in range(100):
        await stranger.send(initial())
    assert not node.endpoint.sessions
    assert node.endpoint.half_open == 0
    assert node.endpoint.known_connection_ids == 0
    assert stranger.answers() == []
    await assert_alive(make_node, node)


async def test_unknown_versions_are_answered_only_in_full_datagrams(
    node: Any, make_stranger: MakeStranger
) -> None:
    stranger = make_stranger(node)
    await stranger.send(initial(version=0x6B3343CF, size=1199))
    assert stranger.answers() == []
    dcid = os.urandom(11)
    await stranger.send(initial(version=0x6B3343CF, size=1200, dcid=dcid))
    (answer,) = stranger.answers()
    assert answer[1:5] == bytes(4)
    assert answer[-4:] == (1).to_bytes(4, "big")
    assert dcid in answer
    # A Version Negotiation is never answered with another.
    await stranger.send(answer + bytes(1200))
    assert stranger.answers() == []


async def test_stateless_resets_are_shorter_rare_and_only_for_our_ids(
    make_node: MakeNode, make_stranger: MakeStranger
) -> None:
    node = await make_node(QuicSettings(stateless_resets_per_second=3), listen=LOOPBACK)
    stranger = make_stranger(node)

    def short(length: int, worker: int = 0) -> bytes:
        return b"\x43" + bytes([worker]) + os.urandom(length - 2)

    await stranger.send(short(40), short(41, worker=1), b"\x03" + short(50)[1:])
    assert stranger.answers() == []
    await stranger.send(short(41), short(1400))
    shorter, longer = stranger.answers()
    assert len(shorter) == 40
    assert len(longer) == 42
    assert shorter[0] & 0xC0 == longer[0] & 0xC0 == 0x40
    await stranger.send(*(short(100) for _ in range(20)))
    assert len(stranger.answers()) <= 2
    assert node.endpoint.counters.resets_sent <= 4
    assert node.endpoint.counters.dropped >= 17


async def test_two_nodes_cannot_be_made_to_reset_each_other_forever(make_node: MakeNode) -> None:
    one, two = await make_node(listen=LOOPBACK), await make_node(listen=LOOPBACK)
    trigger = b"\x43\x00" + os.urandom(1398)
    counters = one.transport.drivers[0].socket.counters
    two.transport.drivers[0].socket.send([trigger], ("127.0.0.1", one.address.port))
    await until(lambda: one.endpoint.counters.resets_sent)
    await turns(100)
    assert counters.received <= 2


async def test_handshakes_without_end_meet_retry(
    make_node: MakeNode, make_stranger: MakeStranger
) -> None:
    # Real Initials of clients that never go on: recorded from dials to a silent socket.
    settings = QuicSettings(retry_threshold=4, max_half_open=6, max_half_open_per_ip=6)
    node, client = await make_node(settings, listen=LOOPBACK), await make_node()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trap:
        trap.bind(("127.0.0.1", 0))
        trap.setblocking(False)
        address = node.address.for_udp("127.0.0.1", trap.getsockname()[1])
        recorded = []
        for _ in range(20):
            dial = asyncio.create_task(client.transport.dial(address, node.key.peer_id))
            datagram = await asyncio.get_running_loop().sock_recv(trap, 2000)
            dial.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dial
            if datagram[0] & 0x30 == 0:
                recorded.append(datagram)
            while True:  # the farewells
                try:
                    trap.recv(2000)
                except BlockingIOError:
                    break
    stranger = make_stranger(node)
    for datagram in recorded:
        await stranger.send(datagram)
    assert node.endpoint.half_open == len(node.endpoint.sessions) == 4
    assert node.endpoint.counters.retries_sent == len(recorded) - 4
    # Those who answer the Retry still get in, up to the cap of half-open handshakes.
    ours, _ = await client.dial(node)
    assert not ours.is_closed


async def test_a_burst_of_dials_all_gets_in(make_node: MakeNode) -> None:
    # Ghosts of first attempts, which Retry leaves behind, must not take the room of the second.
    node = await make_node(QuicSettings(retry_threshold=2), listen=LOOPBACK)
    client = await make_node()
    dials = (client.transport.dial(node.address, node.key.peer_id) for _ in range(60))
    async with asyncio.timeout(8):  # less than a ghost lives
        connections = await asyncio.gather(*dials)
    assert node.endpoint.counters.retries_sent
    assert not any(connection.is_closed for connection in connections)


async def test_a_stranger_cannot_end_a_connection(
    make_node: MakeNode, node: Any, make_stranger: MakeStranger
) -> None:
    ours, theirs = await (await make_node()).dial(node)
    stranger = make_stranger(node)
    cid = theirs._session.quic.host_cid
    for length in (0, 20, 40, 1300):
        await stranger.send(b"\x41" + cid + os.urandom(length))
    # The right token from the wrong address is no reset.
    token = ours._session.quic.peer_reset_token
    client = ours._session.endpoint
    stranger.socket.sendto(b"\x41" + os.urandom(30) + token, ("127.0.0.1", client.local_port))
    await until(lambda: client.counters.dropped)
    stream = await ours.open_stream()
    await stream.write(b"unmoved")
    assert await (await theirs.accept_stream()).read() == b"unmoved"


async def test_a_peer_that_breaks_the_protocol_loses_its_connection_only(
    make_node: MakeNode, node: Any
) -> None:
    good, _ = await (await make_node()).dial(node)
    bad, bad_theirs = await (await make_node()).dial(node)
    quic = bad._session.quic
    quic._remote_max_streams_bidi = 10_000  # as if the peer had allowed more
    stream = None
    for _ in range(300):
        stream = await bad.open_stream()
    assert stream is not None
    await stream.write(b"one too many")
    error = await bad_theirs.wait_closed()
    assert error.reason == "QUIC_ERROR"
    assert "STREAM_LIMIT_ERROR" in error.message
    error = await bad.wait_closed()
    assert error.remote
    assert "STREAM_LIMIT_ERROR" in error.message
    assert not good.is_closed


async def test_an_error_inside_ends_that_connection_only(
    make_node: MakeNode, node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, good_theirs = await (await make_node()).dial(node)
    bad, bad_theirs = await (await make_node()).dial(node)

    def explode(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(bad_theirs._session.quic, "receive_batch", explode)
    stream = await bad.open_stream()
    await stream.write(b"x")
    assert (await bad_theirs.wait_closed()).reason == "INTERNAL"
    await bad.wait_closed()
    stream = await good.open_stream()
    await stream.write(b"y")
    assert await (await good_theirs.accept_stream()).read() == b"y"
    await good.close(CloseCode.NONE)
