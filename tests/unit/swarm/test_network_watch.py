"""A change of network is one event; what is none of it is none."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING

from tests.memory_nodes import swarms
from tests.virtual_time import virtual_time
from typing_extensions import override

from dep2p_daemon.swarm.events import NetworkChange, NetworkChanged
from dep2p_daemon.swarm.network_watch import NetworkWatch, NetworkWatchSettings
from dep2p_daemon.swarm.ways_out import RouteEvents, WayOut

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dep2p_daemon.events import Subscription

HOME = WayOut(ip_address("192.168.1.10"), 2, "192.168.1.1")
AWAY = WayOut(ip_address("10.1.2.3"), 2, "10.1.2.1")
SETTINGS = NetworkWatchSettings()


class Machine:
    """What the kernel would say."""

    def __init__(self) -> None:
        self.ways: tuple[WayOut, ...] = (HOME,)
        self.looks = 0
        self.slept = 0.0

    def read(self) -> tuple[WayOut, ...]:
        self.looks += 1
        return self.ways

    def wall_clock(self) -> float:
        return 1_000_000.0 + asyncio.get_running_loop().time() + self.slept


class News(RouteEvents):
    """News that the test tells."""

    def __init__(self) -> None:
        self.cut = False

    @override
    def take(self, ways: object) -> bool:
        cut, self.cut = self.cut, False
        return cut


@asynccontextmanager
async def watched() -> AsyncIterator[tuple[Machine, NetworkWatch, Subscription]]:
    machine = Machine()
    async with (
        swarms() as (swarm, _),
        NetworkWatch(
            swarm,
            read_ways=machine.read,
            open_events=lambda: None,
            wall_clock=machine.wall_clock,
        ) as watch,
    ):
        with swarm.events.subscribe() as events:
            yield machine, watch, events


async def next_change(events: Subscription) -> NetworkChanged:
    while True:
        event = await events.next()
        if isinstance(event, NetworkChanged):
            return event


@virtual_time
async def test_another_way_out_is_noticed_at_the_next_look() -> None:
    async with watched() as (machine, watch, events):
        machine.ways = (AWAY,)
        async with asyncio.timeout(SETTINGS.interval + 0.1):
            change = await next_change(events)
        assert change == NetworkChanged(NetworkChange.MOVED, ("10.1.2.3",), ("10.1.2.1",))
        assert change.online
        assert watch.ways == (AWAY,)


@virtual_time
async def test_a_network_that_goes_and_comes_back() -> None:
    async with watched() as (machine, _, events):
        machine.ways = ()
        lost = await next_change(events)
        assert (lost.change, lost.online) == (NetworkChange.LOST, False)
        machine.ways = (HOME,)
        assert (await next_change(events)).change is NetworkChange.MOVED


@virtual_time
async def test_a_sleep_is_noticed() -> None:
    async with watched() as (machine, _, events):
        await asyncio.sleep(100)
        machine.slept = SETTINGS.sleep_gap + 1
        async with asyncio.timeout(SETTINGS.interval + 0.1):
            assert (await next_change(events)).change is NetworkChange.SLEPT


@virtual_time
async def test_where_nothing_changes_nothing_is_told() -> None:
    async with watched() as (machine, _, events):
        await asyncio.sleep(600)
        machine.slept += 1  # a clock that is set right
        await asyncio.sleep(600)
        assert machine.looks > 200
        events.close()
        assert not any(isinstance(event, NetworkChanged) for event in events._events)


@virtual_time
async def test_news_in_bunches_makes_one_event_and_a_cut_is_one_too() -> None:
    machine, news = Machine(), News()
    async with swarms() as (swarm, _):
        watch = NetworkWatch(
            swarm, read_ways=machine.read, open_events=lambda: None, wall_clock=machine.wall_clock
        )
        async with watch:
            watch._events = news
            with swarm.events.subscribe() as events:
                machine.ways = ()
                for step in range(4):  # an address goes, a route, an address comes, a route
                    watch._take_news()
                    await asyncio.sleep(SETTINGS.settle / 2)
                    machine.ways = (AWAY,) if step == 2 else machine.ways
                async with asyncio.timeout(2 * SETTINGS.settle):
                    assert (await next_change(events)).change is NetworkChange.MOVED
                # The same addresses again, on a cable that was in another hand meanwhile.
                news.cut = True
                watch._take_news()
                async with asyncio.timeout(2 * SETTINGS.settle):
                    assert (await next_change(events)).change is NetworkChange.INTERRUPTED
                # News without a cut is none.
                watch._take_news()
                await asyncio.sleep(600)
                events.close()
                assert not any(isinstance(event, NetworkChanged) for event in events._events)
            watch._events = None
