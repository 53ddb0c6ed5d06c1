from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import stat
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from dep2p_daemon.errors import AuthenticationError, ConfigError, ProtocolViolationError
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.identity.peer_record import PeerRecord
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.swarm.peerstore import Peerstore, PeerstoreSettings
from dep2p_daemon.swarm.peerstore_file import PeerstoreFile

if TYPE_CHECKING:
    from pathlib import Path

KEYS = [PrivateKey.from_seed(bytes([number]) * 32) for number in range(8)]
PEERS = [key.peer_id for key in KEYS]
ALICE, BOB = PEERS[:2]
HERE, THERE = Multiaddr.for_udp("10.0.0.1", 1), Multiaddr.for_tcp("203.0.113.10", 2)


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def memory(clock: Clock, **settings: float) -> Peerstore:
    return Peerstore(None, PeerstoreSettings(**settings), clock=clock)  # type: ignore[arg-type]


def test_addresses_live_as_long_as_was_said(clock: Clock) -> None:
    store = memory(clock)
    store.add_addresses(ALICE, [HERE], ttl=10, source="identify")
    store.add_addresses(ALICE, [THERE], ttl=20, source="identify")
    assert set(store.addresses(ALICE)) == {HERE, THERE}
    clock.now += 10
    assert store.addresses(ALICE) == (THERE,)
    clock.now += 10
    assert store.addresses(ALICE) == ()
    assert store.addresses(BOB) == ()


def test_told_again_an_address_lives_longer_and_never_shorter(clock: Clock) -> None:
    store = memory(clock)
    store.add_addresses(ALICE, [HERE], ttl=100, source="identify")
    store.add_addresses(ALICE, [HERE], ttl=1, source="dialled")
    clock.now += 50
    assert store.addresses(ALICE) == (HERE,)
    store.add_addresses(ALICE, [HERE], ttl=100, source="identify")
    clock.now += 99
    assert store.addresses(ALICE) == (HERE,)


def test_the_last_learnt_address_is_first(clock: Clock) -> None:
    store = memory(clock)
    store.add_addresses(ALICE, [HERE], ttl=100, source="identify")
    clock.now += 1
    store.add_addresses(ALICE, [THERE], ttl=50, source="identify")
    assert store.addresses(ALICE) == (THERE, HERE)


def test_addresses_are_kept_without_the_peers_own_id(clock: Clock) -> None:
    store = memory(clock)
    given = [HERE.with_peer_id(ALICE), THERE.with_peer_id(BOB)]
    store.add_addresses(ALICE, given, ttl=10, source="identify")
    assert store.addresses(ALICE) == (HERE,)


@pytest.mark.parametrize("ttl", [0, -1])
def test_without_time_to_live_nothing_is_kept(clock: Clock, ttl: float) -> None:
    store = memory(clock)
    store.add_addresses(ALICE, [HERE], ttl=ttl, source="identify")
    assert store.peers() == ()


def test_what_identify_told(clock: Clock) -> None:
    store = memory(clock)
    assert store.get(ALICE) is None
    store.set_protocols(ALICE, ["/b", "/a", "/a"])
    store.set_agent(ALICE, "dep2pd/0.1", "dep2p/1")
    info = store.get(ALICE)
    assert info is not None
    assert info.protocols == store.protocols(ALICE) == {"/a", "/b"}
    assert (info.agent_version, info.protocol_version) == ("dep2pd/0.1", "dep2p/1")
    assert info.last_seen is None
    assert store.protocols(BOB) == frozenset()
    store.set_protocols(ALICE, ["/c"])
    assert store.protocols(ALICE) == {"/c"}


def test_when_a_peer_was_seen(clock: Clock) -> None:
    store = memory(clock)
    store.seen(ALICE)
    clock.now += 5
    info = store.get(ALICE)
    assert info is not None
    assert info.last_seen == clock.now - 5


def test_what_is_known_of_an_address(clock: Clock) -> None:
    store = memory(clock)
    store.add_addresses(ALICE, [HERE], ttl=10, source="identify")
    info = store.get(ALICE)
    assert info is not None
    (known,) = info.addresses
    assert (known.address, known.source) == (HERE, "identify")
    assert (known.learnt_at, known.expires_at) == (clock.now, clock.now + 10)


def record(seq: int, *addresses: Multiaddr, key: PrivateKey = KEYS[0]) -> bytes:
    return PeerRecord(key.peer_id, seq, addresses).seal(key)


