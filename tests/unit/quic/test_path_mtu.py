"""The search for what a path carries, and what becomes of a path that carries it no more."""

from __future__ import annotations

import asyncio
import errno
import random
from typing import TYPE_CHECKING, Any

import pytest
from aioquic import tls
from aioquic.quic.rangeset import RangeSet
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.quic.steady import PEER, SUITES, steady_connection

from dep2p_daemon.quic.mtu_probe import peer_max_datagram
from dep2p_daemon.quic.path_mtu import (
    BASE_SIZE,
    BETWEEN,
    BLACK_HOLE_LOSSES,
    MAX_SIZE,
    PROBES,
    RAISE_INTERVAL,
    STEPS,
    WINDOW_PACKETS,
    PathMtu,
)
from dep2p_daemon.quic.settings import KIB, MIB, QuicSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    MakeNode = Callable[..., Any]

WIDE = 1 << 30
"""A congestion window that is in nobody's way."""
IPV4, IPV6 = 28, 48
"""Bytes of IP and UDP headers."""


def search(mtu: PathMtu, carries: int, now: float = 0.0) -> list[int]:
    """Probe until the search ends; returns the sizes that were probed."""
    probed: list[int] = []
    while (size := mtu.due(now, WIDE)) is not None:
        probed.append(size)
        mtu.probe_sent(size)
        assert mtu.due(now, WIDE) is None  # one at a time
        if size <= carries:
            assert mtu.probe_acknowledged(size)
        else:
            mtu.probe_lost(size)
    return probed


@pytest.mark.parametrize(
    ("wanted", "carries", "found"),
    [
        (1200, 65_000, 1200),
        (1380, 1500, 1380),
        (9000, 65_000, 9000),
        (MAX_SIZE, 65_535 - IPV4, 65_000),
        (MAX_SIZE, 65_535 - IPV6, 65_000),
        (MAX_SIZE, 9000 - IPV4, 8952),
        (MAX_SIZE, 9000 - IPV6, 8952),
        (MAX_SIZE, 1500 - IPV4, 1452),
        (MAX_SIZE, 1500 - IPV6, 1452),
        (MAX_SIZE, 1492 - IPV6, 1432),
        (MAX_SIZE, 1420 - IPV6, 1372),
        (MAX_SIZE, 1400 - IPV6, 1352),
        (MAX_SIZE, 1280 - IPV4, 1232),
        (MAX_SIZE, 1280 - IPV6, 1232),
        (MAX_SIZE, 1200, 1200),
    ],
)
def test_it_finds_what_the_path_carries(wanted: int, carries: int, found: int) -> None:
    mtu = PathMtu(wanted)
    probed = search(mtu, carries)
    assert mtu.size == found
    too_large = [size for size in probed if size > carries]
    assert all(too_large.count(size) == PROBES for size in too_large)
    assert len(set(too_large)) <= 4


def test_one_lost_probe_says_nothing_of_a_size() -> None:
    mtu = PathMtu(MAX_SIZE)
    for _ in range(len(STEPS)):
        for _ in range(PROBES - 1):
            size = mtu.due(0.0, WIDE) or 0
            mtu.probe_sent(size)
            mtu.probe_lost(size)
        assert mtu.due(0.0, WIDE) == size
        mtu.probe_sent(size)
        assert mtu.probe_acknowledged(size)
    assert mtu.size == MAX_SIZE


def test_a_size_of_which_the_window_holds_few_is_not_probed() -> None:
    mtu = PathMtu(MAX_SIZE)
    assert mtu.due(0.0, WINDOW_PACKETS * 1452 - 1) is None
    assert mtu.due(0.0, WINDOW_PACKETS * 1452) == 1452


def test_a_search_that_ended_low_is_taken_up_again_in_time() -> None:
    mtu = PathMtu(MAX_SIZE)
    search(mtu, 1452, now=10.0)
    assert mtu.due(10.0 + RAISE_INTERVAL - 0.1, WIDE) is None
    assert search(mtu, 1452, now=10.0 + RAISE_INTERVAL) == [8952] * PROBES
    assert mtu.size == 1452
    assert search(mtu, 65_507, now=10.0 + 3 * RAISE_INTERVAL) == [8952, 16_000, 32_000, 65_000]
    assert mtu.due(1e9, WIDE) is None


