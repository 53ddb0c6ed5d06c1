"""Rate limits of stream circuits, without I/O: they slow, they never cut.

Two limits, both in bytes per second and both optional: one for each pair of peers (a token
bucket that all circuits between the two share, in both directions) and one for the whole
relay (a fair queue: circuits that have bytes waiting get equal parts, and what one leaves
another may use). A pipe says how much it wants to forward and learns how long to wait; that it
waits without reading is what slows the sender. Times are `now` in seconds of a clock that does
not jump.

How long and how much a circuit may last is `CircuitLimits`; those are announced to both ends
in the Limit message and watched by the pipe itself.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from dep2p_daemon.identity.peer_id import PeerId

Pair: TypeAlias = "frozenset[PeerId]"

BURST_SECONDS: Final = 0.25
"""A bucket holds this many seconds of its rate: ours; short enough that no burst is felt."""


class TokenBucket:
    """Allows `rate` bytes per second on average, and `burst` bytes at once.

    It may go into debt: a chunk that is in hand is forwarded whole, and the next waits until
    the debt is paid. So chunks larger than the burst pass, and the average still holds.
    """

    __slots__ = ("_burst", "_rate", "_tokens", "_updated_at")

    def __init__(self, rate: float, now: float, *, burst: float | None = None) -> None:
        self._rate = rate
        self._burst = rate * BURST_SECONDS if burst is None else burst
        self._tokens = self._burst
        self._updated_at = now

    def wait_time(self, now: float) -> float:
        """Return the seconds until the debt is paid; 0 when there is none."""
        self._refill(now)
        # Less than a byte is no debt: it is what rounding leaves after waiting exactly so long.
        return -self._tokens / self._rate if self._tokens <= -1 else 0.0

    def take(self, size: int, now: float) -> None:
        """Spend `size` bytes."""
        self._refill(now)
        self._tokens -= size

    def _refill(self, now: float) -> None:
        elapsed = max(0.0, now - self._updated_at)
        self._updated_at = now
        self._tokens = min(self._burst, self._tokens + elapsed * self._rate)


class PairRates:
    """One token bucket for each pair of peers that has a circuit."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._buckets: dict[Pair, tuple[TokenBucket, int]] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def join(self, pair: Pair, now: float) -> TokenBucket | None:
        """Return the bucket of a pair, for one more circuit; None when rates are unlimited."""
        if self._rate is None:
            return None
        bucket, users = self._buckets.get(pair) or (TokenBucket(self._rate, now), 0)
        self._buckets[pair] = (bucket, users + 1)
        return bucket

    def leave(self, pair: Pair) -> None:
        """One circuit of the pair has ended."""
        if pair in self._buckets:
            bucket, users = self._buckets.pop(pair)
            if users > 1:
                self._buckets[pair] = (bucket, users - 1)


@dataclass(order=True, slots=True)
class Turn:
    """One pipe's place in the queue for the relay's total rate."""

    start: float
    number: int
    flow: int = field(compare=False)
    size: int = field(compare=False)
    cancelled: bool = field(compare=False, default=False)


class FairQueue:
    """Shares a total rate among flows: start-time fair queueing before a token bucket.

    Goyal, Vin, Cheng, "Start-time Fair Queueing" (1996). Each turn gets a virtual start: the
    later of the queue's virtual time and the end of the flow's turn before. The smallest start
    goes first. A flow that was idle starts at the virtual time: it neither saves up nor pays.
    """

    def __init__(self, rate: float, now: float) -> None:
        self._bucket = TokenBucket(rate, now)
        self._virtual_time = 0.0
        self._flow_ends: dict[int, float] = {}
        self._queue: list[Turn] = []
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._queue)

    def ask(self, flow: int, size: int) -> Turn:
        """Queue a turn of `size` bytes for `flow`; `poll` says when it has come."""
        start = max(self._virtual_time, self._flow_ends.get(flow, 0.0))
        self._flow_ends[flow] = start + size
        turn = Turn(start, next(self._numbers), flow, size)
        heapq.heappush(self._queue, turn)
        return turn

    def cancel(self, turn: Turn) -> None:
        """Drop a turn that nobody waits for any more. Idempotent."""
        turn.cancelled = True

    def forget(self, flow: int) -> None:
        """The flow has ended."""
        self._flow_ends.pop(flow, None)

    def poll(self, now: float) -> list[Turn]:
        """Return the turns that have come, in order."""
        due: list[Turn] = []
        while self._queue:
            if self._queue[0].cancelled:
                heapq.heappop(self._queue)
                continue
            if self._bucket.wait_time(now) > 0:
                break
            turn = heapq.heappop(self._queue)
            self._virtual_time = turn.start
            self._bucket.take(turn.size, now)
            due.append(turn)
        return due

    def wait_time(self, now: float) -> float | None:
        """Return the seconds until `poll` has something; None when nothing is queued."""
        return self._bucket.wait_time(now) if self._queue else None
