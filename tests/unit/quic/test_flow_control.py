"""Credit by consumption."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.quic.flow_control import ReceiveWindow


def test_credit_moves_in_steps_of_half_a_window() -> None:
    window = ReceiveWindow(1000, 8000)
    assert window.limit == 1000
    assert not window.consume(499)
    assert window.consume(1)
    assert window.announce(now=100.0, rtt=0.1, may_grow=True) == 1500
    assert window.size == 1000
    assert not window.consume(499)
    assert window.consume(1)


def test_a_fast_reader_gets_a_larger_window() -> None:
    window = ReceiveWindow(1000, 8000)
    now = 100.0
    for expected in (1000, 2000, 4000, 8000, 8000):
        assert window.consume(window.size // 2)
        window.announce(now, rtt=0.1, may_grow=True)
        assert window.size == expected
        assert window.limit == window.consumed + window.size
        now += 0.15  # less than two round trips


def test_a_slow_reader_or_scarce_memory_does_not() -> None:
    for pause, may_grow in ((0.25, True), (0.01, False)):
        window = ReceiveWindow(1000, 8000)
        now = 100.0
        for _ in range(10):
            assert window.consume(500)
            window.announce(now, rtt=0.1, may_grow=may_grow)
            now += pause
        assert window.size == 1000


def test_a_connection_is_kept_wider_than_its_streams() -> None:
    window = ReceiveWindow(1000, 8000)
    window.keep_above(3000)
    assert window.size == 3000
    window.keep_above(2000)
    assert window.size == 3000
    window.keep_above(50_000)
    assert window.size == 8000


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
        before = window.limit
        if window.consume(count):
            assert window.announce(now, 0.1, may_grow=True) >= before
        assert window.limit <= window.consumed + max(initial, maximum)
        # Never stuck: a window that is used up is always worth announcing.
        assert window.limit > window.consumed


def test_bytes_that_come_back_are_counted() -> None:
    window = ReceiveWindow(1000, 1000)
    assert not window.consume(400)
    assert not window.consume(-400)
    assert not window.consume(400)
    assert window.consumed == 400
