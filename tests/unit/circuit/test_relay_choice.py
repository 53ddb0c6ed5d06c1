"""Which relays are taken and let go: fewer than wanted, enough, a nearer one, one that fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.circuit.events import RelaySource
from dep2p_daemon.circuit.relay_choice import MAX_UNWANTED, ChoiceSettings, Held, RelayChoice
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr

if TYPE_CHECKING:
    from dep2p_daemon.identity.peer_id import PeerId

PEERS = [PrivateKey.from_seed(bytes([n]) * 32).peer_id for n in range(1, 31)]
ADDRESS = Multiaddr.parse("/ip4/192.0.2.1/udp/4001/quic-v1")


def choice(**settings: float) -> RelayChoice:
    return RelayChoice(ChoiceSettings(**settings))  # type: ignore[arg-type]


def offered(*rtts: float | None, now: float = 0.0, **settings: float) -> RelayChoice:
    made = choice(**settings)
    for peer, rtt in zip(PEERS, rtts, strict=False):
        made.offer(peer, ADDRESS, now)
        if rtt is not None:
            made.measured(peer, rtt, now)
    return made


def held(
    peer: PeerId,
    *,
    source: RelaySource = RelaySource.DISCOVERED,
    reserved: bool = True,
    failing: bool = False,
    idle: bool = True,
    rtt: float | None = 0.1,
) -> Held:
    return Held(peer=peer, source=source, reserved=reserved, failing=failing, idle=idle, rtt=rtt)


def test_the_nearest_candidates_fill_up_to_the_wanted_number() -> None:
    made = offered(0.3, 0.1, None, 0.2)
    taken = made.decide([], now=5.0).take
    assert [candidate.peer for candidate in taken] == [PEERS[1], PEERS[3]]


def test_candidates_that_come_together_are_compared_first() -> None:
    made = offered(0.3)
    assert made.decide([], now=1.9).take == ()
    assert len(made.decide([], now=2.0).take) == 1


def test_configured_relays_count_and_are_never_let_go() -> None:
    made = offered(0.001, 0.001)
    configured = [held(peer, source=RelaySource.CONFIGURED, rtt=9.0) for peer in PEERS[10:14]]
    for now in (5.0, 5000.0):
        decision = made.decide(configured, now)
        assert (decision.take, decision.release) == ((), ())


def test_a_configured_relay_that_fails_is_stood_in_for_until_it_is_back() -> None:
    made = offered(0.1)
    one = held(PEERS[10], source=RelaySource.CONFIGURED)
    down = held(PEERS[11], source=RelaySource.CONFIGURED, reserved=False, failing=True)
    up = held(PEERS[11], source=RelaySource.CONFIGURED)
    stand_in = held(PEERS[0])
    assert [c.peer for c in made.decide([one, down], 5.0).take] == [PEERS[0]]
    assert made.decide([one, down, stand_in], 6.0) == made.decide([one, up], 6.0)
    assert made.decide([one, up, stand_in], 7.0).release == (PEERS[0],)


def test_one_that_is_being_asked_counts_until_it_fails() -> None:
    made = offered(0.1, 0.2, 0.3)
    asked = held(PEERS[0], reserved=False)
    assert [c.peer for c in made.decide([asked], 5.0).take] == [PEERS[1]]


def test_a_discovered_relay_that_fails_makes_room_for_one_that_was_not_tried() -> None:
    made = offered(0.1, 0.2)
    failing = held(PEERS[0], reserved=False, failing=True)
    decision = made.decide([failing], 5.0)
    assert [c.peer for c in decision.take] == [PEERS[1]]
    assert decision.release == (PEERS[0],)


def test_the_only_relay_known_goes_on_being_tried() -> None:
    made = offered(0.1)
    failing = held(PEERS[0], reserved=False, failing=True)
    decision = made.decide([failing], 5.0)
    assert (decision.take, decision.release) == ((), ())


def test_a_candidate_that_failed_is_left_alone_longer_each_time_up_to_an_hour() -> None:
    made, now = offered(0.1), 10.0
    waits = []
    for _ in range(40):
        made.failed(PEERS[0], now)
        before, now = now, made.candidates[PEERS[0]].not_before
        assert made.decide([], now - 0.1).take == ()
        assert len(made.decide([], now).take) == 1
        waits.append(now - before)
    assert waits[:3] == [30.0, 60.0, 120.0]
    assert waits[-1] == 3600.0
    made.succeeded(PEERS[0])
    assert made.candidates[PEERS[0]].failures == 0


def replaceable(idle: bool = True) -> list[Held]:
    return [held(PEERS[10], rtt=0.2, idle=idle), held(PEERS[11], rtt=0.1)]


def test_a_much_nearer_relay_is_taken_before_the_farthest_is_let_go() -> None:
    made = offered(0.05)
    made.decide(replaceable(), 5.0)
    decision = made.decide(replaceable(), 400.0)
    assert [c.peer for c in decision.take] == [PEERS[0]]
    assert decision.release == ()
    asked = [*replaceable(), held(PEERS[0], reserved=False, rtt=None)]
    assert made.decide(asked, 401.0).release == ()
    three = [*replaceable(), held(PEERS[0], rtt=0.05)]
    assert made.decide(three, 402.0).release == (PEERS[10],)


def test_a_relay_that_carries_a_connection_is_not_let_go() -> None:
    made = offered(0.05)
    three = [held(PEERS[10], rtt=0.2, idle=False), held(PEERS[11], rtt=0.1), held(PEERS[0])]
    assert made.decide(three, 400.0).release != (PEERS[10],)
    busy = [held(peer, idle=False) for peer in (PEERS[10], PEERS[11], PEERS[0])]
    assert made.decide(busy, 400.0).release == ()


def test_nearly_as_near_is_no_reason_to_change_nor_is_a_relay_just_taken() -> None:
    made = offered(0.15)
    made.decide(replaceable(), 5.0)
    assert made.decide(replaceable(), 400.0).take == ()
    nearer = offered(0.05)
    nearer.decide(replaceable(), 5.0)
    assert nearer.decide(replaceable(), 300.0).take == ()


def test_an_old_measurement_is_not_believed() -> None:
    made = offered(0.05)
    made.decide(replaceable(), 5.0)
    assert made.decide(replaceable(), 2000.0).take == ()


def test_candidates_are_bounded_and_the_one_seen_longest_ago_goes() -> None:
    made = choice()
    for number, peer in enumerate(PEERS):
        made.offer(peer, ADDRESS, float(number))
    assert list(made.candidates) == PEERS[10:]
    assert not offered(0.1, max_candidates=0).candidates


def test_a_relay_that_was_given_up_is_no_candidate() -> None:
    made = offered(0.1)
    made.give_up(PEERS[0])
    made.offer(PEERS[0], ADDRESS, 1.0)
    assert made.decide([], 60.0).take == ()
    for number in range(1000):
        made.give_up(PrivateKey.from_seed(number.to_bytes(32, "big")).peer_id)
    assert len(made.unwanted) == MAX_UNWANTED


@given(
    st.lists(
        st.builds(
            held,
            st.sampled_from(PEERS[:12]),
            source=st.sampled_from(RelaySource),
            reserved=st.booleans(),
            failing=st.booleans(),
            idle=st.booleans(),
            rtt=st.none() | st.floats(0, 1),
        ),
        unique_by=lambda relay: relay.peer,
    ),
    st.lists(st.none() | st.floats(0, 1), max_size=20),
    st.integers(0, 4),
)
def test_it_never_drops_below_what_is_wanted_nor_what_was_asked_for(
    relays: list[Held], rtts: list[float | None], wanted: int
) -> None:
    made = offered(*rtts, wanted=wanted)
    decision = made.decide(relays, 1000.0)
    by_peer = {relay.peer: relay for relay in relays}
    reserved = sum(relay.reserved for relay in relays)
    assert all(by_peer[p].source is RelaySource.DISCOVERED for p in decision.release)
    let_go = sum(by_peer[p].reserved and not by_peer[p].failing for p in decision.release)
    assert let_go == 0 or reserved - let_go >= wanted
    assert not {candidate.peer for candidate in decision.take} & by_peer.keys()
    assert len(decision.take) <= max(1, wanted)
