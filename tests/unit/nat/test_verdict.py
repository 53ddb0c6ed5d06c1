"""Why a punch failed, from what both sides offered; and the record of it, bounded."""

from __future__ import annotations

import dataclasses

import pytest

from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.nat.observed import MappingBehaviour
from dep2p_daemon.nat.trail import (
    MAX_STEPS,
    Outcome,
    Reason,
    Side,
    Step,
    StepKind,
    Trail,
    TrailBook,
    explain,
    with_step,
)
from dep2p_daemon.nat.verdict import verdict

UDP = Multiaddr.for_udp("45.8.1.7", 4001)
UDP_OTHER_PORT = Multiaddr.for_udp("45.8.1.7", 4002)
UDP_V6 = Multiaddr.for_udp("2a0e::7", 4001)
TCP = Multiaddr.for_tcp("45.8.1.7", 4001)
UNKNOWN, DEPENDENT = MappingBehaviour.UNKNOWN, MappingBehaviour.ADDRESS_DEPENDENT


def trail(number: int = 1, **fields: object) -> Trail:
    peer = PrivateKey.from_seed(number.to_bytes(32, "big")).peer_id
    base = Trail(peer=peer, side=Side.INITIATOR, relay=None, started_at=float(number))
    return dataclasses.replace(base, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("own", "mapping", "theirs", "reason"),
    [
        ((UDP,), UNKNOWN, (), Reason.NO_PEER_ADDRESS),
        ((), UNKNOWN, (UDP,), Reason.NO_OWN_ADDRESS),
        ((TCP,), UNKNOWN, (UDP,), Reason.NO_COMMON_TRANSPORT),
        ((UDP_V6,), UNKNOWN, (UDP,), Reason.NO_COMMON_IP_VERSION),
        ((UDP_V6, UDP), UNKNOWN, (UDP,), Reason.PUNCH_FAILED),
        ((UDP,), DEPENDENT, (UDP,), Reason.OWN_NAT_SYMMETRIC),
        ((UDP,), UNKNOWN, (UDP, UDP_OTHER_PORT), Reason.PEER_NAT_SYMMETRIC),
        ((UDP,), DEPENDENT, (UDP, UDP_OTHER_PORT), Reason.BOTH_NATS_SYMMETRIC),
        ((UDP, TCP), UNKNOWN, (UDP, TCP, UDP_V6), Reason.PUNCH_FAILED),
    ],
)
def test_verdicts(
    own: tuple[Multiaddr, ...],
    mapping: MappingBehaviour,
    theirs: tuple[Multiaddr, ...],
    reason: Reason,
) -> None:
    assert verdict(trail(own_candidates=own, own_mapping=mapping), theirs) is reason


@pytest.mark.parametrize(
    ("own", "theirs", "agent", "reason"),
    [
        ((UDP,), (), "js-libp2p/3.3.11 node/20.20.2", Reason.PEER_CANNOT_PUNCH),
        ((UDP,), (UDP,), "js-libp2p/3.3.11 node/20.20.2", Reason.PEER_CANNOT_PUNCH),
        # What keeps any peer from it comes first.
        ((), (UDP,), "js-libp2p/3.3.11 node/20.20.2", Reason.NO_OWN_ADDRESS),
        ((UDP_V6,), (UDP,), "js-libp2p/3.3.11 node/20.20.2", Reason.NO_COMMON_IP_VERSION),
        ((UDP,), (UDP,), "dep2pd/0.1", Reason.PUNCH_FAILED),
    ],
)
def test_a_peer_that_dials_from_other_ports_cannot_punch(
    own: tuple[Multiaddr, ...], theirs: tuple[Multiaddr, ...], agent: str, reason: Reason
) -> None:
    assert verdict(trail(own_candidates=own), theirs, agent) is reason


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_explained(reason: Reason) -> None:
    message, remedy = explain(reason)
    assert message
    assert remedy or reason in (Reason.DIRECT, Reason.STOPPING)


def test_a_book_keeps_the_last_trails_of_the_last_peers() -> None:
    book = TrailBook(max_peers=3, max_per_peer=2)
    for number in (1, 2, 3, 1, 1, 4):
        book.begin(trail(number))
    assert [len(book.of(trail(n).peer)) for n in (1, 2, 3, 4)] == [2, 0, 1, 1]
    assert book.latest(trail(2).peer) is None


def test_a_trail_is_replaced_while_it_is_kept() -> None:
    book = TrailBook(max_per_peer=1)
    first, second = trail(1), trail(1, started_at=2.0)
    book.begin(first)
    longer = dataclasses.replace(first, outcome=Outcome.FAILED)
    book.replace(first, longer)
    assert book.latest(first.peer) is longer
    book.begin(second)
    book.replace(longer, first)
    assert book.of(first.peer) == (second,)


def test_steps_are_replaced_in_place_and_bounded() -> None:
    one = Step(kind=StepKind.PUNCH, number=1, role=None, addresses=(), started_at=0.0)
    two = dataclasses.replace(one, number=2)
    done = dataclasses.replace(one, outcome=Outcome.FAILED)
    assert with_step(with_step(with_step(trail(), one), two), done).steps == (done, two)
    long = trail()
    for number in range(100):
        long = with_step(long, dataclasses.replace(one, number=number))
    assert [step.number for step in long.steps] == list(range(100 - MAX_STEPS, 100))
