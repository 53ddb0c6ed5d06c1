"""Access links with delay, loss and a rate, by a process that joins pairs of TUN devices.

For kernels without netem. `Direction` decides when a packet leaves; `Emulator` moves packets.
Standard library only: the keeper runs without the virtual environment's packages.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tests.natlab.impairment import Impairment

MAX_QUEUED: Final = 50_000
"""Packets in one direction of one link."""
DEFAULT_QUEUE_MS: Final = 100.0
TICK: Final = 0.0001
"""Seconds; the shortest sleep."""
_BATCH: Final = 32
_HEADROOM: Final = 64


class Direction:
    """One direction of a link: packets from TUN `source`, later to TUN `sink`."""

    def __init__(self, source: int, sink: int, side: int) -> None:
        self.source = source
        self.sink = sink
        self.queue: deque[tuple[float, bytes]] = deque()
        self.sent = 0
        self.lost = 0
        self.overflowed = 0
        self._side = side
        self._line_free = 0.0
        self._last_departure = 0.0

    def configure(self, impairment: Impairment) -> None:
        """Behave so from the next packet on."""
        self._delay = (impairment.delay_ms or 0) / 1e3
        self._jitter = (impairment.jitter_ms or 0) / 1e3
        self._loss = (impairment.loss_pct or 0) / 100
        self._reorder = (impairment.reorder_pct or 0) / 100
        rate = impairment.rate_mbit or (0.0, 0.0)
        self._bytes_per_second = rate[self._side] * 1e6 / 8
        queue = impairment.queue_ms
        self._longest_wait = (DEFAULT_QUEUE_MS if queue is None else queue) / 1e3

    def take(self, packet: bytes, now: float, rng: random.Random) -> None:
        """Queue one packet, or drop it."""
        if self._loss and rng.random() < self._loss:
            self.lost += 1
            return
        departure = now
        if self._bytes_per_second:
            departure = max(now, self._line_free)
        if departure - now > self._longest_wait or len(self.queue) > MAX_QUEUED:
            self.overflowed += 1
            return
        if self._bytes_per_second:
            self._line_free = departure = departure + len(packet) / self._bytes_per_second
        if self._reorder and rng.random() < self._reorder:
            self.queue.appendleft((now, packet))
            return
        departure += self._delay
        if self._jitter:
            departure = max(now, departure + rng.uniform(-self._jitter, self._jitter))
        self._last_departure = departure = max(departure, self._last_departure)
        self.queue.append((departure, packet))

    def give(self, now: float) -> float | None:
        """Write what is due; returns when the next packet is."""
        queue = self.queue
        while queue and queue[0][0] <= now:
            try:
                os.write(self.sink, queue.popleft()[1])
                self.sent += 1
            except OSError:  # the far end is not up
                self.lost += 1
        return queue[0][0] if queue else None


class Emulator:
    """Moves the packets of all links until it is told to end."""

    def __init__(self, rng: random.Random) -> None:
        self.links: dict[str, tuple[Direction, Direction]] = {}
        """Up and down, by host."""
        self._rng = rng
        self._by_source: dict[int, Direction] = {}
        self._watched: dict[int, Callable[[], object]] = {}
        self._buffer = 0
        self._ended = False

    def add(self, host: str, up: int, down: int, impairment: Impairment, mtu: int) -> None:
        """Join two TUN devices."""
        self.links[host] = Direction(up, down, 0), Direction(down, up, 1)
        for direction in self.links[host]:
            direction.configure(impairment)
            self._by_source[direction.source] = direction
        self._buffer = max(self._buffer, mtu + _HEADROOM)

    def watch(self, descriptor: int, call: Callable[[], object]) -> None:
        """Call `call` whenever that descriptor is readable."""
        self._watched[descriptor] = call

    def end(self) -> None:
        """Have `run` return."""
        self._ended = True

    def run(self) -> None:
        """Until `end`."""
        descriptors = [*self._by_source, *self._watched]
        directions = list(self._by_source.values())
        while not self._ended:
            now = time.monotonic()
            due = [at for direction in directions if (at := direction.give(now)) is not None]
            timeout = max(TICK, min(due) - time.monotonic()) if due else None
            readable = select.select(descriptors, (), (), timeout)[0]
            now = time.monotonic()
            for descriptor in readable:
                if descriptor in self._by_source:
                    self._read(self._by_source[descriptor], now)
                else:
                    self._watched[descriptor]()

    def _read(self, direction: Direction, now: float) -> None:
        for _ in range(_BATCH):
            try:
                packet = os.read(direction.source, self._buffer)
            except OSError:  # no more, or the device is down
                return
            direction.take(packet, now, self._rng)
