"""A node that moves from one network to another goes on being reached, without a restart."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e.lab_daemons import ECHO, laboratory
from tests.requires import require_natlab

import dep2p

if TYPE_CHECKING:
    from tests.e2e.lab_daemons import LabNet
    from tests.e2e.processes import Daemon

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]

RECOVERED_SECONDS = 15.0


@pytest.fixture(autouse=True)
def machine() -> None:
    require_natlab()


async def moves(net: LabNet, beside: str) -> float:
    """Move alice; return the time of it, once she has noticed."""
    async with dep2p.connect(net.alice.socket) as node:
        watch = node.watch_events("network_changed")
        waiting = asyncio.ensure_future(anext(watch))
        await node.get_node()  # the watch has begun
        began = time.monotonic()
        net.lab.move("alice", beside)
        event = await asyncio.wait_for(waiting, 5)
        await watch.aclose()
    assert list(event.network_changed.sources) == [net.lab.address("alice")]
    print(f"moved: noticed after {time.monotonic() - began:.1f} s")  # noqa: T201
    return began


async def reached_again(net: LabNet, began: float) -> None:
    """Have bob dial alice by her bare id until the echo works."""
    async with asyncio.timeout_at(
        asyncio.get_running_loop().time() + began + RECOVERED_SECONDS - time.monotonic()
    ):
        while True:
            done = await net.bob.ctl(
                "stream", net.alice.peer_id, ECHO, "--timeout=4s", stdin=b"again"
            )
            if (done.code, done.stdout) == (0, b"again"):
                break
    print(f"reached again after {time.monotonic() - began:.1f} s")  # noqa: T201


async def the_relay(net: LabNet) -> dict[str, Any]:
    (found,) = (await net.alice.ctl_json("relay", "list"))["relays"]
    result: dict[str, Any] = found
    return result


async def places(net: LabNet) -> set[str]:
    """The IP addresses at which alice says she is, loopback and circuits apart."""
    told = (await net.alice.ctl_json("id"))["addresses"]
    hosts = {one.split("/")[2] for one in told if "p2p-circuit" not in one}
    return hosts - {"127.0.0.1", "::1"}


async def known_by_mdns(node: Daemon) -> set[str]:
    listed = (await node.ctl_json("peers", "--known"))["peers"]
    return {one["peer_id"] for one in listed if any("/192.168." in a for a in one["addresses"])}


async def test_a_node_that_moves_to_other_networks_is_reached_within_15_s() -> None:
    elsewhere = {"dave": "port-restricted", "erin": "udp-blocked"}
    async with laboratory("port-restricted", "port-restricted", hosts=elsewhere) as net:
        await net.start_relay()
        dave, *_ = await asyncio.gather(
            net.start("dave"), net.start_client("alice"), net.start_client("bob")
        )
        done = await net.bob.ctl("dial", net.circuit("bob", "alice"), "--wait-direct=10s")
        assert done.code == 0, done.stderr

        began = await moves(net, "dave")
        await reached_again(net, began)
        assert (await the_relay(net))["state"] == "reserved"
        done = await net.bob.ctl("dial", net.alice.peer_id, "--wait-direct=10s")
        assert done.code == 0, done.stderr
        # Relay and bob see her where she is now, and nothing is left of where she was.
        async with asyncio.timeout(10):
            now = {net.lab.address("alice"), net.lab.public_address("alice")}
            while True:
                if await places(net) == now:
                    break
                await asyncio.sleep(0.2)
        seen = await net.connections("bob", net.alice.peer_id)
        (direct,) = (one["remote_address"] for one in seen if one["path"] == "direct")
        assert net.lab.public_address("alice") in direct
        # On the new LAN she and dave have found each other.
        for node, neighbour in ((net.alice, dave), (dave, net.alice)):
            async with asyncio.timeout(10):
                while True:
                    if neighbour.peer_id in await known_by_mdns(node):
                        break
                    await asyncio.sleep(0.2)

        # There UDP is blocked: nothing of the old connections lives on.
        began = await moves(net, "erin")
        await reached_again(net, began)
        held = await the_relay(net)
        assert (held["state"], "/tcp/" in held["remote_address"]) == ("reserved", True), held
        assert await places(net) == {net.lab.address("alice")}
        assert (await net.relay.ctl_json("status"))["reservation_count"] == 2
