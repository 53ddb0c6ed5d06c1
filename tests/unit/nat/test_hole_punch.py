"""Hole punching between swarms on a memory network, in virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from tests.memory_nodes import CIRCUIT, address_of, peer, swarms
from tests.memory_transport import MemoryNetwork
from tests.virtual_time import virtual_time

from dep2p_daemon.errors import ConnectionClosedError, StreamResetError
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.muxed import CloseCode, read_message, write_message
from dep2p_daemon.nat.address_watch import AddressWatch
from dep2p_daemon.nat.dcutr import PunchRole
from dep2p_daemon.nat.dcutr_message import (
    MAX_MESSAGE_BYTES,
    PROTOCOL,
    DcutrMessage,
    MessageType,
    decode,
    encode,
)
from dep2p_daemon.nat.hole_punch import HolePuncher
from dep2p_daemon.nat.paths import PathChanged, PathSettings, PathWatch
from dep2p_daemon.nat.punch_settings import PunchSettings, RoundLimiter
from dep2p_daemon.nat.trail import Outcome, Reason, Side, StepKind, Trail, TrailChanged
from dep2p_daemon.nat.wait_direct import DirectFailure, wait_direct
from dep2p_daemon.protocols import ping
from dep2p_daemon.protocols.identify import Identify
from dep2p_daemon.swarm.dialing import DialPolicy
from dep2p_daemon.swarm.events import ConnectionClosed, NetworkChange, NetworkChanged

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dep2p_daemon.events import Subscription
    from dep2p_daemon.muxed import Connection, Stream
    from dep2p_daemon.swarm.swarm import Swarm

A, B = 0, 1
NO_RETRY = PunchSettings(retry_delays=())


async def swallow(stream: Stream) -> None:
    """Take what comes and say nothing, as a path does that is dead one way."""
    while await stream.read():
        pass


@dataclass
class Probes:
    """Counts random packets instead of sending them."""

    sent: Counter[Multiaddr] = field(default_factory=Counter)

    def send_probe(self, address: Multiaddr, data: bytes) -> bool:
        assert len(data) == 64
        self.sent[address] += 1
        return True


@dataclass
class Node:
    swarm: Swarm
    identify: Identify
    puncher: HolePuncher | None
    probes: Probes
    seen: Subscription

    @property
    def trail(self) -> Trail:
        assert self.puncher is not None
        (other,) = {trail.peer for trail in self.trails}
        return self.puncher.trails.of(other)[-1]

    @property
    def trails(self) -> tuple[Trail, ...]:
        assert self.puncher is not None
        return tuple(t for n in range(3) for t in self.puncher.trails.of(peer(n)))

    async def ended(self) -> Trail:
        """Return the next trail that ends."""
        while True:
            event = await self.seen.next()
            if isinstance(event, TrailChanged) and not event.trail.running:
                return event.trail


@dataclass
class Net:
    network: MemoryNetwork
    a: Node
    b: Node

    async def relayed(self) -> Connection:
        """A dials B through the relay."""
        return await self.a.swarm.dial(peer(B), [CIRCUIT], policy=DialPolicy.RELAYED)


@asynccontextmanager
async def net(
    *,
    dead: tuple[int, ...] = (),
    settings: PunchSettings = NO_RETRY,
    punching: tuple[int, ...] = (A, B),
    paths: PathSettings | None = None,
) -> AsyncIterator[Net]:
    """A and B; B is reachable through a relay. `dead`: whose addresses nothing gets through to."""
    network = MemoryNetwork()
    network.dead.update(address_of(number) for number in dead)
    async with AsyncExitStack() as stack:
        made = await stack.enter_async_context(swarms(2, network=network))
        nodes = []
        for number, swarm in enumerate(made):
            seen = stack.enter_context(swarm.events.subscribe())
            identify, probes = Identify(swarm), Probes()
            identify.register()
            PathWatch(swarm, paths)
            watch = await stack.enter_async_context(AddressWatch(swarm, identify))
            puncher = HolePuncher(swarm, identify, watch, settings, prober=probes, tcp=None)
            if number in punching:
                await stack.enter_async_context(puncher)
            nodes.append(
                Node(swarm, identify, puncher if number in punching else None, probes, seen)
            )
        await made[B].listen([CIRCUIT])
        yield Net(network, *nodes)


# From relayed to direct


@virtual_time
async def test_what_the_peer_advertises_is_dialled_first() -> None:
    async with net() as made:
        await made.relayed()
        trail = await made.b.ended()
        assert (trail.outcome, trail.reason) == (Outcome.DIRECT, Reason.DIRECT)
        assert (trail.side, trail.peer) == (Side.INITIATOR, peer(A))
        assert [step.kind for step in trail.steps] == [StepKind.DIRECT_DIAL]
        assert trail.connection_id == made.b.swarm.best_connection(peer(A)).id  # type: ignore[union-attr]
        assert not made.b.probes.sent


@virtual_time
async def test_else_the_peer_dials_us_while_we_open_our_nat() -> None:
    async with net(dead=(A,)) as made:
        await made.relayed()
        ours, theirs = await made.b.ended(), await made.a.ended()
        assert ours.outcome is theirs.outcome is Outcome.DIRECT
        assert (ours.side, theirs.side) == (Side.INITIATOR, Side.RECEIVER)
        dial, punch = ours.steps
        assert (dial.kind, dial.addresses) == (StepKind.DIRECT_DIAL, (address_of(A),))
        assert (punch.kind, punch.number, punch.role) == (StepKind.PUNCH, 1, PunchRole.SERVER)
        assert punch.rtt is not None
        assert set(made.b.probes.sent) == {address_of(A)}
        (answer,) = theirs.steps
        assert (answer.role, answer.addresses) == (PunchRole.CLIENT, (address_of(B),))
        assert ours.own_candidates == (address_of(B),)
        assert theirs.own_candidates == (address_of(A),)


@virtual_time
async def test_three_rounds_the_last_with_swapped_roles_and_then_the_reason() -> None:
    async with net(dead=(A, B)) as made:
        await made.relayed()
        ours, theirs = await made.b.ended(), await made.a.ended()
        assert (ours.outcome, ours.reason) == (Outcome.FAILED, Reason.PUNCH_FAILED)
        assert (theirs.outcome, theirs.reason) == (Outcome.FAILED, Reason.PUNCH_FAILED)
        punches = [step for step in ours.steps if step.kind is StepKind.PUNCH]
        roles = [PunchRole.BOTH, PunchRole.BOTH, PunchRole.CLIENT]
        assert [step.role for step in punches] == roles
        assert [step.number for step in punches] == [1, 2, 3]
        assert all(step.outcome is Outcome.FAILED for step in ours.steps)
        assert sum(step.probes for step in punches) == made.b.probes.sent.total()
        assert [step.role for step in theirs.steps] == [PunchRole.CLIENT] * 3
        # It talks on through the relay.
        best = made.a.swarm.best_connection(peer(B))
        assert best is not None
        assert best.relayed


@virtual_time
async def test_a_peer_that_takes_one_round_at_a_time_gets_through_in_it() -> None:
    """As js-libp2p does: it resets a further stream while it dials for the one before."""
    taken: list[Stream] = []

    async def take_one(stream: Stream) -> None:
        if taken:
            stream.reset()
            return
        taken.append(stream)
        await read_message(stream, MAX_MESSAGE_BYTES)
        own = DcutrMessage(MessageType.CONNECT, (address_of(A),))
        await write_message(stream, encode(own))
        await read_message(stream, MAX_MESSAGE_BYTES)

    for gets_through in (False, True):
        taken.clear()
        async with net(dead=(A, B), punching=(B,)) as made:
            made.a.swarm.set_handler(PROTOCOL, take_one)
            await made.relayed()
            while not (made.b.trails and made.b.trail.peer_candidates):
                await made.b.seen.next()
            await asyncio.sleep(2)  # of virtual time: the second round is refused
            if gets_through:
                made.network.dead.clear()
                await made.a.swarm.dial(peer(B), [address_of(B)], policy=DialPolicy.DIRECT)
            trail = await made.b.ended()
            expected = Reason.DIRECT if gets_through else Reason.PUNCH_FAILED
            assert trail.reason is expected
            assert sum(step.kind is StepKind.PUNCH for step in trail.steps) == 1


@virtual_time
async def test_who_is_not_dialled_in_a_round_dials_within_it() -> None:
    """The peer's dials do not get through to us (our NAT is symmetric), ours to it do."""
    async with net(dead=(A, B)) as made:
        await made.relayed()
        while not made.b.probes.sent:
            await made.b.seen.next()
        made.network.dead.remove(address_of(A))  # its first dials have opened its NAT
        ours, theirs = await made.b.ended(), await made.a.ended()
        assert ours.outcome is theirs.outcome is Outcome.DIRECT
        punch = ours.steps[-1]
        assert (punch.number, punch.role) == (1, PunchRole.BOTH)
        assert punch.duration is not None
        assert punch.duration < PunchSettings().round_time


