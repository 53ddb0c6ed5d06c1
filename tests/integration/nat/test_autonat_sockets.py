"""AutoNAT over real sockets on loopback: dials from fresh sockets, and what comes of them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from dep2p_daemon.errors import AuthenticationError, InvalidArgumentError, UnreachableError
from dep2p_daemon.events import EventBus
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.nat.autonat2_server import AutonatServer
from dep2p_daemon.nat.fresh_dial import SocketDial
from dep2p_daemon.nat.netcheck import Netcheck
from dep2p_daemon.nat.netcheck_report import NetworkReport
from dep2p_daemon.nat.reachability import Outcome, ReachabilityChanged, Verdict
from dep2p_daemon.nat.reachability_watch import ReachabilityWatch, ReachabilityWatchSettings
from dep2p_daemon.protocols import ping
from dep2p_daemon.protocols.identify import Identify
from dep2p_daemon.quic.transport import QuicTransport
from dep2p_daemon.swarm.events import ConnectionOpened
from dep2p_daemon.swarm.peerstore import Peerstore
from dep2p_daemon.swarm.settings import SwarmSettings
from dep2p_daemon.swarm.swarm import Swarm
from dep2p_daemon.tcp.transport import TcpTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dep2p_daemon.muxed import Connection

LISTEN = (Multiaddr.for_udp("127.0.0.1", 0), Multiaddr.for_tcp("127.0.0.1", 0))


def anything_is_public(address: Multiaddr) -> bool:
    return address.ip is not None


class Node:
    swarm: Swarm
    identify: Identify
    watch: ReachabilityWatch


@asynccontextmanager
async def node(seed: bytes) -> AsyncIterator[Node]:
    key = PrivateKey.from_seed(seed * 32)
    made = Node()
    settings = SwarmSettings(supplanted_linger=0.05)
    async with AsyncExitStack() as stack:
        store = Peerstore(None)
        stack.callback(store.close)
        quic = await stack.enter_async_context(QuicTransport(key))
        tcp = await stack.enter_async_context(TcpTransport(key))
        swarm = made.swarm = await stack.enter_async_context(
            Swarm(key=key, peerstore=store, events=EventBus(), settings=settings)
        )
        swarm.add_transport(quic)
        swarm.add_transport(tcp)
        made.identify = Identify(swarm)
        made.identify.register()
        ping.register(swarm)
        AutonatServer(swarm, SocketDial(), is_public=anything_is_public).register()
        made.watch = await stack.enter_async_context(
            ReachabilityWatch(
                swarm,
                lambda: swarm.listen_addresses,
                ReachabilityWatchSettings(settle=0.05, interval=0.2),
                is_public=anything_is_public,
            )
        )
        await swarm.listen(LISTEN)
        yield made


def listening(swarm: Swarm, transport: str) -> Multiaddr:
    return next(one for one in swarm.listen_addresses if one.transport == transport)


@pytest.mark.parametrize("transport", ["quic-v1", "tcp"])
async def test_a_fresh_dial_comes_from_elsewhere_and_as_somebody_else(transport: str) -> None:
    async with node(b"a") as one, node(b"b") as other:
        dial = SocketDial()
        address = listening(other.swarm, transport)
        with other.swarm.events.subscribe() as events:
            async with dial(
                address, other.swarm.local_peer, source=ip_address("127.0.0.2")
            ) as connection:
                event = await events.next()
                while not isinstance(event, ConnectionOpened):
                    event = await events.next()
                seen = event.connection
                assert seen.remote_address.ip == ip_address("127.0.0.2")
                assert seen.remote_peer != one.swarm.local_peer
                assert seen.remote_address.port not in {
                    each.port for each in one.swarm.listen_addresses
                }
            assert connection.is_closed
            await seen.wait_closed()


async def test_a_fresh_dial_fails_as_others_do() -> None:
    async with node(b"a") as one:
        dial, me = SocketDial(), one.swarm.local_peer
        address = listening(one.swarm, "tcp")
        with pytest.raises(AuthenticationError):
            async with dial(address, PrivateKey.from_seed(b"x" * 32).peer_id):
                pass
        with pytest.raises(UnreachableError, match=r"192\.0\.2\.1"):
            async with dial(address, me, source=ip_address("192.0.2.1")):
                pass
        with pytest.raises(InvalidArgumentError):
            async with dial(Multiaddr.parse("/ip4/127.0.0.1/udp/1"), me):
                pass


async def test_a_node_learns_that_it_is_public_and_that_it_is_not_any_more() -> None:
    async with node(b"a") as client, node(b"b") as server:
        with client.swarm.events.subscribe() as events:
            await client.swarm.dial(server.swarm.local_peer, [listening(server.swarm, "quic-v1")])
            async with asyncio.timeout(20):
                while True:
                    event = await events.next()
                    if isinstance(event, ReachabilityChanged) and len(event.addresses) == 2:
                        found = {one.verdict for one in event.addresses}
                        if found == {Verdict.PUBLIC}:
                            break
        assert client.watch.verdict is Verdict.PUBLIC
        assert set(client.swarm.listen_addresses) <= set(client.swarm.own_addresses)
        gone = Multiaddr.for_udp("127.0.0.1", 9)
        (connection,) = client.watch.servers()
        outcome, seen = await client.watch.ask(connection, gone)
        assert (outcome, seen) == (Outcome.NOTHING, None)  # a port that nobody dials for us
        client.watch.forget_all()
        assert {one.verdict for one in client.watch.addresses} == {Verdict.UNKNOWN}


async def test_a_check_of_the_network() -> None:
    async with node(b"a") as client, node(b"b") as server:
        connection = await client.swarm.dial(
            server.swarm.local_peer, [listening(server.swarm, "quic-v1")]
        )
        assert await client.identify.wait_identified(connection)
        check = Netcheck(
            client.swarm,
            client.identify,
            SocketDial(),
            relays=lambda: (),
            reachability=client.watch,
            is_public=anything_is_public,
        )
        steps, others = await asyncio.gather(*(_all(check) for _ in range(2)))
        report = steps[-1]
        assert isinstance(report, NetworkReport)
        assert all(isinstance(step, str) for step in steps[:-1])
        assert others[-1] is report  # who comes second waits for the first
        assert report.udp.works is True
        assert report.tcp.works is True
        assert {one.peer for one in report.udp.targets} == {server.swarm.local_peer}
        assert report.udp.mapping.value == "NONE"
        assert report.tcp.mapping.value == "NONE"
        assert report.udp.filtering.value == "ENDPOINT_INDEPENDENT"
        assert report.reachability is Verdict.PUBLIC
        assert set(report.observed) == set(client.swarm.listen_addresses)
        assert report.hairpin is None
        # The connection that it made for TCP goes again, once nothing runs over it.
        for made in _with(client, server):
            if made.remote_address.transport == "tcp":
                await made.wait_closed()
        assert not connection.is_closed


async def _all(check: Netcheck) -> list[str | NetworkReport]:
    return [step async for step in check.run()]


def _with(client: Node, server: Node) -> tuple[Connection, ...]:
    return client.swarm.connections(server.swarm.local_peer)
