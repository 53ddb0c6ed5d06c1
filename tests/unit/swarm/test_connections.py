from __future__ import annotations

import pytest
from tests.memory_transport import MemoryConnection, MemoryNetwork

from dep2p_daemon.errors import ConnectionClosedError, ResourceLimitError
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.muxed import CircuitLimits, Direction
from dep2p_daemon.swarm.connections import ConnectionTable, DialPolicy
from dep2p_daemon.swarm.settings import SwarmSettings

KEYS = sorted((PrivateKey.from_seed(bytes([n]) * 32) for n in range(1, 5)), key=lambda k: k.peer_id)
SMALL, MIDDLE, LARGE, RELAY = KEYS
ADDRESS = Multiaddr.for_tcp("192.0.2.1", 4001)
IN, OUT = Direction.INBOUND, Direction.OUTBOUND


def connection(
    remote: PrivateKey = LARGE,
    direction: Direction = OUT,
    *,
    local: PrivateKey = MIDDLE,
    relayed: bool = False,
    limits: CircuitLimits | None = None,
    age: float = 0.0,
) -> MemoryConnection:
    made = MemoryConnection(
        MemoryNetwork(),
        local,
        remote,
        direction,
        ADDRESS,
        ADDRESS,
        RELAY.peer_id if relayed else None,
        limits,
    )
    made.opened_at -= age
    return made


def test_new_streams_use_direct_then_unlimited_then_the_newest_connection() -> None:
    table = ConnectionTable(SwarmSettings())
    limited = connection(relayed=True, limits=CircuitLimits(120.0, 1 << 17))
    unlimited, older, newer = connection(relayed=True), connection(), connection()
    expected = []
    for added in (limited, unlimited, older, newer):
        table.add(added)
        expected.append(table.best(LARGE.peer_id))
    assert expected == [limited, unlimited, older, newer]
    table.add(connection(relayed=True))
    assert table.best(LARGE.peer_id) is newer
    assert table.best(SMALL.peer_id) is None


def test_a_policy_picks_among_its_own_paths() -> None:
    table = ConnectionTable(SwarmSettings())
    direct, relayed = connection(), connection(relayed=True)
    table.add(direct)
    assert table.best(LARGE.peer_id, DialPolicy.RELAYED) is None
    table.add(relayed)
    assert table.best(LARGE.peer_id, DialPolicy.RELAYED) is relayed
    assert table.best(LARGE.peer_id, DialPolicy.DIRECT) is direct


def test_a_closed_connection_is_never_the_best() -> None:
    table = ConnectionTable(SwarmSettings())
    older, newer = connection(), connection()
    table.add(older)
    table.add(newer)
    newer.end(ConnectionClosedError("gone"))
    assert table.best(LARGE.peer_id) is older


@pytest.mark.parametrize(
    ("limit", "settings", "inbound"),
    [
        ("max_connections", SwarmSettings(max_connections=2), False),
        ("max_connections_per_peer", SwarmSettings(max_connections_per_peer=2), False),
        ("max_inbound_connections", SwarmSettings(max_inbound_connections=2), True),
        ("max_inbound_connections_per_ip", SwarmSettings(max_inbound_connections_per_ip=2), True),
    ],
)
def test_each_cap_is_named_and_opens_again(
    limit: str, settings: SwarmSettings, inbound: bool
) -> None:
    table = ConnectionTable(settings)
    made = [connection(direction=IN if inbound else OUT) for _ in range(2)]
    for one in made:
        table.check_room(LARGE.peer_id, one if inbound else None)
        table.add(one)
    with pytest.raises(ResourceLimitError) as caught:
        table.check_room(LARGE.peer_id, made[0] if inbound else None)
    assert caught.value.metadata["limit"] == limit
    assert table.remove(made[0])
    assert not table.remove(made[0])
    table.check_room(LARGE.peer_id, made[0] if inbound else None)


def test_the_inbound_cap_leaves_room_to_dial() -> None:
    table = ConnectionTable(SwarmSettings(max_inbound_connections=1))
    table.add(connection(direction=IN))
    table.check_room(SMALL.peer_id)


def test_the_cap_per_ip_counts_neither_dials_nor_circuits_nor_other_addresses() -> None:
    table = ConnectionTable(SwarmSettings(max_inbound_connections_per_ip=1))
    table.add(connection(direction=OUT))
    table.add(connection(direction=IN, relayed=True))
    first = connection(direction=IN)
    table.check_room(LARGE.peer_id, first)
    table.add(first)
    elsewhere = connection(direction=IN)
    elsewhere.remote_address = Multiaddr.parse("/ip4/198.51.100.7/tcp/1")
    table.check_room(LARGE.peer_id, elsewhere)
    with pytest.raises(ResourceLimitError):
        table.check_room(LARGE.peer_id, connection(direction=IN))


def test_of_twins_the_one_whose_client_has_the_smaller_id_survives() -> None:
    # We are MIDDLE. Dialled by SMALL: its connection survives, ours is ours to close.
    table = ConnectionTable(SwarmSettings())
    ours, theirs = connection(SMALL, OUT), connection(SMALL, IN)
    table.add(ours)
    assert [entry.connection for entry in table.add(theirs)] == [ours]
    assert table.best(SMALL.peer_id) is theirs
    # Dialled by LARGE: our connection survives, theirs is theirs to close.
    ours, theirs = connection(LARGE, OUT), connection(LARGE, IN)
    table.add(ours)
    assert table.add(theirs) == []
    assert table.best(LARGE.peer_id) is ours


@pytest.mark.parametrize("first", [IN, OUT])
def test_both_sides_choose_the_same_survivor_in_any_order(first: Direction) -> None:
    second = OUT if first is IN else IN
    survivors, closed = [], 0
    for local, remote in ((SMALL, LARGE), (LARGE, SMALL)):
        table = ConnectionTable(SwarmSettings())
        table.add(connection(remote, first, local=local))
        closed += len(table.add(connection(remote, second, local=local)))
        best = table.best(remote.peer_id)
        assert best is not None
        survivors.append(best.local_peer if best.direction is OUT else best.remote_peer)
    assert survivors == [SMALL.peer_id, SMALL.peer_id]
    assert closed == 1


def test_what_is_no_twin_is_left_alone() -> None:
    def lost(first: MemoryConnection, second: MemoryConnection, *, wanted: bool = False) -> int:
        table = ConnectionTable(SwarmSettings())
        table.add(first, wanted=wanted)
        return len(table.add(second))

    assert lost(connection(SMALL, OUT), connection(SMALL, IN)) == 1
    assert lost(connection(SMALL, OUT, relayed=True), connection(SMALL, IN)) == 0
    assert lost(connection(SMALL, OUT, age=11.0), connection(SMALL, IN)) == 0
    assert lost(connection(SMALL, OUT), connection(SMALL, OUT)) == 0
    assert lost(connection(SMALL, OUT), connection(SMALL, IN), wanted=True) == 0
    both_relayed = connection(SMALL, OUT, relayed=True), connection(SMALL, IN, relayed=True)
    assert lost(*both_relayed) == 1


def test_an_old_connection_never_supplants_a_new_one() -> None:
    # Its other end may have died unheard: the peer that dials again must be believed.
    table = ConnectionTable(SwarmSettings())
    table.add(connection(LARGE, OUT, age=60.0))
    fresh = connection(LARGE, IN)
    table.add(fresh)
    assert table.best(LARGE.peer_id) is fresh
