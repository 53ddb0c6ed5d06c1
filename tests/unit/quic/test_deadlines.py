"""One heap for many deadlines."""

from __future__ import annotations

import gc
import weakref

from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.quic.deadlines import Deadline, DeadlineQueue


def test_moves_to_later_times_cost_no_entries() -> None:
    queue: DeadlineQueue[str] = DeadlineQueue()
    item = Deadline("c")
    for at in range(1000):
        queue.set(item, 10.0 + at)
    assert len(queue) == 1
    assert queue.next_at == 10.0
    assert queue.due(10.0) == []  # early, never late
    assert queue.next_at == 1009.0
    assert queue.due(1009.0) == ["c"]
    assert queue.next_at is None


def test_short_timers_before_a_long_one_do_not_pile_up() -> None:
    # An acknowledgement timer of a millisecond, again and again, before an idle timeout.
    queue: DeadlineQueue[str] = DeadlineQueue()
    item = Deadline("c")
    now = 0.0
    for _ in range(1000):
        queue.set(item, now + 30.0)
        queue.set(item, now + 0.001)
        now += 0.001
        assert queue.due(now) == ["c"]
        assert len(queue) <= 2


def test_a_cancelled_deadline_lets_its_owner_go() -> None:
    class Owner:
        pass

    queue: DeadlineQueue[Owner] = DeadlineQueue()
    owner = Owner()
    gone = weakref.ref(owner)
    item = Deadline(owner)
    queue.set(item, 30.0)
    queue.cancel(item)
    del owner
    gc.collect()
    assert gone() is None
    assert queue.due(31.0) == []
    assert len(queue) == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.one_of(st.none(), st.integers(0, 50)), st.integers(0, 10)),
        max_size=100,
    )
)
def test_as_a_naive_queue_does_it(
    steps: list[tuple[int, int | None, int]],
) -> None:
    queue: DeadlineQueue[int] = DeadlineQueue()
    items = [Deadline(number) for number in range(5)]
    naive: dict[int, float] = {}
    now = 0.0
    for number, delay, pause in steps:
        at = None if delay is None else now + delay
        queue.set(items[number], at)
        if at is None:
            naive.pop(number, None)
        else:
            naive[number] = at
        now += pause
        if naive:
            assert queue.next_at is not None
            assert queue.next_at <= min(naive.values())
        due = queue.due(now)
        assert sorted(due) == sorted(n for n, at in naive.items() if at <= now)
        for owner in due:
            del naive[owner]
