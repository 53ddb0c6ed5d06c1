"""What a peer that holds the keys may do, and must not gain memory or time by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from aioquic import tls
from aioquic.quic.packet import QuicErrorCode
from aioquic.quic.rangeset import RangeSet
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.quic.steady import PEER, SUITES, PeerSeal, steady_connection, stream_frame

from dep2p_daemon.errors import StreamResetError
from dep2p_daemon.quic.bulk_send import encode_varint
from dep2p_daemon.quic.settings import KIB
from dep2p_daemon.quic.stream_ranges import BYTES_PER_FRAGMENT, FREE_FRAGMENTS, SortedRanges

MakeNode = Callable[..., Any]
SUITE = SUITES[0]


def steady(*, fast_path: bool = True) -> Any:
    connection = steady_connection(is_client=True, suite=SUITE, fast_path=fast_path)
    connection.open_stream()
    return connection


def error_code(connection: Any) -> int | None:
    """Of our own close; None while there is none."""
    end = connection.close_pending
    return None if end is None else end.error_code


# The pieces in which a stream arrives


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=40))
def test_sorted_ranges_are_ranges_as_ever(pieces: list[tuple[int, int]]) -> None:
    ours, stock = SortedRanges(), RangeSet()
    for start, size in pieces:
        ours.add(start, start + size)
        stock.add(start, start + size)
    assert ours == stock


def test_all_ranges_that_a_peer_can_make_many_of_are_sorted() -> None:
    connection = steady()
    connection.receive_batch([PeerSeal(SUITE).packet(0, stream_frame(5, 0, b"x"))], PEER, 1.0)
    streams = [*connection._streams.values(), *connection._crypto_streams.values()]
    assert {stream.stream_id for stream in streams} == {0, 1, 5, None}
    for stream in streams:
        for ranges in (stream.receiver._ranges, stream.sender._acked, stream.sender._pending):
            assert isinstance(ranges, SortedRanges)


@pytest.mark.parametrize("fast_path", [True, False])
@pytest.mark.parametrize(
    "frame",
    [
        lambda offset: stream_frame(0, offset, b"x"),
        lambda offset: b"\x06" + encode_varint(offset) + b"\x01x",
    ],
    ids=["stream", "crypto"],
)
def test_a_stream_of_single_bytes_with_gaps_ends_the_connection(
    frame: Callable[[int], bytes], fast_path: bool
) -> None:
    connection = steady(fast_path=fast_path)
    seal = PeerSeal(SUITE)
    for n in range(FREE_FRAGMENTS):
        connection.receive_batch([seal.packet(n, frame(2 + 2 * n))], PEER, 1.0)
    assert error_code(connection) is None
    for n in range(FREE_FRAGMENTS, FREE_FRAGMENTS + 9):
        connection.receive_batch([seal.packet(n, frame(2 + 2 * n))], PEER, 1.0)
    assert error_code(connection) == QuicErrorCode.INTERNAL_ERROR


def test_every_second_packet_may_be_lost() -> None:
    connection = steady()
    seal = PeerSeal(SUITE)
    for n in range(4 * FREE_FRAGMENTS):
        data = bytes(BYTES_PER_FRAGMENT)
        frame = stream_frame(0, (2 * n + 1) * len(data), data)
        connection.receive_batch([seal.packet(n, frame)], PEER, 1.0)
    assert error_code(connection) is None
    assert len(connection._streams[0].receiver._ranges) == 4 * FREE_FRAGMENTS


async def test_what_lay_behind_a_gap_is_freed_when_the_stream_is_reset(
    wire: Any, make_node: MakeNode
) -> None:
    server, client = make_node().listen(), make_node()
    dial = client.dial(server)
    wire.advance(1)
    ours, theirs = dial.connection, server.accepted[-1]
    stream = await ours.open_stream()
    await stream.write(b"x")
    wire.pump()
    inbound = await theirs.accept_stream()
    wire.keep = lambda _to, _d: False
    await stream.write(bytes(4 * KIB))
    wire.pump()
    wire.keep = lambda to, _d: to != client.address
    await stream.write(bytes(40 * KIB))
    wire.pump()
    stock = theirs._session.quic._streams[inbound.id]
    assert len(stock.receiver._buffer) >= 4 * KIB
    stream.reset(1)
    wire.pump()
    with pytest.raises(StreamResetError):
        await inbound.read()
    assert theirs._session.quic.knows_stream(inbound.id)  # for our half
    assert not stock.receiver._buffer
    assert not len(stock.receiver._ranges)
    assert theirs._session.unread_bytes == 0


# Acknowledgements


@pytest.mark.parametrize("fast_path", [True, False])
@pytest.mark.parametrize("beyond", [0, 1, 1 << 40])
def test_an_acknowledgement_of_what_was_never_sent(beyond: int, fast_path: bool) -> None:
    connection = steady(fast_path=fast_path)
    connection.send_ping(1)
    connection.transmit(1.0, acknowledge=True)
    sent = connection._packet_number
    ack = b"\x02" + encode_varint(sent - 1) + bytes(3)
    seal = PeerSeal(SUITE)
    connection.receive_batch([seal.packet(0, ack)], PEER, 1.1)
    assert error_code(connection) is None
    ack = b"\x02" + encode_varint(sent + beyond) + bytes(3)
    connection.receive_batch([seal.packet(1, ack)], PEER, 1.2)
    assert error_code(connection) == QuicErrorCode.PROTOCOL_VIOLATION


def test_who_never_acknowledges_the_first_byte_stops_the_stream() -> None:
    connection = steady()
    most = 64 * KIB
    sender = connection._streams[0].sender
    space = connection._spaces[tls.Epoch.ONE_RTT]

    def acknowledge(now: float, *, first: bool) -> None:
        numbers = RangeSet()
        for number, packet in space.sent_packets.items():
            if first or all(
                call != sender.on_data_delivery or args[0] > 0
                for call, args in packet.delivery_handlers
            ):
                numbers.add(number)
        if len(numbers):
            connection._loss.on_ack_received(
                ack_rangeset=numbers, ack_delay=0.0, now=now, space=space
            )

    now = 1.0
    for _ in range(300):
        if (room := connection.room(0, most)) > 0:
            connection.send_stream_data(0, bytes(room))
        connection.transmit(now, acknowledge=True)
        now += 0.02
        acknowledge(now, first=False)
        connection.timer_fired(now)
    assert connection.room(0, most) <= 0
    assert len(sender._buffer) <= 3 * most
    for _ in range(50):
        connection.transmit(now, acknowledge=True)
        now += 0.02
        acknowledge(now, first=True)
        connection.timer_fired(now)
    assert connection.room(0, most) == most
