"""One timer for all connections of an endpoint: a heap whose stale entries die when they come up.

A connection's deadline moves with every packet, nearly always to a later time. Only a move to
an earlier time costs a push; a later one is noticed when the old entry comes up. Idle
connections cost nothing in between.
"""

from __future__ import annotations

import heapq
import itertools
from typing import Generic, Protocol, TypeVar


class Timed(Protocol):
    """Something with a deadline."""

    deadline: float | None
    queued: list[float]
    """The times of its entries in the heap, the earliest last. The queue's own note."""


T = TypeVar("T", bound=Timed)


class DeadlineQueue(Generic[T]):
    """Which of many items is due. Knows no clock and no loop."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next_at(self) -> float | None:
        """When `due` should be called; may be early, never late."""
        return self._heap[0][0] if self._heap else None

    def set(self, item: T, deadline: float | None) -> None:
        """Set or take away (None) an item's deadline."""
        item.deadline = deadline
        if deadline is not None and (not item.queued or deadline < item.queued[-1]):
            item.queued.append(deadline)
            heapq.heappush(self._heap, (deadline, next(self._numbers), item))

    def due(self, now: float) -> list[T]:
        """Take out and return the items whose deadline has come; they need a new one."""
        items: list[T] = []
        while self._heap and self._heap[0][0] <= now:
            _, _, item = heapq.heappop(self._heap)
            item.queued.pop()
            if item.deadline is None:
                continue
            if item.deadline > now:
                self.set(item, item.deadline)
            else:
                item.deadline = None
                items.append(item)
        return items
