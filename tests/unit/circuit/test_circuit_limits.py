from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.circuit.limits import FairQueue, PairRates, TokenBucket, Turn
from dep2p_daemon.identity.keys import PrivateKey

ALICE, BOB = (PrivateKey.from_seed(seed * 32).peer_id for seed in (b"a", b"b"))


def test_a_bucket_lets_a_burst_through_and_then_makes_wait_for_the_debt() -> None:
    bucket = TokenBucket(1000, 0.0, burst=500)
    assert bucket.wait_time(0.0) == 0
    bucket.take(1500, 0.0)
    assert bucket.wait_time(0.0) == 1.0
    assert bucket.wait_time(0.75) == 0.25
    assert bucket.wait_time(1.0) == 0


def test_a_bucket_saves_up_no_more_than_its_burst() -> None:
    bucket = TokenBucket(1000, 0.0, burst=500)
    bucket.take(1000, 3600.0)
    assert bucket.wait_time(3600.0) == 0.5


def test_a_clock_that_steps_back_costs_nothing() -> None:
    bucket = TokenBucket(1000, 100.0, burst=0)
    bucket.take(1000, 99.0)
    assert bucket.wait_time(99.0) == 1.0


@given(
    rate=st.floats(1000, 1e9),
    chunks=st.lists(st.integers(1, 300_000), min_size=1, max_size=60),
)
def test_the_average_rate_holds_whatever_the_chunks(rate: float, chunks: list[int]) -> None:
    bucket, now = TokenBucket(rate, 0.0), 0.0
    for chunk in chunks:
        now += bucket.wait_time(now)
        assert bucket.wait_time(now) == 0, "the wait that was asked for is long enough"
        bucket.take(chunk, now)
    # The last chunk may be owed, and the burst is free.
    assert sum(chunks[:-1]) <= rate * now + rate / 4 + 1


def test_a_pair_shares_one_bucket_in_both_directions_until_its_last_circuit_ends() -> None:
    rates = PairRates(1000)
    pair = frozenset((ALICE, BOB))
    first = rates.join(pair, 0.0)
    assert rates.join(frozenset((BOB, ALICE)), 0.0) is first
    rates.leave(pair)
    assert rates.join(pair, 0.0) is first
    rates.leave(pair)
    rates.leave(pair)
    rates.leave(pair)
    assert len(rates) == 0
    assert rates.join(pair, 0.0) is not first


def test_no_rate_is_no_bucket() -> None:
    rates = PairRates(None)
    assert rates.join(frozenset((ALICE, BOB)), 0.0) is None
    assert len(rates) == 0


def drain(queue: FairQueue, demand: dict[int, list[int]], seconds: float) -> dict[int, int]:
    """Let each flow ask for its next chunk as soon as it got the one before; return bytes."""
    got = dict.fromkeys(demand, 0)
    left = {flow: list(chunks) for flow, chunks in demand.items()}
    now = 0.0
    for flow, chunks in left.items():
        queue.ask(flow, chunks.pop(0))
    while (wait := queue.wait_time(now)) is not None and now + wait < seconds:
        now += wait
        for turn in queue.poll(now):
            got[turn.flow] += turn.size
            if left[turn.flow]:
                queue.ask(turn.flow, left[turn.flow].pop(0))
    return got


def test_busy_flows_get_equal_parts_whatever_their_chunk_sizes() -> None:
    queue = FairQueue(10_000, 0.0)
    got = drain(queue, {1: [100] * 10_000, 2: [1000] * 1000, 3: [333] * 3000}, seconds=60.0)
    assert 590_000 <= sum(got.values()) <= 610_000
    assert all(abs(size - 200_000) <= 3000 for size in got.values())


def test_what_one_flow_leaves_the_others_use() -> None:
    queue = FairQueue(10_000, 0.0)
    got = drain(queue, {1: [100] * 10, 2: [500] * 10_000}, seconds=30.0)
    assert got[1] == 1000
    assert got[2] >= 298_000


def test_a_flow_that_comes_later_neither_pays_for_nor_gains_from_the_past() -> None:
    queue, now = FairQueue(1000, 0.0), 0.0
    for _ in range(100):
        queue.ask(1, 500)
        while not queue.poll(now):
            wait = queue.wait_time(now)
            assert wait is not None
            now += wait
    queue.ask(1, 500)
    queue.ask(1, 500)
    queue.ask(2, 500)
    order: list[int] = []
    while (wait := queue.wait_time(now)) is not None:
        now += wait
        order += [turn.flow for turn in queue.poll(now)]
    assert order in ([1, 2, 1], [2, 1, 1])


def test_a_cancelled_turn_takes_nothing() -> None:
    queue = FairQueue(1000, 0.0)
    queue.ask(1, 10_000)
    (first,) = queue.poll(0.0)
    assert first.flow == 1
    gone = queue.ask(2, 1_000_000)
    stays = queue.ask(3, 100)
    queue.cancel(gone)
    wait = queue.wait_time(0.0)
    assert wait is not None
    assert queue.poll(wait) == [stays]
    assert queue.wait_time(wait) is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5000)), max_size=80))
def test_every_turn_comes_once_and_in_its_flows_order(asks: list[tuple[int, int]]) -> None:
    queue, now = FairQueue(50_000, 0.0), 0.0
    turns = [queue.ask(flow, size) for flow, size in asks]
    came: list[Turn] = []
    while (wait := queue.wait_time(now)) is not None:
        now += wait
        came += queue.poll(now)
    assert sorted(turn.number for turn in came) == [turn.number for turn in turns]
    for flow in range(6):
        numbers = [turn.number for turn in came if turn.flow == flow]
        assert numbers == sorted(numbers)
