from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from dep2p_daemon.circuit.admission import (
    AccessPolicy,
    Admission,
    AdmissionLimits,
    AllowAll,
    CircuitPlace,
    Client,
    Refusal,
    Reservation,
)
from dep2p_daemon.circuit.messages import Status
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr

if TYPE_CHECKING:
    from dep2p_daemon.identity.peer_id import PeerId

PEERS = [PrivateKey.from_seed(bytes([n]) * 32).peer_id for n in range(8)]
ALICE, BOB, CAROL, DAVE = PEERS[:4]


def client(peer: PeerId, ip: str = "198.51.100.1", *, relayed: bool = False) -> Client:
    return Client(
        peer=peer,
        address=Multiaddr.for_tcp(ip, 4001),
        ip=ipaddress.ip_address(ip),
        relayed=relayed,
    )


def admission(access: AccessPolicy | None = None, **limits: Any) -> Admission:
    return Admission(AdmissionLimits(**limits), access or AllowAll())


def reserved(
    books: Admission, peer: PeerId, ip: str = "198.51.100.1", now: float = 0
) -> Reservation:
    answer = books.reserve(client(peer, ip), now)
    assert isinstance(answer, Reservation)
    return answer


def connected(books: Admission, source: PeerId, target: PeerId, now: float = 0) -> CircuitPlace:
    answer = books.connect(client(source), target, now)
    assert isinstance(answer, CircuitPlace)
    return answer


class Only:
    """Lets `names` reserve, and connect to CAROL."""

    def __init__(self, *names: PeerId) -> None:
        self.names = names

    def allow_reserve(self, peer: PeerId, address: Multiaddr) -> bool:
        return peer in self.names

    def allow_connect(self, source: PeerId, address: Multiaddr, target: PeerId) -> bool:
        return source in self.names and target == CAROL


class Broken:
    def allow_reserve(self, peer: PeerId, address: Multiaddr) -> bool:
        raise ConnectionError("the list is on a server that is down")

    def allow_connect(self, source: PeerId, address: Multiaddr, target: PeerId) -> bool:
        raise ConnectionError


def closing() -> Admission:
    books = admission()
    reserved(books, BOB)
    books.close()
    return books


def full() -> Admission:
    books = admission(max_reservations=2)
    reserved(books, BOB, "198.51.100.2")
    reserved(books, CAROL, "198.51.100.3")
    return books


def full_ip(*ips: str) -> Admission:
    books = admission(max_reservations_per_ip=2)
    for peer, ip in zip(PEERS[2:], ips, strict=False):
        reserved(books, peer, ip)
    return books


def circuits(**limits: Any) -> Admission:
    """BOB and CAROL hold reservations; ALICE and DAVE each have a circuit to BOB."""
    books = admission(**limits)
    reserved(books, BOB, "198.51.100.2")
    reserved(books, CAROL, "198.51.100.3")
    connected(books, ALICE, BOB)
    connected(books, DAVE, BOB)
    return books


def expired() -> Admission:
    books = admission(reservation_ttl=10.0)
    reserved(books, BOB, now=-10.0)
    return books


Ask = Callable[[Admission], object]


def reserve(who: Client) -> Ask:
    return lambda books: books.reserve(who, 0.0)


def connect(who: Client, target: PeerId) -> Ask:
    return lambda books: books.connect(who, target, 0.0)


NO_IP = Client(
    peer=ALICE, address=Multiaddr.parse("/dns4/example.org/tcp/1"), ip=None, relayed=False
)

