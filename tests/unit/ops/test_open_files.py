from __future__ import annotations

import resource

import pytest

from dep2p_daemon.ops.open_files import BESIDE_CONNECTIONS, raise_open_files_limit

ENDLESS = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "room"),
    [
        (1024, 1_000_000, 4096 + BESIDE_CONNECTIONS, 4096),
        (1024, ENDLESS, 4096 + BESIDE_CONNECTIONS, 4096),
        (1024, 2000, 2000, 2000 - BESIDE_CONNECTIONS),
        (100_000, 100_000, None, 100_000 - BESIDE_CONNECTIONS),
        (ENDLESS, ENDLESS, None, 4096),
        (64, 64, 64, 0),
    ],
)
def test_the_soft_limit_is_raised_as_far_as_needed_and_allowed(
    soft: int, hard: int, raised: int | None, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _which, limits: calls.append(limits))
    assert raise_open_files_limit(4096) == room
    assert calls == ([] if raised is None else [(raised, hard)])
