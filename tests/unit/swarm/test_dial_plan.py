from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.swarm.dial_plan import DialPlan
from dep2p_daemon.swarm.ranking import Candidate, Group
from dep2p_daemon.swarm.settings import DialSettings

SETTINGS = DialSettings()
RELAY = PrivateKey.from_seed(b"r" * 32).peer_id


def candidate(group: Group, number: int) -> Candidate:
    text = {
        Group.LOCAL: f"/ip4/127.0.0.1/tcp/{number}",
        Group.PUBLIC: f"/ip4/203.0.113.1/tcp/{number}",
        Group.PRIVATE: f"/ip4/10.0.0.1/tcp/{number}",
        Group.CIRCUIT: f"/ip4/203.0.113.2/tcp/{number}/p2p/{RELAY}/p2p-circuit",
    }[group]
    return Candidate(Multiaddr.parse(text), group, 1.0)


def candidates(**counts: int) -> list[Candidate]:
    return [
        candidate(group, number)
        for group in Group
        for number in range(1, counts.get(group.name.lower(), 0) + 1)
    ]


def starts(plan: DialPlan, until: float) -> list[tuple[float, str]]:
    """Run the plan with attempts that never end; return when which group started."""
    now, seen = 0.0, []
    while True:
        while (started := plan.due(now)) is not None:
            seen.append((round(now, 3), started.group.name))
        deadline = plan.deadline()
        if deadline is None or deadline > until:
            return seen
        assert deadline > now, "the plan says to ask again, and then has nothing to say"
        now = deadline


def test_public_addresses_start_a_quarter_of_a_second_apart() -> None:
    plan = DialPlan(SETTINGS)
    plan.add(candidates(public=3), 0.0)
    assert starts(plan, 60.0) == [(0.0, "PUBLIC"), (0.25, "PUBLIC"), (0.5, "PUBLIC")]


def test_local_addresses_start_first_and_close_together() -> None:
    plan = DialPlan(SETTINGS)
    plan.add(candidates(local=2, public=2), 0.0)
    assert starts(plan, 60.0) == [
        (0.0, "LOCAL"),
        (0.03, "LOCAL"),
        (0.06, "PUBLIC"),
        (0.31, "PUBLIC"),
    ]


def test_circuits_wait_half_a_second_for_direct_addresses_only() -> None:
    plan = DialPlan(SETTINGS)
    plan.add(candidates(public=1, circuit=2), 0.0)
    assert starts(plan, 60.0) == [(0.0, "PUBLIC"), (0.5, "CIRCUIT"), (0.75, "CIRCUIT")]
    alone = DialPlan(SETTINGS)
    alone.add(candidates(circuit=1), 0.0)
    assert starts(alone, 60.0) == [(0.0, "CIRCUIT")]


def test_circuits_wait_for_a_name_that_may_bring_direct_addresses() -> None:
    plan = DialPlan(SETTINGS)
    plan.resolving()
    plan.add(candidates(circuit=1), 0.0)
    assert plan.due(0.4) is None
    plan.resolved(candidates(public=1), 0.4)
    first = plan.due(0.4)
    assert first is not None
    assert first.group is Group.PUBLIC
    assert plan.due(0.4) is None
    second = plan.due(0.5)
    assert second is not None
    assert second.group is Group.CIRCUIT


def test_a_failure_starts_the_next_of_its_group_at_once() -> None:
    plan = DialPlan(SETTINGS)
    plan.add(candidates(public=2, circuit=1), 0.0)
    first = plan.due(0.0)
    assert first is not None
    plan.failed(first, 0.01)
    second = plan.due(0.01)
    assert second is not None
    assert second.group is Group.PUBLIC
    # Something direct still runs: the circuit keeps waiting its turn.
    assert plan.due(0.02) is None
    assert plan.deadline() == 0.5


def test_a_failure_starts_the_next_while_others_run() -> None:
    plan = DialPlan(SETTINGS)
    plan.add(candidates(public=3), 0.0)
    first, second = plan.due(0.0), plan.due(0.25)
    assert first is not None
    assert second is not None
    plan.failed(first, 0.3)
    assert plan.due(0.3) is not None


def test_when_the_last_direct_attempt_fails_the_circuit_starts_at_once() -> None:
    plan = DialPlan(SETTINGS)
    plan.add(candidates(public=1, circuit=1), 0.0)
    first = plan.due(0.0)
    assert first is not None
    plan.failed(first, 0.1)
    second = plan.due(0.1)
    assert second is not None
    assert second.group is Group.CIRCUIT


def test_no_more_than_eight_attempts_run_at_once() -> None:
    plan = DialPlan(SETTINGS)
    plan.add(candidates(public=12), 0.0)
    started = [plan.due(100.0 + n) for n in range(9)]
    assert sum(one is not None for one in started) == 8
    assert plan.deadline() is None
    assert started[0] is not None
    plan.failed(started[0], 200.0)
    assert plan.due(200.0) is not None


def test_a_winner_stops_the_rest_but_a_circuit_lets_direct_attempts_finish() -> None:
    for keep_direct, stopped in ((False, {"LOCAL", "PUBLIC"}), (True, set())):
        plan = DialPlan(SETTINGS)
        plan.add(candidates(local=1, public=2, circuit=2), 0.0)
        assert plan.due(0.0) is not None
        assert plan.due(0.1) is not None
        ended = plan.stop(keep_direct=keep_direct)
        assert {one.group.name for one in ended} == stopped
        assert plan.due(1000.0) is None


groups = st.sampled_from(list(Group))
steps = st.lists(
    st.tuples(
        st.sampled_from(["add", "resolve", "resolved", "fail", "wait"]), groups, st.floats(0, 2)
    ),
    max_size=60,
)


@given(steps)
def test_every_address_is_started_exactly_once_whatever_happens(
    script: list[tuple[str, Group, float]],
) -> None:
    plan, now, names = DialPlan(SETTINGS), 0.0, 0
    added: set[Candidate] = set()
    started: list[Candidate] = []

    def start_due() -> None:
        while (one := plan.due(now)) is not None:
            started.append(one)
            assert len(plan.running) <= SETTINGS.max_concurrent

    for number, (action, group, wait) in enumerate(script, start=1):
        fresh = [candidate(group, number)]
        if action == "add":
            plan.add(fresh, now)
            added.update(fresh)
        elif action == "resolve":
            plan.resolving()
            names += 1
        elif action == "resolved" and names:
            plan.resolved(fresh, now)
            added.update(fresh)
            names -= 1
        elif action == "fail" and plan.running:
            plan.failed(plan.running[0], now)
        elif action == "wait":
            now += wait
        start_due()
    for _ in range(names):
        plan.resolved([], now)
    while not plan.exhausted:
        start_due()
        deadline = plan.deadline()
        if plan.running:
            plan.failed(plan.running[0], now)
        else:
            assert deadline is not None
            now = max(now, deadline)
    assert len(started) == len(added)
    assert set(started) == added
