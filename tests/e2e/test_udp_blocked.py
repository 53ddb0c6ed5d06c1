"""A network that drops UDP, then does not, then does again: the relay is held through all of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e.lab_daemons import laboratory
from tests.requires import require_natlab

if TYPE_CHECKING:
    from tests.e2e.lab_daemons import LabNet
    from tests.e2e.processes import Daemon

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]

DROP_UDP = (
    "add table inet noudp; add chain inet noudp f { type filter hook forward priority -10; }; "
    "add rule inet noudp f meta l4proto udp drop"
)
LET_UDP = "delete table inet noudp"


@pytest.fixture(autouse=True)
def machine() -> None:
    require_natlab()


def at_the_nat(net: LabNet, host: str, rules: str) -> None:
    for box in net.lab.plan.boxes_of(host):
        done = net.lab.run(box, ["nft", rules], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


async def the_relay(node: Daemon) -> dict[str, Any]:
    (found,) = (await node.ctl_json("relay", "list"))["relays"]
    result: dict[str, Any] = found
    return result


async def held_over(node: Daemon, transport: str, *, within: float, gap: bool) -> None:
    async with asyncio.timeout(within):
        while True:
            found = await the_relay(node)
            if found["state"] == "reserved" and transport in found["remote_address"].split("/"):
                return
            assert gap or found["state"] == "reserved", found
            await asyncio.sleep(0.25)


async def test_the_relay_is_held_over_tcp_without_udp_and_over_quic_with_it() -> None:
    async with laboratory("port-restricted", None) as net:
        relay = await net.start_relay()
        at_the_nat(net, "alice", DROP_UDP)
        quic = next(a for a in net.relay_addresses("alice") if "/quic-v1/" in a)
        alice = await net.start("alice", f"--relay={quic}")
        await held_over(alice, "tcp", within=10, gap=True)
        at_the_nat(net, "alice", LET_UDP)
        await held_over(alice, "quic-v1", within=45, gap=False)
        at_the_nat(net, "alice", DROP_UDP)
        await held_over(alice, "tcp", within=30, gap=False)
        assert (await relay.ctl_json("status"))["reservation_count"] == 1
