"""The laboratory's self-test: every kind of NAT behaves as `tests/natlab/README.md` says."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from typing import TYPE_CHECKING

import pytest
from tests.natlab import probes
from tests.natlab.kinds import KINDS, Filtering, Mapping
from tests.natlab.lab import Lab
from tests.natlab.namespaces import NatlabError
from tests.natlab.probes import Reflector
from tests.requires import require_natlab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.natlab.probes import Endpoint

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

TIMEOUT = 2
"""Seconds until the NATs here forget an idle mapping."""
DOUBLE = "port-restricted+symmetric"
PLACES = {
    "pub": "none",
    "fc": "full-cone",
    "rc": "restricted-cone",
    "pr": "port-restricted",
    "sym": "symmetric",
    "cg": "cgnat",
    "cgsym": DOUBLE,
    "udpb": "udp-blocked",
    "masq": "masquerade",
    "v6": "ipv6-firewall",
}
TRANSLATED = [host for host in PLACES if host not in ("pub", "udpb", "v6")]
EXPECTED = {host: KINDS[place] for host, place in PLACES.items() if place in KINDS} | {
    "cgsym": KINDS["symmetric"]
}
TWINS = {f"{host}2": f"@{host}" for host in PLACES if host != "pub"}


@pytest.fixture(scope="module", autouse=True)
def machine() -> None:
    require_natlab()


@pytest.fixture(scope="module")
def lab(machine: None) -> Iterator[Lab]:
    with Lab(None, None, hosts={**PLACES, **TWINS}, nat_timeout=TIMEOUT) as lab:
        yield lab


@pytest.fixture(scope="module")
def hairpin_lab(machine: None) -> Iterator[Lab]:
    with Lab(None, None, hosts={**PLACES, **TWINS}, hairpin=True) as lab:
        yield lab


def reflector_for(lab: Lab, host: str) -> Reflector:
    return Reflector(lab, ipv6=host == "v6")


def wait_for(host: str) -> float:
    return probes.SILENCE_SECONDS if host == "udpb" else probes.LOCAL_SECONDS


@pytest.mark.parametrize("host", PLACES)
@pytest.mark.parametrize("hairpin", [False, True])
def test_mapping_and_filtering_are_those_of_the_kind(
    request: pytest.FixtureRequest, host: str, hairpin: bool
) -> None:
    lab: Lab = request.getfixturevalue("hairpin_lab" if hairpin else "lab")
    reflector, wait = reflector_for(lab, host), wait_for(host)
    assert probes.mapping(lab, host, reflector, wait=wait) is EXPECTED[host].mapping
    assert probes.filtering(lab, host, reflector, wait=wait) is EXPECTED[host].filtering


@pytest.mark.parametrize("host", TRANSLATED)
def test_ports_are_not_kept_but_by_masquerade(lab: Lab, host: str) -> None:
    sock = lab.socket(host, bind=("", 0))
    external = Reflector(lab).seen(sock)
    assert external is not None
    assert (external[1] == probes.at(sock)[1]) is (host == "masq")


@pytest.mark.parametrize("host", TRANSLATED)
def test_two_hosts_with_one_port_get_two(lab: Lab, host: str) -> None:
    reflector = Reflector(lab)
    sockets = [lab.socket(each, bind=("", 7777)) for each in (host, f"{host}2")]
    external = [reflector.seen(sock) for sock in sockets]
    assert external[0] != external[1]
    for sock, target, text in zip(sockets, external, (b"to one", b"to the other"), strict=True):
        assert target is not None
        reflector.first.sendto(text, target)
        packet = probes.receive(sock)
        assert packet is not None
        assert packet[0] == text
        sock.close()


@pytest.mark.parametrize("host", TRANSLATED)
def test_hairpin_works_where_it_is_switched_on(lab: Lab, hairpin_lab: Lab, host: str) -> None:
    assert probes.hairpin(lab, host, f"{host}2", Reflector(lab)) == (False, False)
    cone = EXPECTED[host].mapping is Mapping.ENDPOINT_INDEPENDENT and host != "masq"
    measured = probes.hairpin(hairpin_lab, host, f"{host}2", Reflector(hairpin_lab))
    assert measured == (host == "fc", cone)


@pytest.mark.parametrize("host", PLACES)
def test_tcp_passes_and_is_mapped_like_udp(lab: Lab, host: str) -> None:
    listeners = []
    for address in lab.addresses("relay"):
        if (":" in address) == (host == "v6"):
            listener = lab.socket("relay", socket.SOCK_STREAM, bind=(address, 0))
            listener.listen(4)
            listeners.append(listener)
    seen = probes.tcp_ports(lab, host, listeners)
    differ = EXPECTED[host].mapping is Mapping.ADDRESS_AND_PORT_DEPENDENT
    assert len(set(seen)) == (2 if differ else 1)


def test_an_idle_mapping_dies_and_traffic_keeps_it(lab: Lab) -> None:
    """All kinds at once, as it takes more than the timeout."""
    hosts = [*TRANSLATED, "v6"]
    reflectors = {host: reflector_for(lab, host) for host in hosts}
    idle, kept, moved = ({host: lab.socket(host, bind=("", 0)) for host in hosts} for _ in range(3))
    external: dict[socket.socket, Endpoint] = {}
    for sockets in (idle, kept, moved):
        for host, sock in sockets.items():
            endpoint = reflectors[host].seen(sock)
            assert endpoint is not None
            external[sock] = endpoint
    for host, sock in moved.items():  # from here on traffic with another port only
        reflectors[host].sockets[0, 1].sendto(b"in", external[sock])
    for _ in range(3):
        time.sleep(TIMEOUT / 2)
        for host in hosts:
            kept[host].sendto(b"k", probes.at(reflectors[host].first))
            moved[host].sendto(b"k", probes.at(reflectors[host].sockets[0, 1]))
    for host in hosts:
        for sock in (idle[host], kept[host]):
            reflectors[host].first.sendto(b"late", external[sock])
    for host in hosts:
        assert probes.receive(kept[host]) is not None, host
    for host in hosts:
        assert probes.receive(idle[host], 0.01) is None, host
        if EXPECTED[host].mapping is Mapping.ENDPOINT_INDEPENDENT and host != "masq":
            with contextlib.suppress(OSError):  # reading evicts what has expired, which would
                lab.nat_table(host)  # otherwise still lend its port
            now = reflectors[host].seen(moved[host], reflectors[host].sockets[1, 1])
            assert now == external[moved[host]], f"{host}: the mapping died with a destination"


def test_only_a_firewall_stands_before_ipv6(lab: Lab) -> None:
    """No translation either way, and related errors come in."""
    assert lab.addresses("v6") == [lab.address6("v6")] == [lab.public_address("v6")]
    outside = lab.socket("pub", bind=(lab.address6("pub"), 0))
    inside, neighbour = (lab.socket(host, bind=("", 0)) for host in ("v6", "v62"))
    target = (lab.address6("v6"), probes.at(inside)[1])
    outside.sendto(b"unasked", target)
    assert probes.receive(inside, probes.SILENCE_SECONDS) is None
    inside.sendto(b"out", probes.at(outside))
    assert probes.receive(outside) == (b"out", target)
    outside.sendto(b"answer", target)
    assert probes.receive(inside) == (b"answer", probes.at(outside))
    neighbour.sendto(b"no firewall between", target)
    assert probes.receive(inside) is not None
    nobody = lab.socket("pub", bind=(lab.address6("pub"), 0))
    closed = probes.at(nobody)
    nobody.close()
    inside.connect(closed)
    inside.settimeout(probes.LOCAL_SECONDS)
    inside.send(b"x")
    with pytest.raises(ConnectionRefusedError):
        inside.recv(1)


@pytest.mark.parametrize("kind", ["port-restricted", "symmetric", "ipv6-firewall"])
def test_a_mapped_port_lets_everybody_in_until_it_is_unmapped(machine: None, kind: str) -> None:
    with Lab(kind, None) as lab:
        reflector = Reflector(lab, ipv6=kind == "ipv6-firewall")
        sock = reflector.client("alice")
        inside = probes.at(sock)[1]
        port = inside if kind == "ipv6-firewall" else 9999
        external = lab.public_address("alice"), port
        lab.map_port("alice", "udp", port, inside)
        for server in reflector.sockets.values():
            server.sendto(b"unasked", external)
            assert probes.receive(sock) == (b"unasked", probes.at(server))
        if kind != "symmetric":
            assert reflector.seen(sock, reflector.sockets[1, 1]) == external
        lab.unmap_port("alice", "udp", port, inside)
        if kind == "port-restricted":
            used = reflector.client("alice")
            old = reflector.seen(used)
            lab.map_port("alice", "udp", 9998, probes.at(used)[1])
            reflector.sockets[1, 1].sendto(b"unasked", (external[0], 9998))
            assert probes.receive(used) is not None
            assert reflector.seen(used) == old, "an open mapping changed"
        stranger = lab.socket("relay", bind=(probes.at(reflector.first)[0], 0))
        stranger.sendto(b"unasked", external)
        assert probes.receive(sock, probes.SILENCE_SECONDS) is None


def test_a_home_may_have_ipv6_beside_its_nat(machine: None) -> None:
    with Lab("symmetric/ipv6-firewall", "symmetric/ipv6-firewall") as lab:
        assert probes.mapping(lab, "alice", Reflector(lab)) is Mapping.ADDRESS_AND_PORT_DEPENDENT
        sockets = [lab.socket(host, bind=(lab.address6(host), 0)) for host in ("alice", "bob")]
        for sock, other in (sockets, sockets[::-1]):
            sock.sendto(b"punch", probes.at(other))
        sockets[0].sendto(b"punch again", probes.at(sockets[1]))
        for sock, other in (sockets, sockets[::-1]):
            packet = probes.receive(sock)
            assert packet is not None
            assert packet[1] == probes.at(other)
        assert not probes.punch("alice", "bob", Reflector(lab))


@pytest.mark.parametrize("host", ["pr", "v6"])
def test_multicast_reaches_the_lan_and_not_further(lab: Lab, host: str) -> None:
    """As mDNS needs it."""
    group = "ff02::fb" if host == "v6" else "224.0.0.251"
    level = socket.IPPROTO_IPV6 if host == "v6" else socket.IPPROTO_IP
    hosts = (host, f"{host}2", "pub")
    heard = {}
    for each in hosts:
        heard[each] = lab.socket(each, bind=("::" if host == "v6" else "0.0.0.0", 5353))
        with lab.inside(each):
            index = socket.if_nametoindex("eth0")
        if host == "v6":
            join = socket.inet_pton(socket.AF_INET6, group) + struct.pack("=i", index)
            heard[each].setsockopt(level, socket.IPV6_JOIN_GROUP, join)
            heard[each].setsockopt(level, socket.IPV6_MULTICAST_IF, index)
        else:
            join = struct.pack("=4s4si", socket.inet_aton(group), bytes(4), index)
            heard[each].setsockopt(level, socket.IP_ADD_MEMBERSHIP, join)
            heard[each].setsockopt(level, socket.IP_MULTICAST_IF, join)
    heard[host].sendto(b"who is there?", (group, 5353))
    packet = probes.receive(heard[f"{host}2"])
    assert packet is not None
    assert packet[0] == b"who is there?"
    assert probes.receive(heard["pub"], probes.SILENCE_SECONDS) is None
    for sock in heard.values():
        sock.close()


def test_cone_nats_can_keep_ports(machine: None) -> None:
    with Lab("port-restricted", None, preserve_ports=True) as lab:
        sock = lab.socket("alice", bind=("", 0))
        assert Reflector(lab).seen(sock) == (lab.public_address("alice"), probes.at(sock)[1])
        assert (
            probes.filtering(lab, "alice", Reflector(lab)) is Filtering.ADDRESS_AND_PORT_DEPENDENT
        )


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ({"x": "sonic-cone"}, "unknown kind"),
        ({"x": "cgnat/ipv6-firewall"}, "bad place"),
        ({"x": "@y"}, "no earlier host"),
        ({"x": "none", "y": "@x"}, "has no LAN"),
        ({"x": "symmetric", "y": "port-restricted@x"}, "no carrier NAT"),
        ({"inet": "none"}, "bad host name"),
    ],
)
def test_wrong_places_are_refused_by_name(places: dict[str, str], said: str) -> None:
    with pytest.raises(NatlabError, match=said):
        Lab(None, None, hosts=places)
