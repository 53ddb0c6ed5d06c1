"""Hold many reservations at one relay from one process, each under an identity of its own.

Run as `python -m bench.reservations RELAY_ADDRESS COUNT`: prints `ready` once all are held, then
waits for the end of its standard input. Started by the bench; sends to loopback only.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import AsyncExitStack

import structlog

from dep2p_daemon.circuit.relay_client import RelayClient
from dep2p_daemon.events import EventBus
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.protocols.identify import Identify
from dep2p_daemon.quic.settings import QuicSettings
from dep2p_daemon.quic.transport import QuicTransport
from dep2p_daemon.swarm.peerstore import Peerstore
from dep2p_daemon.swarm.swarm import Swarm

PARALLEL = 8


async def hold(stack: AsyncExitStack, relay: Multiaddr) -> None:
    """Make one node and reserve."""
    key, events = PrivateKey.generate(), EventBus()
    swarm = await stack.enter_async_context(
        Swarm(key=key, peerstore=Peerstore(None), events=events)
    )
    swarm.add_transport(await stack.enter_async_context(QuicTransport(key, QuicSettings())))
    Identify(swarm).register()
    client = await stack.enter_async_context(RelayClient(swarm, events))
    await client.connect(relay)


async def main() -> None:
    """Hold them until standard input ends."""
    relay, count = Multiaddr.parse(sys.argv[1]), int(sys.argv[2])
    places = asyncio.Semaphore(PARALLEL)
    async with AsyncExitStack() as stack:

        async def one() -> None:
            async with places:
                await hold(stack, relay)

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(one())
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    # Standard output is for "ready"; steps of 500 nodes are for nobody.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    asyncio.run(main())