def test_what_the_own_interface_refuses_is_not_tried_again() -> None:
    mtu = PathMtu(MAX_SIZE)
    search(mtu, 1200)
    mtu.restart()
    mtu.probe_sent(1452)
    mtu.refused(1452)
    mtu.probe_lost(1452)
    assert search(mtu, 1400) == [1372, 1432, 1432, 1432, 1400]


def test_a_new_path_is_searched_anew() -> None:
    mtu = PathMtu(9000)
    search(mtu, 65_000)
    mtu.restart()
    assert mtu.size == BASE_SIZE
    search(mtu, 1500)
    assert mtu.size == 1452


def test_a_probe_of_an_earlier_search_changes_nothing() -> None:
    mtu = PathMtu(9000)
    for fate in (mtu.probe_acknowledged, mtu.probe_lost):
        mtu.restart()
        mtu.probe_sent(1452)
        mtu.restart()
        assert mtu.due(0.0, WIDE) is None
        assert not fate(1452)
        assert mtu.size == BASE_SIZE
        assert mtu.due(0.0, WIDE) == 1452


@given(st.integers(1200, 65_000), st.integers(1200, 65_527), st.integers(1200, 65_527))
def test_nothing_beyond_what_the_peer_takes_is_sent(wanted: int, limit: int, carries: int) -> None:
    mtu = PathMtu(wanted)
    mtu.limit(limit)
    mtu.limit(65_527)
    probed = search(mtu, carries)
    assert max(probed, default=BASE_SIZE) <= min(wanted, limit)
    if carries >= min(wanted, limit):
        assert mtu.size == min(wanted, limit)
    known = [BASE_SIZE, *(s for s in (*STEPS, *BETWEEN) if s <= min(wanted, limit, carries))]
    # The largest of the known sizes; but none of those between others that were not needed.
    assert mtu.size >= max(s for s in known if s in STEPS or s == BASE_SIZE)


def test_losses_of_large_packets_with_none_between_that_got_through_are_a_black_hole() -> None:
    mtu = PathMtu(MAX_SIZE)
    for _ in range(2 * BLACK_HOLE_LOSSES):
        mtu.large_lost()
        assert mtu.is_suspected
        assert not mtu.is_black_hole
        mtu.large_acknowledged()
        assert not mtu.is_suspected
    for _ in range(BLACK_HOLE_LOSSES):
        mtu.large_lost()
    assert mtu.is_black_hole
    mtu.restart()
    assert not mtu.is_black_hole


# On a wire


def dialled(wire: Any, make_node: MakeNode, **settings: Any) -> tuple[Any, Any]:
    server = make_node(QuicSettings(**settings)).listen()
    client = make_node(QuicSettings(**settings))
    dial = client.dial(server)
    wire.advance(1)
    return dial.connection, server.accepted[-1]


def carry(wire: Any, mtu: int) -> None:
    wire.keep = lambda _to, datagram: len(datagram) <= mtu - IPV6


async def send(
    wire: Any, ours: Any, theirs: Any, size: int, at: Callable[[int], None] = lambda _: None
) -> None:
    """Bytes of ours through a stream that the reader reads; `at` hears how many have come."""
    stream = await ours.open_stream()
    data = random.Random(size).randbytes(size)
    got = bytearray()

    async def write() -> None:
        for start in range(0, size, 64 * KIB):
            await stream.write(data[start : start + 64 * KIB])
        await stream.close_write()

    async def read() -> None:
        inbound = await theirs.accept_stream()
        while piece := await inbound.read():
            got.extend(piece)

    jobs = [asyncio.create_task(write()), asyncio.create_task(read())]
    for _ in range(20_000):
        for _ in range(4):
            await asyncio.sleep(0)
        if all(job.done() for job in jobs):
            break
        at(len(got))
        wire.advance(0.005)
    assert not ours.is_closed
    await asyncio.gather(*jobs)
    assert bytes(got) == data


