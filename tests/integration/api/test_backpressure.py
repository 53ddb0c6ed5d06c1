"""Who does not read stops his sender and nobody else, and memory does not grow."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import TYPE_CHECKING

import pytest
from tests.api_nodes import TRANSPORTS, ApiNode, Inbound, api_nodes
from tests.waiting import until

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
        # Streams that share a QUIC connection share its window; gRPC's connection is one, too.
        over_quic = a.daemon.swarm.connections()[0].muxer == "quic"
        for _ in range(1 if over_quic else 4):
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
        events = a.client.watch_events("relay_changed", "peer_identified", skip_snapshot=True)
        first = asyncio.ensure_future(anext(events))
        await until(lambda: a.daemon.events._subscriptions)
        from dep2p_daemon.swarm.events import PeerIdentified

        connection: object = None
        for _ in range(20_000):
            a.daemon.events.publish(PeerIdentified(a.daemon.peer_id, connection))  # type: ignore[arg-type]
        assert (await first).WhichOneof("event") == "lost"
        told = 1
        async with contextlib.aclosing(events):
            while told < 1024:
                assert (await anext(events)).WhichOneof("event") == "peer_identified"
                told += 1
        before = resident_bytes()
        watcher = a.client.watch_events(skip_snapshot=True)
        stuck = asyncio.ensure_future(anext(watcher))
        await until(lambda: a.daemon.events._subscriptions)
        for _ in range(50):
            for _ in range(1000):
                a.daemon.events.publish(PeerIdentified(a.daemon.peer_id, connection))  # type: ignore[arg-type]
            await asyncio.sleep(0)
        assert resident_bytes() - before < BOUND
        await stuck
        await watcher.aclose()
