"""A home router that maps ports, in the laboratory: strangers get in without hole punching."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest
from tests.e2e.lab_daemons import LabNet, laboratory
from tests.requires import require_natlab

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

SECONDS: Final = 30


@pytest.fixture(autouse=True)
def machine() -> None:
    require_natlab()


@contextlib.asynccontextmanager
async def router(net: LabNet, *flags: str) -> AsyncIterator[str]:
    """Run the scripted gateway in alice's NAT; yields alice's public address."""
    ipv6 = ":" in net.lab.addresses("alice")[0]
    host = net.lab.addresses("alice")[0]
    public = host if ipv6 else net.lab.public_address("alice")
    inside = f"{host.rpartition('::')[0]}::1" if ipv6 else f"{host.rpartition('.')[0]}.1"
    process = net.lab.popen(
        "nat-a",
        [
            *(sys.executable, "-m", "tests.scripted_gateway"),
            *(f"--listen={inside}", f"--external={public}", *flags),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "ready\n"
        yield public
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def forwarded(net: LabNet) -> str:
    """The ports that alice's NAT lets everybody in at."""
    command = ["nft", "list", "map", "ip", "natlab", "ports"]
    done = net.lab.run("nat-a", command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


async def mapped(net: LabNet) -> None:
    """Wait until alice has both of her ports mapped."""
    async with asyncio.timeout(SECONDS), net.alice.ctl_running("-o", "json", "events") as events:
        assert events.stdout is not None
        # The state first, and then every change: some line names the last port.
        while b"/tcp/40001" not in await events.stdout.readline():
            pass


@pytest.mark.parametrize("flags", [(), ("--no-pcp",)], ids=["PCP", "NAT-PMP"])
async def test_a_stranger_dials_a_mapped_port_and_the_end_of_the_node_closes_it(
    flags: tuple[str, ...],
) -> None:
    """Behind these two NATs no hole can be punched."""
    async with laboratory("port-restricted", "symmetric") as net, router(net, *flags) as public:
        await asyncio.gather(net.start("alice"), net.start("bob"))
        await mapped(net)
        protocol = "nat-pmp" if flags else "pcp"
        assert (await net.alice.ctl_json("netcheck"))["port_mapping"] == protocol
        told = (await net.alice.ctl_json("id"))["addresses"]
        for address in (f"/ip4/{public}/udp/40000/quic-v1", f"/ip4/{public}/tcp/40001"):
            full = f"{address}/p2p/{net.alice.peer_id}"
            assert full in told
            answer = await net.bob.ctl_json("dial", full)
            assert answer["path"] == "direct"
            await net.echo("bob", full)
            await net.bob.ctl("disconnect", net.alice.peer_id)
        assert "40000" in forwarded(net)
        assert await net.alice.stop() == 0
        left = forwarded(net)
        assert "40000" not in left
        assert "40001" not in left


async def test_relayed_becomes_direct_where_no_hole_can_be_punched() -> None:
    async with laboratory("port-restricted", "symmetric") as net, router(net):
        await net.start_relay()
        await asyncio.gather(net.start_client("alice"), net.start_client("bob"))
        await mapped(net)
        for dialler, other in (("bob", "alice"), ("alice", "bob")):
            circuit = net.circuit(dialler, other)
            answer = await net.nodes[dialler].ctl_json("dial", circuit, "--wait-direct", "10s")
            assert answer["path"] == "direct", answer["direct_failure"]
            await net.echo(dialler, net.nodes[other].peer_id)
            await net.nodes[dialler].ctl("disconnect", net.nodes[other].peer_id)


async def test_pcp_opens_the_firewall_of_ipv6() -> None:
    async with laboratory("ipv6-firewall", "none") as net:
        await asyncio.gather(net.start("alice"), net.start("bob"))
        addresses = [one for one in net.alice.addresses if one.startswith("/ip6/2")]
        assert len(addresses) == 2
        for address in addresses:
            refused = await net.bob.ctl("dial", address, "--timeout", "3s")
            assert refused.code != 0, "the firewall let a stranger in"
        await net.alice.stop()
        async with router(net):
            await net.alice.start()
            await net.alice.wait_for_line("port mapped", SECONDS)
            addresses = [one for one in net.alice.addresses if one.startswith("/ip6/2")]
            async with asyncio.timeout(SECONDS):
                while (await net.bob.ctl("dial", addresses[-1])).code != 0:
                    pass
            await net.bob.ctl("disconnect", net.alice.peer_id)
            for address in addresses:
                await net.echo("bob", address)
                await net.bob.ctl("disconnect", net.alice.peer_id)