@virtual_time
async def test_a_peer_that_lost_the_direct_path_first_is_believed() -> None:
    """It comes through the relay while we still think that there is a direct connection."""
    async with net() as made:
        await made.relayed()
        await made.b.ended()
        await path_changed(made.a)
        (dead,) = [one for one in made.b.swarm.connections(peer(A)) if not one.relayed]
        made.a.swarm.set_handler(ping.PROTOCOL, swallow)
        await relayed_closed(made.b)
        await made.a.swarm.dial(peer(B), [CIRCUIT], policy=DialPolicy.RELAYED)
        began = asyncio.get_running_loop().time()
        again = await made.b.ended()
        assert dead.is_closed
        assert (again.side, again.outcome) == (Side.INITIATOR, Outcome.DIRECT)
        assert asyncio.get_running_loop().time() - began < 5.0


@pytest.mark.parametrize("side", Side)
def test_a_peer_without_an_address_may_dial_ours(side: Side) -> None:
    """As js-libp2p does behind a NAT."""

    async def exchange(stream: Stream) -> None:
        await read_message(stream, MAX_MESSAGE_BYTES)
        await write_message(stream, encode(DcutrMessage(MessageType.CONNECT)))
        await read_message(stream, MAX_MESSAGE_BYTES)

    @virtual_time
    async def run() -> None:
        initiator = side is Side.INITIATOR
        for dials in (True, False):
            async with net(
                dead=(A, B),
                punching=(B,) if initiator else (A,),
                settings=PunchSettings(retry_delays=(), dial_timeout=0.5),
            ) as made:
                us, them = (made.b, made.a) if initiator else (made.a, made.b)
                if initiator:
                    them.swarm.set_handler(PROTOCOL, exchange)
                await made.relayed()
                if not initiator:
                    messages = DcutrMessage(MessageType.CONNECT), DcutrMessage(MessageType.SYNC)
                    await send_dcutr(them.swarm, *messages)
                await asyncio.sleep(1.5)  # of virtual time
                if dials:
                    made.network.dead.clear()
                    number = B if initiator else A
                    await them.swarm.dial(
                        peer(number), [address_of(number)], policy=DialPolicy.DIRECT
                    )
                trail = await us.ended()
                assert trail.side is side
                assert trail.reason is (Reason.DIRECT if dials else Reason.NO_PEER_ADDRESS)

    run()


