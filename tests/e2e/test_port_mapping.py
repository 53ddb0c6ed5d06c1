"""A home router that maps ports, in the laboratory: strangers get in without hole punching."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest
from tests.e2e.lab_daemons import LabNet, laboratory
from tests.e2e.real_gateway import real_gateway
from tests.requires import require_natlab

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.e2e.processes import Daemon

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


async def mapped(net: LabNet) -> dict[str, Any]:
    """Wait until alice has both of her ports mapped; what the event says of the gateway."""
    events = net.alice.ctl_running("-o", "json", "events", "--type=port_mapping_changed")
    async with asyncio.timeout(SECONDS), events as process:
        assert process.stdout is not None
        while True:  # the state first, and then every change
            event = json.loads(await process.stdout.readline())
            gateway: dict[str, Any] = event["port_mapping_changed"]["gateways"][0]
            mappings = gateway["mappings"]
            if len(mappings) == 2 and all(one["external_address"] for one in mappings):
                return gateway


@contextlib.asynccontextmanager
async def gateway(net: LabNet, protocol: str) -> AsyncIterator[Callable[[], str]]:
    """A router that speaks a protocol; yields what tells the ports at which it lets in anybody."""
    if protocol == "nat-pmp":  # miniupnpd has no switch for NAT-PMP without PCP
        async with router(net, "--no-pcp"):
            yield lambda: forwarded(net)
    else:
        async with real_gateway(net.lab) as real:
            await real.start(pcp=protocol == "pcp", drops_pcp=protocol == "upnp")
            yield real.forwarded


async def netcheck(daemon: Daemon) -> tuple[dict[str, Any], str]:
    """Both forms of one check."""
    report, text = await asyncio.gather(daemon.ctl_json("netcheck"), daemon.ctl("netcheck"))
    return report, text.text


@pytest.mark.parametrize("protocol", ["pcp", "nat-pmp", "upnp"])
async def test_a_stranger_dials_a_mapped_port_and_the_end_of_the_node_closes_it(
    protocol: str,
) -> None:
    """Behind these two NATs no hole can be punched."""
    async with (
        laboratory("port-restricted", "symmetric") as net,
        gateway(net, protocol) as rules,
    ):
        await asyncio.gather(net.start("alice"), net.start("bob"))
        told = await mapped(net)
        assert (told["protocol"], told["error"]) == (protocol, "")
        outside = [one["external_address"] for one in told["mappings"]]
        assert all(f"/{net.lab.public_address('alice')}/" in address for address in outside)
        report, text = await netcheck(net.alice)
        assert report["port_mapping"] == protocol
        assert [one["external_address"] for one in report["gateways"][0]["mappings"]] == outside
        assert f"port mapping   {protocol}\n" in text
        assert f"IPv4 by {protocol} at 192.168.1.1: {', '.join(outside)}\n" in text

        own = (await net.alice.ctl_json("id"))["addresses"]
        ports = [address.split("/")[4] for address in outside]
        for address in outside:
            full = f"{address}/p2p/{net.alice.peer_id}"
            assert full in own
            answer = await net.bob.ctl_json("dial", full)
            assert answer["path"] == "direct"
            await net.echo("bob", full)
            await net.bob.ctl("disconnect", net.alice.peer_id)
        assert all(port in rules() for port in ports)
        assert await net.alice.stop() == 0
        assert not any(port in rules() for port in ports)


async def test_a_router_that_maps_nothing_is_told() -> None:
    async with laboratory("port-restricted", None) as net:
        await net.start("alice")
        async with asyncio.timeout(SECONDS):
            while (report := await net.alice.ctl_json("netcheck"))["port_mapping"] == "":
                pass
        assert report["port_mapping"] == "none"
        assert report["gateways"][0]["error"] == "GATEWAY_SILENT"
        text = (await net.alice.ctl("netcheck")).text
        assert "port mapping   none\n" in text
        assert "IPv4: the gateway 192.168.1.1 does not answer to pcp, nat-pmp, upnp\n" in text


@pytest.mark.parametrize("protocol", ["pcp", "upnp"])
async def test_a_router_behind_another_nat_maps_nothing_and_says_so(protocol: str) -> None:
    async with laboratory("cgnat", None) as net, real_gateway(net.lab) as real:
        await real.start(pcp=protocol == "pcp", private="100.64.1.10/32")
        await net.start("alice")
        async with asyncio.timeout(SECONDS):
            while (report := await net.alice.ctl_json("netcheck"))["port_mapping"] == "":
                pass
        assert report["port_mapping"] == "none"
        assert report["gateways"][0]["error"] == "NETWORK_FAILURE"
        assert "offline, or behind another NAT" in report["gateways"][0]["message"]


async def test_relayed_becomes_direct_where_no_hole_can_be_punched() -> None:
    """And AutoNAT servers confirm that the port which the router maps is open to all."""
    async with laboratory("port-restricted", "symmetric", carol=True) as net, gateway(net, "upnp"):
        _, carol = await asyncio.gather(net.start_relay(), net.start("carol", "--port=4001"))
        carols = f"/ip4/{net.lab.address('carol')}/udp/4001/quic-v1/p2p/{carol.peer_id}"
        await asyncio.gather(
            net.start_client("alice", f"--bootstrap={carols}"), net.start_client("bob")
        )
        outside = [one["external_address"] for one in (await mapped(net))["mappings"]]
        await confirmed(net, set(outside))
        for dialler, other in (("bob", "alice"), ("alice", "bob")):
            circuit = net.circuit(dialler, other)
            answer = await net.nodes[dialler].ctl_json("dial", circuit, "--wait-direct", "10s")
            assert answer["path"] == "direct", answer["direct_failure"]
            await net.echo(dialler, net.nodes[other].peer_id)
            await net.nodes[dialler].ctl("disconnect", net.nodes[other].peer_id)


async def confirmed(net: LabNet, addresses: set[str]) -> None:
    """Wait until AutoNAT says that strangers can connect to these of alice's addresses."""
    events = net.alice.ctl_running("-o", "json", "events", "--type=reachability_changed")
    async with asyncio.timeout(SECONDS), events as process:
        assert process.stdout is not None
        public: set[str] = set()
        while not addresses <= public:
            event = json.loads(await process.stdout.readline())["reachability_changed"]
            listed = event["addresses"]
            public = {one["address"] for one in listed if one["reachability"] == "public"}


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
