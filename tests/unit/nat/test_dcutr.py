"""The two roles of DCUtR: every message in every state."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.errors import ProtocolViolationError
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.nat.dcutr import (
    MAX_ROUNDS,
    MAX_RTT,
    ActAt,
    Initiator,
    PunchRole,
    Receiver,
    Send,
    State,
    initiator_role,
)
from dep2p_daemon.nat.dcutr_message import DcutrMessage, MessageType
from dep2p_daemon.nat.observed import MappingBehaviour

OURS = (Multiaddr.parse("/ip4/45.8.1.7/udp/4001/quic-v1"),)
THEIRS = (Multiaddr.parse("/ip4/45.8.2.9/udp/555/quic-v1"),)
CONNECT = DcutrMessage(MessageType.CONNECT, THEIRS)
SYNC = DcutrMessage(MessageType.SYNC)


def test_the_initiator_acts_half_a_round_trip_after_sync() -> None:
    initiator = Initiator(OURS)
    assert initiator.start(10.0) == [Send(DcutrMessage(MessageType.CONNECT, OURS))]
    # Times that floats hold exactly.
    assert initiator.receive(CONNECT, 10.125) == [Send(SYNC), ActAt(10.1875, THEIRS, 0.125)]
    assert initiator.state is State.ACTING


def test_the_receiver_answers_and_acts_on_sync_at_once() -> None:
    receiver = Receiver(OURS)
    assert receiver.receive(CONNECT, 10.0) == [Send(DcutrMessage(MessageType.CONNECT, OURS))]
    assert receiver.receive(SYNC, 10.5) == [ActAt(10.5, THEIRS, None)]
    assert receiver.state is State.ACTING


def test_both_together_act_at_the_same_time_if_both_ways_are_equally_long() -> None:
    one_way = 0.04
    initiator, receiver = Initiator(OURS), Receiver(THEIRS)
    (hello,) = initiator.start(0.0)
    assert isinstance(hello, Send)
    (answer,) = receiver.receive(hello.message, one_way)
    assert isinstance(answer, Send)
    sync, b_acts = initiator.receive(answer.message, 2 * one_way)
    assert isinstance(sync, Send)
    assert isinstance(b_acts, ActAt)
    (a_acts,) = receiver.receive(sync.message, 3 * one_way)
    assert isinstance(a_acts, ActAt)
    assert a_acts.time == pytest.approx(b_acts.time)
    assert (a_acts.addresses, b_acts.addresses) == (OURS, THEIRS)


# State before: the state after each message that is due; all others break the exchange.
INITIATOR_TABLE: dict[str, dict[MessageType, State]] = {
    "idle": {},
    "awaiting connect": {MessageType.CONNECT: State.ACTING},
    "acting": {},
}
RECEIVER_TABLE: dict[str, dict[MessageType, State]] = {
    "awaiting connect": {MessageType.CONNECT: State.AWAITING_SYNC},
    "awaiting sync": {MessageType.SYNC: State.ACTING},
    "acting": {},
}


def initiator_in(state: str) -> Initiator:
    machine = Initiator(OURS)
    if state != "idle":
        machine.start(0.0)
    if state == "acting":
        machine.receive(CONNECT, 0.1)
    return machine


def receiver_in(state: str) -> Receiver:
    machine = Receiver(OURS)
    if state != "awaiting connect":
        machine.receive(CONNECT, 0.0)
    if state == "acting":
        machine.receive(SYNC, 0.1)
    return machine


@pytest.mark.parametrize("message", [CONNECT, SYNC], ids=["connect", "sync"])
@pytest.mark.parametrize("state", INITIATOR_TABLE)
def test_every_message_in_every_state_of_the_initiator(state: str, message: DcutrMessage) -> None:
    machine = initiator_in(state)
    wanted = INITIATOR_TABLE[state].get(message.type)
    if wanted is not None:
        machine.receive(message, 0.1)
        assert machine.state is wanted
        return
    with pytest.raises(ProtocolViolationError) as caught:
        machine.receive(message, 0.1)
    assert caught.value.reason == "DCUTR_ORDER"
    assert machine.state is State.BROKEN


@pytest.mark.parametrize("message", [CONNECT, SYNC], ids=["connect", "sync"])
@pytest.mark.parametrize("state", RECEIVER_TABLE)
def test_every_message_in_every_state_of_the_receiver(state: str, message: DcutrMessage) -> None:
    machine = receiver_in(state)
    wanted = RECEIVER_TABLE[state].get(message.type)
    if wanted is not None:
        machine.receive(message, 0.1)
        assert machine.state is wanted
        return
    with pytest.raises(ProtocolViolationError) as caught:
        machine.receive(message, 0.1)
    assert caught.value.reason == "DCUTR_ORDER"
    assert machine.state is State.BROKEN


@given(st.lists(st.sampled_from([CONNECT, SYNC]), max_size=6))
def test_a_receiver_acts_once_and_only_after_connect_and_sync(messages: list[DcutrMessage]) -> None:
    machine, acted = Receiver(OURS), 0
    for number, message in enumerate(messages):
        try:
            actions = machine.receive(message, float(number))
        except ProtocolViolationError:
            continue
        acted += sum(isinstance(action, ActAt) for action in actions)
    assert acted == (messages[:2] == [CONNECT, SYNC])


def test_an_answer_that_took_too_long_is_no_basis() -> None:
    initiator = Initiator(OURS)
    initiator.start(0.0)
    with pytest.raises(ProtocolViolationError) as caught:
        initiator.receive(CONNECT, MAX_RTT + 0.1)
    assert caught.value.reason == "DCUTR_TOO_SLOW"
    assert initiator.state is State.BROKEN


@pytest.mark.parametrize(
    ("mapping", "roles"),
    [
        (MappingBehaviour.UNKNOWN, "SSC"),
        (MappingBehaviour.ENDPOINT_INDEPENDENT, "SSC"),
        (MappingBehaviour.ADDRESS_DEPENDENT, "CSC"),
    ],
)
def test_the_initiator_is_the_server_but_in_the_last_round(
    mapping: MappingBehaviour, roles: str
) -> None:
    letters = {PunchRole.SERVER: "S", PunchRole.CLIENT: "C"}
    rounds = range(1, MAX_ROUNDS + 1)
    assert "".join(letters[initiator_role(number, mapping)] for number in rounds) == roles