@virtual_time
async def test_it_is_tried_again_after_a_while() -> None:
    async with net(dead=(A, B), settings=PunchSettings(retry_delays=(30.0,))) as made:
        await made.relayed()
        assert (await made.b.ended()).outcome is Outcome.FAILED
        began = asyncio.get_running_loop().time()
        made.network.dead.clear()
        assert (await made.b.ended()).outcome is Outcome.DIRECT
        assert 30.0 <= asyncio.get_running_loop().time() - began < 35.0


@virtual_time
@pytest.mark.parametrize("whose", ["ours", "the peer's"])
async def test_it_is_tried_again_when_the_network_changes(whose: str) -> None:
    async with net(dead=(A, B), settings=PunchSettings(retry_delays=(600.0,))) as made:
        await made.relayed()
        assert (await made.b.ended()).outcome is Outcome.FAILED
        began = asyncio.get_running_loop().time()
        made.network.dead.clear()
        if whose == "ours":
            made.b.swarm.events.publish(NetworkChanged(NetworkChange.MOVED, ("192.0.2.7",), ()))
        else:
            # The peer pushes where it is now.
            made.a.swarm.set_announced([Multiaddr.for_udp("203.0.113.77", 4001)])
        assert (await made.b.ended()).outcome is Outcome.DIRECT
        assert asyncio.get_running_loop().time() - began < 5.0


@virtual_time
async def test_two_relayed_connections_make_one_attempt() -> None:
    async with net(dead=(A, B)) as made:
        await made.relayed()
        await made.a.swarm.dial(peer(B), [CIRCUIT], policy=DialPolicy.RELAYED, force_new=True)
        await made.b.ended()
        running = [trail for trail in made.b.trails if trail.running]
        assert len(running) <= 1


