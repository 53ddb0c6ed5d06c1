"""The short way out: whatever the network does, all bytes arrive, and nothing else is delayed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from aioquic import tls
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStreamSender
from tests.unit.quic.steady import PEER, SUITES, steady_connection
from typing_extensions import override

from dep2p_daemon.quic.bulk_send import LONG_NUMBERS_AFTER, MAX_OUTSTANDING
from dep2p_daemon.quic.congestion import CubicControl
from dep2p_daemon.quic.one_rtt_keys import MAX_SEALED, UPDATE_AFTER, header_masks
from dep2p_daemon.quic.pacer import PASS_PACKETS
from dep2p_daemon.quic.recovery import BulkPacket
from dep2p_daemon.quic.send_pass import has_control_frames
from dep2p_daemon.quic.settings import KIB, MIB, QuicSettings

MakeNode = Callable[..., Any]


class BadNetwork:
    """Loses, doubles, delays and damages datagrams."""

    def __init__(self, seed: int, loss: float) -> None:
        self._dice = random.Random(seed)
        self._loss = loss
        self.late: list[bytes] = []

    def __call__(self, datagrams: list[bytes]) -> list[bytes]:
        arriving = []
        for datagram in datagrams:
            dice = self._dice.random() / (self._loss or 1e-9)
            if dice < 1:
                continue
            if dice < 1.5:
                arriving += [datagram, datagram]
            elif dice < 2:
                self.late.append(datagram)
            elif dice < 2.2:
                arriving.append(datagram[:-1] + bytes((datagram[-1] ^ 1,)))
            else:
                arriving.append(datagram)
                if self.late:
                    arriving.append(self.late.pop())
        return arriving


def established(wire: Any, make_node: MakeNode, *settings: QuicSettings) -> tuple[Any, Any]:
    server, client = make_node(settings[0]).listen(), make_node(settings[-1])
    dial = client.dial(server)
    wire.advance(1)
    return dial.connection, server.accepted[-1]


def counters(connection: Any) -> Any:
    return connection._session.quic.counters


async def copy_all(stream: Any, into: bytearray) -> None:
    while data := await stream.read():
        into += data


async def transfer(wire: Any, ours: Any, theirs: Any, sizes: list[int]) -> None:
    """Streams in both directions at a time; asserts that all of it arrives."""
    dice = random.Random(len(sizes))
    jobs: list[asyncio.Task[None]] = []
    wanted, got = [], []

    async def write(stream: Any, data: bytes) -> None:
        at = 0
        while at < len(data):
            size = dice.choice([1, 100, 3000, 70_000])
            await stream.write(data[at : at + size])
            at += size
        await stream.close_write()

    for size in sizes:
        outbound = await ours.open_stream()
        await outbound.write(b"x")
        for _ in range(400):
            wire.advance(0.05)
            if theirs._session.quic.knows_stream(outbound.id):
                break
        inbound = await theirs.accept_stream()
        for sender, reader in ((outbound, inbound), (inbound, outbound)):
            data = dice.randbytes(size)
            sink = bytearray()
            wanted.append(data)
            got.append(sink)
            jobs.append(asyncio.create_task(write(sender, data)))
            jobs.append(asyncio.create_task(copy_all(reader, sink)))
    for _ in range(20_000):
        for _ in range(4):
            await asyncio.sleep(0)
        if all(job.done() for job in jobs):
            break
        wire.advance(0.01)
    assert not ours.is_closed
    assert not theirs.is_closed
    await asyncio.gather(*jobs)
    assert [
        bytes(sink).removeprefix(b"x")[-len(data) :] for sink, data in zip(got, wanted, strict=True)
    ] == wanted


@pytest.mark.parametrize("ways", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize(("seed", "loss"), [(1, 0.0), (2, 0.01), (3, 0.05), (4, 0.2)])
async def test_all_bytes_arrive(
    wire: Any, make_node: MakeNode, ways: tuple[bool, bool], seed: int, loss: float
) -> None:
    ours, theirs = established(wire, make_node, *(QuicSettings(fast_path=way) for way in ways))
    wire.change = BadNetwork(seed, loss)
    await transfer(wire, ours, theirs, [300_000, 1, 1200, 150_000])
    for connection, way in ((theirs, ways[0]), (ours, ways[1])):
        count = counters(connection)
        assert bool(count.sent_fast) == bool(count.received_fast) == way


async def test_bulk_packets_take_the_short_way(wire: Any, make_node: MakeNode) -> None:
    ours, theirs = established(wire, make_node, QuicSettings(max_datagram_size=1400))
    stream = await ours.open_stream()
    await stream.write(b"x")
    wire.advance(0.1)
    sink = bytearray()
    reading = asyncio.create_task(copy_all(await theirs.accept_stream(), sink))
    for _ in range(100):
        await stream.write(bytes(64 * KIB))
        await asyncio.sleep(0)
        wire.advance(0.01)
    await stream.close_write()
    wire.advance(1)
    await reading
    assert len(sink) == 1 + 100 * 64 * KIB
    sent, received = counters(ours), counters(theirs)
    assert sent.sent_fast > 0.95 * (sent.sent_fast + sent.sent_stock)
    assert received.received_fast > 0.95 * (received.received_fast + received.received_stock)


async def test_streams_take_turns(wire: Any, make_node: MakeNode) -> None:
    ours, theirs = established(wire, make_node, QuicSettings())
    quic = ours._session.quic
    quic._loss._cc.congestion_window = 10 * MIB
    streams = [await ours.open_stream() for _ in range(4)]
    for stream in streams:
        await stream.write(bytes(100 * KIB))
    quic.transmit(wire.now, acknowledge=True)
    sent = [len(bytes(100 * KIB)) - quic.unsent(stream.id) for stream in streams]
    assert sum(sent) > 60 * 1200
    assert max(sent) - min(sent) <= 17 * 1400
    assert not theirs.is_closed


def bulk_connection(**settings: Any) -> Any:
    """A connection with much to send and no limit in its way."""
    connection: Any = steady_connection(
        is_client=True, suite=settings.get("suite", SUITES[0]), fast_path=True
    )
    connection._loss._cc.congestion_window = 1 << 30
    stream_id = connection.open_stream()
    connection.send_stream_data(stream_id, bytes(4 * MIB))
    return connection


@pytest.mark.parametrize(
    ("name", "ask"),
    [
        ("ping", lambda c: c.send_ping(1)),
        ("connection limit", lambda c: c.raise_connection_limit(1 << 30)),
        ("stream limit", lambda c: c.raise_stream_limit(0, 1 << 30)),
        ("stop", lambda c: c.stop_receiving(0, 7)),
        ("connection id", lambda c: c._replenish_connection_ids()),
        ("retire", lambda c: c._retire_connection_ids.append(3)),
        ("path response", lambda c: c._network_paths[0].remote_challenges.append(bytes(8))),
        ("crypto", lambda c: c._crypto_streams[tls.Epoch.ONE_RTT].sender.write(b"ticket")),
        ("done", lambda c: setattr(c, "_handshake_done_pending", True)),
        ("blocked", lambda c: setattr(c, "_streams_blocked_pending", True)),
        ("reset", lambda c: c.stop_sending(c.open_stream(), 7)),
    ],
)
def test_nothing_else_waits_for_bulk(name: str, ask: Callable[[Any], object]) -> None:
    connection = bulk_connection()
    connection.transmit(1.0, acknowledge=True)
    assert not has_control_frames(connection, 1.0)
    ask(connection)
    assert has_control_frames(connection, 1.0), name
    before = connection.counters.sent_fast
    connection.transmit(1.1, acknowledge=True)
    assert not has_control_frames(connection, 1.1), name
    assert connection.counters.sent_fast - before == PASS_PACKETS - 1


def test_streams_given_back_are_told_when_few_are_left() -> None:
    connection = bulk_connection()
    limit = connection._local_max_streams_bidi
    limit.used, limit.value = 2, 10
    assert limit.sent == 8
    connection.transmit(1.0, acknowledge=True)
    assert not has_control_frames(connection, 1.0)
    assert connection.counters.sent_stock == 0
    limit.used, limit.value = 7, 15
    assert has_control_frames(connection, 1.1)
    connection.transmit(1.1, acknowledge=True)
    assert not has_control_frames(connection, 1.1)
    assert limit.sent == 15


@pytest.mark.parametrize("suite", SUITES, ids=lambda s: s.name)
def test_numbers_take_four_bytes_when_much_is_in_flight(suite: tls.CipherSuite) -> None:
    connection = bulk_connection(suite=suite)
    while connection._packet_number < MAX_OUTSTANDING:
        connection.send_stream_data(0, bytes(PASS_PACKETS * 1200))
        assert connection.transmit(1.0, acknowledge=True)
    connection.send_stream_data(0, bytes(PASS_PACKETS * 1200))
    assert connection.transmit(1.0, acknowledge=True) == []
    packets = [
        p
        for p in connection._spaces[tls.Epoch.ONE_RTT].sent_packets.values()
        if isinstance(p, BulkPacket)
    ]
    short = next(p for p in packets if p.packet_number == 1000)
    long = next(p for p in packets if p.packet_number == LONG_NUMBERS_AFTER + 1000)
    assert (short.stop - short.start) - (long.stop - long.start) == 2


def test_keys_are_updated_in_time_and_only_when_allowed() -> None:
    connection = bulk_connection()
    connection._packet_number = 5
    keys = connection.one_rtt_keys
    connection.transmit(1.0, acknowledge=True)
    keys.sealed = UPDATE_AFTER
    connection.transmit(1.1, acknowledge=True)
    assert keys.send.key_phase == 0  # nothing of this phase was acknowledged
    connection._spaces[tls.Epoch.ONE_RTT].largest_acked_packet = 5
    first = connection._packet_number
    connection.transmit(1.2, acknowledge=True)
    assert keys.send.key_phase == 1
    assert keys.first_sealed == first
    assert keys.sealed == connection._packet_number - first


@pytest.mark.parametrize(("suite", "limit"), [(SUITES[0], 1 << 52), (SUITES[2], 1 << 36)])
def test_too_many_forged_packets_end_the_connection(suite: tls.CipherSuite, limit: int) -> None:
    for fast_path in (True, False):
        connection = steady_connection(is_client=False, suite=suite, fast_path=fast_path)
        connection.one_rtt_keys.forged = limit - 2
        connection.receive_batch([b"\x40our--id!" + bytes(30)], PEER, 1.0)
        assert connection.close_pending is None
        connection.receive_batch([b"\x40our--id!" + bytes(30)], PEER, 1.0)
        assert connection.close_pending is not None
        assert connection.close_pending.error_code == 0x0F


def test_no_packet_is_sealed_beyond_what_the_cipher_allows() -> None:
    connection = bulk_connection()
    connection.one_rtt_keys.sealed = MAX_SEALED
    connection.transmit(1.0, acknowledge=True)
    assert connection.termination is None
    assert connection._state.name == "CLOSING"
    chacha = bulk_connection(suite=SUITES[2])
    chacha.one_rtt_keys.sealed = MAX_SEALED
    assert len(chacha.transmit(1.0, acknowledge=True)) == PASS_PACKETS


def test_a_small_message_is_not_held_while_the_window_is_nearly_full() -> None:
    connection = bulk_connection()
    connection._streams[0].sender._pending.subtract(0, 4 * MIB - 100)
    connection._loss._cc.congestion_window = 800
    ((datagram, _),) = connection.transmit(1.0, acknowledge=True)
    assert len(datagram) < 200


def test_acknowledged_runs_are_told_in_one() -> None:
    """Each stream hears of all its bytes, whatever lies between them."""
    told: list[tuple[int, int, int, bool]] = []

    class Sender(QuicStreamSender):
        @override
        def on_data_delivery(
            self, delivery: QuicDeliveryState, start: int, stop: int, fin: bool
        ) -> None:
            assert delivery is QuicDeliveryState.ACKED
            told.append((self._stream_id or 0, start, stop, fin))

    recovery = steady_connection(is_client=True, suite=SUITES[0], fast_path=True)._recovery
    space = QuicPacketSpace(is_application_data=True)
    one, two = Sender(0, True), Sender(4, True)
    plan = [(one, 0, 10), (one, 10, 20), (two, 0, 5), (one, 30, 40), (one, 40, 50), (two, 5, 9)]
    packets = [BulkPacket(n, 1.0, 100, s, a, b, b == 50) for n, (s, a, b) in enumerate(plan)]
    recovery.on_bulk_sent(packets, 600, space)
    assert recovery.bytes_in_flight == 600
    assert space.ack_eliciting_in_flight == 6
    ranges = type(space.ack_queue)([range(6)])
    recovery.on_ack_received(ack_rangeset=ranges, ack_delay=0.0, now=1.1, space=space)
    assert told == [(0, 0, 20, False), (4, 0, 5, False), (0, 30, 50, True), (4, 5, 9, False)]
    assert recovery.bytes_in_flight == space.ack_eliciting_in_flight == 0
    assert not space.sent_packets
    assert recovery._rtt_latest == pytest.approx(0.1)


def test_a_new_path_has_its_own_round_trip() -> None:
    connection: Any = steady_connection(is_client=True, suite=SUITES[0], fast_path=True)
    recovery, space = connection._recovery, connection._spaces[tls.Epoch.ONE_RTT]
    sender = QuicStreamSender(0, True)

    def sent(number: int, at: float) -> None:
        recovery.on_bulk_sent([BulkPacket(number, at, 1200, sender, 0, 0, False)], 1200, space)

    def acknowledged(number: int, at: float) -> None:
        ranges = type(space.ack_queue)([range(number, number + 1)])
        recovery.on_ack_received(ack_rangeset=ranges, ack_delay=0.0, now=at, space=space)

    sent(0, 1.0)
    acknowledged(0, 1.3)
    assert connection.rtt == pytest.approx(0.3)
    sent(1, 1.4)
    connection.begin_path(1.5)
    sent(2, 1.6)
    assert connection.rtt is None
    acknowledged(1, 1.62)  # on the old path
    assert connection.rtt is None
    acknowledged(2, 1.65)
    assert connection.rtt == recovery._rtt_min == pytest.approx(0.05)


@pytest.mark.parametrize("ssthresh", [None, 14_000, 40_000])
def test_a_run_grows_the_window_as_its_packets_would(ssthresh: int | None) -> None:
    windows = []
    for together in (True, False):
        control = CubicControl(max_datagram_size=1200)
        control.congestion_window = 24_000
        control.ssthresh = ssthresh
        for trip in range(1, 30):
            now, count = trip * 0.05, control.congestion_window // 1200
            packets = [
                BulkPacket(n, now - 0.05, 1200, QuicStreamSender(0, True), 0, 1, False)
                for n in range(count)
            ]
            control.bytes_in_flight = count * 1200
            if together:
                control.on_run_acked(now=now, size=count * 1200, sent_time=now - 0.05)
            else:
                for packet in packets:
                    control.on_packet_acked(now=now, packet=packet)
            assert control.bytes_in_flight == 0
            if control.congestion_window > 2 * MIB:
                break
        windows.append(control.congestion_window)
    assert windows[0] == pytest.approx(windows[1], rel=0.1)


def test_the_setting_turns_it_off() -> None:
    assert QuicSettings().fast_path
    connection = steady_connection(is_client=True, suite=SUITES[0], fast_path=False)
    connection.send_stream_data(connection.open_stream(), bytes(MIB))
    connection.transmit(1.0, acknowledge=True)
    assert connection.counters.sent_stock > 0
    assert connection.counters.sent_fast == 0


def test_an_end_goes_with_the_last_bytes_and_once() -> None:
    connection: Any = steady_connection(is_client=True, suite=SUITES[0], fast_path=True)
    connection._loss._cc.congestion_window = 1 << 30
    connection.send_stream_data(connection.open_stream(), bytes(20_000), end_stream=True)
    assert connection.transmit(1.0, acknowledge=True)
    assert connection.transmit(1.0, acknowledge=True) == []
    assert connection.counters.sent_stock == 0  # no end of its own
    sent = connection._spaces[tls.Epoch.ONE_RTT].sent_packets.values()
    assert [packet.fin for packet in sent if isinstance(packet, BulkPacket)][-2:] == [False, True]


@pytest.mark.parametrize("window", [12_000, 50_000, 200_000])
def test_no_more_than_the_window_is_in_flight(window: int) -> None:
    connection = bulk_connection()
    connection._loss._cc.congestion_window = window
    for _ in range(10):
        connection.transmit(1.0, acknowledge=True)
    assert window - 100 <= connection._loss.bytes_in_flight <= window


def test_what_is_sent_is_in_the_books_as_ever() -> None:
    books = []
    for fast_path in (True, False):
        connection: Any = steady_connection(is_client=True, suite=SUITES[0], fast_path=fast_path)
        connection._spin_bit = True
        connection.send_stream_data(connection.open_stream(), bytes(9_000))
        datagrams = connection.transmit(1.0, acknowledge=True)
        path = connection._network_paths[0]
        assert (
            path.bytes_sent == connection._loss.bytes_in_flight == sum(len(d) for d, _ in datagrams)
        )
        mask = _first_byte_mask(connection, datagrams[0][0])
        books.append((connection.get_timer(), connection._close_at, mask ^ datagrams[0][0][0]))
    assert books[0] == books[1]


def _first_byte_mask(connection: Any, datagram: bytes) -> int:
    """What hides the five lowest bits of a first byte."""
    at = 1 + len(connection._peer_cid.cid) + 4
    masks, _ = header_masks(connection.one_rtt_keys.send.hp, [datagram[at : at + 16]])
    return masks[0] & 0x1F


@pytest.mark.parametrize("chacha", [False, True], ids=["AES", "ChaCha20"])
async def test_keys_are_updated_in_mid_transfer(
    wire: Any, make_node: MakeNode, chacha: bool
) -> None:
    ours, theirs = established(wire, make_node, QuicSettings(prefer_chacha=chacha))
    stream = await ours.open_stream()
    await stream.write(b"x")
    wire.advance(0.1)
    sink = bytearray()
    reading = asyncio.create_task(copy_all(await theirs.accept_stream(), sink))
    for turn in range(60):
        if turn in (10, 40):
            ours._session.quic.request_key_update()
        if turn == 25:
            theirs._session.quic.request_key_update()
        await stream.write(bytes(64 * KIB))
        await asyncio.sleep(0)
        wire.advance(0.01)
    await stream.close_write()
    wire.advance(1)
    await reading
    assert len(sink) == 1 + 60 * 64 * KIB
    for connection in (ours, theirs):
        keys = connection._session.quic.one_rtt_keys
        assert (keys.send.key_phase, keys.recv.key_phase, keys.forged) == (1, 1, 0)
    sent = counters(ours)
    assert sent.sent_fast > sent.sent_stock
    assert ours._session.quic._recovery._pto_count == 0


def test_what_is_left_of_the_window_is_used_too() -> None:
    connection = bulk_connection()
    connection._loss._cc.congestion_window = 12_500
    for _ in range(3):
        connection.transmit(1.0, acknowledge=True)
    assert connection.counters.sent_stock == 0
    assert connection.counters.sent_fast == 11
    assert 12_490 <= connection._loss.bytes_in_flight <= 12_500


def test_a_probe_timeout_sends_data_twice() -> None:
    connection = bulk_connection()
    connection._loss._cc.congestion_window = 5 * 1200
    assert len(connection.transmit(1.0, acknowledge=True)) == 5
    assert connection.transmit(1.0, acknowledge=True) == []
    at = connection.get_timer()
    connection.timer_fired(at)
    assert connection._loss._pto_count == 1
    probes = [data for data, _ in connection.transmit(at, acknowledge=True)]
    assert [len(data) for data in probes] == [1200, 1200]
