"""Dialling a peer by its id alone: all that is known is tried, at once and within one deadline."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from tests.circuit_nodes import Node, memory, node
from tests.memory_transport import MemoryNetwork
from tests.virtual_time import virtual_time

from dep2p_daemon.circuit.relay_choice import ChoiceSettings
from dep2p_daemon.circuit.relay_server import RelayServerSettings
from dep2p_daemon.circuit.relay_supervisor import RelaySupervisor, SupervisorSettings
from dep2p_daemon.discovery.mdns import SOURCE as MDNS
from dep2p_daemon.errors import DialTimeoutError
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEYS = [PrivateKey.from_seed(bytes([n]) * 32) for n in range(120, 124)]
TARGET = KEYS[3].peer_id
AT_HOME = Multiaddr.for_udp("192.168.1.7", 4001)
ABROAD = Multiaddr.for_udp("198.51.100.7", 4001)
KEPT, KNOWN = Multiaddr.for_udp("192.0.2.1", 4001), Multiaddr.for_udp("192.0.2.2", 4001)
RELAYS = (KEPT, KNOWN)


@asynccontextmanager
async def dialler(network: MemoryNetwork) -> AsyncIterator[Node]:
    """A node with a relay that it keeps, another that it only knows, and two addresses of TARGET.

    One of these is what TARGET told itself, one is mDNS'.
    """
    async with AsyncExitStack() as stack:
        for key, address in zip(KEYS, RELAYS, strict=False):
            await stack.enter_async_context(
                node(memory(network), address, key=key, relay=RelayServerSettings(), identify=True)
            )
        made = await stack.enter_async_context(node(memory(network), identify=True))
        settings = SupervisorSettings(choice=ChoiceSettings(wanted=1))
        await stack.enter_async_context(
            RelaySupervisor(made.client, made.swarm, made.events, settings)
        )
        made.client.add(KEPT.with_peer_id(KEYS[0].peer_id))
        await made.swarm.dial(KEYS[1].peer_id, [KNOWN])
        await asyncio.sleep(10)
        store = made.swarm.peerstore
        store.add_addresses(TARGET, [ABROAD], ttl=60, source="identify")
        store.add_addresses(TARGET, [AT_HOME], ttl=60, source=MDNS)
        network.dials.clear()
        yield made


@virtual_time
async def test_everything_known_is_tried_within_a_second() -> None:
    network = MemoryNetwork(dead={AT_HOME, ABROAD})
    async with dialler(network) as node:
        assert [status.peer_id for status in node.client.relays] == [KEYS[0].peer_id]
        began = asyncio.get_running_loop().time()
        with pytest.raises(DialTimeoutError):
            await node.swarm.dial(TARGET, timeout=3)
        assert asyncio.get_running_loop().time() - began == pytest.approx(3), "one deadline"
        dialled = {address: at - began for at, address in network.dials}
        # Over the connections with the relays no dial is needed: their refusal shows the attempt.
        (trail,) = node.swarm.dial_trails.of(TARGET)
        tried = {attempt.address: attempt.began_after for attempt in trail.attempts} | dialled
        assert set(tried) == {
            AT_HOME,
            ABROAD,
            *(
                way.with_peer_id(key.peer_id) / "/p2p-circuit"
                for way, key in zip(RELAYS, KEYS, strict=False)
            ),
        }
        assert max(tried.values()) < 1


@virtual_time
@pytest.mark.parametrize("there", [AT_HOME, ABROAD])
async def test_the_first_that_answers_is_taken(there: Multiaddr) -> None:
    network = MemoryNetwork(dead={AT_HOME, ABROAD} - {there})
    async with dialler(network) as made, node(memory(network), there, key=KEYS[3]):
        began = asyncio.get_running_loop().time()
        connection = await made.swarm.dial(TARGET, timeout=3)
        assert connection.remote_address == there
        assert asyncio.get_running_loop().time() - began < 0.5
