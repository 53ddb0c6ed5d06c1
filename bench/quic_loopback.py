"""CPU-seconds per GB of the QUIC transport alone: two processes, one stream, loopback.

Run `python -m bench.quic_loopback [--megabytes 200] [--profile]`. No daemon and no API in it:
what `bench/` measures through those includes this.
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
from dep2p_daemon.quic.settings import QuicSettings
from dep2p_daemon.quic.transport import QuicTransport

if TYPE_CHECKING:
    from multiprocessing.connection import Connection as Pipe

BLOCK = bytes(range(256)) * 256


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def receive(pipe: Pipe, settings: QuicSettings) -> dict[str, Any]:
    key = PrivateKey.generate()
    async with QuicTransport(key, settings) as transport:
        listener = await transport.listen(Multiaddr.for_udp("127.0.0.1", 0))
        pipe.send((str(listener.addresses[0]), str(key.peer_id)))
        connection = await listener.accept()
        stream = await connection.accept_stream()
        received = len(await stream.read())
        start_cpu, start = cpu(), time.perf_counter()
        while data := await stream.read():
            received += len(data)
        spent, seconds = cpu() - start_cpu, time.perf_counter() - start
        await stream.close_write()
        await connection.wait_closed()
        counters = transport.drivers[0].socket.counters
        return {
            "bytes": received,
            "cpu": spent,
            "seconds": seconds,
            "datagrams_in": counters.received,
            "datagrams_out": counters.sent,
        }


async def send(address: str, peer: str, size: int, settings: QuicSettings) -> dict[str, Any]:
    async with QuicTransport(PrivateKey.generate(), settings) as transport:
        connection = await transport.dial(Multiaddr.parse(address), PeerId.parse(peer))
        stream = await connection.open_stream()
        start_cpu, start = cpu(), time.perf_counter()
        left = size
        while left > 0:
            await stream.write(BLOCK)
            left -= len(BLOCK)
        await stream.close_write()
        await stream.read()
        spent, seconds = cpu() - start_cpu, time.perf_counter() - start
        await connection.close()
        counters = transport.drivers[0].socket.counters
        return {
            "bytes": size,
            "cpu": spent,
            "seconds": seconds,
            "datagrams_in": counters.received,
            "datagrams_out": counters.sent,
        }


def run(role: str, pipe: Pipe, profile: bool, arguments: tuple[Any, ...]) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    profiler = cProfile.Profile() if profile else None
    if profiler:
        profiler.enable()
    result = asyncio.run(receive(pipe, *arguments) if role == "receiver" else send(*arguments))
    if profiler:
        profiler.disable()
        print(role)
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
    pipe.send(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--datagram", type=int, default=1400)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    settings = QuicSettings(max_datagram_size=options.datagram)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    receiver = context.Process(target=run, args=("receiver", theirs, options.profile, (settings,)))
    receiver.start()
    address, peer = ours.recv()
    ours2, theirs2 = context.Pipe()
    arguments = (address, peer, options.megabytes * 1_000_000, settings)
    sender = context.Process(target=run, args=("sender", theirs2, options.profile, arguments))
    sender.start()
    for role, pipe in (("sender", ours2), ("receiver", ours)):
        result = pipe.recv()
        gigabytes = result["bytes"] / 1e9
        print(
            f"{role:9} {result['cpu'] / gigabytes:6.2f} CPU-s/GB"
            f"  {result['bytes'] / 1e6 / result['seconds']:6.1f} MB/s"
            f"  datagrams out {result['datagrams_out']} in {result['datagrams_in']}"
        )
    sender.join()
    receiver.join()


if __name__ == "__main__":
    main()
