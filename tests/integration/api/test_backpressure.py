"""Who does not read stops his sender and nobody else, and memory does not grow."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import TYPE_CHECKING

import pytest
from tests.api_nodes import TRANSPORTS, ApiNode, Inbound, api_nodes
from tests.waiting import until

from dep2p_daemon.circuit.events import ReservationChange, ReservationChanged, ReservationStatus
from dep2p_daemon.events import DEFAULT_BACKLOG

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import dep2p

PROTOCOL = "/test/1"
ECHO = "/dep2p/echo/1.0.0"
MIB = 1 << 20
BOUND = 8 * MIB
"""What may be under way to a reader that does not read: the acceptance text's figure."""


@pytest.fixture(params=TRANSPORTS)
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[tuple[ApiNode, ApiNode]]:
    async with api_nodes() as start:
        a, b = await start(), await start()
        await a.client.dial(b.address(request.param))
        yield a, b


def resident_bytes() -> int:
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


class Pusher:
    """Writes pieces until told to stop, and knows how much it got rid of."""

    def __init__(self, stream: dep2p.Stream, piece: bytes = bytes(64 * 1024)) -> None:
        self._stream = stream
        self._piece = piece
        self.written = 0
        self._stop = False

    async def __aenter__(self) -> Pusher:
        self._task = asyncio.create_task(self._push())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._stop = True
        await self._task

    async def _push(self) -> None:
        while not self._stop:
            await self._stream.write(self._piece)
            self.written += len(self._piece)
        await self._stream.close_write()

    async def stalled(self) -> int:
        """Wait until nothing more gets through, and return how much did."""
        while True:
            before = self.written
            await asyncio.sleep(0.3)
            if self.written == before:
                return before


async def test_a_program_that_does_not_read_stops_its_peer(
    pair: tuple[ApiNode, ApiNode],
) -> None:
    a, b = pair
    async with (
        b.client.listen(PROTOCOL) as listener,
        await a.client.open_stream(b.peer_id, [PROTOCOL]) as near,
        await anext(listener) as far,
    ):
        before = resident_bytes()
        async with Pusher(near) as pusher:
            under_way = await pusher.stalled()
            assert 0 < under_way < BOUND
            # Both daemons and both programs are this process.
            assert resident_bytes() - before < 2 * BOUND
            # Then it reads, and gets all of it.
            received = 0
            while received < 3 * under_way:
                received += len(await far.read())
            pusher._stop = True
            async for piece in far:
                received += len(piece)
            assert received == pusher.written


async def test_a_peer_that_does_not_read_stops_the_program(
    pair: tuple[ApiNode, ApiNode],
) -> None:
    a, b = pair
    async with Inbound(b) as inbound:
        stream = await a.client.open_stream(b.peer_id, [PROTOCOL])
        far = await inbound.next()
        async with Pusher(stream) as pusher:
            # The peer's window, our send buffer, and next to nothing in gRPC.
            assert 0 < await pusher.stalled() < 2 * MIB
            pusher._stop = True
            while await far.read():
                pass
        await stream.aclose()


async def test_one_stalled_stream_stops_no_other(pair: tuple[ApiNode, ApiNode]) -> None:
    """Neither in the daemon, nor on the one gRPC connection that carries them all."""
    a, b = pair
    async with contextlib.AsyncExitStack() as stack:
        listener = await stack.enter_async_context(b.client.listen(PROTOCOL))
        pushers = []
        for _ in range(4):
            near = await a.client.open_stream(b.peer_id, [PROTOCOL])
            stack.push_async_callback(near.reset)
            stack.push_async_callback((await anext(listener)).reset)
            pusher = Pusher(near)
            task = asyncio.create_task(pusher._push())
            stack.callback(task.cancel)
            pushers.append(pusher)
        for pusher in pushers:
            await pusher.stalled()
        async with asyncio.timeout(10):
            async with await a.client.open_stream(b.peer_id, [ECHO]) as echo:
                payload = bytes(2 * MIB)
                sending = asyncio.create_task(echo.write(payload))
                assert await echo.read_exactly(len(payload)) == payload
                await sending
            assert (await b.client.get_node()).stream_count >= len(pushers)


async def test_a_watcher_that_does_not_read_loses_events_and_is_told() -> None:
    async with api_nodes() as start:
        a = await start()
        bus = a.daemon.events
        # What no room of this node reacts to: it is no relay.
        reservation = ReservationStatus(
            peer_id=a.daemon.peer_id,
            address=a.daemon.swarm.listen_addresses[0],
            created_at=0.0,
            expires_at=0.0,
        )
        event = ReservationChanged(reservation, ReservationChange.REFRESHED)
        own = len(bus._subscriptions)
        events = a.client.watch_events("reservation_changed", skip_snapshot=True)
        first = asyncio.ensure_future(anext(events))
        await until(lambda: len(bus._subscriptions) > own)
        for _ in range(20_000):
            bus.publish(event)
        lost = (await first).lost.count
        assert lost == 20_000 - DEFAULT_BACKLOG
        async with contextlib.aclosing(events):
            for _ in range(DEFAULT_BACKLOG):
                assert (await anext(events)).WhichOneof("event") == "reservation_changed"
        await a.server._running.wait_idle()
        # One who never reads costs no more than his backlog.
        before = resident_bytes()
        async with contextlib.aclosing(a.client.watch_events(skip_snapshot=True)) as watcher:
            stuck = asyncio.ensure_future(anext(watcher))
            await until(lambda: len(bus._subscriptions) > own)
            for _ in range(50):
                for _ in range(1000):
                    bus.publish(event)
                await asyncio.sleep(0)
            assert resident_bytes() - before < BOUND
            await stuck
