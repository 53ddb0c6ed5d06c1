"""The waiting side of `limits`: makes pipes wait for their bytes' turn."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dep2p_daemon.circuit.limits import FairQueue, TokenBucket


class TotalRate:
    """The relay's total rate, shared fairly by all its circuits.

    The owner calls `close` at the end; pipes that still wait are then let through.
    """

    def __init__(self, queue: FairQueue) -> None:
        self._queue = queue
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    async def wait_turn(self, flow: int, size: int) -> None:
        """Wait until `flow` may forward `size` bytes. Cancelled, it gives its turn up."""
        if self._closed:
            return
        turn = self._queue.ask(flow, size)
        waiter = self._waiting[turn.number] = asyncio.get_running_loop().create_future()
        self._pump()
        try:
            await waiter
        finally:
            self._queue.cancel(turn)
            self._waiting.pop(turn.number, None)

    def forget(self, flow: int) -> None:
        """The flow has ended."""
        self._queue.forget(flow)

    def close(self) -> None:
        """Stop limiting. Idempotent."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_result(None)

    def _pump(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for turn in self._queue.poll(now):
            waiter = self._waiting.get(turn.number)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        delay = self._queue.wait_time(now)
        if delay is not None and not self._closed:
            self._timer = loop.call_later(delay, self._pump)


class Pacer:
    """One circuit's brake: the rate of its pair of peers, then its part of the total."""

    __slots__ = ("_bucket", "_flow", "_total")

    def __init__(
        self, flow: int = 0, bucket: TokenBucket | None = None, total: TotalRate | None = None
    ) -> None:
        self._flow = flow
        self._bucket = bucket
        self._total = total

    @property
    def unlimited(self) -> bool:
        """True when there is nothing to wait for, ever."""
        return self._bucket is None and self._total is None

    async def before_read(self) -> None:
        """Wait until the pair's debt is paid: what is not read holds its sender back."""
        if self._bucket is not None:
            loop = asyncio.get_running_loop()
            delay = self._bucket.wait_time(loop.time())
            if delay > 0:
                await asyncio.sleep(delay)

    async def before_write(self, size: int) -> None:
        """Account for `size` bytes in hand and wait for their part of the total rate."""
        if self._bucket is not None:
            self._bucket.take(size, asyncio.get_running_loop().time())
        if self._total is not None:
            await self._total.wait_turn(self._flow, size)
