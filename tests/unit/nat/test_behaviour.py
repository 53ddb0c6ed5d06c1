"""Mapping and filtering in RFC 4787's terms, and the verdict of a check of the network."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from tests.memory_nodes import peer

from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.nat.behaviour import Filtering, Mapping, Seen, filtering, mapping
from dep2p_daemon.nat.netcheck_report import (
    Conclusion,
    Ipv6Check,
    NetworkReport,
    TargetCheck,
    TransportCheck,
)
from dep2p_daemon.nat.reachability import Outcome, Verdict

LOCAL = Multiaddr.for_udp("192.168.1.10", 4001)
OWN = [ip_address("192.168.1.10")]


def seen(observer: str, observed: str, *, local: Multiaddr = LOCAL) -> Seen:
    def address(text: str) -> Multiaddr:
        host, _, port = text.rpartition(":")
        return Multiaddr.for_udp(host, int(port))

    return Seen(local, address(observer), address(observed))


A1 = seen("45.8.1.10:4001", "45.8.2.9:7000")
A2 = seen("45.8.1.10:4002", "45.8.2.9:7000")
A2_OTHER = seen("45.8.1.10:4002", "45.8.2.9:7001")
B1 = seen("45.8.1.20:4001", "45.8.2.9:7000")
B1_OTHER = seen("45.8.1.20:4001", "45.8.2.9:7002")
B1_OTHER_IP = seen("45.8.1.20:4001", "45.8.3.9:7000")
PLAIN = Multiaddr.for_udp("45.8.2.9", 7000)


@pytest.mark.parametrize(
    ("witnesses", "expected"),
    [
        ([], Mapping.UNKNOWN),
        ([A1], Mapping.UNKNOWN),
        ([A1, A2], Mapping.UNKNOWN),
        ([A1, B1], Mapping.ENDPOINT_INDEPENDENT),
        ([A1, A2, B1], Mapping.ENDPOINT_INDEPENDENT),
        ([A1, B1_OTHER], Mapping.ADDRESS_DEPENDENT),
        ([A1, B1_OTHER_IP], Mapping.ADDRESS_DEPENDENT),
        ([A1, A2_OTHER], Mapping.ADDRESS_AND_PORT_DEPENDENT),
        ([A1, A2_OTHER, B1], Mapping.ADDRESS_AND_PORT_DEPENDENT),
    ],
)
def test_mapping_behind_a_nat(witnesses: list[Seen], expected: Mapping) -> None:
    assert mapping(witnesses, OWN) is expected


def test_no_nat_is_no_mapping() -> None:
    plain = seen("45.8.1.10:4001", "45.8.2.9:7000", local=PLAIN)
    assert mapping([plain], [ip_address("45.8.2.9")]) is Mapping.NONE
    # The same IP address and another port: something translates all the same.
    other = seen("45.8.1.10:4001", "45.8.2.9:7001", local=PLAIN)
    assert mapping([other], [ip_address("45.8.2.9")]) is not Mapping.NONE


def test_of_several_sockets_the_worst_counts() -> None:
    other = Multiaddr.for_udp("192.168.1.10", 5001)
    witnesses = [
        A1,
        B1,
        seen("45.8.1.10:4001", "45.8.2.9:7100", local=other),
        seen("45.8.1.20:4001", "45.8.2.9:7200", local=other),
    ]
    assert mapping(witnesses, OWN) is Mapping.ADDRESS_DEPENDENT


P, H, C, F, N = Outcome.PROOF, Outcome.HINT, Outcome.CLAIM, Outcome.FAILURE, Outcome.NOTHING


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([], Filtering.UNKNOWN),
        ([N, C], Filtering.UNKNOWN),
        ([F, N], Filtering.ADDRESS_AND_PORT_DEPENDENT),
        ([F, H], Filtering.ADDRESS_DEPENDENT),
        ([F, H, P], Filtering.ENDPOINT_INDEPENDENT),
    ],
)
def test_filtering(outcomes: list[Outcome], expected: Filtering) -> None:
    assert filtering(outcomes) is expected


def transport(
    works: bool | None,
    of: Mapping = Mapping.UNKNOWN,
    filters: Filtering = Filtering.UNKNOWN,
) -> TransportCheck:
    dials: dict[bool | None, list[float | None]] = {None: [], True: [None, 0.1], False: [None]}
    targets = tuple(TargetCheck(peer=peer(0), address=LOCAL, seconds=s) for s in dials[works])
    return TransportCheck(targets=targets, mapping=of, filtering=filters)


def report(
    udp: TransportCheck, tcp: TransportCheck, reachability: Verdict = Verdict.UNKNOWN
) -> NetworkReport:
    return NetworkReport(
        udp=udp,
        tcp=tcp,
        hairpin=None,
        ipv6=Ipv6Check(address=False, works=None),
        relays=(),
        observed=(),
        addresses=(),
        reachability=reachability,
        seconds=1.0,
    )


CONE, SYMMETRIC = Mapping.ENDPOINT_INDEPENDENT, Mapping.ADDRESS_DEPENDENT


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (report(transport(None), transport(None)), Conclusion.UNKNOWN),
        (report(transport(False), transport(False)), Conclusion.OFFLINE),
        (report(transport(False), transport(None)), Conclusion.OFFLINE),
        (report(transport(False), transport(True)), Conclusion.UDP_BLOCKED),
        (report(transport(False), transport(True), Verdict.PUBLIC), Conclusion.PUBLIC),
        (report(transport(True), transport(True), Verdict.PUBLIC), Conclusion.PUBLIC),
        (report(transport(True), transport(True)), Conclusion.UNKNOWN),
        (report(transport(True, CONE), transport(True)), Conclusion.PUNCHABLE),
        (report(transport(True, Mapping.NONE), transport(True)), Conclusion.PUNCHABLE),
        (report(transport(True, SYMMETRIC), transport(True)), Conclusion.SYMMETRIC),
        (
            report(transport(True, Mapping.ADDRESS_AND_PORT_DEPENDENT), transport(False)),
            Conclusion.SYMMETRIC,
        ),
    ],
)
def test_conclusions_and_their_words(found: NetworkReport, expected: Conclusion) -> None:
    assert found.conclusion is expected
    assert found.words


def test_a_loose_filter_lets_symmetric_peers_in() -> None:
    strict = report(
        transport(True, CONE, Filtering.ADDRESS_AND_PORT_DEPENDENT), transport(True)
    ).words
    loose = report(transport(True, CONE, Filtering.ADDRESS_DEPENDENT), transport(True)).words
    assert "stay relayed" in strict
    assert "every peer" in loose
