from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.circuit.events import RelayState
from dep2p_daemon.circuit.keeper import TRANSITIONS, Keeper, KeeperSettings, Signal

HOUR = 3600.0


def keeper(seed: int = 0) -> Keeper:
    return Keeper(KeeperSettings(), Random(seed))


def waits_after_failures(kept: Keeper, count: int, now: float = 0.0) -> list[float]:
    waits = []
    for _ in range(count):
        kept.failed(now)
        deadline = kept.deadline()
        assert deadline is not None
        waits.append(deadline - now)
        now = deadline
        kept.due(now)
    return waits


def test_the_first_attempt_is_at_once() -> None:
    kept = keeper()
    assert kept.state is RelayState.CONNECTING
    assert kept.deadline() is None


def test_failures_wait_twice_as_long_each_time_up_to_a_minute_and_never_give_up() -> None:
    waits = waits_after_failures(keeper(), 3000)
    for wait, nominal in zip(waits, [1, 2, 4, 8, 16, 32], strict=False):
        assert 0.8 * nominal <= wait <= nominal
    assert all(48 <= wait <= 60 for wait in waits[6:])


def test_two_clients_of_one_relay_do_not_try_in_step() -> None:
    assert waits_after_failures(keeper(1), 8) != waits_after_failures(keeper(2), 8)


@given(st.integers(0, 2**32))
def test_a_refresh_is_due_well_before_the_end(seed: int) -> None:
    kept = keeper(seed)
    kept.granted(HOUR, 100.0)
    assert kept.state is RelayState.RESERVED
    assert kept.expires_at == 100.0 + HOUR
    deadline = kept.deadline()
    assert deadline is not None
    assert 0.65 * HOUR <= deadline - 100.0 <= 0.8 * HOUR


def test_a_refresh_keeps_the_old_reservation_until_the_new_one_is_there() -> None:
    kept = keeper()
    kept.granted(HOUR, 0.0)
    due = kept.deadline()
    assert due is not None
    kept.due(due)
    assert (kept.state, kept.expires_at) == (RelayState.RESERVED, HOUR)
    kept.failed(due)
    assert (kept.state, kept.expires_at) == (RelayState.RESERVED, HOUR)
    assert kept.deadline() == pytest.approx(due + 0.9, abs=0.11)
    again = kept.deadline()
    assert again is not None
    kept.due(again)
    kept.granted(HOUR, again)
    assert (kept.state, kept.expires_at) == (RelayState.RESERVED, again + HOUR)


def test_a_reservation_that_could_not_be_refreshed_ends_when_it_ends() -> None:
    kept, now, waits = keeper(), 0.0, 0
    kept.granted(HOUR, now)
    while kept.state is RelayState.RESERVED:
        deadline = kept.deadline()
        assert deadline is not None
        now = deadline
        kept.due(now)
        if kept.state is RelayState.RESERVED:
            waits += 1
            kept.failed(now)
    assert now == HOUR
    assert waits > 10
    assert (kept.state, kept.expires_at) == (RelayState.CONNECTING, None)


def test_a_relay_with_very_short_reservations_is_not_asked_all_the_time() -> None:
    kept = keeper()
    kept.granted(0.01, 0.0)
    assert kept.next_try_at == 1.0


def test_a_lost_connection_is_followed_by_an_attempt_at_once() -> None:
    kept = keeper()
    kept.granted(HOUR, 0.0)
    kept.lost(60.0)
    assert (kept.state, kept.deadline(), kept.expires_at) == (RelayState.CONNECTING, None, None)
    kept.failed(60.0)
    assert kept.state is RelayState.BACKOFF
    assert kept.deadline() == pytest.approx(60.9, abs=0.11)


def test_a_relay_that_grants_and_hangs_up_again_and_again_is_left_alone_longer_and_longer() -> None:
    kept, now = keeper(), 0.0
    waits: list[float] = []
    for _ in range(8):
        kept.granted(HOUR, now)
        now += 0.1
        kept.lost(now)
        deadline = kept.deadline()
        waits.append(0.0 if deadline is None else deadline - now)
        if deadline is not None:
            now = deadline
            kept.due(now)
        assert kept.state is RelayState.CONNECTING
    assert waits[0] == 0
    assert all(later > earlier for earlier, later in pairwise(waits[:6]))
    assert all(wait <= 60 for wait in waits)
    # One that lasted clears the past.
    kept.granted(HOUR, now)
    kept.lost(now + 20.0)
    assert (kept.state, kept.deadline()) == (RelayState.CONNECTING, None)


def test_a_released_relay_wants_nothing_any_more() -> None:
    kept = keeper()
    kept.granted(HOUR, 0.0)
    kept.release()
    assert (kept.state, kept.deadline(), kept.expires_at) == (RelayState.DISCONNECTED, None, None)


def test_every_state_but_the_last_can_be_released_and_nothing_leaves_the_last() -> None:
    for state in RelayState:
        if state is RelayState.DISCONNECTED:
            assert not any(start is state for start, _ in TRANSITIONS)
        else:
            assert TRANSITIONS[state, Signal.RELEASED] is RelayState.DISCONNECTED


@given(st.lists(st.tuples(st.sampled_from(["ok", "fail", "lose", "wait"]), st.floats(0, 100))))
def test_whatever_happens_there_is_a_next_step_within_bounds(
    happenings: list[tuple[str, float]],
) -> None:
    """The keeper's loop: an attempt when no deadline is set, else wait for it or for the loss."""
    kept, now = keeper(), 0.0
    for what, seconds in happenings:
        now += seconds
        deadline = kept.deadline()
        if deadline is None:
            assert kept.state in (RelayState.CONNECTING, RelayState.RESERVED)
            if what == "ok":
                kept.granted(600.0, now)
            else:
                kept.failed(now)
        elif what == "lose" and kept.state is RelayState.RESERVED:
            kept.lost(now)
        else:
            now = max(now, deadline)
            kept.due(now)
        following = kept.deadline()
        assert following is None or following - now <= 600
