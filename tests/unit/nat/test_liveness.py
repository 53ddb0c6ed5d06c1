"""A direct path that dies in silence is noticed; one that lives is left alone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.memory_nodes import CIRCUIT, KEYS, connected, swarms
from tests.memory_transport import MemoryConnection
from tests.virtual_time import virtual_time

from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.muxed import CloseCode, Connection, Stream
from dep2p_daemon.nat.liveness import LivenessSettings, guard
from dep2p_daemon.nat.paths import PathWatch
from dep2p_daemon.protocols import ping
from dep2p_daemon.swarm.events import NetworkChange, NetworkChanged

if TYPE_CHECKING:
    from dep2p_daemon.swarm.swarm import Swarm

SETTINGS = LivenessSettings()
CIRCUITS = (
    CIRCUIT,
    Multiaddr.parse(f"/ip4/198.51.100.2/tcp/4001/p2p/{KEYS[5].peer_id}/p2p-circuit"),
)


async def swallow(stream: Stream) -> None:
    """Take what comes and say nothing, as a path does that is dead one way."""
    while await stream.read():
        pass


@virtual_time
async def test_a_peer_that_answers_is_pinged_again_and_again() -> None:
    async with swarms() as (one, other):
        ping.register(other)
        here, _ = await connected(one, other)
        watch = asyncio.create_task(guard(one, here, SETTINGS))
        await asyncio.sleep(600)
        assert not here.is_closed
        assert here.rtt is not None
        watch.cancel()


@virtual_time
async def test_a_path_that_went_silent_is_ended_in_time() -> None:
    async with swarms() as (one, other):
        other.set_handler(ping.PROTOCOL, swallow)
        here, _ = await connected(one, other)
        began = asyncio.get_running_loop().time()
        await guard(one, here, SETTINGS)
        took = asyncio.get_running_loop().time() - began
        assert took == pytest.approx(SETTINGS.interval + SETTINGS.tries * SETTINGS.timeout)
        assert (await here.wait_closed()).code == CloseCode.GARBAGE_COLLECTED


@virtual_time
async def test_traffic_is_a_sign_of_life() -> None:
    async with swarms() as (one, other):
        other.set_handler(ping.PROTOCOL, swallow)
        here, _ = await connected(one, other)

        async def talk() -> None:
            while True:
                await asyncio.sleep(1.0)
                here.traffic.received += 1

        talking = asyncio.create_task(talk())
        watch = asyncio.create_task(guard(one, here, SETTINGS))
        await asyncio.sleep(600)
        assert not here.is_closed
        talking.cancel()
        await watch
        assert here.is_closed


@virtual_time
async def test_after_a_change_of_network_direct_connections_show_whether_they_live() -> None:
    async with swarms(3) as (one, dead, alive):
        dead.set_handler(ping.PROTOCOL, swallow)
        ping.register(alive)
        PathWatch(one)
        lost, _ = await connected(one, dead)
        kept, _ = await connected(one, alive)
        await asyncio.sleep(600)
        assert not lost.is_closed, "without relays to fall back to nobody looks"
        one.events.publish(NetworkChanged(NetworkChange.LOST, (), ()))
        await asyncio.sleep(60)
        assert not lost.is_closed, "the network may come back"
        one.events.publish(NetworkChanged(NetworkChange.MOVED, ("192.0.2.7",), ()))
        await asyncio.sleep(SETTINGS.tries * SETTINGS.timeout + 0.1)
        assert lost.is_closed
        assert not kept.is_closed


async def relayed(one: Swarm, other: Swarm, *, number: int = 1) -> Connection:
    """A circuit that last told of itself now."""
    address = CIRCUITS[number]
    await other.listen([address])
    here = await one.dial(other.local_peer, [address], force_new=True)
    assert isinstance(here, MemoryConnection)
    assert here.relayed
    here.heard = asyncio.get_running_loop().time()
    return here


@virtual_time
async def test_a_stream_does_not_wait_for_a_relayed_connection_that_died_in_silence() -> None:
    async with swarms() as (one, other):
        PathWatch(one)
        dead = await relayed(one, other, number=0)
        other.set_handler(ping.PROTOCOL, swallow)
        await other.listen([CIRCUITS[1]])
        one.peerstore.add_addresses(other.local_peer, [CIRCUITS[1]], ttl=60, source="test")
        # Heard a moment ago: it is used as it is.
        assert await one.dial(other.local_peer) is dead
        await asyncio.sleep(SETTINGS.relayed_silence)
        began = asyncio.get_running_loop().time()
        another = await one.dial(other.local_peer)
        assert another.remote_address == CIRCUITS[1]
        took = asyncio.get_running_loop().time() - began
        assert took == pytest.approx(SETTINGS.timeout, abs=0.1)
        assert not dead.is_closed, "who knows what still runs on it"


@virtual_time
async def test_a_relayed_connection_that_was_silent_and_answers_is_used() -> None:
    async with swarms() as (one, other):
        ping.register(other)
        PathWatch(one)
        here = await relayed(one, other)
        await asyncio.sleep(600)
        assert await one.dial(other.local_peer) is here


@virtual_time
async def test_a_peer_that_refuses_pings_is_alive() -> None:
    async with swarms() as (one, other):
        here, _ = await connected(one, other)
        watch = asyncio.create_task(guard(one, here, SETTINGS))
        await asyncio.sleep(600)
        assert not here.is_closed
        watch.cancel()
