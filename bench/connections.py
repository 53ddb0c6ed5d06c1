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
    """Dial and close, both certificates checked: the bare transports, and whole daemons."""
    return [await _bare_handshake(), await _daemons_handshake()]


async def _bare_handshake() -> Figure:
    figure = Figure("QUIC handshake with both certificates, both ends", "ms of CPU", at_most=9)
    async with _started("bench.handshakes", "listen") as listener:
        address = (await _line(listener)).strip()
        async with _started("bench.handshakes", "dial", address) as dialler:
            await _dial(dialler, HANDSHAKES)
            for _ in range(RUNS):
                before = Usage.of(listener.pid).cpu_seconds + Usage.of(dialler.pid).cpu_seconds
                await _dial(dialler, HANDSHAKES)
                after = Usage.of(listener.pid).cpu_seconds + Usage.of(dialler.pid).cpu_seconds
                figure.samples.append((after - before) / HANDSHAKES * 1e3)
    return figure


async def _dial(dialler: asyncio.subprocess.Process, count: int) -> None:
    assert dialler.stdin is not None
    dialler.stdin.write(f"{count}\n".encode())
    if await _line(dialler) != "done\n":
        raise RuntimeError("the dialling end failed")


async def _daemons_handshake() -> Figure:
    what = "Dial to Disconnect over quic-v1 with identify, both daemons"
    both = Figure(what, "ms of CPU")
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
    return both


@asynccontextmanager
async def _started(module: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process of ours, which ends with its standard input."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment(),
    )
    assert process.stdin is not None
    try:
        yield process
    finally:
        process.stdin.close()
        await process.wait()


async def _line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode()


async def _resident(daemon: Daemon, connections: int) -> int:
    async with dep2p.connect(daemon.socket) as node:
        found = len(await node.list_connections())
        if found != connections:
            raise RuntimeError(f"{found} connections, where {connections} were made")
    await asyncio.sleep(SETTLE_SECONDS)
    return Usage.of(daemon.pid).resident_bytes


async def _accepted(daemon: Daemon) -> float:
    address = daemon.address("quic-v1")
    async with _started("bench.idle_peers", "dial", address, str(WARM)) as warm:
        if await _line(warm) != "ready\n":
            raise RuntimeError("the peers did not connect")
        before = await _resident(daemon, WARM)
        async with _started("bench.idle_peers", "dial", address, str(MEASURED)) as more:
            if await _line(more) != "ready\n":
                raise RuntimeError("the peers did not connect")
            return (await _resident(daemon, WARM + MEASURED) - before) / MEASURED


async def _dialled(daemon: Daemon) -> float:
    async with (
        _started("bench.idle_peers", "listen", str(WARM + MEASURED)) as peers,
        dep2p.connect(daemon.socket) as node,
    ):
        before = 0
        for number in range(WARM + MEASURED):
            if number == WARM:
                before = await _resident(daemon, WARM)
            await node.dial((await _line(peers)).strip())
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
