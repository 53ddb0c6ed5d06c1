"""What the counters of dials and punches count, and under which labels."""

from __future__ import annotations

import dataclasses

import pytest
from tests.memory_nodes import address_of, peer

from dep2p_daemon.nat.dcutr import PunchRole
from dep2p_daemon.nat.nat_kind import NatKind
from dep2p_daemon.nat.trail import Outcome, Reason, Side, Step, StepKind, Trail, TrailEnded
from dep2p_daemon.ops.metrics import EventCounts

DIAL = Step(
    kind=StepKind.DIRECT_DIAL, number=0, role=None, addresses=(address_of(1),), started_at=0.0
)
PUNCH = dataclasses.replace(DIAL, kind=StepKind.PUNCH, number=1, role=PunchRole.SERVER)
TRAIL = Trail(
    peer=peer(1),
    side=Side.INITIATOR,
    relay=None,
    started_at=0.0,
    own_nat=NatKind.ENDPOINT_INDEPENDENT,
    peer_nat=NatKind.ADDRESS_DEPENDENT,
)
NATS = ("endpoint_independent", "address_dependent")


def counted(*steps: Step, reason: Reason, transport: str = "") -> EventCounts:
    counts = EventCounts()
    outcome = Outcome.DIRECT if reason is Reason.DIRECT else Outcome.FAILED
    trail = dataclasses.replace(TRAIL, steps=steps, outcome=outcome, reason=reason)
    counts.take(TrailEnded(trail, transport))
    return counts


@pytest.mark.parametrize("reason", Reason)
def test_a_punch_counts_once_by_its_reason_and_both_nats(reason: Reason) -> None:
    failed = dataclasses.replace(PUNCH, outcome=Outcome.FAILED)
    counts = counted(failed, dataclasses.replace(failed, number=2), reason=reason)
    assert counts.hole_punches == {(reason.value.lower(), *NATS, "quic-v1"): 1}
    assert not counts.direct_dials


def test_a_dial_that_got_through_is_no_punch() -> None:
    dialled = dataclasses.replace(DIAL, outcome=Outcome.DIRECT)
    counts = counted(dialled, reason=Reason.DIRECT, transport="tcp")
    assert counts.direct_dials == {("direct", *NATS): 1}
    assert not counts.hole_punches


def test_a_dial_that_was_slower_than_the_punch_counts_as_that() -> None:
    dialled = dataclasses.replace(DIAL, outcome=Outcome.ABANDONED)
    punched = dataclasses.replace(PUNCH, outcome=Outcome.DIRECT)
    counts = counted(dialled, punched, reason=Reason.DIRECT, transport="tcp")
    assert counts.direct_dials == {("abandoned", *NATS): 1}
    assert counts.hole_punches == {("direct", *NATS, "tcp"): 1}


def test_an_attempt_without_a_packet_has_no_transport() -> None:
    counts = counted(reason=Reason.PEER_UNSUPPORTED)
    assert counts.hole_punches == {("peer_unsupported", *NATS, "none"): 1}
