from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from dep2p_daemon.ops.systemd import SystemdNotifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """What systemd has at the other end; a datagram socket of this process."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "n"))
        listening.setblocking(False)
        yield listening


def test_states_arrive(systemd: socket.socket) -> None:
    notifier = SystemdNotifier({"NOTIFY_SOCKET": systemd.getsockname()})
    notifier.ready("12D3 on 2 addresses")
    notifier.status("busy")
    notifier.watchdog()
    notifier.stopping()
    received = [systemd.recv(1000).decode() for _ in range(4)]
    assert received == [
        f"READY=1\nSTATUS=12D3 on 2 addresses\nMAINPID={os.getpid()}",
        "STATUS=busy",
        "WATCHDOG=1",
        "STOPPING=1\nSTATUS=stopping",
    ]


def test_an_abstract_address_begins_with_nul() -> None:
    name = f"dep2p-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        listening.setblocking(False)
        SystemdNotifier({"NOTIFY_SOCKET": f"@{name}"}).status("x")
        assert listening.recv(100) == b"STATUS=x"


def test_without_systemd_nothing_happens() -> None:
    notifier = SystemdNotifier({})
    notifier.ready("x")
    assert notifier.watchdog_interval is None


def test_a_systemd_that_went_away_does_not_end_the_daemon(tmp_path: Path) -> None:
    SystemdNotifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("x")


@pytest.mark.parametrize(
    ("env", "interval"),
    [
        ({"WATCHDOG_USEC": "10000000"}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "42"}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "43"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_asked(
    env: dict[str, str], interval: float | None
) -> None:
    assert SystemdNotifier(env, pid=42).watchdog_interval == interval


async def test_the_watchdog_ends_at_once_when_nobody_asked() -> None:
    await SystemdNotifier({}).run_watchdog()


def test_children_do_not_inherit_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/x")
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    notifier = SystemdNotifier.from_environment()
    assert notifier.watchdog_interval == 1.0
    assert "NOTIFY_SOCKET" not in os.environ
    assert "WATCHDOG_USEC" not in os.environ
