"""CPU-seconds per GB of the TCP transport alone: one process each, one stream, loopback.

Run `python -m bench.tcp_loopback [--megabytes 1000] [--relay] [--profile]`. With `--relay` a
third process forwards the stream, as a relay forwards a stream circuit. No daemon and no API in
it: what `bench/` measures through those includes this.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import logging
import multiprocessing
import pstats
import resource
import time
from typing import TYPE_CHECKING, Any

import structlog

from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.identity.peer_id import PeerId
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.tcp.transport import TcpTransport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from multiprocessing.connection import Connection as Pipe

    from dep2p_daemon.muxed import Stream

READ_BYTES = 256 * 1024
"""As the perf protocol and the relay's pipe read and write."""
BLOCK = memoryview(bytes(READ_BYTES))


class Meter:
    """CPU and time from the first byte to the last."""

    def __init__(self) -> None:
        self.cpu, self.clock = self._cpu(), time.perf_counter()

    @staticmethod
    def _cpu() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime

    def result(self, size: int) -> dict[str, Any]:
        """What `size` bytes took."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        seconds = time.perf_counter() - self.clock
        return {"bytes": size, "cpu": self._cpu() - self.cpu, "seconds": seconds, "peak": peak}


async def serve(
    pipe: Pipe, transport: TcpTransport, key: PrivateKey, use: Callable[[Stream], Awaitable[int]]
) -> dict[str, Any]:
    """Accept one stream and use it up."""
    listener = await transport.listen(Multiaddr.for_tcp("127.0.0.1", 0))
    pipe.send((str(listener.addresses[0]), str(key.peer_id)))
    connection = await listener.accept()
    stream = await connection.accept_stream()
    meter = Meter()
    size = await use(stream)
    result = meter.result(size)
    await stream.aclose()
    await connection.wait_closed()
    return result


async def receive(pipe: Pipe) -> dict[str, Any]:
    async def swallow(stream: Stream) -> int:
        size = 0
        while data := await stream.read(READ_BYTES):
            size += len(data)
        return size

    key = PrivateKey.generate()
    async with TcpTransport(key) as transport:
        return await serve(pipe, transport, key, swallow)


async def relay(pipe: Pipe, address: str, peer: str) -> dict[str, Any]:
    key = PrivateKey.generate()
    async with TcpTransport(key) as transport:
        onward = await transport.dial(Multiaddr.parse(address), PeerId.parse(peer))

        async def forward(stream: Stream) -> int:
            out = await onward.open_stream()
            size = 0
            while data := await stream.read(READ_BYTES):
                await out.write(data)
                size += len(data)
            await out.close_write()
            await out.read()
            return size

        result = await serve(pipe, transport, key, forward)
        await onward.close()
        return result


async def send(address: str, peer: str, size: int) -> dict[str, Any]:
    async with TcpTransport(PrivateKey.generate()) as transport:
        connection = await transport.dial(Multiaddr.parse(address), PeerId.parse(peer))
        stream = await connection.open_stream()
        meter = Meter()
        left = size
        while left > 0:
            await stream.write(BLOCK)
            left -= len(BLOCK)
        await stream.close_write()
        await stream.read()
        result = meter.result(size)
        await stream.aclose()
        await connection.close()
        return result


def run(role: str, pipe: Pipe, profile: bool, arguments: tuple[Any, ...]) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    profiler = cProfile.Profile() if profile else None
    if profiler:
        profiler.enable()
    if role == "sender":
        result = asyncio.run(send(*arguments))
    else:
        result = asyncio.run((relay if role == "relay" else receive)(pipe, *arguments))
    if profiler:
        profiler.disable()
        print(role)
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
    pipe.send(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--relay", action="store_true")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    started: list[tuple[str, Pipe, Any]] = []

    def start(role: str, *arguments: object) -> Pipe:
        ours, theirs = context.Pipe()
        process = context.Process(target=run, args=(role, theirs, options.profile, arguments))
        process.start()
        started.append((role, ours, process))
        return ours

    address, peer = start("receiver").recv()
    if options.relay:
        address, peer = start("relay", address, peer).recv()
    start("sender", address, peer, options.megabytes * 1_000_000)
    for role, pipe, process in reversed(started):
        result = pipe.recv()
        process.join()
        print(
            f"{role:9} {result['cpu'] / result['bytes'] * 1e9:6.2f} CPU-s/GB"
            f"  {result['bytes'] / 1e6 / result['seconds']:7.1f} MB/s"
            f"  peak memory {result['peak']:.0f} MB"
        )


if __name__ == "__main__":
    main()
