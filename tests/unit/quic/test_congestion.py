"""The congestion window: when it grows, how fast, when it shrinks, and when it begins anew."""

from __future__ import annotations

import itertools

import pytest
from aioquic import tls
from aioquic.quic.congestion.base import create_congestion_control
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicSentPacket

from dep2p_daemon.quic.congestion import ALGORITHM, IDLE_SECONDS, CubicControl, initial_window
from dep2p_daemon.quic.cubic import BETA, C

SIZE = 1200
RTT = 0.05


def packet(at: float, size: int = SIZE) -> QuicSentPacket:
    return QuicSentPacket(tls.Epoch.ONE_RTT, True, True, False, 1, QuicPacketType.ONE_RTT, at, size)


class Flow:
    """A sender whose every round trip takes 50 ms."""

    def __init__(self, now: float = 1.0) -> None:
        self.control = CubicControl(max_datagram_size=SIZE)
        self.now = now

    @property
    def window(self) -> int:
        return self.control.congestion_window

    def trip(self, packets: int | None = None, *, lost: int = 0, rtt: float = RTT) -> int:
        """Send a window, or so many packets; the first ones are lost, the others acknowledged."""
        count = self.window // SIZE if packets is None else packets
        flight = [packet(self.now) for _ in range(count)]
        self.control.begin_pass(self.now)
        for sent in flight:
            self.control.on_packet_sent(packet=sent)
        self.now += rtt
        for sent in flight[lost:]:
            self.control.on_packet_acked(now=self.now, packet=sent)
            self.control.on_rtt_measurement(now=self.now, rtt=rtt)
        if lost:
            self.control.on_packets_lost(now=self.now, packets=flight[:lost])
        self.now += 1e-6  # what is sent next is sent later
        return self.window


@pytest.fixture
def flow() -> Flow:
    return Flow()


def test_a_window_that_is_used_doubles(flow: Flow) -> None:
    assert flow.trip(10) == 24_000
    assert flow.trip(20) == 48_000
    assert flow.control.bytes_in_flight == 0


def test_one_that_is_not_stays(flow: Flow) -> None:
    assert {flow.trip(4) for _ in range(20)} == {12_000}


def test_after_a_loss_it_goes_back_to_where_that_was_and_lingers(flow: Flow) -> None:
    while flow.window < 1_000_000:
        flow.trip()
    flow.control.ssthresh = before = flow.window
    assert flow.trip(lost=1) == pytest.approx(before * BETA, rel=0.01)
    k = (before * (1 - BETA) / SIZE / C) ** (1 / 3)
    windows, began = [], flow.now
    while flow.now < began + 2 * k:
        windows.append((flow.now - began, flow.trip()))
    for at, window in windows[2:]:
        curve = C * SIZE * (at - k) ** 3 + before
        assert window == pytest.approx(curve, rel=0.05)
    # Fastest at both ends.
    middle = len(windows) // 2
    steps = [b[1] - a[1] for a, b in itertools.pairwise(windows)]
    assert steps[2] > 4 * steps[middle] < steps[-1]


def test_a_short_path_grows_by_a_packet_a_round_trip_at_least(flow: Flow) -> None:
    flow.trip(lost=1)
    first = flow.window
    for _ in range(20):
        flow.trip(rtt=0.001)
    assert flow.window >= first + 18 * SIZE


def test_who_gets_less_than_the_last_time_leaves_room(flow: Flow) -> None:
    flow.control.congestion_window = flow.control.ssthresh = 100 * SIZE
    flow.trip(lost=1)
    assert flow.control._cubic._window_at_loss == pytest.approx(100 * SIZE, rel=0.02)
    flow.trip(lost=1)
    assert flow.control._cubic._window_at_loss == pytest.approx(
        70 * SIZE * (1 + BETA) / 2, rel=0.04
    )