def quic(connection: Any) -> Any:
    return connection._session.quic


def had_congestion(connection: Any) -> bool:
    return bool(quic(connection)._recovery.control.congestion_events)


@pytest.mark.parametrize("fast_path", [True, False])
@pytest.mark.parametrize(
    ("mtu", "found"), [(1280, 1232), (1500, 1452), (9000, 8952), (65_535, 65_000)]
)
async def test_who_sends_much_uses_what_the_path_carries(
    wire: Any, make_node: MakeNode, mtu: int, found: int, fast_path: bool
) -> None:
    carry(wire, mtu)
    ours, theirs = dialled(wire, make_node, fast_path=fast_path)
    await send(wire, ours, theirs, 2 * MIB)
    assert quic(ours).max_datagram_size == found
    # Lost probes are no congestion.
    assert not had_congestion(ours)
    assert quic(ours)._recovery.mtu_probes == frozenset()
    # aioquic's own packets stay within what it can write.
    sizes = {len(d) for _, _, d in wire.sent if len(d) <= mtu - IPV6}
    assert found in sizes
    assert not fast_path or mtu < 65_535 or max(s for s in sizes if s not in STEPS) < 65_000


async def test_who_sends_little_probes_no_further_than_ethernet(
    wire: Any, make_node: MakeNode
) -> None:
    ours, theirs = dialled(wire, make_node)
    wire.advance(300)
    assert quic(ours).max_datagram_size == quic(theirs).max_datagram_size == 1452
    assert max(len(d) for _, _, d in wire.sent) == 1452


async def test_the_ceiling_can_be_set(wire: Any, make_node: MakeNode) -> None:
    ours, theirs = dialled(wire, make_node, max_datagram_size=1400)
    await send(wire, ours, theirs, MIB)
    assert max(len(d) for _, _, d in wire.sent) == quic(ours).max_datagram_size == 1400


async def test_probes_lost_by_chance_do_not_end_the_search(wire: Any, make_node: MakeNode) -> None:
    ours, theirs = dialled(wire, make_node)
    lost: set[int] = set()

    def keep(_to: Any, datagram: bytes) -> bool:
        size = len(datagram)
        if size > 1452 and size in STEPS and size not in lost:
            lost.add(size)  # the first of each size
            return False
        return True

    wire.keep = keep
    await send(wire, ours, theirs, 2 * MIB)
    assert lost == set(STEPS[1:])
    assert quic(ours).max_datagram_size == MAX_SIZE
    assert not had_congestion(ours)


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("fast_path", [True, False])
@pytest.mark.parametrize(("before", "after", "found"), [(65_535, 1500, 1452), (1500, 1400, 1352)])
async def test_a_path_that_becomes_narrow_in_a_transfer_heals(
    wire: Any,
    make_node: MakeNode,
    before: int,
    after: int,
    found: int,
    fast_path: bool,
    both_ways: bool,
) -> None:
    carry(wire, before)
    ours, theirs = dialled(wire, make_node, fast_path=fast_path)
    narrowed: list[float] = []

    def narrow(received: int) -> None:
        if received > MIB and not narrowed:
            narrowed.append(wire.now)
            assert quic(ours).max_datagram_size > after
            carry(wire, after)
        if both_ways:
            # Small packets that need an acknowledgement keep timeouts from telling.
            quic(ours).send_ping(1)
            ours._session.endpoint.mark_dirty(ours._session)

    await send(wire, ours, theirs, 2 * MIB, narrow)
    assert narrowed
    # The search needs what is to be sent, which may have gone before its end.
    await send(wire, ours, theirs, MIB)
    assert quic(ours).max_datagram_size == found
    large = [at for at, _, d in wire.sent if len(d) > after - IPV6 and at > narrowed[0] + 3]
    assert len(large) <= 3 * PROBES


