"""The laboratory's access links do what they were asked for; a laboratory leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from tests.natlab import lifecycle, namespaces, plan, probes
from tests.natlab.__main__ import cli
from tests.natlab.impairment import Impairment
from tests.natlab.keeper import ROOT
from tests.natlab.lab import Lab
from tests.natlab.namespaces import NatlabError
from tests.natlab.probes import Reflector, at, receive
from tests.requires import require_natlab

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

SO_RCVBUFFORCE = 33
BIG_BUFFER = 8 << 20


@pytest.fixture(scope="module", autouse=True)
def machine() -> None:
    require_natlab()


@pytest.fixture(scope="module")
def lab(machine: None) -> Iterator[Lab]:
    with Lab(
        "port-restricted",
        "full-cone",
        link=Impairment(delay_ms=20),
        seed=1,
        hosts=dict.fromkeys(("plain", "lossy", "thin", "shaky", "mixed"), "none"),
        links={
            "plain": Impairment(delay_ms=0),
            "lossy": Impairment(delay_ms=0, loss_pct=20),
            "thin": Impairment(delay_ms=0, rate_mbit=(4, 8), queue_ms=5000),
            "shaky": Impairment(jitter_ms=10),
            "mixed": Impairment(reorder_pct=10),
        },
    ) as lab:
        yield lab


@pytest.fixture
def relay(lab: Lab) -> socket.socket:
    sock = lab.socket("relay", bind=(lab.address("relay"), 0))
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BIG_BUFFER)
    return sock


def median_rtt(one: socket.socket, other: socket.socket, target: tuple[str, int]) -> float:
    """Milliseconds."""
    times = []
    for _ in range(9):
        start = time.monotonic()
        one.sendto(b"x", target)
        packet = receive(other)
        assert packet is not None
        other.sendto(b"y", packet[1])
        assert receive(one) is not None
        times.append((time.monotonic() - start) * 1e3)
    return statistics.median(times)


def test_delay_is_that_of_each_link_on_the_way(lab: Lab, relay: socket.socket) -> None:
    alice, bob, plain = (lab.socket(host, bind=("", 0)) for host in ("alice", "bob", "plain"))
    external = Reflector(lab).seen(bob)
    assert external is not None
    assert 40 <= median_rtt(alice, relay, at(relay)) < 60
    assert 80 <= median_rtt(alice, bob, external) < 110
    assert median_rtt(plain, relay, at(relay)) < 20


def test_loss(lab: Lab, relay: socket.socket) -> None:
    sock, count = lab.socket("lossy", bind=("", 0)), 3000
    before = lab.link_counters()["lossy"]["up"]
    for number in range(count):
        sock.sendto(b"x" * 100, at(relay))
        if number % 50 == 49:
            time.sleep(0.002)  # the device's queue is short
    arrived = 0
    while receive(relay, 0.2) is not None:
        arrived += 1
    after = lab.link_counters()["lossy"]["up"]
    assert arrived == after["sent"] - before["sent"]
    assert 0.16 < 1 - arrived / count < 0.24


@pytest.mark.parametrize(("side", "mbit"), [("up", 4), ("down", 8)])
def test_rate(lab: Lab, relay: socket.socket, side: str, mbit: float) -> None:
    thin = lab.socket("thin", bind=("", 0))
    thin.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BIG_BUFFER)
    sender, receiver = (thin, relay) if side == "up" else (relay, thin)
    target = at(relay) if side == "up" else (lab.address("thin"), at(thin)[1])
    for _ in range(200):
        sender.sendto(b"x" * 1172, target)  # 1200 bytes of IP
    assert receive(receiver) is not None
    start, count = time.monotonic(), 0
    while count < 199 and receive(receiver) is not None:
        count += 1
    assert count == 199
    assert count * 1200 * 8 / (time.monotonic() - start) / 1e6 == pytest.approx(mbit, rel=0.2)


def numbered(lab: Lab, host: str, relay: socket.socket) -> list[int]:
    """Send numbers a millisecond apart; returns the order in which they arrive."""
    sock, count = lab.socket(host, bind=("", 0)), 200
    for number in range(count):
        sock.sendto(struct.pack("!I", number), at(relay))
        time.sleep(0.001)
    order = []
    while (packet := receive(relay, 0.2)) is not None:
        order.append(struct.unpack("!I", packet[0])[0])
    assert sorted(order) == list(range(count))
    return order


def test_jitter_keeps_the_order_and_reordering_does_not(lab: Lab, relay: socket.socket) -> None:
    assert numbered(lab, "shaky", relay) == sorted(numbered(lab, "shaky", relay))
    order = numbered(lab, "mixed", relay)
    overtaken = sum(one > other for one, other in pairwise(order))
    assert 5 <= overtaken <= 40


def test_a_link_can_be_cut_and_comes_back(lab: Lab) -> None:
    sock, reflector = lab.socket("bob", bind=("", 0)), Reflector(lab)
    external = reflector.seen(sock)
    assert external is not None
    lab.set_link("bob", Impairment(loss_pct=100))
    reflector.first.sendto(b"x", external)
    assert receive(sock, probes.SILENCE_SECONDS) is None
    lab.set_link("bob", Impairment(loss_pct=0))
    reflector.first.sendto(b"x", external)
    assert receive(sock) is not None


@pytest.mark.parametrize("kind", ["port-restricted", "symmetric", "cgnat", "ipv6-firewall"])
def test_a_flushed_box_has_forgotten_everything(kind: str) -> None:
    with Lab(kind, None) as lab:
        sock = lab.socket("alice", bind=("", 0))
        reflector = Reflector(lab, ipv6=kind == "ipv6-firewall")
        old = reflector.seen(sock)
        assert old is not None
        assert any("udp" in line for lines in lab.nat_table("alice").values() for line in lines)
        reflector.first.sendto(b"open", old)
        assert receive(sock) is not None
        lab.flush_nat("alice")
        reflector.first.sendto(b"old", old)
        assert receive(sock, probes.SILENCE_SECONDS) is None
        new = reflector.seen(sock)
        assert (new == old) is (kind == "ipv6-firewall")


# -- life


def outside() -> list[str]:
    """Everything of the default namespace that a laboratory could disturb."""
    commands = (
        "ip -o link",
        "ip -o addr",
        "ip route show table all",
        "ip rule",
        "nft list ruleset",
    )
    return [namespaces.attempt(command.split()).stdout for command in commands]


def test_a_laboratory_ends_with_all_that_is_in_it() -> None:
    before = outside()
    lab = Lab("port-restricted", "symmetric").up()
    meek = lab.popen("alice", ["sleep", "1000"])
    stubborn = lab.popen("bob", ["sh", "-c", 'trap "" TERM; while :; do sleep 0.2; done'])
    with Lab("cgnat", "ipv6-firewall", link=Impairment(delay_ms=5)) as second:
        assert {lab.name, second.name} <= set(plan.names())
        assert second.run("alice", ["true"]).returncode == 0
        assert outside() == before
    with pytest.raises(NatlabError, match="already up"):
        Lab(name=lab.name).up()
    assert lab.run("alice", ["true"]).returncode == 0
    lab.down()
    assert meek.returncode == -signal.SIGTERM
    assert stubborn.returncode == -signal.SIGKILL
    lab.down()
    assert not lifecycle.destroy(lab.name)
    assert outside() == before


def test_a_laboratory_goes_with_its_owner_even_when_that_is_killed() -> None:
    code = (
        "import os, signal\n"
        "from tests.natlab.lab import Lab\n"
        "from tests.natlab.impairment import Impairment\n"
        "lab = Lab(link=Impairment(delay_ms=1)).up()\n"
        "process = lab.popen('alice', ['sleep', '1000'], stdout=-3)\n"
        "print(lab.name, process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == -signal.SIGKILL
    name, pid = done.stdout.split()
    deadline = time.monotonic() + 10
    while (plan.DIRECTORY / name).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert plan.Process.of(int(pid)) is None
    assert namespaces.names(f"natlab-{name}-") == []
    assert name not in plan.names()


def test_the_command_line_builds_changes_and_ends_a_laboratory() -> None:
    name = f"cli{os.getpid()}"

    def natlab(*args: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "tests.natlab", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=os.environ | {"NATLAB": name},
            check=False,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    try:
        said = natlab("up", "--a", "symmetric", "--b", "ipv6-firewall", "--link", "alice:delay=1ms")
        assert "alice" in said
        assert "symmetric" in said
        assert natlab("address", "relay") == "45.8.1.10\n"
        assert natlab("address", "--public", "alice") == "45.8.2.101\n"
        natlab("exec", "alice", "--", "sh", "-c", "exit 7", code=7)
        assert "nat-a" in natlab("nat", "alice")
        natlab("set", "alice", "loss=100%")
        assert '"loss_pct": 100.0' in natlab("info", "--json")
        assert "plain wire" in natlab("set", "bob", "loss=100%", code=2)
        natlab("flush", "alice")
        assert name in natlab("list")
        assert "already up" in natlab("up", code=2)
    finally:
        natlab("down")
    assert name not in plan.names()
    assert "no lab named" in natlab("info", code=2)


def test_check_says_that_this_machine_can() -> None:
    with pytest.raises(SystemExit) as ended:
        cli(["check"])
    assert ended.value.code == 0