REFUSALS: dict[str, tuple[Admission, Ask, Status, str, str | None]] = {
    "reserve over a relayed connection": (
        admission(), reserve(client(ALICE, relayed=True)),
        Status.PERMISSION_DENIED, "RELAYED_CONNECTION", None),
    "connect over a relayed connection": (
        circuits(), connect(client(ALICE, relayed=True), BOB),
        Status.PERMISSION_DENIED, "RELAYED_CONNECTION", None),
    "reserve, not on the list": (
        admission(Only(BOB)), reserve(client(ALICE)),
        Status.PERMISSION_DENIED, "ACCESS_DENIED", None),
    "connect, not on the list": (
        admission(Only(BOB)), connect(client(BOB), DAVE),
        Status.PERMISSION_DENIED, "ACCESS_DENIED", None),
    "reserve, the list cannot be read": (
        admission(Broken()), reserve(client(ALICE)),
        Status.PERMISSION_DENIED, "ACCESS_POLICY_FAILED", None),
    "connect, the list cannot be read": (
        admission(Broken()), connect(client(ALICE), BOB),
        Status.PERMISSION_DENIED, "ACCESS_POLICY_FAILED", None),
    "reserve while closing": (
        closing(), reserve(client(ALICE)), Status.PERMISSION_DENIED, "RELAY_CLOSING", None),
    "refresh while closing": (
        closing(), reserve(client(BOB)), Status.PERMISSION_DENIED, "RELAY_CLOSING", None),
    "connect while closing": (
        closing(), connect(client(ALICE), BOB), Status.PERMISSION_DENIED, "RELAY_CLOSING", None),
    "reserve without an IP address": (
        admission(), reserve(NO_IP), Status.RESERVATION_REFUSED, "NO_IP_ADDRESS", None),
    "too many reservations": (
        full(), reserve(client(ALICE)),
        Status.RESERVATION_REFUSED, "TOO_MANY_RESERVATIONS", "max_reservations"),
    "too many from one IPv4 address": (
        full_ip("198.51.100.1", "198.51.100.1"), reserve(client(ALICE)),
        Status.RESERVATION_REFUSED, "TOO_MANY_RESERVATIONS", "max_reservations_per_ip"),
    "too many from one IPv6 subscriber": (
        full_ip("2001:db8:1:2::1", "2001:db8:1:2:ffff::9"),
        reserve(client(ALICE, "2001:db8:1:2:3::4")),
        Status.RESERVATION_REFUSED, "TOO_MANY_RESERVATIONS", "max_reservations_per_ip"),
    "too many from one IPv4 address, one of them mapped into IPv6": (
        full_ip("198.51.100.1", "::ffff:198.51.100.1"), reserve(client(ALICE)),
        Status.RESERVATION_REFUSED, "TOO_MANY_RESERVATIONS", "max_reservations_per_ip"),
    "connect to somebody without a reservation": (
        circuits(), connect(client(ALICE), DAVE), Status.NO_RESERVATION, "NO_RESERVATION", None),
    "connect to somebody whose reservation has expired": (
        expired(), connect(client(ALICE), BOB), Status.NO_RESERVATION, "NO_RESERVATION", None),
    "connect to oneself": (
        circuits(), connect(client(BOB), BOB),
        Status.PERMISSION_DENIED, "CONNECT_TO_SELF", None),
    "too many circuits": (
        circuits(max_circuits=2), connect(client(PEERS[5]), CAROL),
        Status.RESOURCE_LIMIT_EXCEEDED, "TOO_MANY_CIRCUITS", "max_circuits"),
    "too many circuits of one source": (
        circuits(max_circuits_per_source=1), connect(client(ALICE), CAROL),
        Status.RESOURCE_LIMIT_EXCEEDED, "TOO_MANY_CIRCUITS", "max_circuits_per_source"),
    "too many circuits to one target": (
        circuits(max_circuits_per_target=2), connect(client(PEERS[5]), BOB),
        Status.RESOURCE_LIMIT_EXCEEDED, "TOO_MANY_CIRCUITS", "max_circuits_per_target"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_has_the_status_of_the_spec_and_names_its_limit(case: str) -> None:
    books, ask, status, reason, limit = REFUSALS[case]
    before = (books.circuit_count, len(books.reservations))
    assert ask(books) == Refusal(status, reason, limit)
    assert (books.circuit_count, len(books.reservations)) == before


def test_the_list_lets_those_in_who_are_on_it() -> None:
    books = admission(Only(BOB, CAROL))
    reserved(books, CAROL)
    connected(books, BOB, CAROL)


def test_a_refresh_never_fails_for_capacity() -> None:
    books = full()
    before = {r.peer: r.expires_at for r in books.reservations}
    again = books.reserve(client(BOB, "198.51.100.2"), 100.0)
    assert isinstance(again, Reservation)
    assert again.refreshed
    assert again.expires_at == before[BOB] + 100.0


def test_a_holder_that_moves_to_a_crowded_address_keeps_its_reservation() -> None:
    books = full_ip("198.51.100.1", "198.51.100.1")
    reserved(books, ALICE, "198.51.100.7")
    assert reserved(books, ALICE, "198.51.100.1").site == "198.51.100.7"
    # When there is room, it is counted where it is.
    books.end_reservation(CAROL)
    assert reserved(books, ALICE, "198.51.100.1").site == "198.51.100.1"
    assert isinstance(books.reserve(client(CAROL, "198.51.100.1"), 0.0), Refusal)


def test_neighbouring_ipv6_subscribers_do_not_count_together() -> None:
    books = full_ip("2001:db8:1:2::1", "2001:db8:1:2::2")
    reserved(books, ALICE, "2001:db8:1:3::1")


def test_a_reservation_is_valid_until_its_last_moment_and_its_expiry_frees_the_place() -> None:
    books = admission(reservation_ttl=10.0, max_reservations=1)
    reserved(books, BOB)
    books.release(connected(books, ALICE, BOB, now=9.99))
    assert books.next_expiry() == 10.0
    assert books.expire(9.99) == ()
    assert isinstance(books.connect(client(ALICE), BOB, 10.0), Refusal)
    assert [r.peer for r in books.expire(10.0)] == [BOB]
    assert books.next_expiry() is None
    reserved(books, CAROL, now=10.0)


def test_a_grace_is_added_to_the_time_to_live() -> None:
    books = admission(reservation_ttl=10.0)
    answer = books.reserve(client(BOB), 5.0, grace=0.5)
    assert isinstance(answer, Reservation)
    assert answer.expires_at == 15.5


def test_a_place_is_given_back_once() -> None:
    books = circuits(max_circuits=3)
    place = connected(books, ALICE, CAROL)
    assert books.circuit_count == 3
    books.release(place)
    books.release(place)
    assert books.circuit_count == 2


def test_the_end_of_a_reservation_leaves_circuits_alone() -> None:
    books = circuits()
    assert books.end_reservation(BOB) is not None
    assert books.end_reservation(BOB) is None
    assert books.circuit_count == 2


class Books(RuleBasedStateMachine):
    """Against a model that keeps lists and counts anew each time."""

    places = Bundle("places")

    @initialize(
        total=st.integers(0, 4), per_ip=st.integers(0, 3), circuits=st.integers(0, 4),
        per_source=st.integers(0, 2), per_target=st.integers(0, 3),
    )  # fmt: skip
    def start(
        self, total: int, per_ip: int, circuits: int, per_source: int, per_target: int
    ) -> None:
        self.limits = AdmissionLimits(
            max_reservations=total,
            max_reservations_per_ip=per_ip,
            reservation_ttl=10.0,
            max_circuits=circuits,
            max_circuits_per_source=per_source,
            max_circuits_per_target=per_target,
        )
        self.books = Admission(self.limits, AllowAll())
        self.now = 0.0
        self.held: dict[PeerId, float] = {}
        self.open: dict[int, tuple[PeerId, PeerId]] = {}

    @rule(seconds=st.floats(0, 15))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(peer=st.sampled_from(PEERS[:5]), host=st.integers(1, 3))
    def reserve(self, peer: PeerId, host: int) -> None:
        was_held = peer in self.held
        answer = self.books.reserve(client(peer, f"198.51.100.{host}"), self.now)
        if isinstance(answer, Reservation):
            self.held[peer] = self.now + 10.0
            assert answer.refreshed or not was_held
        else:
            assert not was_held
            assert answer.status is Status.RESERVATION_REFUSED
            assert answer.limit in ("max_reservations", "max_reservations_per_ip")

    @rule(target=places, source=st.sampled_from(PEERS[:5]), to=st.sampled_from(PEERS[:5]))
    def connect(self, source: PeerId, to: PeerId) -> Any:
        answer = self.books.connect(client(source), to, self.now)
        if source == to:
            assert isinstance(answer, Refusal)
            assert answer.status is Status.PERMISSION_DENIED
        elif self.held.get(to, 0.0) <= self.now:
            assert isinstance(answer, Refusal)
            assert answer.status is Status.NO_RESERVATION
        else:
            limits = self.limits
            used = Counter(s for s, _ in self.open.values())[source]
            taken = Counter(t for _, t in self.open.values())[to]
            room = (
                len(self.open) < limits.max_circuits
                and used < limits.max_circuits_per_source
                and taken < limits.max_circuits_per_target
            )
            assert isinstance(answer, CircuitPlace) == room
        if isinstance(answer, Refusal):
            return multiple()
        self.open[answer.number] = (source, to)
        return answer

    @rule(place=consumes(places), times=st.integers(1, 2))
    def release(self, place: CircuitPlace, times: int) -> None:
        for _ in range(times):
            self.books.release(place)
        del self.open[place.number]

    @rule(peer=st.sampled_from(PEERS[:5]))
    def disconnect(self, peer: PeerId) -> None:
        ended = self.books.end_reservation(peer)
        assert (ended is not None) == (peer in self.held)
        self.held.pop(peer, None)

    @rule()
    def collect(self) -> None:
        gone = {r.peer for r in self.books.expire(self.now)}
        assert gone == {peer for peer, end in self.held.items() if end <= self.now}
        for peer in gone:
            del self.held[peer]

    @invariant()
    def the_books_agree_with_the_model_and_no_cap_is_passed(self) -> None:
        books, limits = self.books, self.limits
        assert {r.peer: r.expires_at for r in books.reservations} == self.held
        assert books.circuit_count == len(self.open) <= limits.max_circuits
        assert len(books.reservations) <= limits.max_reservations
        sites = Counter(r.site for r in books.reservations)
        assert sites == books._per_site
        assert all(0 < n <= limits.max_reservations_per_ip for n in sites.values())
        sources = Counter(source for source, _ in self.open.values())
        targets = Counter(target for _, target in self.open.values())
        assert sources == books._per_source
        assert targets == books._per_target
        assert all(n <= limits.max_circuits_per_source for n in sources.values())
        assert all(n <= limits.max_circuits_per_target for n in targets.values())


TestBooks = Books.TestCase