@pytest.mark.parametrize("fast_path", [True, False])
@pytest.mark.parametrize("arriving", [None, 1])
def test_a_black_hole_is_seen_while_small_packets_get_through(
    fast_path: bool, arriving: int | None
) -> None:
    connection: Any = steady_connection(is_client=False, suite=SUITES[0], fast_path=fast_path)
    connection._mtu.size = connection._mtu._wanted = 1452
    connection._use_datagram_size(1452)
    stream_id, space = connection.open_stream(), connection._spaces[tls.Epoch.ONE_RTT]
    connection.send_stream_data(stream_id, bytes(1400))
    now = 1.0
    for trip in range(BLACK_HOLE_LOSSES):
        sizes = []
        for _ in range(5):
            sizes += [len(data) for data, _ in connection.transmit(now, acknowledge=True)]
            connection.send_ping(1)
        assert sizes[0] > BASE_SIZE > max(sizes[1:])
        first = 0 if trip == arriving else 1
        acknowledged = RangeSet([range(connection._packet_number - 5 + first, 0x7FFFFFFF)])
        assert connection.max_datagram_size == 1452
        now += 0.05
        connection._loss.on_ack_received(
            ack_rangeset=acknowledged, ack_delay=0.0, now=now, space=space
        )
        if not first:
            connection.send_stream_data(stream_id, bytes(1400))
        assert connection._loss._pto_count == 0  # no timeout tells
    connection.transmit(now, acknowledge=True)
    assert connection.max_datagram_size == (BASE_SIZE if arriving is None else 1452)


async def test_random_loss_is_no_black_hole(wire: Any, make_node: MakeNode) -> None:
    ours, theirs = dialled(wire, make_node, max_datagram_size=1400)
    dice = random.Random(5)
    wire.keep = lambda _to, _datagram: dice.random() > 0.02
    sizes: set[int] = set()
    await send(wire, ours, theirs, 4 * MIB, lambda _: sizes.add(quic(ours).max_datagram_size))
    assert had_congestion(ours)
    assert sizes == {1400}


