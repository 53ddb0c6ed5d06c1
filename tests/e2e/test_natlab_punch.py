"""Which pairs of kinds can be punched: the table of `tests/natlab/README.md`, measured."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

import pytest
from tests.natlab import probes
from tests.natlab.impairment import Impairment
from tests.natlab.kinds import can_punch
from tests.natlab.lab import Lab
from tests.natlab.probes import Reflector
from tests.requires import require_natlab

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

DOUBLE = "port-restricted+symmetric"
HOSTS = {
    "none": "pub",
    "full-cone": "fc",
    "restricted-cone": "rc",
    "port-restricted": "pr",
    "symmetric": "sym",
    "cgnat": "cg",
    DOUBLE: "cgsym",
    "udp-blocked": "udpb",
    "ipv6-firewall": "v6",
    "symmetric/ipv6-firewall": "dual",
}
WORKERS = 8


@pytest.fixture(scope="module", autouse=True)
def machine() -> None:
    require_natlab()


@pytest.fixture(scope="module")
def lab(machine: None) -> Iterator[Lab]:
    hosts = {f"{side}{host}": place for side in "xy" for place, host in HOSTS.items()}
    with Lab(None, None, hosts=hosts) as lab:
        yield lab


def punched(lab: Lab, one: str, other: str) -> bool:
    """Over any family of IP that both sides have."""
    hosts = f"x{HOSTS[one]}", f"y{HOSTS[other]}"
    return any(
        probes.punch(*hosts, Reflector(lab, ipv6=ipv6))
        for ipv6 in (False, True)
        if all(any((":" in a) == ipv6 for a in lab.addresses(host)) for host in hosts)
    )


def test_every_pair_behaves_as_the_table_says(lab: Lab) -> None:
    pairs = list(combinations_with_replacement(HOSTS, 2))
    with ThreadPoolExecutor(WORKERS) as pool:
        results = pool.map(lambda pair: punched(lab, *pair), pairs)
        measured = dict(zip(pairs, results, strict=True))
    assert measured == {pair: can_punch(*pair) for pair in pairs}


@pytest.mark.parametrize(
    ("first", "second", "opens"),
    [("bob", "alice", True), ("alice", "bob", False)],
    ids=["masquerade sends first", "the other sends first"],
)
def test_a_bare_masquerade_fails_when_the_peers_packet_comes_first(
    first: str, second: str, opens: bool
) -> None:
    with Lab("port-restricted", "masquerade") as lab:
        assert probes.punch(first, second, Reflector(lab)) is opens


def test_it_is_survived_when_the_packets_cross() -> None:
    with Lab("port-restricted", "masquerade", links={"alice": Impairment(delay_ms=30)}) as lab:
        reflector = Reflector(lab)
        alice, bob = (lab.socket(host, bind=("", 0)) for host in ("alice", "bob"))
        to_alice, to_bob = reflector.seen(alice), reflector.seen(bob)
        assert to_alice is not None
        assert to_bob is not None
        alice.sendto(b"punch", to_bob)
        bob.sendto(b"punch", to_alice)
        assert probes.receive(alice) is not None
        assert probes.receive(bob) is not None


@pytest.mark.parametrize("hairpin", [False, True])
def test_two_homes_behind_one_carrier_need_its_hairpin(hairpin: bool) -> None:
    boxes = frozenset({"cgn-a"}) if hairpin else False
    with Lab("cgnat", "port-restricted@alice", hairpin=boxes) as lab:
        assert probes.punch("alice", "bob", Reflector(lab)) is hairpin


def test_the_same_private_address_on_both_sides_is_no_obstacle() -> None:
    with Lab("port-restricted", "port-restricted", overlap=True) as lab:
        assert lab.address("alice") == lab.address("bob")
        assert probes.punch("alice", "bob", Reflector(lab))


@pytest.mark.parametrize(
    ("a", "b", "opens"),
    [
        ("port-restricted", "port-restricted", True),
        ("symmetric", "symmetric", False),
        ("udp-blocked", "port-restricted", True),
    ],
)
def test_tcp_simultaneous_open(a: str, b: str, opens: bool) -> None:
    with Lab(a, b) as lab:
        assert probes.tcp_punch(lab) is opens
