"""Relays at different distances: the nearest are used, and one of them may die at any time."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e.lab_daemons import ECHO, laboratory
from tests.natlab.impairment import Impairment
from tests.requires import require_natlab

import dep2p

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.lab_daemons import LabNet
    from tests.e2e.processes import Daemon

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]

DISTANCES = {"near": 5, "middle": 25, "far": 70}
"""Of the relays, in milliseconds one way."""
HOST_MS = 10
AT_ONCE_SECONDS = 5.0
"""For an echo while one of two relays is dead."""


@pytest.fixture(autouse=True)
def machine() -> None:
    require_natlab()


async def client(net: LabNet, node: str, *, wanted: int) -> Daemon:
    """A node that knows the relays as its bootstrap peers; no direct path is sought."""
    addresses = [f"--bootstrap={net.relay_addresses(node, relay)[0]}" for relay in DISTANCES]
    daemon = net.prepare(node, *addresses)
    daemon.env["DEP2P_RELAY_CLIENT__WANTED"] = str(wanted)
    daemon.env["DEP2P_NAT__HOLE_PUNCHING"] = "false"
    await daemon.start()
    return daemon


@asynccontextmanager
async def states_told(node: Daemon) -> AsyncIterator[dict[str, list[str]]]:
    """What `WatchRelays` tells during the block: by relay, each new state."""
    told: dict[str, list[str]] = {}

    async def watch() -> None:
        async with dep2p.connect(node.socket) as api, aclosing(api.watch_relays()) as changes:
            async for relay in changes:
                state = type(relay).State.Name(relay.state).removeprefix("STATE_").lower()
                states = told.setdefault(relay.peer_id, [])
                if not states or states[-1] != state:
                    states.append(state)

    watching = asyncio.create_task(watch())
    try:
        yield told
    finally:
        watching.cancel()
        await asyncio.wait([watching])


async def reserved_at(net: LabNet, *relays: str, within: float) -> list[dict[str, Any]]:
    """Wait until alice's relays are these, and all hold; return what `relay list` says of them."""
    wanted = [(net.nodes[relay].peer_id, "reserved") for relay in relays]
    began = time.monotonic()
    async with asyncio.timeout(within):
        while True:
            listed = (await net.alice.ctl_json("relay", "list"))["relays"]
            if sorted((one["peer_id"], one["state"]) for one in listed) == sorted(wanted):
                break
            await asyncio.sleep(0.2)
    print(f"reserved at {relays} after {time.monotonic() - began:.1f} s")  # noqa: T201
    by_peer = {one["peer_id"]: one for one in listed}
    return [by_peer[peer] for peer, _ in wanted]


async def echo_at_once(net: LabNet, target: str) -> None:
    began = time.monotonic()
    done = await net.bob.ctl("stream", target, ECHO, stdin=b"Hello via Relay!")
    took = time.monotonic() - began
    print(f"an echo after {took:.1f} s")  # noqa: T201
    assert (done.code, done.stdout) == (0, b"Hello via Relay!"), done.stderr
    assert took < AT_ONCE_SECONDS


async def tried_at_the_last_dial(net: LabNet) -> dict[str, dict[str, Any]]:
    """The circuits that bob tried to alice, by relay; waits for the end of all attempts."""
    async with asyncio.timeout(20):
        while True:
            dial = (await net.bob.ctl_json("why", net.alice.peer_id))["dials"][-1]
            tried = {
                relay: attempt
                for attempt in dial["attempts"]
                for relay in DISTANCES
                if net.nodes[relay].peer_id in attempt["address"]
            }
            if "near" in tried:
                return tried
            await asyncio.sleep(0.2)


async def test_the_nearest_relays_are_used_and_losing_one_costs_no_reachability() -> None:
    links = {name: Impairment(delay_ms=delay) for name, delay in DISTANCES.items()}
    async with laboratory(
        "port-restricted",
        "port-restricted",
        hosts=dict.fromkeys(DISTANCES, "none"),
        link=Impairment(delay_ms=HOST_MS),
        links=links,
    ) as net:
        await asyncio.gather(*(net.start_relay(relay) for relay in DISTANCES))
        alice, _ = await asyncio.gather(
            client(net, "alice", wanted=2), client(net, "bob", wanted=0)
        )
        near, middle = await reserved_at(net, "near", "middle", within=15)
        for relay, name in ((near, "near"), (middle, "middle")):
            assert relay["source"] == "discovered"
            assert relay["rtt_ms"] == pytest.approx(2 * (HOST_MS + DISTANCES[name]), rel=0.4)
        async with states_told(alice) as told:
            # Bob is connected with alice through the near relay when that falls silent.
            await echo_at_once(net, net.circuit("bob", "alice", "near"))
            await asyncio.sleep(2)
            net.lab.set_link("near", Impairment(loss_pct=100))
            await echo_at_once(net, alice.peer_id)
            # The same for one who is not connected: everything known is tried at once.
            await net.bob.ctl("disconnect", alice.peer_id)
            await echo_at_once(net, alice.peer_id)
            # The third takes the dead one's place.
            await reserved_at(net, "middle", "far", within=40)
        tried = await tried_at_the_last_dial(net)
        assert tried["middle"]["outcome"] == "connected"
        assert tried["near"]["outcome"] == "given_up"
        assert max(one["began_after_ms"] for one in tried.values()) < 1500
        expected = {
            "near": ["reserved", "connecting", "backoff", "disconnected"],
            "middle": ["reserved"],
            "far": ["connecting", "reserved"],
        }
        assert {name: told[net.nodes[name].peer_id] for name in DISTANCES} == expected
