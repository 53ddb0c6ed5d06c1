"""Endpoints in memory: time, ids, loss, moves and caps."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from dep2p_daemon.errors import (
    AuthenticationError,
    ConnectionClosedError,
    ResourceLimitError,
    UnreachableError,
)
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.muxed import CloseCode, read_exactly
from dep2p_daemon.quic.connection_table import Farewell
from dep2p_daemon.quic.settings import QuicSettings

MakeNode = Callable[..., Any]


def connect(wire: Any, client: Any, server: Any) -> Any:
    """Both ends of a fresh connection."""
    known = len(server.accepted)
    dial = client.dial(server)
    wire.pump()
    assert len(server.accepted) == known + 1
    return dial.connection, server.accepted[-1]


async def exchange(wire: Any, ours: Any, theirs: Any, text: bytes = b"hello") -> None:
    """A stream works, there and back."""
    stream = await ours.open_stream()
    await stream.write(text)
    await stream.close_write()
    wire.advance(1.0)
    inbound = await theirs.accept_stream()
    assert await inbound.read() == text
    await inbound.write(text[::-1])
    await inbound.close_write()
    wire.advance(1.0)
    assert await stream.read() == text[::-1]


async def test_the_dialler_is_connected_only_after_the_server_has_verified(
    wire: Any, make_node: MakeNode
) -> None:
    server, client = make_node().listen(), make_node()
    dial = client.dial(server)
    client.endpoint.flush()
    # Everything of the server's after its first flight is held back.
    flights = 0

    def first_flight_only(target: Any, _datagram: bytes) -> bool:
        nonlocal flights
        if target == client.address and server.accepted:
            flights += 1
            return False
        return True

    wire.keep = first_flight_only
    wire.pump()
    assert server.accepted
    assert flights
    assert dial.session.connection is not None  # the server is proven to us
    assert not dial.connections  # but not we to the server
    wire.keep = lambda _to, _d: True
    wire.advance(2)
    assert not dial.connection.is_closed


async def test_nothing_is_known_of_a_connection_after_its_end(
    wire: Any, make_node: MakeNode
) -> None:
    server, client = make_node().listen(), make_node()
    ours, theirs = connect(wire, client, server)
    assert server.endpoint.known_connection_ids == 1 + 4  # the client's choice, and ours
    assert client.endpoint.known_connection_ids == 4
    await ours.close(5, "done")
    wire.pump()
    assert theirs.is_closed
    wire.advance(10)
    for node in (server, client):
        assert node.endpoint.known_connection_ids == 0
        assert not node.endpoint.sessions
        assert not node.context.sessions
        assert node.context.memory.used == 0


async def test_retired_ids_are_forgotten_and_new_ones_known(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node()
    ours, theirs = connect(wire, client, server)
    before = set(theirs._session.connection_ids)
    for _ in range(10):
        ours._session.quic.change_connection_id()
        client.endpoint.mark_dirty(ours._session)
        wire.advance(1)
    after = set(theirs._session.connection_ids)
    assert len(after) == len(before) == 5
    assert len(after & before) <= 1  # the client's own choice stays
    assert server.endpoint.known_connection_ids == 5
    assert all(i[0] == 0 for i in after - before)
    await exchange(wire, ours, theirs)


async def test_idle_connections_live_by_the_client_pings_alone(
    wire: Any, make_node: MakeNode
) -> None:
    server, client = make_node().listen(), make_node()
    ours, theirs = connect(wire, client, server)
    wire.advance(5)
    start = wire.now
    wire.advance(3600)
    assert not ours.is_closed
    assert not theirs.is_closed
    pings = client.datagrams_since(start)
    assert 3600 / 15 - 2 <= pings <= 3600 / 15 + 2
    assert server.datagrams_since(start) == pings  # an acknowledgement each, nothing else


async def test_busy_connections_are_not_pinged(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node()
    ours, theirs = connect(wire, client, server)
    stream = await ours.open_stream()
    await stream.write(b"x")
    wire.pump()
    inbound = await theirs.accept_stream()
    wire.advance(5)
    start = wire.now
    for _ in range(100):
        await inbound.write(b"news")
        wire.advance(10)
    # One acknowledgement for each, and no ping.
    assert client.datagrams_since(start) == 100


async def test_an_unanswered_ping_does_not_spin(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node()
    ours, _ = connect(wire, client, server)
    wire.advance(5)
    wire.keep = lambda _to, _d: False
    start = wire.now
    wire.advance(60)
    assert ours.is_closed
    assert client.datagrams_since(start) < 20  # pings, and probes that back off


async def test_silence_ends_both_ends_at_the_idle_timeout(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node()
    ours, theirs = connect(wire, client, server)
    wire.keep = lambda _to, _d: False
    wire.advance(29)
    assert not theirs.is_closed
    wire.advance(20)
    for connection in (ours, theirs):
        error = await connection.wait_closed()
        assert error.reason == "CONNECTION_TIMED_OUT"
    assert not server.endpoint.sessions
    assert not client.endpoint.sessions


async def test_a_dial_into_nothing_ends_at_the_idle_timeout(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node(), make_node()
    dial = client.dial(server)
    wire.advance(29)
    assert not dial.errors
    wire.advance(10)
    assert isinstance(dial.error, UnreachableError)
    assert dial.error.reason == "NO_ANSWER"
    assert client.endpoint.known_connection_ids == 0


async def test_a_handshake_that_stalls_is_dropped(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node()
    client.dial(server)
    wire.keep = lambda to, _d: to == server.address and not server.endpoint.sessions
    wire.pump()
    assert server.endpoint.half_open == 1
    wire.keep = lambda _to, _d: False
    wire.advance(9.9)
    assert server.endpoint.half_open == 1
    wire.advance(0.2)
    assert server.endpoint.half_open == 0
    assert not server.endpoint.sessions
    assert not server.accepted


async def test_a_late_copy_of_an_initial_begins_nothing(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node()
    connect(wire, client, server)
    initials = [d for _, sender, d in wire.sent if sender == client.address and d[0] & 0xB0 == 0x80]
    assert initials
    server.endpoint.receive([initials[0]], client.address, None)
    wire.pump()
    assert len(server.endpoint.sessions) == 1
    assert server.endpoint.half_open == 0


@pytest.mark.parametrize("loss", [0.05, 0.3])
async def test_packets_may_be_lost(wire: Any, make_node: MakeNode, loss: float) -> None:
    dice = random.Random(7)
    wire.keep = lambda _to, _d: dice.random() > loss
    server, client = make_node().listen(), make_node()
    dial = client.dial(server)
    while not dial.connections:
        assert not dial.errors
        wire.advance(1)
    ours, theirs = dial.connection, server.accepted[0]
    stream = await ours.open_stream()
    data = os.urandom(200_000)
    await stream.write(data)
    await stream.close_write()
    while not theirs._inbound:
        wire.advance(1)
    inbound = await theirs.accept_stream()
    while inbound.unread_bytes < len(data):
        wire.advance(1)
    assert await read_exactly(inbound, len(data)) == data


async def test_a_nat_rebinding_of_the_client_is_followed(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node()
    ours, theirs = connect(wire, client, server)
    before = theirs.remote_address
    client.move(("198.51.100.7", 61_000))
    await exchange(wire, ours, theirs)
    assert theirs.remote_address != before
    assert str(theirs.remote_address) == "/ip4/198.51.100.7/udp/61000/quic-v1"
    stream = await theirs.open_stream()
    await stream.write(b"to the new address")
    wire.advance(1)
    assert await (await ours.accept_stream()).read() == b"to the new address"


async def test_an_unproven_address_is_not_followed(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node()
    ours, theirs = connect(wire, client, server)
    before = theirs.remote_address
    # Somebody on the way forwards the client's packets from elsewhere, and answers get lost.
    client.move(("198.51.100.7", 61_000))
    wire.keep = lambda to, _d: to != client.address
    stream = await ours.open_stream()
    await stream.write(b"x")
    wire.advance(0.3)
    assert theirs.remote_address == before


async def test_farewells_are_repeated_and_then_forgotten(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node()
    ours, theirs = connect(wire, client, server)
    stream = await ours.open_stream()
    wire.keep = lambda to, _d: to != client.address
    await theirs.close(CloseCode.SHUTDOWN, "bye")  # gets lost
    wire.pump()
    wire.keep = lambda _to, _d: True
    await stream.write(b"are you there?")
    wire.pump()
    error = await ours.wait_closed()
    assert (error.code, error.remote) == (CloseCode.SHUTDOWN, True)
    # Ever less often: 100 datagrams are no more than seven answers' worth.
    farewell = next(e for e in server.endpoint._table._owners.values() if isinstance(e, Farewell))
    cid = next(iter(farewell.connection_ids))
    start = len(wire.sent)
    for _ in range(100):
        server.endpoint.receive([b"\x40" + cid + bytes(30)], client.address, None)
    assert 1 <= len(wire.sent) - start <= 7


async def test_retry_proves_the_address(wire: Any, make_node: MakeNode) -> None:
    server = make_node(QuicSettings(retry_threshold=0)).listen()
    client = make_node()
    ours, theirs = connect(wire, client, server)
    assert server.endpoint.counters.retries_sent == 1
    await exchange(wire, ours, theirs)
    # The Initial that came back, token and all, is of no use from another address or too late.
    proven = [d for _, s, d in wire.sent if s == client.address and d[0] & 0xB0 == 0x80 and d[23]]
    await ours.close()
    wire.advance(5)
    server.endpoint.receive([proven[0]], ("203.0.113.9", 9), None)
    assert server.endpoint.half_open == 0
    assert server.endpoint.counters.retries_sent == 2
    server.endpoint.receive([proven[0]], client.address, None)
    assert server.endpoint.half_open == 1
    wire.advance(60)
    server.endpoint.receive([proven[0]], client.address, None)
    assert server.endpoint.half_open == 0
    assert server.endpoint.counters.retries_sent == 3


async def test_the_cap_on_own_dials(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node(QuicSettings(max_connections=1))
    connect(wire, client, server)
    with pytest.raises(ResourceLimitError) as caught:
        client.dial(server)
    assert caught.value.metadata["limit"] == "max_connections"


async def test_unreachable_ends_dials_but_not_connections(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node()
    ours, _ = connect(wire, client, server)
    dial = client.dial(server)
    client.endpoint.unreachable(server.address, errno.EAGAIN)
    assert not dial.errors
    client.endpoint.unreachable(("192.0.2.200", 1), errno.ECONNREFUSED)
    assert not dial.errors
    client.endpoint.unreachable(server.address, errno.EHOSTUNREACH)
    assert dial.error.reason == "NETWORK_UNREACHABLE"
    assert not ours.is_closed


async def test_a_dial_that_the_kernel_refuses_ends_at_once(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node()
    ours, _ = connect(wire, client, server)
    client.refusal = errno.ENETUNREACH
    dial = client.dial(server)
    stream = await ours.open_stream()
    await stream.write(b"x")
    client.endpoint.flush()
    assert dial.error.reason == "NETWORK_UNREACHABLE"
    assert not ours.is_closed
    client.endpoint.flush()
    assert client.endpoint.sessions == {ours._session}


async def test_a_cancelled_waiter_passes_its_turn_on(wire: Any, make_node: MakeNode) -> None:
    server = make_node(QuicSettings(max_inbound_streams=1)).listen()
    client = make_node()
    ours, theirs = connect(wire, client, server)
    first, second = (asyncio.create_task(theirs.accept_stream()) for _ in range(2))
    await asyncio.sleep(0)
    stream = await ours.open_stream()
    await stream.write(b"x")
    wire.pump()
    first.cancel()
    inbound = await second
    first, second = (asyncio.create_task(ours.open_stream()) for _ in range(2))
    await asyncio.sleep(0)
    stream.reset(0)
    inbound.reset(0)
    wire.advance(1)
    assert ours._session.quic.openable_streams == 1
    first.cancel()
    assert (await second).id == 4


async def test_a_blocked_socket_holds_everything_back(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node()
    client.is_blocked = True
    dial = client.dial(server)
    client.endpoint.flush()
    assert client.endpoint.has_work
    assert not wire.sent
    client.is_blocked = False
    wire.pump()
    assert not dial.connection.is_closed


async def test_who_has_not_sent_when_the_socket_is_full_goes_on_when_it_is_not(
    wire: Any, make_node: MakeNode
) -> None:
    server, client = make_node().listen(), make_node()
    transmit = client.send

    def send_and_be_full(*args: Any) -> int:
        client.is_blocked = True
        result: int = transmit(*args)
        return result

    client.send = send_and_be_full
    dials = [client.dial(server) for _ in range(3)]
    client.endpoint.flush()
    assert len(wire.sent) == 1
    assert client.endpoint.has_work
    client.send, client.is_blocked = transmit, False
    wire.advance(1)
    for dial in dials:
        assert not dial.connection.is_closed


async def test_datagrams_grow_once_a_probe_got_through(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node()
    ours, theirs = connect(wire, client, server)
    wire.advance(1)
    for connection in (ours, theirs):
        assert connection._session.quic.max_datagram_size == 1452
        assert connection._session.quic._loss._cc._max_datagram_size == 1452
    # Nobody sends enough to make larger ones worth probing.
    assert all(len(d) <= 1452 for _, _, d in wire.sent)


async def test_a_narrow_path_keeps_its_datagrams_small(wire: Any, make_node: MakeNode) -> None:
    wire.keep = lambda _to, datagram: len(datagram) <= 1280
    server, client = make_node().listen(), make_node()
    ours, theirs = connect(wire, client, server)
    wire.advance(30)
    for connection in (ours, theirs):
        assert connection._session.quic.max_datagram_size == 1232
    probes = [len(d) for _, sender, d in wire.sent if len(d) > 1280 and sender == client.address]
    assert probes == [1452] * 3 + [1372] * 3 + [1352] * 3
    await exchange(wire, ours, theirs)


async def test_a_path_that_becomes_narrow_is_survived(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node()
    ours, theirs = connect(wire, client, server)
    wire.advance(1)
    wire.keep = lambda _to, datagram: len(datagram) <= 1280
    stream = await ours.open_stream()
    data = os.urandom(50_000)
    await stream.write(data)
    await stream.close_write()
    wire.advance(25)
    inbound = await theirs.accept_stream()
    assert await read_exactly(inbound, len(data)) == data
    assert ours._session.quic.max_datagram_size == 1232


async def test_stateless_reset_after_a_restart(wire: Any, make_node: MakeNode) -> None:
    key = PrivateKey.generate()
    server, client = make_node(key=key).listen(), make_node()
    ours, _ = connect(wire, client, server)
    wire.advance(1)
    reborn = type(server)(wire, server.address, key=key).listen()
    stream = await ours.open_stream()
    await stream.write(b"hello? " * 20)
    wire.pump()
    assert reborn.endpoint.counters.resets_sent
    error = await ours.wait_closed()
    assert error.reason == "STATELESS_RESET"
    with pytest.raises(ConnectionClosedError):
        await stream.read()
    assert client.endpoint._table._reset_tokens == {}


async def test_a_reset_by_another_key_is_no_reset(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node()
    ours, _ = connect(wire, client, server)
    wire.advance(1)
    impostor = type(server)(wire, server.address).listen()
    stream = await ours.open_stream()
    await stream.write(b"hello? " * 20)
    wire.pump()
    assert impostor.endpoint.counters.resets_sent
    assert not ours.is_closed


async def test_wrong_peer(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node()
    dial = client.dial(server, peer=client.key.peer_id)
    wire.pump()
    assert isinstance(dial.error, AuthenticationError)
    assert not server.accepted
    assert server.endpoint.half_open == 0
    wire.advance(5)
    assert not server.endpoint.sessions


async def test_a_refusing_server_is_heard(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node(QuicSettings(max_connections=0)).listen(), make_node()
    dial = client.dial(server)
    wire.pump()
    assert dial.error.reason == "CONNECTION_REFUSED"


async def test_close_sends_its_farewells_at_once(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node()
    ours, theirs = connect(wire, client, server)
    idle = []
    server.endpoint.on_idle = lambda: idle.append(True)
    server.endpoint.close(CloseCode.SHUTDOWN, "good night")
    assert idle == [True]
    wire.pump()
    assert theirs.is_closed
    assert (await ours.wait_closed()).code == CloseCode.SHUTDOWN


async def test_a_close_while_the_socket_is_full_leaves_nothing_behind(
    wire: Any, make_node: MakeNode
) -> None:
    server, client = make_node().listen(), make_node()
    _, theirs = connect(wire, client, server)
    server.is_blocked = True
    server.endpoint.close(CloseCode.SHUTDOWN, "good night")
    assert theirs.is_closed
    assert not server.endpoint.sessions
    assert not server.context.sessions  # the cap counts them, for other sockets as well
