"""The relay's console: the story of the relay on standard output, while the daemon runs."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import click

from dep2p_relay_server.story import Story, greeting

if TYPE_CHECKING:
    from dep2p_daemon.daemon import Daemon
    from dep2p_daemon.events import Subscription
    from dep2p_relay_server.texts import Texts

TRAFFIC_SECONDS: Final = 2.0
"""Between two looks at what the circuits carry."""
ROLE_CHECK_SECONDS: Final = 0.5


class RelayConsole:
    """Tells what happens at the relay; `await console(daemon)` runs until it is cancelled."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts

    async def __call__(self, daemon: Daemon) -> None:
        """Greet, then tell."""
        story = Story(self._texts)
        with daemon.events.subscribe() as subscription:
            _print(
                greeting(
                    self._texts,
                    daemon.peer_id,
                    daemon.swarm.listen_addresses,
                    daemon.addresses(),
                )
            )
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._tell_events(story, subscription))
                    group.create_task(_tell_late(story))
                    group.create_task(_tell_traffic(story, daemon))
            except asyncio.CancelledError:
                _print([self._texts.stopping])
                raise

    async def _tell_events(self, story: Story, subscription: Subscription) -> None:
        while True:
            event = await subscription.next()
            if lost := subscription.take_lost():
                _print([self._texts.lost.format(count=lost)])
            _print(story.feed(event, time.monotonic()))


async def _tell_late(story: Story) -> None:
    while True:
        await asyncio.sleep(ROLE_CHECK_SECONDS)
        _print(story.due(time.monotonic()))


async def _tell_traffic(story: Story, daemon: Daemon) -> None:
    while True:
        await asyncio.sleep(TRAFFIC_SECONDS)
        if daemon.relay_server is not None:
            _print(story.traffic(daemon.relay_server.circuits))


def _print(lines: list[str]) -> None:
    for line in lines:
        click.echo(line)
