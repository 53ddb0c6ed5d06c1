"""Two nodes on one LAN find each other with mDNS, and talk with no relay and no configuration."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.e2e.lab_daemons import ECHO, laboratory
from tests.requires import require_natlab

if TYPE_CHECKING:
    from tests.e2e.processes import Daemon

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def machine() -> None:
    require_natlab()


async def until_known(daemon: Daemon, peer: str, *, within: float) -> None:
    async with asyncio.timeout(within):
        while True:
            listed = (await daemon.ctl_json("peers", "--known"))["peers"]
            if any(found["peer_id"] == peer and found["addresses"] for found in listed):
                return
            await asyncio.sleep(0.2)


async def test_two_nodes_behind_the_same_nat_find_each_other_and_connect_directly() -> None:
    async with laboratory("port-restricted", None, hosts={"dave": "@alice"}) as net:
        alice = await net.start("alice")
        dave = await net.start("dave")
        await until_known(alice, dave.peer_id, within=15)
        await until_known(dave, alice.peer_id, within=15)
        assert await net.connections("alice") == [], "found is not dialled"
        for dialler, target in ((alice, dave), (dave, alice)):
            await dialler.ctl("disconnect", target.peer_id)
            connection = await dialler.ctl_json("dial", target.peer_id)
            assert connection["path"] == "direct"
            done = await dialler.ctl("stream", target.peer_id, ECHO, stdin=b"on the LAN")
            assert (done.code, done.stdout) == (0, b"on the LAN"), done.stderr
        assert (await alice.ctl_json("relay", "list"))["relays"] == []


async def test_with_mdns_off_nobody_is_found() -> None:
    async with laboratory("port-restricted", None, hosts={"dave": "@alice"}) as net:
        quiet = net.prepare("alice")
        quiet.env["DEP2P_DISCOVERY__MDNS"] = "false"
        await quiet.start()
        dave = await net.start("dave")
        await dave.wait_for_line("mDNS: on the network")
        done = await quiet.ctl("dial", dave.peer_id, "--timeout=3s")
        assert done.code == 1
        assert "no address" in done.stderr
