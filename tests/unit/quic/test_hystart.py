"""The end of slow start before its losses."""

from __future__ import annotations

from dep2p_daemon.quic.hystart import CONSERVATIVE_ROUNDS, SAMPLES, HyStart, Phase


class Rounds:
    """Round after round, of so many measurements each."""

    def __init__(self) -> None:
        self.hystart = HyStart()
        self.now = 10.0

    def round(self, *trips: float) -> Phase:
        sent = self.now
        for trip in trips:
            self.now = sent + trip
            self.hystart.on_acked(sent, self.now)
            self.hystart.on_rtt(trip)
        self.now += 0.001
        return self.hystart.phase


def test_even_round_trips_leave_slow_start_alone() -> None:
    rounds = Rounds()
    for _ in range(20):
        assert rounds.round(*[0.1] * 20) is Phase.SLOW_START
    assert rounds.hystart.divisor == 1


def test_a_filling_queue_slows_it_and_then_ends_it() -> None:
    rounds = Rounds()
    rounds.round(*[0.1] * SAMPLES)
    rounds.round(*[0.1] * SAMPLES)
    assert rounds.round(*[0.113] * SAMPLES) is Phase.CONSERVATIVE
    assert rounds.hystart.divisor > 1
    for _ in range(CONSERVATIVE_ROUNDS):
        assert rounds.round(*[0.114] * SAMPLES) is Phase.CONSERVATIVE
    assert rounds.round(*[0.114] * SAMPLES) is Phase.OVER


def test_a_queue_that_fills_within_a_round_is_seen_in_it() -> None:
    rounds = Rounds()
    rounds.round(*[0.1] * 40)
    assert rounds.round(*[0.1] * SAMPLES, *[0.12] * SAMPLES) is Phase.CONSERVATIVE


def test_how_much_longer_depends_on_the_round_trip_within_bounds() -> None:
    for before, just_less, enough in (
        (0.008, 0.0119, 0.0121),  # 4 ms at least
        (0.080, 0.0899, 0.0901),  # an eighth
        (0.400, 0.4159, 0.4161),  # 16 ms at most
    ):
        for trip, phase in ((just_less, Phase.SLOW_START), (enough, Phase.CONSERVATIVE)):
            rounds = Rounds()
            rounds.round(*[before] * SAMPLES)
            rounds.round(*[before] * SAMPLES)
            assert rounds.round(*[trip] * SAMPLES) is phase


def test_a_few_long_ones_are_jitter() -> None:
    rounds = Rounds()
    for _ in range(10):
        assert rounds.round(*([0.2] * (SAMPLES - 1) + [0.1]) * 4) is Phase.SLOW_START


def test_round_trips_that_shrink_again_undo_it() -> None:
    rounds = Rounds()
    rounds.round(*[0.1] * SAMPLES)
    rounds.round(*[0.1] * SAMPLES)
    assert rounds.round(*[0.13] * SAMPLES) is Phase.CONSERVATIVE
    assert rounds.round(*[0.1] * SAMPLES) is Phase.SLOW_START
    assert rounds.hystart.divisor == 1
