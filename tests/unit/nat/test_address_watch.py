"""Our public addresses: what identify's observers say reaches the swarm; what is offered."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tests.memory_nodes import address_of, connected, peer, swarms
from tests.memory_transport import MemoryNetwork
from tests.virtual_time import virtual_time

from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.nat.address_watch import MAX_OFFERED, AddressWatch
from dep2p_daemon.nat.observed import MappingBehaviour
from dep2p_daemon.protocols.identify import Identify
from dep2p_daemon.swarm.events import NetworkChange, NetworkChanged, PeerIdentified

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dep2p_daemon.muxed import Stream
    from dep2p_daemon.swarm.swarm import Swarm

MAPPED = Multiaddr.for_udp("45.8.2.101", 30001)
US, OBSERVER, SECOND = 0, 1, 2


@asynccontextmanager
async def watched(
    network: MemoryNetwork | None = None,
) -> AsyncIterator[tuple[AddressWatch, list[Swarm]]]:
    async with swarms(3, network=network) as made:
        identities = [Identify(swarm) for swarm in made]
        for identify in identities:
            identify.register()
        async with AddressWatch(made[US], identities[US]) as watch:
            await asyncio.sleep(0)
            yield watch, made


async def told(swarms: list[Swarm], number: int, address: Multiaddr) -> None:
    """Let node `number` say that it sees us at `address`, on our listening socket."""
    us = swarms[US]
    here, _ = await connected(us, swarms[number])
    here.local_address = address_of(US)
    us.events.publish(PeerIdentified(peer(number), here, address))
    await asyncio.sleep(0.01)


@virtual_time
async def test_one_observers_word_is_offered_two_observers_word_is_told_to_peers() -> None:
    async with watched() as (watch, made):
        await told(made, OBSERVER, MAPPED)
        assert MAPPED in watch.candidates()
        assert MAPPED not in made[US].own_addresses
        await told(made, SECOND, MAPPED)
        assert MAPPED in made[US].own_addresses
        assert watch.mapping("quic-v1") is MappingBehaviour.ENDPOINT_INDEPENDENT


@virtual_time
async def test_what_is_told_runs_out() -> None:
    async with watched() as (watch, made):
        await told(made, OBSERVER, MAPPED)
        await told(made, SECOND, MAPPED)
        await asyncio.sleep(1900)
        assert MAPPED not in made[US].own_addresses
        assert MAPPED not in watch.candidates()


@virtual_time
async def test_after_a_change_of_network_observers_say_it_anew() -> None:
    async with watched() as (watch, made):
        await told(made, OBSERVER, MAPPED)
        await told(made, SECOND, MAPPED)
        await watch.refresh()
        with made[US].events.subscribe() as seen:
            made[US].events.publish(NetworkChanged(NetworkChange.MOVED, ("192.0.2.7",), ()))
            await asyncio.sleep(1)
            asked = {one.peer_id for one in seen._events if isinstance(one, PeerIdentified)}
        assert asked == {peer(OBSERVER), peer(SECOND)}
        assert MAPPED not in made[US].own_addresses
        assert MAPPED not in watch.candidates()
        assert watch.mapping("quic-v1") is MappingBehaviour.UNKNOWN


@virtual_time
async def test_only_public_addresses_are_offered_and_not_too_many() -> None:
    async with watched() as (watch, made):
        made[US].set_announced(
            [
                Multiaddr.for_udp("192.168.1.5", 4001),
                Multiaddr.parse("/dns4/example.com/udp/4001/quic-v1"),
                *(Multiaddr.for_udp(f"45.8.9.{n}", 4001) for n in range(40)),
            ]
        )
        await told(made, OBSERVER, MAPPED)
        offered = watch.candidates()
        assert len(offered) == MAX_OFFERED
        assert MAPPED in offered
        assert all(one.ip is not None and not one.is_private for one in offered)


@virtual_time
async def test_observers_are_asked_again_but_not_all_the_time() -> None:
    async with watched() as (watch, made):
        for number in (OBSERVER, SECOND):
            await connected(made[US], made[number])
        await asyncio.sleep(10)
        with made[US].events.subscribe() as seen:
            await watch.refresh(apart_from=peer(SECOND))
            await watch.refresh()
            asked = [one.peer_id for one in seen._events if isinstance(one, PeerIdentified)]
        assert asked == [peer(OBSERVER)]


@virtual_time
async def test_an_observer_is_shown_our_tcp_port_once_and_for_a_while() -> None:
    network = MemoryNetwork()
    async with watched(network) as (watch, made):
        tcp = Multiaddr.for_tcp("203.0.113.2", 4001)
        await made[OBSERVER].listen([tcp])
        await connected(made[US], made[OBSERVER])
        await asyncio.sleep(1)  # identify tells its TCP address
        watch.learn_tcp()
        watch.learn_tcp()
        await asyncio.sleep(5)
        assert [address for _, address in network.dials if address == tcp] == [tcp]
        assert len(made[US].connections(peer(OBSERVER))) == 2
        await asyncio.sleep(60)
        assert len(made[US].connections(peer(OBSERVER))) == 1


@virtual_time
async def test_a_lone_observer_is_asked_at_its_other_address_until_the_mapping_is_known() -> None:
    network = MemoryNetwork()
    async with watched(network) as (watch, made):
        other = Multiaddr.for_udp("198.51.100.2", 4001)
        await made[OBSERVER].listen([other])
        await told(made, OBSERVER, MAPPED)
        await asyncio.sleep(1)  # identify tells the other address

        def dials() -> int:
            return sum(address == other for _, address in network.dials)

        watch.learn_mapping()
        watch.learn_mapping()
        await asyncio.sleep(10)
        assert dials() == 1
        assert len(made[US].connections(peer(OBSERVER))) == 1, "it was for the question only"
        await told(made, SECOND, MAPPED)
        assert watch.mapping("quic-v1") is MappingBehaviour.ENDPOINT_INDEPENDENT
        watch.learn_mapping()
        await asyncio.sleep(10)
        assert dials() == 1


async def read_all(stream: Stream) -> None:
    while await stream.read():
        pass


@virtual_time
async def test_what_runs_over_a_connection_made_for_a_question_is_not_cut() -> None:
    network = MemoryNetwork()
    async with watched(network) as (watch, made):
        other = Multiaddr.for_udp("198.51.100.2", 4001)
        await made[OBSERVER].listen([other])
        await told(made, OBSERVER, MAPPED)
        await asyncio.sleep(1)  # identify tells the other address
        before = set(made[US].connections(peer(OBSERVER)))
        watch.learn_mapping()
        await asyncio.sleep(0.5)
        (extra,) = set(made[US].connections(peer(OBSERVER))) - before
        made[OBSERVER].set_handler("/circuit", read_all)
        stream = await made[US].open_stream(peer(OBSERVER), ["/circuit"], connection=extra)
        await asyncio.sleep(60)
        assert not extra.is_closed
        stream.reset()
        await asyncio.sleep(10)
        assert extra.is_closed


@virtual_time
async def test_our_tcp_address_is_waited_for_but_not_for_long() -> None:
    ours, theirs = (Multiaddr.for_tcp(f"203.0.113.{n}", 4001) for n in (1, 2))
    mapped = Multiaddr.for_tcp("45.8.2.101", 30001)
    async with watched() as (watch, made):
        now = asyncio.get_running_loop().time
        began = now()
        await watch.wait_tcp()
        assert now() == began, "there is nobody to show it to"
        await made[US].listen([ours])
        await made[OBSERVER].listen([theirs])
        here, _ = await connected(made[US], made[OBSERVER])
        await asyncio.sleep(1)  # identify tells its TCP address
        began = now()
        await watch.wait_tcp()
        assert 0 < now() - began < 2, "nobody says how he sees it"
        waiting = asyncio.create_task(watch.wait_tcp())
        await asyncio.sleep(0.1)
        here.local_address = ours
        made[US].events.publish(PeerIdentified(peer(OBSERVER), here, mapped))
        began = now()
        await waiting
        assert now() == began
        assert mapped in watch.candidates()