@virtual_time
async def test_the_end_of_the_relayed_connection_is_the_attempts() -> None:
    async with net(dead=(A, B)) as made:
        connection = await made.relayed()
        while not (made.b.trails and made.b.trail.steps):
            await made.b.seen.next()
        await asyncio.sleep(0.7)  # of virtual time: the dial's head start is over
        assert made.b.probes.sent
        await connection.close()
        trail = await made.b.ended()
        assert trail.outcome is Outcome.ABANDONED
        assert trail.reason is Reason.RELAYED_CONNECTION_CLOSED
        sent = made.b.probes.sent.total()
        await asyncio.sleep(10)
        assert made.b.probes.sent.total() == sent


@virtual_time
async def test_a_peer_that_does_not_punch_is_dialled_and_left() -> None:
    async with net(dead=(A,), punching=(B,)) as made:
        await made.relayed()
        trail = await made.b.ended()
        assert (trail.outcome, trail.reason) == (Outcome.FAILED, Reason.PEER_UNSUPPORTED)
        assert [step.kind for step in trail.steps] == [StepKind.DIRECT_DIAL]


@virtual_time
async def test_where_the_peer_was_yesterday_takes_no_room_from_where_it_is_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = [Multiaddr.for_udp(f"45.{n}.0.1", 4001) for n in range(4)]
    async with net(dead=(A,)) as made:
        made.network.dead.update(old)
        monkeypatch.setattr(made.b.swarm.peerstore, "addresses", lambda _peer: tuple(old))
        await made.relayed()
        trail = await made.b.ended()
        assert trail.outcome is Outcome.DIRECT
        assert trail.steps[-1].addresses == (address_of(A),)


# What peers can make us do


async def send_dcutr(swarm: Swarm, *messages: DcutrMessage) -> DcutrMessage | None:
    """Open a DCUtR stream on B's relayed connection as it pleases; return the answer."""
    (connection,) = swarm.connections(peer(A))
    stream = await swarm.open_stream(peer(A), [PROTOCOL], connection=connection)
    answer = None
    for message in messages:
        await write_message(stream, encode(message))
        if message.type is MessageType.CONNECT:
            answer = decode(await read_message(stream, MAX_MESSAGE_BYTES))
    return answer


HOSTILE = (
    *(Multiaddr.for_udp(f"45.{n // 200}.{n % 200}.7", 4001) for n in range(40)),
    *(Multiaddr.for_udp("45.77.1.1", 2000 + n) for n in range(40)),
    Multiaddr.for_udp("127.0.0.1", 4001),
    Multiaddr.for_udp("10.0.0.1", 4001),
    Multiaddr.for_udp("192.168.1.1", 4001),
    Multiaddr.for_udp("224.0.0.251", 5353),
    Multiaddr.for_udp("255.255.255.255", 4001),
    Multiaddr.for_tcp("169.254.169.254", 8080),
    Multiaddr.for_udp("45.0.0.7", 53),
    CIRCUIT,
)


@virtual_time
async def test_a_hostile_message_reaches_few_addresses_and_none_that_must_not_be_dialled() -> None:
    async with net(punching=(A,)) as made:
        made.network.dead.update(set(HOSTILE) - {CIRCUIT})
        await made.relayed()
        before = len(made.network.dials)
        connect = DcutrMessage(MessageType.CONNECT, HOSTILE)
        await send_dcutr(made.b.swarm, connect, DcutrMessage(MessageType.SYNC))
        trail = await made.a.ended()
        dialled = {address for _, address in made.network.dials[before:]}
        assert dialled == set(trail.steps[0].addresses)
        assert 0 < len(dialled) <= PunchSettings().max_addresses
        assert len({address.ip for address in dialled}) <= PunchSettings().max_ips_per_family
        assert all(str(address).startswith("/ip4/45.") for address in dialled)
        assert all(address.port != 53 for address in dialled)
        assert len(trail.peer_candidates) <= 32
        assert trail.peer_rejected >= len(HOSTILE) - PunchSettings().max_addresses


@virtual_time
async def test_message_after_message_reaches_no_more() -> None:
    async with net(punching=(A,)) as made:
        made.network.dead.update(set(HOSTILE) - {CIRCUIT})
        await made.relayed()
        before = len(made.network.dials)
        for start in range(0, 40, 8):
            connect = DcutrMessage(MessageType.CONNECT, HOSTILE[start : start + 8])
            await send_dcutr(made.b.swarm, connect, DcutrMessage(MessageType.SYNC))
        dialled = {address for _, address in made.network.dials[before:]}
        assert len(dialled) <= PunchSettings().max_addresses
        assert len({address.ip for address in dialled}) <= PunchSettings().max_ips_per_family


