"""Tasks that wait their turn for something that comes one at a time: a stream, a connection."""

from __future__ import annotations

import asyncio
from collections import deque


class Waiters:
    """A queue of tasks. A turn that a cancelled task was given goes to the next one."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def wait(self) -> None:
        """Wait for a turn; the caller then looks whether there really is something."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.wake_one()
            raise
        finally:
            self._waiting.remove(turn)

    def wake_one(self) -> None:
        """Give a turn to the task that has waited longest."""
        for turn in self._waiting:
            if not turn.done():
                turn.set_result(None)
                return

    def wake_all(self) -> None:
        """Give a turn to everybody."""
        for turn in self._waiting:
            if not turn.done():
                turn.set_result(None)
