"""Dial with `wait_direct`: a direct path, or why there is none."""

from __future__ import annotations

import pytest
from tests.api_nodes import ApiNode, api_nodes

from dep2p.v1 import peer_pb2

RELAY = {"enabled": True}
OFF = {"hole_punching": False}


async def behind(relay: ApiNode, listener: ApiNode) -> str:
    """Reserve, and return the address to dial the listener at."""
    await listener.client.connect_relay(relay.address())
    return f"{relay.address()}/p2p-circuit/p2p/{listener.peer_id}"


async def test_a_direct_path_is_not_waited_for() -> None:
    async with api_nodes() as start:
        a, b = await start(), await start()
        answer = await a.client.dial_direct(b.address(), wait=60.0)
        assert answer.connection.path == peer_pb2.PATH_DIRECT
        assert not answer.HasField("direct_failure")


@pytest.mark.parametrize(
    ("nat", "reason"),
    [
        # On loopback nobody has a public address, so that the listener has nothing to offer.
        ({}, "NO_ATTEMPT"),
        (OFF, "HOLE_PUNCHING_OFF"),
    ],
)
async def test_a_path_that_stays_relayed_is_explained(nat: dict[str, bool], reason: str) -> None:
    async with api_nodes() as start:
        relay, listener, dialler = (
            await start(relay_server=RELAY),
            await start(),
            await start(nat=nat),
        )
        target = await behind(relay, listener)
        answer = await dialler.client.dial_direct(target, wait=0.3)
        assert answer.connection.path == peer_pb2.PATH_RELAYED
        assert answer.direct_failure.reason == reason
        assert answer.direct_failure.message
        assert answer.direct_failure.remedy


async def test_without_waiting_nothing_is_explained() -> None:
    async with api_nodes() as start:
        relay, listener, dialler = await start(relay_server=RELAY), await start(), await start()
        connection = await dialler.client.dial(await behind(relay, listener))
        assert connection.path == peer_pb2.PATH_RELAYED