async def test_the_own_interface_refuses_a_probe(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node()
    transmit = client.send
    refused: list[int] = []

    def through_ethernet(datagrams: list[bytes], to: Any, local: bytes | None = None) -> int:
        fitting = [datagram for datagram in datagrams if len(datagram) <= 1500 - IPV4]
        transmit(fitting, to, local)
        refused.extend(len(datagram) for datagram in datagrams if datagram not in fitting)
        return errno.EMSGSIZE if len(fitting) < len(datagrams) else 0

    client.send = through_ethernet
    dial = client.dial(server)
    wire.advance(1)
    ours = dial.connection
    await send(wire, ours, server.accepted[0], 2 * MIB)
    assert quic(ours).max_datagram_size == 1452
    assert not had_congestion(ours)
    assert refused == [8952]  # no second one


async def test_the_own_interface_becomes_narrow(wire: Any, make_node: MakeNode) -> None:
    ours, theirs = dialled(wire, make_node)
    client = ours._session.endpoint._sender
    transmit, narrow = client.send, False

    def send_what_fits(datagrams: list[bytes], to: Any, local: bytes | None = None) -> int:
        fitting = [d for d in datagrams if not narrow or len(d) <= 1500 - IPV4]
        transmit(fitting, to, local)
        return 0 if len(fitting) == len(datagrams) else errno.EMSGSIZE

    client.send = send_what_fits
    at = 0.0

    def narrow_at(received: int) -> None:
        nonlocal narrow, at
        if received > MIB and not narrow:
            narrow, at = True, wire.now

    await send(wire, ours, theirs, 3 * MIB, narrow_at)
    assert narrow
    assert quic(ours).max_datagram_size == 1452
    # Nothing was lost on a network: there is nothing to wait for, and no congestion.
    assert not had_congestion(ours)
    assert wire.now - at < 0.5


async def test_the_peer_says_what_it_takes(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node()
    dial = client.dial(server)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dep2p_daemon.quic.mtu_probe.peer_max_datagram", lambda _: 1380)
        wire.advance(5)
    await send(wire, dial.connection, server.accepted[0], MIB)
    assert quic(dial.connection).max_datagram_size == 1380
    assert max(len(d) for _, _, d in wire.sent) == 1380
    assert peer_max_datagram(quic(dial.connection)) == 65_527


async def test_a_later_search_finds_what_the_path_has_become(
    wire: Any, make_node: MakeNode
) -> None:
    carry(wire, 1500)
    ours, theirs = dialled(wire, make_node)
    await send(wire, ours, theirs, MIB)
    assert quic(ours).max_datagram_size == 1452
    carry(wire, 9000)
    await send(wire, ours, theirs, MIB)
    assert quic(ours).max_datagram_size == 1452
    wire.advance(RAISE_INTERVAL + 20)  # keep-alives are sent, and nothing else
    await send(wire, ours, theirs, MIB)
    assert quic(ours).max_datagram_size == 8952


async def test_after_a_move_everything_is_found_out_anew(wire: Any, make_node: MakeNode) -> None:
    ours, theirs = dialled(wire, make_node, max_datagram_size=9000)
    await send(wire, theirs, ours, MIB)
    server = quic(theirs)
    assert server.max_datagram_size == 9000
    server._loss._cc.congestion_window = server._loss._cc.ssthresh = 10 << 20
    carry(wire, 1500)
    ours._session.endpoint._sender.move(("198.51.100.7", 61_000))
    stream = await ours.open_stream()
    await stream.write(b"x")
    wire.advance(5)
    assert theirs.remote_address.host == "198.51.100.7"
    assert server.max_datagram_size == 1452
    assert server._loss._cc.ssthresh is None
    assert server.rtt is not None
    assert server._loss._cc.congestion_window < 1 << 20


async def test_a_change_of_port_alone_is_no_new_path(wire: Any, make_node: MakeNode) -> None:
    ours, theirs = dialled(wire, make_node, max_datagram_size=9000)
    await send(wire, theirs, ours, MIB)
    carry(wire, 1500)
    client = ours._session.endpoint._sender
    client.move((client.address[0], 61_000))
    stream = await ours.open_stream()
    await stream.write(b"x")
    wire.advance(1)
    assert theirs.remote_address.port == 61_000
    assert quic(theirs).max_datagram_size == 9000


@pytest.mark.parametrize("fast_path", [True, False])
def test_a_path_is_validated_with_1200_bytes(fast_path: bool) -> None:
    connection: Any = steady_connection(is_client=False, suite=SUITES[0], fast_path=fast_path)
    connection._mtu = PathMtu(MAX_SIZE)
    search(connection._mtu, MAX_SIZE)
    connection._use_datagram_size(MAX_SIZE)
    connection._loss._cc.congestion_window = WIDE
    connection._network_paths[0].remote_challenges.append(bytes(8))
    connection.send_stream_data(connection.open_stream(), bytes(8 * MIB))
    sizes = [len(datagram) for datagram, _ in connection.transmit(1.0, acknowledge=True)]
    assert sizes[0] == BASE_SIZE
    if fast_path:
        assert sizes[1:] == [MAX_SIZE]
    assert connection._network_paths[0].addr == PEER


def test_a_small_packet_costs_the_pacer_its_size() -> None:
    connection: Any = steady_connection(is_client=False, suite=SUITES[0], fast_path=True)
    connection._use_datagram_size(MAX_SIZE)
    connection._mtu.size = MAX_SIZE
    pacer = connection._burst_pacer
    pacer.update_rate(congestion_window=10 * MAX_SIZE, smoothed_rtt=0.05)
    pacer.update_bucket(now=1.0)
    before = pacer.bucket_time
    connection.send_ping(1)
    ((datagram, _),) = connection.transmit(1.0, acknowledge=True)
    assert before - pacer.bucket_time == pytest.approx(len(datagram) * pacer.byte_time)
    space = connection._spaces[tls.Epoch.ONE_RTT]
    assert len(space.sent_packets) == 1