def test_losses_of_one_window_count_once_and_nothing_grows_meanwhile(flow: Flow) -> None:
    for _ in range(3):
        flow.trip()
    flight = [packet(flow.now) for _ in range(flow.window // SIZE)]
    for sent in flight:
        flow.control.on_packet_sent(packet=sent)
    flow.control.on_packets_lost(now=flow.now + RTT, packets=flight[:2])
    reduced = flow.window
    flow.control.on_packets_lost(now=flow.now + 1.2 * RTT, packets=flight[2:4])
    for sent in flight[4:]:
        flow.control.on_packet_acked(now=flow.now + 1.5 * RTT, packet=sent)
    assert flow.window == reduced
    assert flow.control.bytes_in_flight == 0


def test_time_stands_still_while_nobody_uses_the_window(flow: Flow) -> None:
    twin = Flow()
    for each in (flow, twin):
        each.control.congestion_window = each.control.ssthresh = 100 * SIZE
        each.trip(lost=1)
        each.trip()
    for _ in range(400):  # twenty seconds, in which the curve would have risen without end
        flow.trip(2)
    assert flow.window == twin.window
    flow.trip()
    twin.trip()
    assert flow.window == pytest.approx(twin.window, rel=0.02)


def test_nor_does_it_pass_between_bursts_that_fill_the_window(flow: Flow) -> None:
    twin = Flow()
    for each in (flow, twin):
        each.control.congestion_window = each.control.ssthresh = 100 * SIZE
        each.trip(lost=1)
        each.trip()
    for _ in range(20):
        flow.now += IDLE_SECONDS * 0.9
        flow.trip()
        twin.trip()
    assert flow.window == pytest.approx(twin.window, rel=0.02)


def test_losses_that_last_begin_again_at_two_packets(flow: Flow) -> None:
    for _ in range(4):
        flow.trip()
    flow.trip(lost=1)
    most = flow.control.ssthresh
    flow.control.on_persistent_congestion()
    assert flow.window == 2 * SIZE
    while flow.window < (most or 0):
        before = flow.window
        flow.trip()
        # Slow start, up to what is known.
        assert flow.window == pytest.approx(min(2 * before, most or 0), rel=0.01)


def test_after_an_idle_time_it_begins_afresh(flow: Flow) -> None:
    for _ in range(4):
        flow.trip()
    flow.trip(lost=1)
    flow.now += IDLE_SECONDS * 0.9
    before = flow.window
    assert flow.trip(1) == before
    flow.now += IDLE_SECONDS * 1.1
    assert flow.trip(1) == initial_window(SIZE)
    assert flow.control.in_slow_start
    assert flow.trip() == 2 * initial_window(SIZE)


def test_silence_with_packets_in_flight_is_not_idle(flow: Flow) -> None:
    for _ in range(4):
        flow.trip()
    before = flow.window
    flow.control.on_packet_sent(packet=packet(flow.now))
    flow.control.begin_pass(flow.now + 5)
    assert flow.window == before


def test_a_new_path_hears_nothing_of_what_was_sent_on_the_old_one(flow: Flow) -> None:
    for _ in range(4):
        flow.trip()
    flight = [packet(flow.now) for _ in range(40)]
    for sent in flight:
        flow.control.on_packet_sent(packet=sent)
    flow.control.begin_path(flow.now + 0.01)
    assert flow.window == initial_window(SIZE)
    flow.control.on_packets_lost(now=flow.now + 0.06, packets=flight[:10])
    for sent in flight[10:]:
        flow.control.on_packet_acked(now=flow.now + 0.07, packet=sent)
    assert flow.window == initial_window(SIZE)
    assert flow.control.in_slow_start
    assert flow.control.bytes_in_flight == 0
    flow.now += 0.1
    assert flow.trip() == 2 * initial_window(SIZE)


def test_slow_start_ends_before_losses_where_the_round_trip_grows(flow: Flow) -> None:
    for _ in range(4):
        flow.trip()
    for more in range(1, 12):
        flow.trip(rtt=RTT + 0.008 * more)
    assert not flow.control.in_slow_start
    assert flow.window < 16 * 12_000 * 5


def test_slow_start_ends_at_what_was_sent_and_not_at_what_pacing_held_back(flow: Flow) -> None:
    for _ in range(4):
        flow.trip()
    sent = flow.window * 3 // 4 // SIZE
    flow.trip(sent, lost=1)
    assert flow.window == pytest.approx(sent * SIZE * BETA, rel=0.01)


def test_it_is_what_connections_use() -> None:
    control = create_congestion_control(ALGORITHM, max_datagram_size=1200)
    assert isinstance(control, CubicControl)
    control.set_max_datagram_size(65_000)
    assert initial_window(65_000) == 130_000
    control.begin_path(0.0)
    assert control.congestion_window == 130_000
