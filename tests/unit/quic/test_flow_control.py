"""Credit by consumption, and windows that follow what arrives and is read in a round trip."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.quic.flow_control import MAX_ACCELERATION, TRIPS, ReceiveWindow

RTT = 0.1


def test_credit_moves_in_steps_of_a_quarter_of_a_window() -> None:
    window = ReceiveWindow(1000, 8000)
    assert window.limit == 1000
    assert not window.consume(249)
    assert window.consume(1)
    assert window.announce(250, 100.0, 0.0, may_grow=True) == 1250
    assert window.size == 1000
    assert not window.consume(249)
    assert window.consume(1)


def flow(window: ReceiveWindow, rates: list[float], *, may_grow: bool = True) -> list[int]:
    """Round trips in which so many bytes arrive and are read, in 20 steps; sizes after each."""
    sizes, now, arrived = [], 100.0, window.consumed
    window.announce(arrived, now, RTT, may_grow=may_grow)  # measuring begins here
    for rate in rates:
        for _ in range(20):
            now += RTT / 19.9  # so that no judgement misses its round trip by rounding
            arrived += int(rate / 20)
            if window.consume(int(rate / 20)):
                window.announce(arrived, now, RTT, may_grow=may_grow)
        sizes.append(window.size)
    return sizes


def test_a_window_grows_to_three_round_trips() -> None:
    assert flow(ReceiveWindow(100_000, 10_000_000), [1e6] * 10)[-1] == pytest.approx(
        TRIPS * 1e6, rel=0.1
    )


def test_one_that_is_wide_enough_stays() -> None:
    assert flow(ReceiveWindow(100_000, 10_000_000), [30_000] * 20) == [100_000] * 20


def test_it_keeps_ahead_of_a_sender_that_doubles_its_speed() -> None:
    window = ReceiveWindow(100_000, 100_000_000)
    rates = [20_000 * 2.0**n for n in range(11)]
    for rate, size in zip(rates[1:], flow(window, rates), strict=False):
        assert size >= rate  # of the next round trip


def test_it_has_a_bound() -> None:
    assert flow(ReceiveWindow(100_000, 500_000), [1e6] * 10)[-1] == 500_000


def test_scarce_memory_keeps_it() -> None:
    assert flow(ReceiveWindow(100_000, 500_000), [1e6] * 10, may_grow=False)[-1] == 100_000


def test_nothing_grows_while_the_round_trip_is_unknown() -> None:
    window = ReceiveWindow(1000, 8000)
    for now in range(20):
        window.consume(1000)
        window.announce(window.consumed, float(now), 0.0, may_grow=True)
    assert window.size == 1000


def test_a_burst_of_reads_is_not_speed() -> None:
    window, now = ReceiveWindow(100_000, 10_000_000), 100.0
    for _ in range(20):
        now += 5.0  # a reader that sleeps, and then takes all there is at once
        for _ in range(4):
            if window.consume(25_000):
                window.announce(window.consumed, now, RTT, may_grow=True)
            now += 0.001
    assert window.size == 100_000


def test_nor_is_what_a_retransmission_sets_free() -> None:
    window, now = ReceiveWindow(1_000_000, 100_000_000), 100.0
    window.announce(0, now, RTT, may_grow=True)
    for _ in range(20):
        # Five round trips at 100 kB each lie behind a gap, and come out in one.
        arrived = window.consumed + 500_000
        now += 4 * RTT
        window.consume(1)
        window.announce(arrived - 100_000, now, RTT, may_grow=True)
        now += RTT * 1.01
        window.consume(arrived - window.consumed)
        window.announce(arrived, now, RTT, may_grow=True)
    assert window.size == 1_000_000


def test_a_connection_is_kept_wider_than_its_streams() -> None:
    window = ReceiveWindow(1000, 8000)
    window.keep_above(3000)
    assert window.size == 3000
    window.keep_above(2000)
    assert window.size == 3000
    window.keep_above(50_000)
    assert window.size == 8000


def test_credit_is_lent_for_what_is_stalled_up_to_a_bound() -> None:
    window = ReceiveWindow(1000, 8000)
    assert not window.keep_ahead_of(400, most=2500)
    assert window.keep_ahead_of(800, most=2500)
    assert window.limit == 1800
    assert window.keep_ahead_of(1700, most=2500)
    assert window.limit == 2500
    assert not window.keep_ahead_of(2500, most=2500)
    window.consume(300)
    assert window.keep_ahead_of(2500, most=2500)
    assert window.limit == 2800


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 1)), max_size=60),
    st.integers(1, 4000),
    st.integers(1, 10_000),
)
def test_the_limit_never_falls_and_never_exceeds_consumed_plus_maximum(
    reads: list[tuple[int, float]], initial: int, maximum: int
) -> None:
    window = ReceiveWindow(initial, maximum)
    now = 0.0
    for wanted, pause in reads:
        count = min(wanted, window.limit - window.consumed)  # a peer cannot send more
        now += pause
        before, size = window.limit, window.size
        if window.consume(count):
            assert window.announce(window.consumed, now, RTT, may_grow=True) >= before
        assert size <= window.size <= max(size, TRIPS * MAX_ACCELERATION * window.consumed)
        assert window.limit <= window.consumed + max(initial, maximum)
        # Never stuck: a window that is used up is always worth announcing.
        assert window.limit > window.consumed


def test_bytes_that_come_back_are_counted() -> None:
    window = ReceiveWindow(1000, 1000)
    assert not window.consume(200)
    assert not window.consume(-200)
    assert not window.consume(200)
    assert window.consumed == 200
