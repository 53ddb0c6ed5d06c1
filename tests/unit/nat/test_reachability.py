"""Votes on our addresses, the limits of requests, and the memory of contacts, with a fake clock."""

from __future__ import annotations

import pytest
from tests.memory_nodes import peer

from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.nat.contacts import LIFETIME, MAX_CONTACTS, Contacts
from dep2p_daemon.nat.reachability import (
    Outcome,
    Reachability,
    ReachabilitySettings,
    Verdict,
    overall,
)
from dep2p_daemon.nat.request_limits import RequestLimiter, RequestLimits

ADDRESS = Multiaddr.for_udp("203.0.113.1", 4001)
OTHER = Multiaddr.for_tcp("203.0.113.1", 4001)
P, H, C, F, N = Outcome.PROOF, Outcome.HINT, Outcome.CLAIM, Outcome.FAILURE, Outcome.NOTHING


def judged(*outcomes: Outcome, settings: ReachabilitySettings | None = None) -> Reachability:
    votes = Reachability(settings or ReachabilitySettings())
    votes.retain([ADDRESS])
    for server, outcome in enumerate(outcomes):
        votes.record(ADDRESS, server, outcome, 0.0)
    return votes


@pytest.mark.parametrize(
    ("outcomes", "verdict", "confidence"),
    [
        ([], Verdict.UNKNOWN, 0),
        ([N, N], Verdict.UNKNOWN, 0),
        ([P], Verdict.PUBLIC, 1),
        ([P, P, P, P], Verdict.PUBLIC, 3),
        ([P, F], Verdict.PUBLIC, 1),
        ([P, F, F], Verdict.PRIVATE, 1),
        ([F], Verdict.PRIVATE, 1),
        ([F, F, F, F], Verdict.PRIVATE, 3),
        # A dial from where we had sent to proves nothing about strangers ...
        ([H], Verdict.UNKNOWN, 0),
        ([H, H, H, H, H], Verdict.UNKNOWN, 0),
        # ... but speaks against a server that says that nothing comes in.
        ([P, F, F, H], Verdict.PUBLIC, 1),
        ([F, H], Verdict.UNKNOWN, 0),
        ([C, C, C], Verdict.UNKNOWN, 0),
        ([C, C, C, C], Verdict.PUBLIC, 1),
        ([C, F], Verdict.UNKNOWN, 0),
    ],
)
def test_verdicts(outcomes: list[Outcome], verdict: Verdict, confidence: int) -> None:
    found = judged(*outcomes).of(ADDRESS, 1.0)
    assert (found.verdict, found.confidence) == (verdict, confidence)
    assert found.hints == outcomes.count(H)


def test_a_servers_latest_vote_counts_until_it_is_old() -> None:
    votes = judged(P)
    votes.record(ADDRESS, 0, F, 10.0)
    assert votes.of(ADDRESS, 10.0).verdict is Verdict.PRIVATE
    votes.record(ADDRESS, 0, N, 20.0)
    assert votes.of(ADDRESS, 20.0).verdict is Verdict.PRIVATE
    assert votes.of(ADDRESS, 20.0 + votes.settings.lifetime).verdict is Verdict.UNKNOWN


def test_a_proof_outlives_that_its_server_is_no_stranger_any_more() -> None:
    votes = judged(P)
    lifetime = votes.settings.lifetime
    votes.record(ADDRESS, 0, H, lifetime - 1)
    assert votes.of(ADDRESS, lifetime - 1).verdict is Verdict.PUBLIC
    assert votes.of(ADDRESS, lifetime).verdict is Verdict.UNKNOWN
    votes.record(ADDRESS, 0, F, lifetime)
    assert votes.of(ADDRESS, lifetime).verdict is Verdict.PRIVATE


def test_servers_are_asked_again_in_time() -> None:
    votes = judged(F, N)
    settings = votes.settings
    assert votes.due(ADDRESS, "new", 1.0)
    assert not votes.due(ADDRESS, 0, settings.refresh - 1)
    assert votes.due(ADDRESS, 0, settings.refresh)
    assert not votes.due(ADDRESS, 1, settings.ask_again - 1)
    assert votes.due(ADDRESS, 1, settings.ask_again)
    assert not votes.due(OTHER, "new", 1.0)


def test_nobody_else_is_asked_about_what_is_sure() -> None:
    votes = judged(P, P, P)
    assert not votes.due(ADDRESS, "new", votes.settings.refresh - 1)
    assert votes.due(ADDRESS, "new", votes.settings.refresh)


def test_votes_are_bounded_and_forgotten() -> None:
    votes = judged(*[F] * 4, settings=ReachabilitySettings(max_servers=2, max_addresses=1))
    assert votes.of(ADDRESS, 0.0).confidence == 2
    votes.retain([ADDRESS, OTHER])
    votes.record(OTHER, 0, P, 0.0)
    assert [one.address for one in votes.all(0.0)] == [ADDRESS]
    votes.forget_all()
    assert votes.of(ADDRESS, 0.0).verdict is Verdict.UNKNOWN
    votes.retain([OTHER])
    votes.record(OTHER, 0, P, 0.0)
    assert votes.public(0.0) == (OTHER,)
    votes.retain([])
    assert votes.all(0.0) == ()


def test_one_public_address_makes_a_public_node() -> None:
    votes = Reachability()
    votes.retain([ADDRESS, OTHER])
    assert overall(votes.all(0.0)) is Verdict.UNKNOWN
    votes.record(ADDRESS, 0, F, 0.0)
    assert overall(votes.all(0.0)) is Verdict.PRIVATE
    votes.record(OTHER, 0, P, 0.0)
    assert overall(votes.all(0.0)) is Verdict.PUBLIC


def test_limits_hold_for_a_sliding_minute() -> None:
    limiter = RequestLimiter(
        RequestLimits(per_minute=4, per_peer=2, with_data=1, concurrent_per_peer=1)
    )
    assert limiter.admit(peer(0), 0.0)
    assert not limiter.admit(peer(0), 1.0)  # still running
    limiter.finished(peer(0))
    assert limiter.admit(peer(0), 2.0)
    limiter.finished(peer(0))
    assert not limiter.admit(peer(0), 3.0)  # its two of this minute
    assert limiter.admit(peer(1), 4.0)
    assert limiter.admit(peer(2), 5.0)
    assert not limiter.admit(peer(3), 6.0)  # the four of this minute
    assert limiter.admit(peer(3), 60.0)
    assert limiter.admit_data(0.0)
    assert not limiter.admit_data(59.0)
    assert limiter.admit_data(60.0)


def test_contacts_are_by_transport_and_age() -> None:
    contacts = Contacts()
    contacts.note(ADDRESS, 0.0)
    contacts.note(Multiaddr.parse(f"/ip4/198.51.100.1/tcp/1/p2p/{peer(0)}/p2p-circuit"), 0.0)
    assert contacts.knows(Multiaddr.for_udp("203.0.113.1", 9), 1.0)
    assert not contacts.knows(OTHER, 1.0)
    assert not contacts.knows(Multiaddr.for_tcp("198.51.100.1", 1), 1.0)
    assert not contacts.knows(ADDRESS, LIFETIME)
    for number in range(MAX_CONTACTS):
        contacts.note(Multiaddr.for_udp(f"10.0.{number >> 8}.{number & 255}", 1), 1.0)
    assert not contacts.knows(ADDRESS, 1.0)
    assert len(contacts._last) == MAX_CONTACTS