def test_a_newer_record_replaces_the_addresses_of_the_last(clock: Clock) -> None:
    store = memory(clock)
    store.add_addresses(ALICE, [Multiaddr.for_tcp("10.9.9.9", 9)], ttl=10, source="identify")
    assert store.consume_record(record(5, HERE)).seq == 5
    store.consume_record(record(6, THERE))
    assert set(store.addresses(ALICE)) == {THERE, Multiaddr.for_tcp("10.9.9.9", 9)}


def test_an_older_record_changes_nothing(clock: Clock) -> None:
    store = memory(clock)
    store.consume_record(record(6, HERE))
    with pytest.raises(ProtocolViolationError) as caught:
        store.consume_record(record(5, THERE))
    assert caught.value.reason == "PEER_RECORD_OUTDATED"
    assert store.addresses(ALICE) == (HERE,)


def test_the_same_record_again_adds_nothing_but_time(clock: Clock) -> None:
    store = memory(clock)
    store.consume_record(record(6, HERE), ttl=100)
    clock.now += 50
    store.consume_record(record(6, HERE, THERE), ttl=100)
    clock.now += 99
    assert store.addresses(ALICE) == (HERE,)


def test_a_forged_record_changes_nothing(clock: Clock) -> None:
    store = memory(clock)
    data = bytearray(record(1, HERE))
    data[-1] ^= 1
    with pytest.raises(AuthenticationError):
        store.consume_record(bytes(data))
    assert store.peers() == ()


def test_expired_addresses_and_forgotten_peers_are_pruned(clock: Clock) -> None:
    store = memory(clock, peer_ttl=1000)
    store.add_addresses(ALICE, [HERE], ttl=10, source="identify")
    store.add_addresses(BOB, [HERE], ttl=10, source="identify")
    store.seen(BOB)
    store.add_addresses(BOB, [THERE], ttl=20, source="identify")
    store.prune(clock.now + 15)
    assert store.peers() == (BOB,)
    info = store.get(BOB)
    assert info is not None
    assert [known.address for known in info.addresses] == [THERE]
    store.prune(clock.now + 999)
    assert store.peers() == (BOB,)
    store.prune(clock.now + 1000)
    assert store.peers() == ()


def test_the_peers_that_changed_longest_ago_make_room(clock: Clock) -> None:
    store = memory(clock, max_peers=3)
    for peer in PEERS[:3]:
        store.seen(peer)
    store.set_agent(PEERS[0], "a", "b")
    store.seen(PEERS[3])
    assert store.peers() == (PEERS[3], PEERS[0], PEERS[2])
    assert store.get(PEERS[1]) is None


def test_the_first_addresses_to_expire_make_room(clock: Clock) -> None:
    store = memory(clock, max_addresses_per_peer=3)
    for port in (5, 1, 4, 2, 3):
        store.add_addresses(
            ALICE, [Multiaddr.for_tcp("10.0.0.1", port)], ttl=port, source="identify"
        )
    assert {address.port for address in store.addresses(ALICE)} == {3, 4, 5}


def test_protocols_are_bounded_in_number_and_length(clock: Clock) -> None:
    store = memory(clock)
    store.set_protocols(ALICE, [f"/{n}" for n in range(2000)] + ["/" + "x" * 256])
    assert len(store.protocols(ALICE)) == 1024
    store.set_protocols(ALICE, ["/" + "x" * 256, "/" + "y" * 255])
    assert store.protocols(ALICE) == {"/" + "y" * 255}
    store.set_agent(ALICE, "a" * 1000, "p" * 1000)
    info = store.get(ALICE)
    assert info is not None
    assert len(info.agent_version) == len(info.protocol_version) == 256


def test_the_total_is_bounded_whatever_peers_tell(clock: Clock) -> None:
    store = memory(clock, max_total_bytes=2000)
    for peer in PEERS:
        store.set_protocols(peer, [f"/{n:099}" for n in range(3)])
    assert store.peers() == tuple(reversed(PEERS[-3:]))
    # Bytes that were given back count no more.
    store.set_protocols(PEERS[-1], [])
    store.set_protocols(PEERS[0], [f"/{n:099}" for n in range(3)])
    assert len(store.peers()) == 4


operations = st.lists(
    st.tuples(
        st.sampled_from(["addresses", "protocols", "seen", "prune", "wait", "restart"]),
        st.integers(0, 7),
        st.integers(1, 40),
    ),
    max_size=30,
)


