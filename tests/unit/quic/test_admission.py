"""Caps on handshakes, and when Retry comes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.multiaddr import site_of
from dep2p_daemon.quic.admission import Admission, RateLimiter, Verdict
from dep2p_daemon.quic.settings import QuicSettings

SETTINGS = QuicSettings(
    max_connections=100, max_half_open=8, max_half_open_per_ip=3, retry_threshold=5
)


@pytest.mark.parametrize(
    ("unproven", "proven", "validated", "connections", "verdict"),
    [
        (0, 0, False, 0, Verdict.ACCEPT),
        (4, 8, False, 99, Verdict.ACCEPT),
        (5, 0, False, 0, Verdict.RETRY),
        (5, 0, True, 0, Verdict.ACCEPT),
        (5, 7, True, 0, Verdict.ACCEPT),
        (0, 8, True, 0, Verdict.DROP),
        (0, 0, False, 100, Verdict.REFUSE),
        (0, 0, True, 100, Verdict.REFUSE),
    ],
)
def test_verdicts(
    unproven: int, proven: int, validated: bool, connections: int, verdict: Verdict
) -> None:
    admission = Admission(SETTINGS)
    for number in range(unproven):
        admission.opened(f"192.0.2.{number}", validated=False)
    for number in range(proven):
        admission.opened(f"198.51.100.{number}", validated=True)
    assert admission.half_open == unproven + proven
    assert admission.judge("203.0.113.1", validated=validated, connections=connections) is verdict


@pytest.mark.parametrize(("validated", "verdict"), [(False, Verdict.RETRY), (True, Verdict.DROP)])
@pytest.mark.parametrize(
    ("holder", "other"),
    [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8:0:1::1"), ("fe80::1%3", "fe81::1")],
)
def test_one_address_cannot_take_all(
    holder: str, other: str, validated: bool, verdict: Verdict
) -> None:
    admission = Admission(SETTINGS)
    finish = [admission.opened(holder, validated=validated) for _ in range(3)]
    assert admission.judge(holder, validated=validated, connections=0) is verdict
    assert admission.judge(other, validated=validated, connections=0) is Verdict.ACCEPT
    # Forged or forsaken handshakes do not stand in the way of proven ones, or the reverse.
    assert admission.judge(holder, validated=not validated, connections=0) is Verdict.ACCEPT
    finish.pop()()
    assert admission.judge(holder, validated=validated, connections=0) is Verdict.ACCEPT
    for finished in finish:
        finished()
    assert admission.half_open == 0
    assert admission._proven.per_group == admission._unproven.per_group == {}


def test_an_ipv6_owner_has_a_64() -> None:
    assert site_of("2001:db8::1") == site_of("2001:db8::ffff:1")
    assert site_of("2001:db8:0:1::1") != site_of("2001:db8::1")


@given(
    st.floats(0.1, 1000),
    st.lists(st.floats(0, 2), max_size=200),
)
def test_rate_limits_hold(rate: float, pauses: list[float]) -> None:
    limiter = RateLimiter(rate)
    now, allowed = 50.0, 0
    for pause in pauses:
        now += pause
        allowed += limiter.allow(now)
    assert allowed <= max(1.0, rate) + rate * (now - 50.0) + 1e-6


def test_a_rate_limit_comes_back() -> None:
    limiter = RateLimiter(2.0)
    assert [limiter.allow(0.0) for _ in range(3)] == [True, True, False]
    assert [limiter.allow(0.5) for _ in range(2)] == [True, False]
    assert [limiter.allow(60.0) for _ in range(3)] == [True, True, False]