@virtual_time
async def test_rounds_without_end_are_refused() -> None:
    async with net(punching=(A,)) as made:
        await made.relayed()
        connect = DcutrMessage(MessageType.CONNECT, (address_of(B),))
        for _ in range(PunchSettings().rounds_burst):
            assert await send_dcutr(made.b.swarm, connect) is not None
        with pytest.raises(StreamResetError):
            await send_dcutr(made.b.swarm, connect)


async def begin_dcutr(swarm: Swarm, connection: Connection) -> None:
    stream = await swarm.open_stream(connection.remote_peer, [PROTOCOL], connection=connection)
    await write_message(stream, encode(DcutrMessage(MessageType.CONNECT, (address_of(B),))))
    await read_message(stream, MAX_MESSAGE_BYTES)


@virtual_time
async def test_a_direct_connection_is_no_place_for_it() -> None:
    async with net(punching=(A,)) as made:
        connection = await made.b.swarm.dial(peer(A), [address_of(A)])
        with pytest.raises(StreamResetError):
            await begin_dcutr(made.b.swarm, connection)
        assert not made.a.trails


@virtual_time
async def test_who_dialled_us_does_not_begin() -> None:
    async with net(dead=(A, B), punching=(B,)) as made:
        connection = await made.relayed()
        with pytest.raises(StreamResetError):
            await begin_dcutr(made.a.swarm, connection)


@pytest.mark.parametrize(
    "wire",
    [
        pytest.param(b"\x02\x08\x65", id="unknown type"),
        pytest.param(b"\x03\x08\xac\x02", id="sync first"),
        pytest.param(b"\x81\x20", id="too long"),
    ],
)
def test_what_breaks_the_protocol_ends_the_stream_and_is_recorded(wire: bytes) -> None:
    @virtual_time
    async def run() -> None:
        async with net(punching=(A,)) as made:
            await made.relayed()
            (connection,) = made.b.swarm.connections(peer(A))
            stream = await made.b.swarm.open_stream(peer(A), [PROTOCOL], connection=connection)
            await stream.write(wire)
            trail = await made.a.ended()
            assert (trail.outcome, trail.reason) == (Outcome.FAILED, Reason.PROTOCOL_ERROR)
            assert trail.detail
            with pytest.raises(StreamResetError):
                await read_message(stream, MAX_MESSAGE_BYTES)

    run()


@virtual_time
async def test_a_peer_that_falls_silent_does_not_hold_the_attempt() -> None:
    async with net(punching=(A,)) as made:
        await made.relayed()
        await send_dcutr(made.b.swarm, DcutrMessage(MessageType.CONNECT, (address_of(B),)))
        trail = await made.a.ended()
        assert trail.reason is Reason.PROTOCOL_ERROR
        assert not trail.steps


@virtual_time
async def test_a_peer_that_dials_us_again_and_again_makes_us_punch_seldom() -> None:
    async with net(dead=(A, B)) as made:
        for _ in range(20):
            connection = await made.relayed()
            await asyncio.sleep(0.5)
            await connection.close()
            await asyncio.sleep(0.1)
        began = [one for one in made.b.seen._events if _is_new(one)]
        assert 3 <= len(began) <= 1 + PunchSettings().rounds_burst // 3


def _is_new(event: object) -> bool:
    return (
        isinstance(event, TrailChanged)
        and event.trail.running
        and not event.trail.steps
        and not event.trail.peer_candidates
    )


def test_tokens_come_back_with_time_and_peers_are_bounded() -> None:
    settings = PunchSettings(rounds_burst=2, rounds_interval=10.0)
    limiter = RoundLimiter(settings)
    assert [limiter.allows("p", 0.0) for _ in range(3)] == [True, True, False]
    assert not limiter.allows("p", 9.0)
    assert limiter.allows("p", 10.5)
    assert not limiter.allows("p", 10.6)
    assert limiter.allows("q", 10.6)
    for number in range(2000):
        limiter.allows(number, 11.0)
    assert len(limiter._buckets) <= 512


# Paths


async def held_stream(made: Net, connection: Connection) -> Stream:
    """A stream that both sides keep open."""

    async def hold(stream: Stream) -> None:
        while await stream.read():
            pass

    made.b.swarm.set_handler("/test/hold", hold)
    return await made.a.swarm.open_stream(peer(B), ["/test/hold"], connection=connection)


