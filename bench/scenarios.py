"""The scenarios: what is started, what is driven through the API, what is read from /proc."""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from typing import TYPE_CHECKING

from tests.e2e.processes import BIN, environment

import dep2p
from bench.connections import handshake, idle_connections
from bench.processes import DATAGRAMS_1400, Usage, network
from bench.report import Figure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.e2e.processes import Daemon

GB = 1e9
RUNS = 3
BULK = 200_000_000
"""Bytes of one bulk sample: some seconds on QUIC."""
ECHO = "/dep2p/echo/1.0.0"
SINK = "/bench/sink/1.0.0"


def cpu_seconds(daemon: Daemon) -> float:
    """What a daemon has used so far."""
    return Usage.of(daemon.pid).cpu_seconds


async def bulk(node: dep2p.Node, target: str, size: int) -> None:
    """Upload `size` bytes by /perf/1.0.0."""
    async for report in node.measure_throughput(target, upload_bytes=size):
        if report.final and report.uploaded_bytes != size:
            raise RuntimeError(f"{report.uploaded_bytes} of {size} bytes arrived")


async def direct(
    what: str, transport: str, at_most: float | None, size: int, *, quic: str = ""
) -> list[Figure]:
    """CPU of both daemons for one bulk stream; `quic` are settings of both."""
    sender = Figure(f"{what}, /perf, sending daemon", "s/GB", at_most=at_most)
    receiver = Figure(f"{what}, /perf, receiving daemon", "s/GB", at_most=at_most)
    speed = Figure(f"{what}, /perf, throughput", "MB/s")
    async with network("a", "b", quic=quic) as (a, b), dep2p.connect(a.socket) as node:
        await node.dial(b.address(transport))
        await bulk(node, b.peer_id, size // 10)
        for _ in range(RUNS):
            cpu_a, cpu_b, start = cpu_seconds(a), cpu_seconds(b), time.monotonic()
            await bulk(node, b.peer_id, size)
            speed.samples.append(size / 1e6 / (time.monotonic() - start))
            sender.samples.append((cpu_seconds(a) - cpu_a) / size * GB)
            receiver.samples.append((cpu_seconds(b) - cpu_b) / size * GB)
    return [sender, receiver, speed]


async def direct_quic() -> list[Figure]:
    """Direct QUIC by /perf with both AEADs, and with datagrams as large as loopback carries."""
    chacha = DATAGRAMS_1400 + "prefer_chacha = true\n"
    return [
        *await direct("direct quic-v1, AES-GCM", "quic-v1", 6, BULK, quic=DATAGRAMS_1400),
        *await direct("direct quic-v1, ChaCha20-Poly1305", "quic-v1", None, BULK, quic=chacha),
        *await direct("direct quic-v1, path MTU discovery", "quic-v1", 1.5, 4 * BULK),
    ]


async def direct_tcp() -> list[Figure]:
    """Direct TCP by /perf."""
    return await direct("direct tcp", "tcp", 3, 4 * BULK)


async def open_stream_bulk() -> list[Figure]:
    """The same bytes through OpenStream and Listen: what the API adds."""
    sender = Figure("OpenStream over direct quic-v1, sending daemon", "s/GB")
    receiver = Figure("OpenStream over direct quic-v1, receiving daemon", "s/GB")
    client = Figure("OpenStream over direct quic-v1, both Python clients in one process", "s/GB")
    async with (
        network("a", "b", quic=DATAGRAMS_1400) as (a, b),
        dep2p.connect(a.socket) as node_a,
        dep2p.connect(b.socket) as node_b,
    ):
        await node_a.dial(b.address("quic-v1"))
        chunk = bytes(256 * 1024)

        async def sink(listener: dep2p.Listener) -> None:
            stream = await anext(aiter(listener))
            async with stream:
                while await stream.read():
                    pass

        for _ in range(RUNS):
            usage = resource.getrusage(resource.RUSAGE_SELF)
            own = usage.ru_utime + usage.ru_stime
            cpu_a, cpu_b = cpu_seconds(a), cpu_seconds(b)
            async with node_b.listen(SINK) as listener, asyncio.TaskGroup() as group:
                received = group.create_task(sink(listener))
                async with await node_a.open_stream(b.peer_id, [SINK]) as stream:
                    for _ in range(BULK // len(chunk)):
                        await stream.write(chunk)
                    await stream.close_write()
                    await received
            usage = resource.getrusage(resource.RUSAGE_SELF)
            client.samples.append((usage.ru_utime + usage.ru_stime - own) / BULK * GB)
            sender.samples.append((cpu_seconds(a) - cpu_a) / BULK * GB)
            receiver.samples.append((cpu_seconds(b) - cpu_b) / BULK * GB)
    return [sender, receiver, client]


async def circuit(transport: str, at_most: float, size: int) -> list[Figure]:
    """CPU of a relay that carries one bulk stream circuit."""
    figure = Figure(f"stream circuit over {transport}, relay", "s/GB", at_most=at_most)
    speed = Figure(f"stream circuit over {transport}, throughput", "MB/s")
    async with (
        network("relay", "a", "b", quic=DATAGRAMS_1400) as (r, a, b),
        dep2p.connect(a.socket) as node_a,
        dep2p.connect(b.socket) as node_b,
    ):
        await node_b.connect_relay(r.address(transport))
        target = f"{r.address(transport)}/p2p-circuit/p2p/{b.peer_id}"
        await node_a.dial(target, policy="relayed")
        await bulk(node_a, b.peer_id, size // 10)
        for _ in range(RUNS):
            cpu, start = cpu_seconds(r), time.monotonic()
            await bulk(node_a, b.peer_id, size)
            speed.samples.append(size / 1e6 / (time.monotonic() - start))
            figure.samples.append((cpu_seconds(r) - cpu) / size * GB)
    return [figure, speed]


async def circuit_quic() -> list[Figure]:
    """A stream circuit between QUIC connections."""
    return await circuit("quic-v1", 12, BULK // 2)


async def circuit_tcp() -> list[Figure]:
    """A stream circuit between TCP connections."""
    return await circuit("tcp", 4, 2 * BULK)


async def circuit_setup() -> list[Figure]:
    """50 circuits in turn, from Dial to connected."""
    figure = Figure("circuit set-up over quic-v1, p50 of 50, Dial to Connected", "ms", at_most=40)
    async with (
        network("relay", "a", "b") as (r, a, b),
        dep2p.connect(a.socket) as node_a,
        dep2p.connect(b.socket) as node_b,
    ):
        await node_b.connect_relay(r.address("quic-v1"))
        target = f"{r.address('quic-v1')}/p2p-circuit/p2p/{b.peer_id}"
        await node_a.dial(r.address("quic-v1"))
        for _ in range(50):
            start = time.perf_counter()
            await node_a.dial(target, policy="relayed")
            figure.samples.append((time.perf_counter() - start) * 1e3)
            await node_a.disconnect(b.peer_id)
    return [figure]


async def idle_reservations() -> list[Figure]:
    """A relay that holds 500 reservations of 500 identities, and does nothing else."""
    memory = Figure("relay with 500 reservations, memory", "MB", at_most=200)
    idle = Figure("relay with 500 reservations, CPU when idle", "% of a core", at_most=5)
    async with network("relay") as (r,):
        generator = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "bench.reservations",
            r.address("quic-v1"),
            "500",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment(),
        )
        assert generator.stdin is not None
        assert generator.stdout is not None
        try:
            async with asyncio.timeout(300):
                if await generator.stdout.readline() != b"ready\n":
                    raise RuntimeError("the generator of reservations failed")
            async with dep2p.connect(r.socket) as node:
                held = (await node.get_node()).reservation_count
            if held != 500:
                raise RuntimeError(f"{held} reservations are held")
            memory.samples.append(Usage.of(r.pid).resident_bytes / 1e6)
            for _ in range(RUNS):
                before = cpu_seconds(r)
                await asyncio.sleep(20)
                idle.samples.append((cpu_seconds(r) - before) / 20 * 100)
        finally:
            generator.stdin.close()
            await generator.wait()
    return [memory, idle]


async def start_up() -> list[Figure]:
    """How long a person waits."""
    ready = Figure("dep2pd start to ready", "s", at_most=1.2)
    command = Figure("dep2pctl id", "s", at_most=0.4)
    for _ in range(5):
        start = time.monotonic()
        async with network("a") as (a,):
            ready.samples.append(time.monotonic() - start)
            start = time.monotonic()
            process = await asyncio.create_subprocess_exec(
                str(BIN / "dep2pctl"),
                f"--socket={a.socket}",
                "id",
                stdout=asyncio.subprocess.DEVNULL,
                env=environment(),
            )
            if await process.wait():
                raise RuntimeError("dep2pctl id failed")
            command.samples.append(time.monotonic() - start)
    return [ready, command]


async def echo_latency() -> list[Figure]:
    """OpenStream's echo of 32 bytes over a local connection."""
    figure = Figure("OpenStream echo of 32 bytes, direct quic-v1, p50", "ms", at_most=3)
    async with network("a", "b") as (a, b), dep2p.connect(a.socket) as node:
        await node.dial(b.address("quic-v1"))
        async with await node.open_stream(b.peer_id, [ECHO]) as stream:
            for _ in range(500):
                start = time.perf_counter()
                await stream.write(b"x" * 32)
                received = 0
                while received < 32:
                    received += len(await stream.read())
                figure.samples.append((time.perf_counter() - start) * 1e3)
    return [figure]


SCENARIOS: dict[str, Callable[[], Awaitable[list[Figure]]]] = {
    "direct-quic": direct_quic,
    "handshake": handshake,
    "idle-connections": idle_connections,
    "open-stream": open_stream_bulk,
    "direct-tcp": direct_tcp,
    "circuit-quic": circuit_quic,
    "circuit-tcp": circuit_tcp,
    "circuit-setup": circuit_setup,
    "reservations": idle_reservations,
    "start-up": start_up,
    "echo": echo_latency,
}