@given(operations)
def test_whatever_happens_bounds_hold_and_the_file_says_the_same(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    clock = Clock()
    path = tmp_path_factory.mktemp("peers") / "peers.sqlite"
    settings = PeerstoreSettings(
        max_peers=4, max_addresses_per_peer=5, max_total_bytes=8000, peer_ttl=50, flush_batch=3
    )
    store = Peerstore(path, settings, clock=clock)
    for kind, index, amount in steps:
        peer = PEERS[index]
        match kind:
            case "addresses":
                found = [Multiaddr.for_tcp("10.0.0.1", port) for port in range(amount)]
                store.add_addresses(peer, found, ttl=amount, source="identify")
            case "protocols":
                store.set_protocols(peer, [f"/{n}" for n in range(amount)])
            case "seen":
                store.seen(peer)
            case "prune":
                store.prune()
            case "wait":
                clock.now += amount
            case "restart":
                # Opening forgets what has expired; so must the one that is compared.
                store.prune()
                before = {peer: store.get(peer) for peer in store.peers()}
                store.close()
                store = Peerstore(path, settings, clock=clock)
                assert {peer: store.get(peer) for peer in store.peers()} == before
        assert len(store.peers()) <= 4
        assert all(len(store.addresses(peer)) <= 5 for peer in PEERS)
    store.close()


def fill(store: Peerstore, clock: Clock) -> None:
    store.add_addresses(ALICE, [HERE, THERE], ttl=100, source="identify")
    store.set_protocols(ALICE, ["/a", "/é"])
    store.set_agent(ALICE, 'agent "quoted"', "protocol")
    store.consume_record(record(2**64 - 1, HERE))
    clock.now += 1
    store.seen(BOB)


def test_a_restart_loses_nothing(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "peers.sqlite"
    store = Peerstore(path, clock=clock)
    fill(store, clock)
    before = [store.get(peer) for peer in store.peers()]
    store.close()
    store.close()
    again = Peerstore(path, clock=clock)
    assert [again.get(peer) for peer in again.peers()] == before
    with pytest.raises(ProtocolViolationError):
        again.consume_record(record(2**64 - 2, HERE))
    again.close()


def test_the_next_start_forgets_what_has_expired(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "peers.sqlite"
    store = Peerstore(path, clock=clock)
    fill(store, clock)
    store.close()
    clock.now += 10_000
    again = Peerstore(path, clock=clock)
    assert again.peers() == (BOB,)
    again.close()
    assert rows(path) == 1


def rows(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM peers").fetchone()[0])


def test_what_is_flushed_is_in_the_file_while_it_is_open(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "peers.sqlite"
    store = Peerstore(path, PeerstoreSettings(flush_batch=2), clock=clock)
    for peer in PEERS:
        store.seen(peer)
    assert rows(path) == 0
    store.flush()
    assert rows(path) == len(PEERS)
    store.close()


async def rows_become(path: Path, count: int) -> None:
    async with asyncio.timeout(10):
        while rows(path) != count:  # noqa: ASYNC110 - a file gives no event
            await asyncio.sleep(0.001)


async def test_changes_are_written_in_time_without_being_asked(tmp_path: Path) -> None:
    path = tmp_path / "peers.sqlite"
    async with Peerstore(path, PeerstoreSettings(flush_interval=0.001)) as store:
        store.seen(ALICE)
        await rows_become(path, 1)
        store.seen(BOB)
    assert rows(path) == 2


async def test_leaving_writes_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "peers.sqlite"
    with contextlib.suppress(KeyError):
        async with Peerstore(path) as store:
            store.seen(ALICE)
            raise KeyError
    assert rows(path) == 1


async def test_leaving_in_the_middle_of_a_write_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "peers.sqlite"
    started, go_on = threading.Event(), threading.Event()
    write = PeerstoreFile.write

    def interrupted(*args: Any) -> None:
        if not started.is_set():
            started.set()
            go_on.wait()
            raise OSError("the disk went away")
        write(*args)

    monkeypatch.setattr(PeerstoreFile, "write", interrupted)
    async with Peerstore(path, PeerstoreSettings(flush_interval=0.001)) as store:
        store.seen(ALICE)
        await asyncio.to_thread(started.wait)
    go_on.set()
    assert rows(path) == 1


async def test_expired_peers_go_in_time(tmp_path: Path) -> None:
    clock = Clock()
    settings = PeerstoreSettings(flush_interval=0.001, prune_interval=10)
    path = tmp_path / "peers.sqlite"
    async with Peerstore(path, settings, clock=clock) as store:
        store.add_addresses(ALICE, [HERE], ttl=5, source="identify")
        await rows_become(path, 1)
        clock.now += 10
        await rows_become(path, 0)
        assert store.peers() == ()


def test_only_the_owner_can_read_the_file(tmp_path: Path, clock: Clock) -> None:
    store = Peerstore(tmp_path / "peers.sqlite", clock=clock)
    store.seen(ALICE)
    store.flush()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    store.close()
    assert modes == {0o600}


@pytest.mark.parametrize("kind", ["garbage", "page", "short", "schema", "other version", "wal"])
def test_a_damaged_file_is_moved_aside(tmp_path: Path, clock: Clock, kind: str) -> None:
    path = tmp_path / "peers.sqlite"
    store = Peerstore(path, clock=clock)
    for peer in PEERS:
        store.set_protocols(peer, [f"/{n:0200}" for n in range(100)])
    store.close()
    data = path.read_bytes()
    match kind:
        case "garbage":
            path.write_bytes(b"not a database" * 100)
        case "page":
            path.write_bytes(data[:4096] + bytes(4096) + data[8192:])
        case "short":
            path.write_bytes(data[: len(data) // 2])
        case "schema":
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("ALTER TABLE peers DROP COLUMN record_seq")
        case "other version":
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA user_version = 99")
        case "wal":
            path.write_bytes(b"")
            path.with_name("peers.sqlite-wal").write_bytes(b"garbage" * 1000)
    with capture_logs() as logs:
        store = Peerstore(path, clock=clock)
    assert store.peers() == ()
    store.seen(ALICE)
    store.close()
    store = Peerstore(path, clock=clock)
    assert store.peers() == (ALICE,)
    store.close()
    if kind != "wal":  # SQLite itself throws away a log that belongs to nothing
        assert [entry["reason"] for entry in logs] == ["PEERSTORE_DAMAGED"]
        assert logs[0]["log_level"] == "warning"
        assert path.with_name("peers.sqlite.damaged").exists()


def test_a_damaged_row_costs_only_itself(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "peers.sqlite"
    store = Peerstore(path, clock=clock)
    fill(store, clock)
    store.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "UPDATE peers SET addresses = '[[\"/ip4/\"]' WHERE peer_id = ?", (bytes(ALICE),)
        )
        connection.execute(
            "INSERT INTO peers SELECT x'00', changed_at, last_seen, agent_version, "
            "protocol_version, record_seq, protocols, addresses, expires_at, size "
            "FROM peers LIMIT 1"
        )
    with capture_logs() as logs:
        store = Peerstore(path, clock=clock)
        info = store.get(ALICE)
    assert info is not None
    assert info.addresses == ()
    assert info.protocols == {"/a", "/é"}
    assert set(store.peers()) == {ALICE, BOB}
    assert {entry["reason"] for entry in logs} == {"PEERSTORE_ROW"}
    store.close()


def test_a_file_in_use_is_not_taken_for_a_damaged_one(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dep2p_daemon.swarm.peerstore_file.BUSY_TIMEOUT", 0.01)
    path = tmp_path / "peers.sqlite"
    store = Peerstore(path, clock=clock)
    fill(store, clock)
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ConfigError) as caught:
            Peerstore(path, clock=clock)
    assert caught.value.reason == "PEERSTORE_UNUSABLE"
    assert not path.with_name("peers.sqlite.damaged").exists()
    store = Peerstore(path, clock=clock)
    assert len(store.peers()) == 2
    store.close()


def test_a_file_that_cannot_be_made_is_named(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "missing" / "peers.sqlite"
    with pytest.raises(ConfigError) as caught:
        Peerstore(path, clock=clock)
    assert str(path) in caught.value.message
    assert "--data-dir" in caught.value.remedy


def test_when_writing_fails_memory_stays_and_it_is_said_once(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dep2p_daemon.swarm.peerstore_file.BUSY_TIMEOUT", 0.01)
    path = tmp_path / "peers.sqlite"
    store = Peerstore(path, clock=clock)
    store.seen(ALICE)
    with capture_logs() as logs:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            store.flush()
            store.flush()
        assert store.peers() == (ALICE,)
        store.flush()
    assert [entry["log_level"] for entry in logs] == ["warning", "info"]
    assert rows(path) == 1
    store.close()
