from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.swarm.backoff import Backoff
from dep2p_daemon.swarm.settings import DialSettings

PEERS = [PrivateKey.from_seed(bytes([n]) * 32).peer_id for n in range(4)]
ADDRESSES = [Multiaddr.for_tcp("192.0.2.1", port) for port in range(1, 5)]


def test_the_delay_grows_with_the_square_of_the_failures_up_to_five_minutes() -> None:
    backoff = Backoff(DialSettings())
    assert [backoff.delay(count) for count in (1, 2, 3, 10, 17, 18, 1000)] == [
        6.0,
        9.0,
        14.0,
        105.0,
        294.0,
        300.0,
        300.0,
    ]


def test_an_address_waits_until_its_time_and_no_longer() -> None:
    backoff = Backoff(DialSettings())
    backoff.failed(PEERS[0], ADDRESSES[0], "no answer", 100.0)
    failure = backoff.waiting(PEERS[0], ADDRESSES[0], 105.9)
    assert failure is not None
    assert (failure.count, failure.cause, failure.until) == (1, "no answer", 106.0)
    assert backoff.waiting(PEERS[0], ADDRESSES[0], 106.0) is None
    assert backoff.waiting(PEERS[0], ADDRESSES[1], 101.0) is None
    assert backoff.waiting(PEERS[1], ADDRESSES[0], 101.0) is None


def test_failures_in_a_row_count_even_after_the_wait() -> None:
    backoff = Backoff(DialSettings())
    backoff.failed(PEERS[0], ADDRESSES[0], "", 0.0)
    backoff.failed(PEERS[0], ADDRESSES[0], "", 1000.0)
    failure = backoff.waiting(PEERS[0], ADDRESSES[0], 1000.0)
    assert failure is not None
    assert failure.count == 2
    assert failure.until == 1009.0


def test_success_clears_all_of_a_peer_and_nothing_else() -> None:
    backoff = Backoff(DialSettings())
    for peer in PEERS[:2]:
        for address in ADDRESSES:
            backoff.failed(peer, address, "", 0.0)
    backoff.succeeded(PEERS[0])
    assert not any(backoff.waiting(PEERS[0], address, 1.0) for address in ADDRESSES)
    assert all(backoff.waiting(PEERS[1], address, 1.0) for address in ADDRESSES)


events = st.tuples(
    st.sampled_from(PEERS), st.sampled_from(ADDRESSES), st.floats(0, 1000), st.booleans()
)


@given(st.lists(events, max_size=60))
def test_it_never_grows_over_its_bounds(steps: list[tuple[object, ...]]) -> None:
    backoff = Backoff(DialSettings(max_backoff_peers=2, max_addresses=3))
    for peer, address, now, fails in steps:
        if fails:
            backoff.failed(peer, address, "x", now)  # type: ignore[arg-type]
            # What failed last is always remembered.
            assert backoff.waiting(peer, address, now) is not None  # type: ignore[arg-type]
        else:
            backoff.succeeded(peer)  # type: ignore[arg-type]
        assert len(backoff) <= 2 * 3
