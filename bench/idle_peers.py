"""Many nodes in one process, each under an identity of its own, that are connected and idle.

Run as `python -m bench.idle_peers dial ADDRESS COUNT` or `... listen COUNT`. `dial` prints `ready`
once all are connected; `listen` prints an address for each node. Then both wait for the end of
their standard input. Started by the bench; uses loopback only.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import AsyncExitStack

import structlog

from dep2p_daemon.events import EventBus
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr, parse_dial_target
from dep2p_daemon.protocols.identify import Identify
from dep2p_daemon.quic.settings import QuicSettings
from dep2p_daemon.quic.transport import QuicTransport
from dep2p_daemon.swarm.peerstore import Peerstore
from dep2p_daemon.swarm.swarm import Swarm

PARALLEL = 8


async def node(stack: AsyncExitStack) -> Swarm:
    """A node with identify and QUIC, and nothing else."""
    key = PrivateKey.generate()
    swarm = await stack.enter_async_context(
        Swarm(key=key, peerstore=Peerstore(None), events=EventBus())
    )
    swarm.add_transport(await stack.enter_async_context(QuicTransport(key, QuicSettings())))
    Identify(swarm).register()
    return swarm


async def dial(stack: AsyncExitStack, address: str, count: int) -> None:
    """Connect many nodes to one."""
    places, target = asyncio.Semaphore(PARALLEL), parse_dial_target(address)

    async def one() -> None:
        async with places:
            swarm = await node(stack)
            await swarm.dial(target.peer, target.addresses)

    await asyncio.gather(*(one() for _ in range(count)))
    print("ready", flush=True)


async def listen(stack: AsyncExitStack, count: int) -> None:
    """Give many nodes an address each."""
    for _ in range(count):
        swarm = await node(stack)
        (address,) = await swarm.listen([Multiaddr.for_udp("127.0.0.1", 0)])
        print(address.with_peer_id(swarm.local_peer), flush=True)


async def main() -> None:
    """Hold them until standard input ends."""
    async with AsyncExitStack() as stack:
        if sys.argv[1] == "dial":
            await dial(stack, sys.argv[2], int(sys.argv[3]))
        else:
            await listen(stack, int(sys.argv[2]))
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    # Standard output is for the bench; steps of hundreds of nodes are for nobody.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    asyncio.run(main())
