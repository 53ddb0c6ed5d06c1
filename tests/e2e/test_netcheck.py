"""`dep2pctl netcheck` behind real NATs: it says what the laboratory built.

The observers are a relay with two IP addresses, of which clients use the first, and carol with one;
a second peer on the relay's host shows whether another port of one address makes a difference.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e.lab_daemons import laboratory
from tests.requires import require_natlab

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.lab_daemons import LabNet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

NOTHING = ("unknown", "unknown")
EI, APD = "endpoint_independent", "address_and_port_dependent"


@pytest.fixture(autouse=True)
def machine() -> None:
    require_natlab()


@asynccontextmanager
async def checked(place: str, **options: Any) -> AsyncIterator[tuple[LabNet, Any]]:
    """A node in `place` with a relay and two more peers, and what its netcheck says."""
    async with laboratory(place, None, carol=True, **options) as net:
        await net.start_relay()
        # On the relay's first address only, so that its dials come from there.
        host = net.lab.address("relay")
        twin = await net.start("relay", f"--listen={host}", "--port=4002")
        net.nodes["relay"], net.nodes["twin"] = net.daemons.all[0], twin
        carol = await net.start("carol", "--port=4001")
        transport = "tcp" if place == "udp-blocked" else "udp"
        last = "" if transport == "tcp" else "/quic-v1"
        others = [(twin, f"/ip4/{host}/{transport}/4002{last}")]
        others.append((carol, f"/ip4/{net.lab.address('carol')}/{transport}/4001{last}"))
        if place == "ipv6-firewall":
            others = [(carol, f"/ip6/{net.lab.address6('carol')}/udp/4001/quic-v1")]
        flags = [f"--bootstrap={address}/p2p/{other.peer_id}" for other, address in others]
        alice = await net.start_client("alice", *flags)
        for other, _ in others:
            assert (await alice.ctl("wait", "peer", other.peer_id)).code == 0
        yield net, await alice.ctl_json("netcheck")


def nat_of(report: Any, transport: str) -> tuple[str, str]:
    return report[transport]["mapping"], report[transport]["filtering"]


@pytest.mark.parametrize(
    ("place", "udp", "verdict", "reachability"),
    [
        ("none", ("none", EI), "public", "public"),
        ("full-cone", (EI, EI), "public", "public"),
        ("restricted-cone", (EI, "address_dependent"), "punchable", None),
        ("port-restricted", (EI, APD), "punchable", "private"),
        ("symmetric", (APD, APD), "symmetric", "private"),
        ("cgnat", (EI, APD), "punchable", "private"),
        ("udp-blocked", NOTHING, "udp_blocked", None),
    ],
)
async def test_the_nat_is_what_the_laboratory_built(
    place: str, udp: tuple[str, str], verdict: str, reachability: str | None
) -> None:
    async with checked(place) as (net, report):
        assert nat_of(report, "udp") == udp, report
        assert report["udp"]["works"] is (place != "udp-blocked")
        assert report["tcp"]["works"] is True
        assert report["verdict"] == verdict, report
        if reachability is not None:
            assert report["reachability"] == reachability, report
        assert report["port_mapping"] in ("", "none")
        assert [relay["peer_id"] for relay in report["relays"]] == [net.relay.peer_id]
        assert all(relay["rtt_ms"] > 30 for relay in report["relays"])
        assert any(net.lab.public_address("alice") in one for one in report["observed_addresses"])
        public = [one["address"] for one in report["addresses"] if one["reachability"] == "public"]
        told = (await net.alice.ctl_json("id"))["addresses"]
        assert all(any(address in one for one in told) for address in public)
        assert bool(public) is (report["reachability"] == "public")


async def test_an_ipv6_firewall_filters_and_does_not_map() -> None:
    async with checked("ipv6-firewall") as (_, report):
        assert nat_of(report, "udp") == ("none", APD), report
        assert report["ipv6"] == {"address": True, "works": True}
        assert report["verdict"] == "punchable"


@pytest.mark.parametrize("turned", [False, True])
async def test_hairpin(turned: bool) -> None:
    async with checked("full-cone", hairpin=turned) as (net, report):
        assert report["hairpin"] is turned
        text = (await net.alice.ctl("netcheck")).text
        assert f"hairpin        {'yes' if turned else 'no'}" in text


async def test_without_peers_nothing_is_known() -> None:
    async with laboratory("port-restricted", None) as net:
        alice = await net.start("alice")
        report = await alice.ctl_json("netcheck")
        assert report["verdict"] == "unknown"
        assert report["udp"]["works"] is None
        assert nat_of(report, "udp") == NOTHING
