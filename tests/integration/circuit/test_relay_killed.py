"""A relay that is killed: its clients notice, wait, and are back when it is back."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.circuit_nodes import Node, node, sockets

from dep2p_daemon.circuit.events import RelayChanged, RelayState
from dep2p_daemon.multiaddr import Multiaddr

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parents[3]


@asynccontextmanager
async def relay_process(listen: str) -> AsyncIterator[Multiaddr]:
    """Run a relay in a process of its own; it is killed without warning at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.integration.circuit.relay_process",
        "the relay",
        listen,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        line = await process.stdout.readline()
        yield Multiaddr.parse(line.decode().strip())
    finally:
        process.kill()
        await process.wait()


async def until(client: Node, state: RelayState) -> None:
    await client.next(RelayChanged, lambda event: event.status.state is state)


@pytest.mark.parametrize("listen", ["/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0"])
async def test_a_relay_that_is_killed_is_reserved_at_again_once_it_is_back(listen: str) -> None:
    async with node(sockets) as client:
        async with relay_process(listen) as address:
            await client.client.connect(address)
            assert client.swarm.own_addresses
        client.so_far(RelayChanged)
        async with relay_process(str(address.without_peer_id())):
            await until(client, RelayState.RESERVED)
            assert client.client.relays[0].state is RelayState.RESERVED
            assert [str(a) for a in client.swarm.own_addresses] == [f"{address}/p2p-circuit"]
