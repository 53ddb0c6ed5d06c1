"""A NAT that forgets, and a link that is cut: peers reach the node through its relay again."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from tests.e2e.lab_daemons import ECHO, LINK, laboratory
from tests.natlab.impairment import Impairment
from tests.requires import require_natlab

if TYPE_CHECKING:
    from tests.e2e.lab_daemons import LabNet

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]

RECOVERED_SECONDS = 15.0


@pytest.fixture(autouse=True)
def machine() -> None:
    require_natlab()


async def two_behind_nats(net: LabNet) -> None:
    """Alice holds a reservation, bob dials through the relay; no direct path is sought."""
    await net.start_relay()
    for node in ("alice", "bob"):
        daemon = net.prepare(node, *(f"--relay={a}" for a in net.relay_addresses(node)))
        daemon.env["DEP2P_NAT__HOLE_PUNCHING"] = "false"
        await daemon.start()
        assert (await daemon.ctl("wait", "relay", "--timeout=20s")).code == 0
    await net.echo("bob", net.circuit("bob", "alice"))


async def reached_again(net: LabNet) -> float:
    """Dial alice anew until the echo works; return the seconds that took."""
    began = time.monotonic()
    async with asyncio.timeout(60):
        while True:
            await net.bob.ctl("disconnect", net.alice.peer_id)
            done = await net.bob.ctl(
                "stream",
                net.circuit("bob", "alice"),
                ECHO,
                "--timeout=4s",
                stdin=b"again",
            )
            if (done.code, done.stdout) == (0, b"again"):
                took = time.monotonic() - began
                print(f"reached again after {took:.1f} s")  # noqa: T201
                return took


async def test_a_nat_that_forgets_its_mappings() -> None:
    async with laboratory("port-restricted", "port-restricted") as net:
        await two_behind_nats(net)
        net.lab.flush_nat("alice")
        assert await reached_again(net) < RECOVERED_SECONDS


async def test_a_link_that_was_cut_for_twenty_seconds() -> None:
    async with laboratory("port-restricted", "port-restricted") as net:
        await two_behind_nats(net)
        net.lab.set_link("alice", Impairment(loss_pct=100))
        await asyncio.sleep(20)
        net.lab.set_link("alice", Impairment(loss_pct=0, delay_ms=LINK.delay_ms))
        assert await reached_again(net) < RECOVERED_SECONDS
