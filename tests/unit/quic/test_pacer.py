"""Pacing with millisecond timers."""

from __future__ import annotations

import pytest

from dep2p_daemon.quic.pacer import PASS_PACKETS, BurstPacer


def sent_in(pacer: BurstPacer, seconds: float, tick: float) -> int:
    """Packets sent by a loop that wakes every `tick`."""
    now, count = 100.0, 0
    while now < 100.0 + seconds:
        pacer.begin_pass()
        while pacer.next_send_time(now=now) is None:
            pacer.update_after_send(now=now)
            count += 1
        now += tick
    return count


def test_a_pass_is_bounded_before_the_first_sample() -> None:
    pacer = BurstPacer(max_datagram_size=1400)
    pacer.begin_pass()
    for _ in range(PASS_PACKETS):
        assert pacer.next_send_time(now=5.0) is None
        pacer.update_after_send(now=5.0)
    assert pacer.next_send_time(now=5.0) == 5.0
    pacer.begin_pass()
    assert pacer.next_send_time(now=5.0) is None


@pytest.mark.parametrize("tick", [0.0002, 0.001, 0.002])
def test_the_rate_is_kept_whatever_the_timer(tick: float) -> None:
    pacer = BurstPacer(max_datagram_size=1400)
    # 140 kB a 50 ms are 2000 packets a second; a quarter more may go.
    pacer.update_rate(congestion_window=140_000, smoothed_rtt=0.05)
    count = sent_in(pacer, 2.0, tick)
    assert 4900 <= count <= 5100


def test_a_burst_after_a_pause_is_short() -> None:
    pacer = BurstPacer(max_datagram_size=1400)
    pacer.update_rate(congestion_window=140_000, smoothed_rtt=0.05)
    pacer.begin_pass()
    pacer.update_bucket(now=1000.0)
    burst = 0
    while pacer.next_send_time(now=1000.0) is None:
        pacer.update_after_send(now=1000.0)
        burst += 1
    assert burst <= 12


def test_it_says_when() -> None:
    pacer = BurstPacer(max_datagram_size=1400)
    pacer.update_rate(congestion_window=140_000, smoothed_rtt=0.05)
    pacer.begin_pass()
    pacer.update_bucket(now=10.0)
    pacer.bucket_time = 0.0
    assert pacer.next_send_time(now=10.0) is None
    pacer.update_after_send(now=10.0)
    at = pacer.next_send_time(now=10.0)
    assert at == pytest.approx(10.0004)
    assert pacer.next_send_time(now=10.0005) is None
