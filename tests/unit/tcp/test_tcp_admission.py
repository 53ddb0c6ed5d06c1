from __future__ import annotations

import pytest

from dep2p_daemon.tcp.admission import LOG_INTERVAL, HalfOpen


def test_total() -> None:
    half_open = HalfOpen(total=2, per_ip=9)
    assert [half_open.enter(f"192.0.2.{n}") for n in range(3)] == [None, None, "max_half_open"]
    half_open.leave("192.0.2.0")
    assert half_open.enter("192.0.2.7") is None


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
    ],
)
def test_per_ip(first: str, second: str, shared: bool) -> None:
    half_open = HalfOpen(total=9, per_ip=1)
    assert half_open.enter(first) is None
    assert half_open.enter(second) == ("max_half_open_per_ip" if shared else None)
    half_open.leave(first)
    assert half_open.enter(first) is None


def test_a_flood_is_logged_now_and_then() -> None:
    half_open = HalfOpen(total=0, per_ip=0)
    assert [half_open.worth_logging(now) for now in (0.0, 1.0, LOG_INTERVAL - 0.1)] == [
        True,
        False,
        False,
    ]
    assert half_open.worth_logging(LOG_INTERVAL)
