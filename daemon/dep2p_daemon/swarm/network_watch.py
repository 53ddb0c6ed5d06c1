"""Notices that the machine is on another network, and tells it as one event, `NetworkChanged`.

That is: packets leave by another interface, gateway or source address than before (`ways_out`),
that way was cut for a moment, or the machine slept. Everything that was learnt of the network
from outside is void then. An address that merely comes or goes elsewhere (a container's bridge)
is `AddressesChanged` and no more.

The kernel's news wake the watch; where there are none it looks every few seconds.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import structlog

from dep2p_daemon.swarm.events import NetworkChange, NetworkChanged
from dep2p_daemon.swarm.ways_out import RouteEvents, WayOut, ways_out

if TYPE_CHECKING:
    from collections.abc import Callable

    from dep2p_daemon.swarm.swarm import Swarm

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkWatchSettings:
    """Times in seconds."""

    interval: float = 5.0
    """Between two looks, without news."""
    settle: float = 0.3
    """Changes come in bunches: addresses, then routes. A look follows when there was no news for
    this time ..."""
    settle_max: float = 2.0
    """... or after this one."""
    sleep_gap: float = 5.0
    """The wall clock ran ahead of ours by so much between two looks: the machine slept."""


class NetworkWatch:
    """Publishes `NetworkChanged`. An async context manager that owns its task."""

    def __init__(
        self,
        swarm: Swarm,
        settings: NetworkWatchSettings | None = None,
        *,
        read_ways: Callable[[], tuple[WayOut, ...]] = ways_out,
        open_events: Callable[[], RouteEvents | None] = RouteEvents.open,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """The functions are parameters because tests have no network to change."""
        self._swarm = swarm
        self._settings = settings or NetworkWatchSettings()
        self._read_ways = read_ways
        self._open_events = open_events
        self._wall_clock = wall_clock
        self._events: RouteEvents | None = None
        self._news = asyncio.Event()
        self._cut = False
        self._gap = 0.0
        self._task: asyncio.Task[None] | None = None
        self.ways: tuple[WayOut, ...] = ()
        """How packets left at the last look."""

    async def __aenter__(self) -> Self:
        self.ways = self._read_ways()
        self._gap = self._clock_gap()
        self._events = self._open_events()
        if self._events is not None:
            asyncio.get_running_loop().add_reader(self._events.fileno(), self._take_news)
        self._task = self._swarm.spawn(self._run())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._events is not None:
            asyncio.get_running_loop().remove_reader(self._events.fileno())
            self._events.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _take_news(self) -> None:
        assert self._events is not None
        self._cut = self._events.take(self.ways) or self._cut
        self._news.set()

    def _clock_gap(self) -> float:
        return self._wall_clock() - asyncio.get_running_loop().time()

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.interval):
                    await self._news.wait()
            await self._settle()
            self._look()

    async def _settle(self) -> None:
        """Wait until the news pauses."""
        settings = self._settings
        with suppress(TimeoutError):
            async with asyncio.timeout(settings.settle_max):
                while self._news.is_set():
                    self._news.clear()
                    await asyncio.sleep(settings.settle)
        self._news.clear()

    def _look(self) -> None:
        before, self.ways = self.ways, self._read_ways()
        cut, self._cut = self._cut, False
        earlier, self._gap = self._gap, self._clock_gap()
        slept = self._gap - earlier
        self._swarm.read_interfaces()
        if self.ways != before:
            change = NetworkChange.MOVED if self.ways else NetworkChange.LOST
        elif slept > self._settings.sleep_gap:
            change = NetworkChange.SLEPT
        elif cut and self.ways:
            change = NetworkChange.INTERRUPTED
        else:
            return
        _log.info(
            "network changed",
            change=change.value.lower(),
            sources=[str(way.source) for way in self.ways],
            gateways=[way.gateway for way in self.ways if way.gateway],
        )
        self._swarm.forget_failures()
        self._swarm.events.publish(
            NetworkChanged(
                change,
                tuple(str(way.source) for way in self.ways),
                tuple(way.gateway for way in self.ways if way.gateway),
            )
        )
