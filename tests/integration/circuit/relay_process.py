"""A relay in a process of its own, for tests that end it without warning.

Usage: python -m tests.integration.circuit.relay_process SEED ADDRESS...
Prints its addresses, one a line and an empty line after them; runs until it is killed.
"""

from __future__ import annotations

import asyncio
import logging
import sys

import structlog
from tests.circuit_nodes import node, sockets

from dep2p_daemon.circuit.relay_server import RelayServerSettings
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr


async def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    key = PrivateKey.from_seed(sys.argv[1].encode().ljust(32))
    listen = [Multiaddr.parse(text) for text in sys.argv[2:]]
    async with node(sockets, *listen, key=key, relay=RelayServerSettings(pair_rate=None)) as relay:
        sys.stdout.writelines(f"{address}\n" for address in relay.addresses)
        sys.stdout.write("\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(main())
