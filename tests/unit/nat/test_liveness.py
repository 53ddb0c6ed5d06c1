"""A direct path that dies in silence is noticed; one that lives is left alone."""

from __future__ import annotations

import asyncio

import pytest
from tests.memory_nodes import connected, swarms
from tests.virtual_time import virtual_time

from dep2p_daemon.muxed import CloseCode, Stream
from dep2p_daemon.nat.liveness import LivenessSettings, guard
from dep2p_daemon.protocols import ping

SETTINGS = LivenessSettings()


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
async def test_a_peer_that_refuses_pings_is_alive() -> None:
    async with swarms() as (one, other):
        here, _ = await connected(one, other)
        watch = asyncio.create_task(guard(one, here, SETTINGS))
        await asyncio.sleep(600)
        assert not here.is_closed
        watch.cancel()
