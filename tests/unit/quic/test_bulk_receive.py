"""The short way in and aioquic's own, fed the same datagrams, come to the same state."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from aioquic import tls
from aioquic.quic.connection import QuicConnectionId
from aioquic.quic.events import StreamDataReceived
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.quic.steady import (
    OUR_ID,
    PEER,
    SUITES,
    PeerSeal,
    contents,
    steady_connection,
    stream_frame,
)

from dep2p_daemon.quic.bulk_receive import decode_varint
from dep2p_daemon.quic.bulk_send import encode_varint

if TYPE_CHECKING:
    from aioquic.tls import CipherSuite

    from dep2p_daemon.quic.aioquic_connection import AioquicConnection

Frame = Callable[[dict[int, int]], bytes]
"""Makes a frame, given how far each stream has come."""


def in_order(stream_id: int, size: int, fin: bool) -> Frame:
    def make(reached: dict[int, int]) -> bytes:
        start = reached.get(stream_id, 0)
        if -stream_id - 1 in reached:  # its end was sent: an old piece again
            return stream_frame(stream_id, start // 2, contents(stream_id, start // 2, start // 3))
        reached[stream_id] = start + size
        if fin:
            reached[-stream_id - 1] = start
        return stream_frame(stream_id, start, contents(stream_id, start, size), fin=fin)

    return make


def anywhere(stream_id: int, offset: int, size: int, fin: bool) -> Frame:
    return lambda _: stream_frame(stream_id, offset, contents(stream_id, offset, size), fin=fin)


def raw(data: bytes) -> Frame:
    return lambda _: data


rarely = st.integers(0, 30).map(lambda n: n == 0)
known_streams = st.sampled_from([0, 0, 4, 8])
data_frames = st.builds(in_order, known_streams, st.integers(0, 90), rarely)
harmless_frames = st.one_of(
    data_frames,
    data_frames,
    st.builds(
        anywhere, known_streams, st.integers(0, 400), st.integers(0, 90), st.just(value=False)
    ),
    st.integers(1, 40).map(lambda n: raw(bytes(n))),
    st.just(raw(b"\x01")),
    st.integers(0, 3).map(lambda n: raw(b"\x02" + bytes((n, 0, 0, n)))),
    st.integers(100, 1 << 20).map(lambda n: raw(b"\x10" + encode_varint(n))),
)
odd_frames = st.one_of(
    st.builds(anywhere, known_streams, st.integers(0, 400), st.integers(0, 90), st.booleans()),
    st.builds(anywhere, st.integers(0, 80), st.integers(0, 1 << 62), st.integers(0, 20), rarely),
    st.builds(
        lambda stream_id, size: raw(b"\x04" + bytes((stream_id, 7)) + encode_varint(size)),
        known_streams,
        st.integers(0, 5000),
    ),
    st.binary(max_size=12).map(raw),
    st.binary(max_size=12).map(lambda b: raw(b"\x0e" + b)),
)
payloads = st.integers(0, 40).flatmap(
    lambda n: (
        st.lists(data_frames, min_size=1, max_size=1)
        if n < 25
        else st.lists(harmless_frames, min_size=1, max_size=4)
        if n < 40
        else st.tuples(harmless_frames, odd_frames).map(list)
    )
)
gaps = st.sampled_from([0] * 30 + [1, 2, 70, 100, 200, 0x7FFF, 0x8000])
fates = st.sampled_from(["kept"] * 12 + ["lost", "doubled", "late", "changed", "cut"])
packets = st.lists(
    st.tuples(
        payloads,
        gaps,
        st.sampled_from([1, 2, 2, 2, 3, 4]),
        fates,
        st.integers(0, 1 << 16),
        st.sampled_from([""] * 60 + ["reserved", "update", "update", "old keys", "other id"]),
    ),
    min_size=1,
    max_size=60,
)


def build(seal: PeerSeal, plan: Any) -> list[bytes]:
    """The datagrams of a plan as they arrive."""
    reached: dict[int, int] = {}
    number = 0
    arriving: list[bytes] = []
    late: list[bytes] = []
    old = seal.keys.send
    for frames_of, gap, number_size, fate, dice, oddity in plan:
        number += 1 + gap
        if oddity == "update":
            old = seal.keys.previous or old
            seal.update_keys()
        payload = b"".join(make(reached) for make in frames_of)
        if dice % 3 == 0 and payload[:1] in (b"\x0a", b"\x0e") and len(frames_of) == 1:
            size = len(payload)
            # The same without a length.
            stream_id, at = decode_varint(payload, 1)
            offset, at = decode_varint(payload, at) if payload[0] & 4 else (0, at)
            _, at = decode_varint(payload, at)
            payload = stream_frame(stream_id, offset, payload[at:], length=False)
            assert len(payload) < size
        datagram = seal.packet(
            number,
            payload.ljust(3, b"\0"),
            number_size=number_size,
            reserved=1 if oddity == "reserved" else 0,
            connection_id=b"other-id" if oddity == "other id" else OUR_ID,
            keys=old if oddity == "old keys" else None,
        )
        if fate == "changed":
            at = dice % len(datagram)
            datagram = (
                datagram[:at]
                + bytes((datagram[at] ^ (dice >> 8 or 1) & 0xFF or 1,))
                + (datagram[at + 1 :])
            )
        elif fate == "cut":
            datagram = datagram[: max(1, dice % len(datagram))]
        if fate == "late":
            late.append(datagram)
        elif fate != "lost":
            arriving += [datagram] * (2 if fate == "doubled" else 1)
            if late and dice % 3:
                arriving.append(late.pop(0))
    return arriving + late


def observed(connection: AioquicConnection) -> dict[str, Any]:
    """All that a peer or the rooms above could tell."""
    space = connection._spaces[tls.Epoch.ONE_RTT]
    window = space.received_packets
    events: list[Any] = []
    for event in connection._events:
        last = events[-1] if events else None
        if not isinstance(event, StreamDataReceived):
            events.append(event)
        elif isinstance(last, list) and last[0] == event.stream_id and not last[2]:
            last[1:] = [last[1] + event.data, event.end_stream]
        else:
            events.append([event.stream_id, event.data, event.end_stream])
    return {
        "events": events,
        "ranges": list(space.ack_queue),
        "window": (window._lower, {n for n in window._received if n >= window._lower}),
        "largest": (space.largest_received_packet, space.largest_received_time),
        "expected": space.expected_packet_number,
        "acknowledge": space.ack_at,
        "credit": connection._local_max_data.used,
        "streams": {
            i: (
                s.receiver.highest_offset,
                s.receiver._buffer_start,
                s.receiver._final_size,
                s.receiver.is_finished,
                list(s.receiver._ranges),
                s.sender._reset_error_code,
            )
            for i, s in connection._streams.items()
        },
        "close": connection._close_event,
        "idle": (connection._close_at, connection._ack_eliciting_sent_since_receipt),
        "paths": [(p.addr, p.is_validated) for p in connection._network_paths],
        "ids": ([c.cid for c in connection._host_cids], connection._peer_cid.cid),
        "spin": (connection._spin_bit, connection._spin_highest_pn),
        "keys": (
            connection.one_rtt_keys.recv.key_phase,
            connection.one_rtt_keys.recv.secret,
            connection.one_rtt_keys.forged,
            connection.one_rtt_keys.first_opened,
        ),
        "peer": (connection._remote_max_data, connection.host_cid),
    }


def run_both(
    datagrams: list[bytes], batch: int, is_client: bool, suite: CipherSuite, window: int
) -> tuple[AioquicConnection, AioquicConnection]:
    both = []
    for fast_path in (True, False):
        connection = steady_connection(
            is_client=is_client, suite=suite, fast_path=fast_path, window=window
        )
        connection._packet_number = 4  # what the plans acknowledge was sent
        if is_client:
            for _ in range(3):
                connection.open_stream()
        answers = []
        for index in range(0, len(datagrams), batch):
            now = 1.0 + index / 100
            connection.receive_batch(datagrams[index : index + batch], PEER, now)
            answers.append(connection.transmit(now, acknowledge=True))
        both.append((connection, answers))
    (fast, fast_answers), (stock, stock_answers) = both
    assert fast_answers == stock_answers
    return fast, stock


@settings(max_examples=400, deadline=None)
@given(
    plan=packets,
    batch=st.integers(1, 50),
    is_client=st.booleans(),
    suite=st.sampled_from(SUITES),
    window=st.sampled_from([200, 1000, *[1 << 20] * 6]),
)
def test_both_ways_come_to_the_same(
    plan: Any, batch: int, is_client: bool, suite: CipherSuite, window: int
) -> None:
    datagrams = build(PeerSeal(suite), plan)
    fast, stock = run_both(datagrams, batch, is_client, suite, window)
    assert observed(fast) == observed(stock)


@pytest.mark.parametrize("suite", SUITES, ids=lambda s: s.name)
@pytest.mark.parametrize("is_client", [True, False])
def test_a_long_life(suite: CipherSuite, is_client: bool) -> None:
    """Beyond 2^16 packets, with losses, disorder and key updates on the way."""
    dice = random.Random(suite)
    seal = PeerSeal(suite)
    block = bytes(range(256)) * 4
    number = offset = 0
    arriving: list[bytes] = []
    lost: list[tuple[int, int]] = []
    for index in range(66_000):
        number += 1
        if index % 20_000 == 10_000:
            seal.update_keys()
        size = 8
        if dice.random() < 0.01:
            lost.append((offset, size))
        else:
            arriving.append(seal.packet(number, stream_frame(0, offset, block[:size])))
        offset += size
        if lost and index % 50 == 49:
            at, size = lost.pop(0)
            number += 1
            arriving.append(seal.packet(number, stream_frame(0, at, block[:size])))
        if dice.random() < 0.01 and len(arriving) > 1:
            arriving[-1], arriving[-2] = arriving[-2], arriving[-1]
    for at, size in lost:
        number += 1
        arriving.append(seal.packet(number, stream_frame(0, at, block[:size])))
    fast, stock = run_both(arriving, 46, is_client, suite, 1 << 20)
    assert observed(fast) == observed(stock)
    assert fast._streams[0].receiver._buffer_start == offset
    assert fast.one_rtt_keys.recv.key_phase == 1
    assert fast.one_rtt_keys.forged == 0
    assert fast.counters.received_fast > 0.95 * len(arriving)
    assert stock.counters.received_stock == len(arriving)


@pytest.mark.parametrize("number_size", [1, 2, 3, 4])
@pytest.mark.parametrize("beyond", [-2, -1, 0, 1, 2])
@pytest.mark.parametrize("base", [0, 1 << 8, 0xFFF0, 1 << 16, 1 << 24, (1 << 32) - 1])
def test_gaps_at_the_border_of_truncation(number_size: int, beyond: int, base: int) -> None:
    suite = SUITES[0]
    seal = PeerSeal(suite)
    half = 1 << (8 * number_size - 1)
    first = [seal.packet(base + n, stream_frame(0, 8 * n, bytes(8))) for n in range(3)]
    number = base + 2 + half + beyond
    jump = seal.packet(number, stream_frame(0, 24, bytes(8)), number_size=number_size)
    fast, stock = run_both([*first, jump], 9, False, suite, 1 << 20)
    assert observed(fast) == observed(stock)


def test_an_end_that_overtook_the_data() -> None:
    seal = PeerSeal(SUITES[0])
    end = seal.packet(1, stream_frame(0, 16, b"", fin=True))
    data = [seal.packet(2 + n, stream_frame(0, 8 * n, bytes(8))) for n in range(2)]
    beyond = seal.packet(4, stream_frame(0, 16, bytes(8)))
    for batch in (1, 9):
        fast, stock = run_both([end, *data], batch, False, SUITES[0], 1 << 20)
        assert observed(fast) == observed(stock)
        assert fast._streams[0].receiver.is_finished
        for early in ([end, data[0]], [*data, end]):
            fast, stock = run_both([*early, beyond], batch, False, SUITES[0], 1 << 20)
            assert observed(fast) == observed(stock)
            assert fast._close_event is not None


def test_an_acknowledgement_waits_from_the_first_packet_on() -> None:
    seal = PeerSeal(SUITES[0])
    for fast_path in (True, False):
        connection = steady_connection(is_client=False, suite=SUITES[0], fast_path=fast_path)
        for n in range(5):
            packet = seal.packet(n, stream_frame(0, 8 * n, bytes(8)))
            connection.receive_batch([packet], PEER, 1.0 + n / 1e4)
        ack_at = connection._spaces[tls.Epoch.ONE_RTT].ack_at
        assert ack_at == 1.0 + connection._ack_delay


def test_a_receipt_lets_the_next_packet_restart_the_idle_timer() -> None:
    """RFC 9000 section 10.1: the first ack-eliciting packet sent after one was received."""
    seal = PeerSeal(SUITES[0])
    for fast_path in (True, False):
        connection = steady_connection(is_client=True, suite=SUITES[0], fast_path=fast_path)
        connection.open_stream()
        connection.receive_batch([seal.packet(0, stream_frame(0, 0, b"x"))], PEER, 1.0)
        for now, restarts in ((2.0, True), (3.0, False)):
            before = connection.idle_since
            connection.send_stream_data(0, b"x")
            connection.transmit(now, acknowledge=True)
            assert connection.idle_since == (now if restarts else before)
        connection.receive_batch([seal.packet(1, stream_frame(0, 1, b"x"))], PEER, 4.0)
        assert not connection._ack_eliciting_sent_since_receipt


@pytest.mark.parametrize("is_client", [True, False])
def test_data_from_another_address_is_a_change_of_path(is_client: bool) -> None:
    seal = PeerSeal(SUITES[0])
    states = []
    for fast_path in (True, False):
        connection = steady_connection(
            is_client=is_client, suite=SUITES[0], fast_path=fast_path, window=1 << 20
        )
        connection.open_stream()
        for n, address in enumerate((PEER, ("198.51.100.9", 9), PEER)):
            packets = [
                seal.packet(3 * n + i, stream_frame(0, 24 * n + 8 * i, bytes(8))) for i in range(3)
            ]
            connection.receive_batch(packets, address, 1.0 + n)
        states.append(observed(connection))
    assert states[0] == states[1]
    assert len(states[0]["paths"]) == (1 if is_client else 2)


@pytest.mark.parametrize("is_client", [True, False])
def test_data_for_another_of_our_ids(is_client: bool) -> None:
    """A server that gets some learns that its client moved on purpose; a client learns nothing."""
    seal = PeerSeal(SUITES[0])
    states = []
    for fast_path in (True, False):
        connection = steady_connection(is_client=is_client, suite=SUITES[0], fast_path=fast_path)
        connection.open_stream()
        connection._host_cids.append(
            QuicConnectionId(cid=b"second--", sequence_number=1, stateless_reset_token=bytes(16))
        )
        connection._peer_cid_available.append(
            QuicConnectionId(cid=b"peer-two", sequence_number=1, stateless_reset_token=bytes(16))
        )
        packets = [
            seal.packet(n, stream_frame(0, 8 * n, bytes(8)), connection_id=which)
            for n, which in enumerate([OUR_ID, b"second--", b"second--", OUR_ID])
        ]
        connection.receive_batch(packets, PEER, 1.0)
        states.append(observed(connection))
    assert states[0] == states[1]
    assert states[0]["streams"][0][1] == 32


@pytest.mark.parametrize("fast_path", [True, False])
def test_duplicates_and_packets_too_old_to_tell_mean_nothing(fast_path: bool) -> None:
    connection = steady_connection(is_client=False, suite=SUITES[0], fast_path=fast_path)
    seal = PeerSeal(SUITES[0])
    packets = [seal.packet(n, stream_frame(0, 8 * n, bytes(8))) for n in range(200)]
    connection.receive_batch(packets[1:], PEER, 1.0)
    assert connection.transmit(1.0, acknowledge=True)
    idle_since = connection.idle_since
    for again in (packets[100], packets[199], packets[0]):
        connection.receive_batch([again] * 2, PEER, 2.0)
        assert connection.transmit(2.0, acknowledge=True) == []
    assert connection.idle_since == idle_since
    assert connection._streams[0].receiver._buffer_start == 0


def test_old_packets_after_an_update_of_ours_are_opened() -> None:
    suite = SUITES[0]
    for fast_path in (True, False):
        connection = steady_connection(is_client=False, suite=suite, fast_path=fast_path)
        seal = PeerSeal(suite)
        data = [seal.packet(n, stream_frame(0, 8 * n, bytes(8))) for n in range(20)]
        connection.receive_batch(data[:5], PEER, 1.0)
        connection.request_key_update()
        connection.transmit(1.0, acknowledge=True)
        assert connection.one_rtt_keys.recv.key_phase == 1
        connection.receive_batch(data[5:15], PEER, 1.1)
        seal.update_keys()
        new = [seal.packet(20 + n, stream_frame(0, 160 + 8 * n, bytes(8))) for n in range(5)]
        connection.receive_batch([*new, *data[15:]], PEER, 1.2)
        assert connection._streams[0].receiver._buffer_start == 200
        assert connection.one_rtt_keys.forged == 0
        # Three probe timeouts later they are worthless.
        connection.transmit(1.3, acknowledge=True)
        connection.transmit(9.0, acknowledge=True)
        assert connection.one_rtt_keys.previous is None


@pytest.mark.parametrize("fast_path", [True, False])
def test_two_updates_of_the_peer_in_a_row(fast_path: bool) -> None:
    """The second one comes back to the first phase's bit, whose keys are still kept."""
    connection = steady_connection(is_client=False, suite=SUITES[0], fast_path=fast_path)
    seal = PeerSeal(SUITES[0])
    for number in range(9):
        if number in (3, 6):
            seal.update_keys()
        packet = seal.packet(number, stream_frame(0, 8 * number, bytes(8)))
        connection.receive_batch([packet], PEER, 1.0)
    assert connection.one_rtt_keys.previous is not None
    assert connection._streams[0].receiver._buffer_start == 72
    assert connection.one_rtt_keys.forged == 0


@given(st.integers(0, (1 << 62) - 1), st.binary(max_size=3))
def test_variable_length_integers(value: int, before: bytes) -> None:
    encoded = encode_varint(value)
    assert decode_varint(before + encoded + b"x", len(before)) == (
        value,
        len(before) + len(encoded),
    )
    assert decode_varint(before + encoded[:-1], len(before))[1] > len(before + encoded[:-1])
