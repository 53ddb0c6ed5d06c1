"""What a QUIC connection costs beside its data: the handshake, and being there."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tests.e2e.processes import environment

import dep2p
from bench.processes import MANY_CONNECTIONS, Usage, network
from bench.report import Figure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.processes import Daemon

RUNS = 3
HANDSHAKES = 100
"""Of one sample."""
WARM, MEASURED = 60, 300
"""Connections before the first look at the memory, so that pools are filled, and after it."""
SETTLE_SECONDS = 12.0
"""After which a connection is idle: identify and the dial-backs of AutoNAT are over."""


async def handshake() -> list[Figure]:
    """Dial and disconnect, both certificates checked; identify and the API calls are in it."""
    both = Figure("QUIC handshake, both daemons", "ms of CPU", at_most=9, note="with identify")
    async with network("a", "b") as (a, b), dep2p.connect(a.socket) as node:
        address = b.address("quic-v1")

        async def connect(count: int) -> None:
            for _ in range(count):
                await node.dial(address)
                await node.disconnect(b.peer_id)

        await connect(HANDSHAKES // 5)
        for _ in range(RUNS):
            before = Usage.of(a.pid).cpu_seconds + Usage.of(b.pid).cpu_seconds
            await connect(HANDSHAKES)
            after = Usage.of(a.pid).cpu_seconds + Usage.of(b.pid).cpu_seconds
            both.samples.append((after - before) / HANDSHAKES * 1e3)
    return [both]


@asynccontextmanager
async def _peers(*arguments: str) -> AsyncIterator[asyncio.StreamReader]:
    """Idle nodes in a process of their own; gives what the process prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.idle_peers",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        process.stdin.close()
        await process.wait()


async def _resident(daemon: Daemon, connections: int) -> int:
    async with dep2p.connect(daemon.socket) as node:
        found = len(await node.list_connections())
        if found != connections:
            raise RuntimeError(f"{found} connections, where {connections} were made")
    await asyncio.sleep(SETTLE_SECONDS)
    return Usage.of(daemon.pid).resident_bytes


async def _accepted(daemon: Daemon) -> float:
    address = daemon.address("quic-v1")
    async with _peers("dial", address, str(WARM)) as warm:
        if await warm.readline() != b"ready\n":
            raise RuntimeError("the peers did not connect")
        before = await _resident(daemon, WARM)
        async with _peers("dial", address, str(MEASURED)) as more:
            if await more.readline() != b"ready\n":
                raise RuntimeError("the peers did not connect")
            return (await _resident(daemon, WARM + MEASURED) - before) / MEASURED


async def _dialled(daemon: Daemon) -> float:
    async with (
        _peers("listen", str(WARM + MEASURED)) as addresses,
        dep2p.connect(daemon.socket) as node,
    ):
        before = 0
        for number in range(WARM + MEASURED):
            if number == WARM:
                before = await _resident(daemon, WARM)
            await node.dial((await addresses.readline()).decode().strip())
        return (await _resident(daemon, WARM + MEASURED) - before) / MEASURED


async def idle_connections() -> list[Figure]:
    """Growth of a daemon's memory by a connection that does nothing, in either direction."""
    figures = []
    for direction, measure in (("accepted", _accepted), ("dialled", _dialled)):
        figure = Figure(
            f"idle QUIC connection, {direction}, memory of the daemon",
            "KB",
            at_most=60,
            note=f"growth over {MEASURED} connections",
        )
        async with network("a", limits=MANY_CONNECTIONS) as (a,):
            figure.samples.append(await measure(a) / 1e3)
        figures.append(figure)
    return figures
