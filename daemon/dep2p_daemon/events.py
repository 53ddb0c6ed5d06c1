"""The daemon's event bus: rooms publish what changed, watchers read at their own pace.

An event is a frozen dataclass defined by the room that publishes it (`ConnectionOpened` in
`swarm/`, `CircuitOpened` in `circuit/`, ...). Publishing never blocks and never fails; a
watcher that reads too slowly loses the oldest events and learns how many.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_BACKLOG: Final = 1024
"""Events kept for a watcher that does not read; ours: about a second of a busy relay."""


class Subscription:
    """One watcher's bounded queue. Ended with `close`, or by using it as a context manager."""

    def __init__(self, bus: EventBus, backlog: int) -> None:
        self._bus = bus
        self._events: deque[object] = deque()
        self._backlog = backlog
        self._waiter: asyncio.Future[None] | None = None
        self.lost = 0
        """Events dropped since the last `take_lost`."""

    def push(self, event: object) -> None:
        """Queue an event; called by the bus."""
        if len(self._events) >= self._backlog:
            self._events.popleft()
            self.lost += 1
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> object:
        """Wait for the next event."""
        while not self._events:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._events.popleft()

    def take_lost(self) -> int:
        """Return how many events were dropped since the last call."""
        lost, self.lost = self.lost, 0
        return lost

    def close(self) -> None:
        """Stop receiving. Idempotent."""
        self._bus.remove(self)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class EventBus:
    """Fans events out to subscriptions."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()
        self._listeners: list[Callable[[object], None]] = []

    def add_listener(self, listener: Callable[[object], None]) -> None:
        """Call `listener` with each event, from now on, while it is published.

        For who must lose none and is done in no time (counters). It must not raise.
        """
        self._listeners.append(listener)

    def publish(self, event: object) -> None:
        """Hand `event` to every watcher. Never blocks."""
        for listener in self._listeners:
            listener(event)
        for subscription in self._subscriptions:
            subscription.push(event)

    def subscribe(self, backlog: int = DEFAULT_BACKLOG) -> Subscription:
        """Start watching; the caller closes the subscription."""
        subscription = Subscription(self, backlog)
        self._subscriptions.add(subscription)
        return subscription

    def remove(self, subscription: Subscription) -> None:
        """Forget a subscription; `Subscription.close` calls it."""
        self._subscriptions.discard(subscription)
