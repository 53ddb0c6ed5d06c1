"""The real kernel's news of routes, in the laboratory: what ends a way out and what does not."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from tests.natlab.lab import Lab
from tests.requires import require_natlab

from dep2p_daemon.swarm.ways_out import RouteEvents, WayOut, ways_out

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]


@pytest.fixture
def lab() -> Iterator[Lab]:
    require_natlab()
    with Lab("port-restricted/ipv6-firewall", None, hosts={"dave": "port-restricted"}) as made:
        yield made


def test_ways_out_and_what_cuts_them(lab: Lab) -> None:
    def ip(*command: str) -> None:
        assert lab.run("alice", ["ip", *command]).returncode == 0

    with lab.inside("alice"):
        ways = ways_out()
        events = RouteEvents.open()
        assert events is not None
        v4, v6 = ways
        assert v4 == WayOut(ip_address(lab.address("alice")), v4.interface, "192.168.1.1")
        assert (str(v6.source), v6.interface) == (lab.address6("alice"), v4.interface)
        assert not events.take(ways), "nothing has happened"

        ip("link", "add", "br-0", "type", "bridge")
        ip("addr", "add", "172.18.0.1/16", "dev", "br-0")
        ip("link", "set", "br-0", "up")
        ip("link", "del", "br-0")
        assert not events.take(ways), "a container's bridge is nobody's way out"
        assert ways_out() == ways

        ip("route", "del", "default")
        assert events.take(ways)
        assert ways_out() == (v6,)
        ip("route", "add", "default", "via", "192.168.1.1")
        assert ways_out() == ways
        assert not events.take(ways)

        ip("link", "set", "eth0", "down")
        assert events.take(ways)
        assert ways_out() == ()
        ip("link", "set", "eth0", "up")
        ip("route", "add", "default", "via", "192.168.1.1")
        events.take(ways)
        events.close()


def test_halves_of_the_internet_through_a_tunnel_are_another_way_out(lab: Lab) -> None:
    with lab.inside("dave"):
        before = ways_out()
        for command in (
            "link add tun9 type veth peer name tun8",
            "link set tun8 up",
            "addr add 10.8.0.2/24 dev tun9",
            "link set tun9 up",
            "route add 0.0.0.0/1 via 10.8.0.1",
            "route add 128.0.0.0/1 via 10.8.0.1",
        ):
            assert lab.run("dave", ["ip", *command.split()]).returncode == 0
        (way,) = ways_out()
        assert (str(way.source), way.gateway) == ("10.8.0.2", "10.8.0.1")
        assert before != (way,)
