"""A reader that stops for 30 seconds: nobody's memory grows, and the transfer completes intact."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from bench.processes import Usage
from tests.e2e.processes import daemons

import dep2p

if TYPE_CHECKING:
    from tests.e2e.processes import Daemon

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]

PROTOCOL = "/test/stalled/1.0.0"
SIZE = 48 * 1024 * 1024
CHUNK = 256 * 1024
STALL_SECONDS = 30.0
MAX_GROWTH = 8 * 1024 * 1024


@dataclass
class Transfer:
    """One sender that pushes, one reader that stalls, and the daemons between them."""

    sender: Daemon
    receiver: Daemon
    relay: Daemon | None
    target: str
    resume: asyncio.Event = field(default_factory=asyncio.Event)
    stalled: asyncio.Event = field(default_factory=asyncio.Event)
    sent: int = 0

    @property
    def daemons(self) -> list[Daemon]:
        return [d for d in (self.sender, self.relay, self.receiver) if d is not None]

    async def run(self) -> None:
        async with (
            dep2p.connect(self.sender.socket) as sender,
            dep2p.connect(self.receiver.socket) as receiver,
            receiver.listen(PROTOCOL) as listener,
            asyncio.TaskGroup() as group,
        ):
            read = group.create_task(self._read(listener))
            stream = await sender.open_stream(self.target, [PROTOCOL])
            assert stream.relayed == (self.relay is not None)
            written = await self._write(stream)
            assert await read == written

    async def _write(self, stream: dep2p.Stream) -> str:
        digest = hashlib.sha256()
        async with stream:
            for number in range(SIZE // CHUNK):
                chunk = number.to_bytes(4, "big") * (CHUNK // 4)
                digest.update(chunk)
                await stream.write(chunk)
                self.sent += len(chunk)
            await stream.close_write()
            assert await stream.read() == b""
        return digest.hexdigest()

    async def _read(self, listener: dep2p.Listener) -> str:
        digest = hashlib.sha256()
        async with await anext(listener) as stream:
            digest.update(await stream.read_exactly(CHUNK))
            self.stalled.set()
            await self.resume.wait()
            while data := await stream.read():
                digest.update(data)
        return digest.hexdigest()


def resident(transfers: list[Transfer]) -> dict[str, int]:
    return {d.name: Usage.of(d.pid).resident_bytes for t in transfers for d in t.daemons}


async def settled(transfers: list[Transfer]) -> None:
    """Wait until every sender is blocked: nothing was sent for a second."""
    before = -1
    while before != (now := sum(transfer.sent for transfer in transfers)):
        before = now
        await asyncio.sleep(1.0)


@pytest.mark.parametrize("transport", ["quic-v1", "tcp"])
async def test_memory_stays_and_the_transfer_completes(transport: str) -> None:
    async with daemons() as start:
        relay = await start("relay", "--preset=relay")
        listener = await start("listener")
        dialler = await start("dialler")
        relayed_listener = await start("relayed-listener", f"--relay={relay.address(transport)}")
        relayed_dialler = await start("relayed-dialler")
        done = await relayed_listener.ctl("wait", "relay", "--timeout=10s")
        assert done.code == 0, done.stderr
        circuit = f"{relay.address(transport)}/p2p-circuit/p2p/{relayed_listener.peer_id}"
        transfers = [
            Transfer(dialler, listener, None, listener.address(transport)),
            Transfer(relayed_dialler, relayed_listener, relay, circuit),
        ]
        async with asyncio.TaskGroup() as group:
            for transfer in transfers:
                group.create_task(transfer.run())
            for transfer in transfers:
                await transfer.stalled.wait()
            await settled(transfers)
            assert all(transfer.sent < SIZE for transfer in transfers), "nobody was stopped"
            before = resident(transfers)
            # The promise is about thirty seconds; there is no event to wait for.
            await asyncio.sleep(STALL_SECONDS)
            after = resident(transfers)
            growth = {name: after[name] - before[name] for name in before}
            assert {n: g for n, g in growth.items() if g > MAX_GROWTH} == {}
            for transfer in transfers:
                transfer.resume.set()


async def test_filling_the_pipe_itself_stays_within_the_windows() -> None:
    """From idle to stalled: what the windows hold, and no more."""
    async with daemons() as start:
        listener = await start("listener")
        dialler = await start("dialler")
        transfer = Transfer(dialler, listener, None, listener.address("quic-v1"))
        async with (
            dep2p.connect(dialler.socket) as node,
            asyncio.TaskGroup() as group,
        ):
            await node.dial(listener.address("quic-v1"))
            async for _ in node.ping(listener.peer_id, count=3, interval=0.01):
                pass
            before = resident([transfer])
            group.create_task(transfer.run())
            await transfer.stalled.wait()
            await settled([transfer])
            after = resident([transfer])
            growth = {name: after[name] - before[name] for name in before}
            assert {n: g for n, g in growth.items() if g > MAX_GROWTH} == {}
            transfer.resume.set()
