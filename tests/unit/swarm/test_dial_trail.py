"""What is remembered of a dial, for `why`: bounded, with every address and what came of it."""

from __future__ import annotations

import asyncio

import pytest
from tests.memory_nodes import QUIC, TCP, address_of, peer, swarms
from tests.memory_transport import MemoryNetwork
from tests.virtual_time import virtual_time

from dep2p_daemon.errors import Dep2pError
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.swarm.connections import DialPolicy
from dep2p_daemon.swarm.dial_trail import (
    MAX_ATTEMPTS,
    MAX_TRAILS_PER_PEER,
    AttemptOutcome,
    DialBook,
    DialTrail,
)


def trail(number: int = 0, started_at: float = 0.0) -> DialTrail:
    made = PrivateKey.from_seed(number.to_bytes(32, "big")).peer_id
    return DialTrail(peer=made, policy=DialPolicy.AUTO, started_at=started_at, duration=1.0)


@virtual_time
async def test_a_dial_that_worked_tells_which_address_and_when() -> None:
    network = MemoryNetwork()
    network.dead.add(QUIC)
    async with swarms(network=network) as (one, other):
        connection = await one.dial(other.local_peer, [QUIC, address_of(1)])
        await asyncio.sleep(1)
        (found,) = one.dial_trails.of(other.local_peer)
        assert found.connection_id == connection.id
        assert (found.relayed, found.reason, found.policy) == (False, "", DialPolicy.AUTO)
        assert 0.25 <= found.duration < 0.3
        outcomes = {a.address: (a.outcome, round(a.began_after, 2)) for a in found.attempts}
        assert outcomes == {
            address_of(1): (AttemptOutcome.CONNECTED, 0.25),
            QUIC: (AttemptOutcome.GIVEN_UP, 0.0),
        }


@virtual_time
async def test_a_dial_that_failed_tells_why_at_each_address_and_what_to_do() -> None:
    network = MemoryNetwork()
    async with swarms(1, network=network) as (one,):
        with pytest.raises(Dep2pError) as raised:
            await one.dial(peer(1), [QUIC, TCP])
        (found,) = one.dial_trails.of(peer(1))
        assert (found.connection_id, found.reason) == ("", raised.value.reason)
        assert (found.detail, found.remedy) == (raised.value.message, raised.value.remedy)
        assert {a.outcome for a in found.attempts} == {AttemptOutcome.FAILED}
        assert {a.detail for a in found.attempts} == {"connection refused"}


@virtual_time
async def test_addresses_left_out_are_there_too() -> None:
    network = MemoryNetwork()
    async with swarms(1, network=network) as (one,):
        one.peerstore.add_addresses(peer(1), [QUIC], ttl=60, source="test")
        for _ in range(2):
            with pytest.raises(Dep2pError):
                await one.dial(peer(1))
        (_, last) = one.dial_trails.of(peer(1))
        (attempt,) = last.attempts
        assert (attempt.outcome, attempt.reason) == (AttemptOutcome.NOT_TRIED, "DIAL_BACKOFF")


@virtual_time
async def test_a_dial_without_addresses_is_one() -> None:
    async with swarms(1) as (one,):
        with pytest.raises(Dep2pError):
            await one.dial(peer(1))
        (found,) = one.dial_trails.of(peer(1))
        assert (found.reason, found.attempts) == ("NO_ADDRESSES", ())


@virtual_time
async def test_a_dial_that_ran_out_of_time_tells_what_it_was_waiting_for() -> None:
    network = MemoryNetwork()
    network.dead.add(QUIC)
    async with swarms(1, network=network) as (one,):
        with pytest.raises(Dep2pError):
            await one.dial(peer(1), [QUIC], timeout=1)
        await asyncio.sleep(1)
        (found,) = one.dial_trails.of(peer(1))
        assert [a.outcome for a in found.attempts] == [AttemptOutcome.GIVEN_UP]
        assert found.duration == pytest.approx(1.0)


@virtual_time
async def test_very_many_addresses_are_not_all_remembered() -> None:
    from dep2p_daemon.multiaddr import Multiaddr

    many = [Multiaddr.for_udp(f"203.0.113.{n}", 4001) for n in range(1, 100)]
    async with swarms(1) as (one,):
        with pytest.raises(Dep2pError):
            await one.dial(peer(1), many)
        (found,) = one.dial_trails.of(peer(1))
        assert len(found.attempts) == MAX_ATTEMPTS


def test_the_book_is_bounded_by_peers_and_per_peer() -> None:
    book = DialBook(max_peers=3)
    for number in (0, 1, 2, 0, 3):
        book.add(trail(number))
    assert [len(book.of(trail(number).peer)) for number in range(4)] == [2, 0, 1, 1]
    for started_at in range(10):
        book.add(trail(7, float(started_at)))
    kept = [one.started_at for one in book.of(trail(7).peer)]
    assert kept == [6.0, 7.0, 8.0, 9.0]
    assert len(kept) == MAX_TRAILS_PER_PEER


def test_a_longer_record_takes_the_place_of_the_shorter_one_while_that_is_kept() -> None:
    book, short = DialBook(max_per_peer=1), trail()
    long = trail(started_at=5.0)
    book.add(short)
    book.replace(short, long)
    assert book.of(short.peer) == (long,)
    book.replace(short, trail(started_at=9.0))
    assert book.of(short.peer) == (long,)
