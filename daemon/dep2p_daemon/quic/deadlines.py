"""One timer for all connections of an endpoint: a heap whose stale entries die when they come up.

A connection's deadline moves with every packet, nearly always to a later time. Only a move to
an earlier time costs a push; a later one is noticed when the old entry comes up. Idle
connections cost nothing in between.
"""

from __future__ import annotations

import heapq
import itertools
from typing import Generic, TypeVar

T = TypeVar("T")


class Deadline(Generic[T]):
    """The deadline of its owner; lives in a `DeadlineQueue`."""

    __slots__ = ("at", "owner", "queued")

    def __init__(self, owner: T) -> None:
        self.owner: T | None = owner
        self.at: float | None = None
        self.queued: list[float] = []
        """The times of its entries in the heap, the earliest last. The queue's own note."""


class DeadlineQueue(Generic[T]):
    """Which of many owners is due. Knows no clock and no loop."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Deadline[T]]] = []
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next_at(self) -> float | None:
        """When `due` should be called; may be early, never late."""
        return self._heap[0][0] if self._heap else None

    def set(self, deadline: Deadline[T], at: float | None) -> None:
        """Set a deadline, or take it away (None)."""
        deadline.at = at
        if at is not None and (not deadline.queued or at < deadline.queued[-1]):
            deadline.queued.append(at)
            heapq.heappush(self._heap, (at, next(self._numbers), deadline))

    def cancel(self, deadline: Deadline[T]) -> None:
        """Take it away for good, and let go of its owner at once."""
        deadline.at = None
        deadline.owner = None

    def due(self, now: float) -> list[T]:
        """Take out and return the owners whose deadline has come; they need a new one."""
        owners: list[T] = []
        while self._heap and self._heap[0][0] <= now:
            deadline = heapq.heappop(self._heap)[2]
            deadline.queued.pop()
            if deadline.at is None:
                continue
            if deadline.at > now:
                self.set(deadline, deadline.at)
            elif deadline.owner is not None:
                deadline.at = None
                owners.append(deadline.owner)
        return owners
