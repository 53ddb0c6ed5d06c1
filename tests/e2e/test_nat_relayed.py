"""Behind NATs that cannot be punched, or without UDP, peers talk through the relay."""

from __future__ import annotations

import signal

import pytest
from tests.e2e.lab_daemons import LabNet, lab_daemons
from tests.requires import require_natlab

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def machine() -> None:
    require_natlab()


async def relayed(net: LabNet, dialler: str, listener: str) -> None:
    """Dial through the relay and have both a circuit's address and a bare peer id echo."""
    circuit = net.circuit(dialler, listener)
    connection = await net.nodes[dialler].ctl_json("dial", circuit, "--policy=relayed")
    assert connection["path"] == "relayed"
    assert connection["relay"] == net.relay.peer_id
    await net.echo(dialler, circuit)
    await net.echo(dialler, net.nodes[listener].peer_id)


async def transports_to_the_relay(net: LabNet, node: str) -> set[str]:
    connections = await net.connections(node, net.relay.peer_id)
    return {"tcp" if "/tcp/" in each["remote_address"] else "quic-v1" for each in connections}


async def test_symmetric_with_symmetric() -> None:
    async with lab_daemons("symmetric", "symmetric") as net:
        await relayed(net, "alice", "bob")
        await relayed(net, "bob", "alice")
        for one, other in ((net.alice, net.bob), (net.bob, net.alice)):
            peer = await one.ctl_json("peers", other.peer_id)
            assert (peer["connected"], peer["path"]) == (True, "relayed")


@pytest.mark.parametrize(
    ("dialler", "listener"), [("alice", "bob"), ("bob", "alice")], ids=["dials", "is dialled"]
)
async def test_without_udp_the_relay_is_reached_over_tcp(dialler: str, listener: str) -> None:
    async with lab_daemons("udp-blocked", "port-restricted") as net:
        await relayed(net, dialler, listener)
        assert await transports_to_the_relay(net, "alice") == {"tcp"}
        assert "quic-v1" in await transports_to_the_relay(net, "bob")


async def test_ipv6_behind_a_firewall_talks_with_ipv4_behind_a_nat() -> None:
    """No family of IP is common to both; the relay has both."""
    async with lab_daemons("ipv6-firewall", "port-restricted") as net:
        await relayed(net, "alice", "bob")
        await relayed(net, "bob", "alice")
        for node, family in (("alice", "/ip6/"), ("bob", "/ip4/")):
            for connection in await net.connections(node, net.relay.peer_id):
                assert connection["remote_address"].startswith(family)


async def test_daemons_in_a_laboratory_are_signalled_by_their_own_pid() -> None:
    async with lab_daemons("full-cone", "symmetric") as net:
        assert await net.alice.stop(signal.SIGTERM) == 0
        assert net.alice.lines[-1]["message"] == "stopped"
        await net.bob.kill()
        assert net.bob.process.returncode == -signal.SIGKILL
