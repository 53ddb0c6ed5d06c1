"""Waiting for what has no event of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until `condition` holds; pytest-timeout bounds it."""
    while not condition():  # noqa: ASYNC110 - counters and tables give no event
        await asyncio.sleep(0)


async def turns(count: int) -> None:
    """Let the loop turn `count` times: what was ready to happen has happened."""
    for _ in range(count):
        await asyncio.sleep(0)
