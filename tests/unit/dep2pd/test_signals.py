"""The two signals: the first asks for an orderly end, the second does not ask."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest

from dep2pd import serve
from dep2pd.serve import StopRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


NEVER = 1e6
"""So that it is the signal that ends it, and not the time."""


@pytest.fixture
async def stop() -> AsyncIterator[StopRequest]:
    request = StopRequest()
    request.watch_signals()
    yield request
    request.end()


async def test_the_first_signal_asks_and_the_second_ends_at_once(
    stop: StopRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, left = asyncio.Event(), asyncio.Event()
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        left.set()

    monkeypatch.setattr(serve, "leave_at_once", leave)
    monkeypatch.setattr(serve, "STOP_SECONDS", NEVER)
    stop.on_request = lambda _reason: asked.set()
    os.kill(os.getpid(), signal.SIGTERM)
    await asked.wait()
    assert stop.requested
    assert codes == []
    os.kill(os.getpid(), signal.SIGINT)
    await left.wait()
    assert codes == [1]


async def test_an_orderly_end_has_limited_time(
    stop: StopRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = asyncio.Event()
    monkeypatch.setattr(serve, "STOP_SECONDS", 0.0)
    monkeypatch.setattr(serve, "leave_at_once", lambda _code: left.set())
    stop.begin()
    await left.wait()


async def test_after_the_end_nothing_is_left(stop: StopRequest) -> None:
    stop.begin()
    stop.end()
    stop.end()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


async def test_a_signal_during_the_orderly_end_is_the_second(
    stop: StopRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = asyncio.Event()
    monkeypatch.setattr(serve, "STOP_SECONDS", NEVER)
    monkeypatch.setattr(serve, "leave_at_once", lambda _code: left.set())
    stop.begin()  # asked for by `dep2pctl stop`
    os.kill(os.getpid(), signal.SIGTERM)
    await left.wait()
