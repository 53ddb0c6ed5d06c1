"""From relayed to direct through real NATs: who gets through, how fast, and why others do not."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any, Final

import pytest
from tests.e2e.lab_daemons import ECHO, LabNet, lab_daemons
from tests.natlab.impairment import Impairment
from tests.requires import require_natlab

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

WAIT: Final = "10s"
SECONDS: Final = 10.0
LOSSY_RUNS: Final = 10


@pytest.fixture(autouse=True)
def machine() -> None:
    require_natlab()


async def dial(net: LabNet, dialler: str) -> tuple[dict[str, Any], float]:
    """Dial the other one through the relay and wait for a direct path; also how long it took."""
    listener = "bob" if dialler == "alice" else "alice"
    began = time.monotonic()
    answer = await net.nodes[dialler].ctl_json(
        "dial", net.circuit(dialler, listener), "--wait-direct", WAIT
    )
    return answer, time.monotonic() - began


async def is_direct(net: LabNet, dialler: str) -> float:
    """It must become direct; echo over the direct path; returns the seconds it took."""
    listener = "bob" if dialler == "alice" else "alice"
    answer, seconds = await dial(net, dialler)
    assert answer["path"] == "direct", answer["direct_failure"]
    assert answer["direct_failure"] is None
    assert answer["relay"] is None
    assert answer["rtt_ms"] > 0
    assert seconds < SECONDS
    await net.echo(dialler, net.nodes[listener].peer_id)
    return seconds


async def stays_relayed(net: LabNet, dialler: str) -> str:
    """It must stay relayed and say why; the echo works all the same. Returns the reason."""
    answer, _ = await dial(net, dialler)
    assert answer["path"] == "relayed"
    assert answer["relay"] == net.relay.peer_id
    assert answer["direct_failure"]["message"]
    assert answer["direct_failure"]["remedy"]
    await net.echo(dialler, net.circuit(dialler, "bob" if dialler == "alice" else "alice"))
    return str(answer["direct_failure"]["reason"])


@pytest.mark.parametrize("dialler", ["alice", "bob"])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("port-restricted", "port-restricted"),
        ("symmetric", "full-cone"),
        # The listener being the symmetric one, it takes the round with swapped roles.
        ("symmetric", "restricted-cone"),
        ("cgnat", "port-restricted"),
        ("none", "symmetric"),
        ("ipv6-firewall", "ipv6-firewall"),
        ("udp-blocked", "none"),
        # Over TCP, whose SYNs cross; who was connected over QUIC only learns its TCP address.
        ("udp-blocked", "udp-blocked"),
        ("udp-blocked", "port-restricted"),
    ],
)
async def test_where_packets_can_get_through_the_path_becomes_direct(
    a: str, b: str, dialler: str
) -> None:
    async with lab_daemons(a, b) as net:
        await is_direct(net, dialler)
        for node, other in (("alice", "bob"), ("bob", "alice")):
            peer = await net.nodes[node].ctl_json("peers", net.nodes[other].peer_id)
            assert peer["path"] == "direct"


@pytest.mark.parametrize("dialler", ["alice", "bob"])
@pytest.mark.parametrize(
    ("a", "b", "reasons"),
    [
        # The relay's two IP addresses are two observers: the NAT shows each another port.
        ("symmetric", "symmetric", ("BOTH_NATS_SYMMETRIC",) * 2),
        ("symmetric", "port-restricted", ("OWN_NAT_SYMMETRIC", "PEER_NAT_SYMMETRIC")),
        ("udp-blocked", "symmetric", ("PEER_NAT_SYMMETRIC", "OWN_NAT_SYMMETRIC")),
        ("ipv6-firewall", "port-restricted", ("NO_COMMON_IP_VERSION",) * 2),
    ],
)
async def test_where_they_cannot_it_stays_relayed_and_says_why(
    a: str, b: str, reasons: tuple[str, str], dialler: str
) -> None:
    async with lab_daemons(a, b) as net:
        assert await stays_relayed(net, dialler) == reasons[dialler == "bob"]


async def test_ten_of_ten_get_through_with_loss() -> None:
    """Each run with fresh daemons and NATs; none is repeated or left out."""
    seconds: list[float] = []
    for run in range(LOSSY_RUNS):
        link = Impairment(delay_ms=20, loss_pct=1)
        async with lab_daemons("port-restricted", "port-restricted", link=link, seed=run) as net:
            seconds.append(await is_direct(net, "alice"))
    assert len(seconds) == LOSSY_RUNS
    assert statistics.median(seconds) < 3.0, seconds


async def test_the_relayed_connection_goes_when_it_has_no_streams_and_events_tell() -> None:
    async with lab_daemons("port-restricted", "port-restricted") as net:
        await is_direct(net, "alice")
        for node, other in ((net.alice, net.bob), (net.bob, net.alice)):
            changed = await node.wait_for_line("path changed")
            assert (changed["previous"], changed["path"]) == ("relayed", "direct")
            # Others end too: one that only was to show how our NAT maps.
            closed = await node.wait_for_line("connection closed", peer=other.peer_id)
            assert closed["path"] == "relayed"
        left = await net.connections("alice", net.bob.peer_id)
        assert [connection["path"] for connection in left] == ["direct"]


async def test_turned_off_it_stays_relayed_and_says_so() -> None:
    async with lab_daemons("none", "port-restricted") as net:
        await net.alice.stop()
        net.alice.config = "[nat]\nhole_punching = false\n"
        await net.alice.start()
        assert await stays_relayed(net, "alice") == "HOLE_PUNCHING_OFF"
        ended = await net.bob.wait_for_line("direct upgrade ended")
        assert ended["reason"] in ("PEER_UNSUPPORTED", "DIRECT")


async def echo_again(net: LabNet, within: float) -> float:
    """Ask for an echo until one comes; returns the seconds it took."""
    began = time.monotonic()
    while True:
        done = await net.alice.ctl("stream", net.bob.peer_id, ECHO, stdin=b"again")
        seconds = time.monotonic() - began
        if (done.code, done.stdout) == (0, b"again"):
            assert seconds < within
            return seconds
        assert seconds < within, done.stderr


@pytest.mark.parametrize(
    ("kind", "rebooted"),
    [
        ("port-restricted", ("alice",)),
        ("port-restricted", ("bob",)),
        ("port-restricted", ("alice", "bob")),
        # Over TCP, whose ports must be free for a new connection between the same two.
        ("udp-blocked", ("alice",)),
    ],
)
async def test_after_a_nat_reboot_there_is_an_echo_again(
    kind: str, rebooted: tuple[str, ...]
) -> None:
    """The direct path dies in silence; the next stream goes through the relay, and punches."""
    async with lab_daemons(kind, kind) as net:
        await is_direct(net, "alice")
        for node in rebooted:
            net.lab.flush_nat(node)
        await echo_again(net, 15.0)
        answer = await net.alice.ctl_json("dial", net.bob.peer_id, "--wait-direct", WAIT)
        assert answer["path"] == "direct", answer


async def test_after_a_link_was_cut_for_twenty_seconds_there_is_an_echo_again() -> None:
    async with lab_daemons("port-restricted", "port-restricted") as net:
        await is_direct(net, "alice")
        net.lab.set_link("alice", Impairment(loss_pct=100))
        await asyncio.sleep(20)  # the test's own condition
        net.lab.set_link("alice", Impairment(loss_pct=0))
        await echo_again(net, 15.0)