async def path_changed(node: Node) -> PathChanged:
    while True:
        event = await node.seen.next()
        if isinstance(event, PathChanged):
            return event


async def relayed_closed(node: Node) -> float:
    while True:
        event = await node.seen.next()
        if isinstance(event, ConnectionClosed) and event.connection.relayed:
            return asyncio.get_running_loop().time()


@virtual_time
async def test_the_path_changes_once_and_the_idle_relayed_connection_goes() -> None:
    async with net() as made:
        await made.relayed()
        changed = await path_changed(made.a)
        assert (changed.peer, changed.previous, changed.path) == (peer(B), "relayed", "direct")
        began = asyncio.get_running_loop().time()
        assert await relayed_closed(made.a) - began < 10.0
        (left,) = made.a.swarm.connections(peer(B))
        assert not left.relayed


@virtual_time
async def test_a_stream_keeps_the_relayed_connection_until_its_end() -> None:
    async with net() as made:
        connection = await made.relayed()
        stream = await held_stream(made, connection)
        await path_changed(made.a)
        await asyncio.sleep(60)
        assert not connection.is_closed
        stream.reset()
        began = asyncio.get_running_loop().time()
        assert await relayed_closed(made.a) - began < 10.0


@virtual_time
async def test_but_not_longer_than_the_grace_time() -> None:
    async with net(paths=PathSettings(relayed_grace=120.0)) as made:
        connection = await made.relayed()
        stream = await held_stream(made, connection)
        await path_changed(made.a)
        began = asyncio.get_running_loop().time()
        assert await relayed_closed(made.a) - began == pytest.approx(120.0, abs=0.5)
        with pytest.raises(ConnectionClosedError, match=r"nat\.relayed_grace") as ended:
            await stream.read()
        assert ended.value.code == CloseCode.SUPPLANTED


@virtual_time
async def test_without_a_grace_time_it_stays_as_long_as_it_is_used() -> None:
    async with net(paths=PathSettings(relayed_grace=None)) as made:
        connection = await made.relayed()
        stream = await held_stream(made, connection)
        await path_changed(made.a)
        await asyncio.sleep(36_000)
        assert not connection.is_closed
        stream.reset()
        await relayed_closed(made.a)


@virtual_time
async def test_without_the_direct_connection_the_relayed_one_stays_and_the_path_falls_back() -> (
    None
):
    async with net() as made:
        connection = await made.relayed()
        stream = await held_stream(made, connection)
        changed = await path_changed(made.a)
        await changed.connection.close()
        back = await path_changed(made.a)
        assert (back.previous, back.path) == ("direct", "relayed")
        stream.reset()
        await asyncio.sleep(30)
        assert not connection.is_closed


# Waiting


@virtual_time
async def test_waiting_ends_with_the_direct_connection() -> None:
    async with net() as made:
        await made.relayed()
        found = await wait_direct(made.a.swarm, made.a.puncher, peer(B), 10.0)
        assert not isinstance(found, DirectFailure)
        assert not found.relayed


@virtual_time
async def test_waiting_ends_when_the_attempt_has_failed() -> None:
    async with net(dead=(A, B)) as made:
        await made.relayed()
        found = await wait_direct(made.a.swarm, made.a.puncher, peer(B), 3600.0)
        assert isinstance(found, DirectFailure)
        assert found.reason is Reason.PUNCH_FAILED
        assert found.message
        assert found.remedy
        assert asyncio.get_running_loop().time() < 60.0


@virtual_time
async def test_waiting_for_a_peer_that_does_nothing_ends_at_the_deadline() -> None:
    async with net(punching=(A,)) as made:
        await made.relayed()
        began = asyncio.get_running_loop().time()
        found = await wait_direct(made.a.swarm, made.a.puncher, peer(B), 7.0)
        assert isinstance(found, DirectFailure)
        assert found.reason is Reason.NO_ATTEMPT
        assert asyncio.get_running_loop().time() - began == pytest.approx(7.0)


@virtual_time
async def test_without_hole_punching_there_is_nothing_to_wait_for() -> None:
    async with net(punching=()) as made:
        await made.relayed()
        found = await wait_direct(made.a.swarm, None, peer(B), 7.0)
        assert isinstance(found, DirectFailure)
        assert found.reason is Reason.HOLE_PUNCHING_OFF
