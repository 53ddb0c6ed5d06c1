"""Which servers are asked, about what, when, and what is told of it; with a clock that jumps."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from tests.memory_nodes import connected, swarms
from tests.memory_transport import MemoryNetwork
from tests.virtual_time import virtual_time

from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.muxed import read_message, write_message
from dep2p_daemon.nat import autonat1_message as v1
from dep2p_daemon.nat.autonat2_message import (
    DIAL_REQUEST_PROTOCOL,
    DialRequest,
    DialResponse,
    DialStatus,
    ResponseStatus,
    decode,
    encode,
)
from dep2p_daemon.nat.reachability import ReachabilityChanged, Verdict
from dep2p_daemon.nat.reachability_watch import ReachabilityWatch
from dep2p_daemon.swarm.events import NetworkChange, NetworkChanged

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dep2p_daemon.muxed import Stream
    from dep2p_daemon.swarm.swarm import Swarm

UDP = Multiaddr.for_udp("192.0.2.77", 4001)
TCP = Multiaddr.for_tcp("192.0.2.77", 4001)
FAILED = DialResponse(ResponseStatus.OK, 0, DialStatus.E_DIAL_ERROR)


class Node:
    """A node (0) whose servers (1 and up) answer what `answer` says."""

    def __init__(self) -> None:
        self.candidates: list[Multiaddr] = [UDP]
        self.asked: list[tuple[int, Multiaddr]] = []
        self.asked_v1: list[int] = []
        self.answer = FAILED
        self.mute = False

    swarm: Swarm
    servers: list[Swarm]
    watch: ReachabilityWatch

    async def connect(self, number: int, protocol: str = DIAL_REQUEST_PROTOCOL) -> None:
        server = self.servers[number - 1]

        async def serve(stream: Stream) -> None:
            request = decode(await read_message(stream, 8192))
            assert isinstance(request, DialRequest)
            (address,) = request.addresses
            assert address is not None
            self.asked.append((number, address))
            await write_message(stream, encode(self.answer))
            await stream.aclose()

        async def serve_v1(stream: Stream) -> None:
            await read_message(stream, 4096)
            self.asked_v1.append(number)
            if self.mute:
                stream.reset()
                return
            await write_message(stream, v1.encode(v1.DialResponse(v1.Status.OK)))
            await stream.aclose()

        server.set_handler(protocol, serve if protocol == DIAL_REQUEST_PROTOCOL else serve_v1)
        self.swarm.peerstore.set_protocols(server.local_peer, frozenset({protocol}))
        await connected(self.swarm, server)


@asynccontextmanager
async def watching(servers: int) -> AsyncIterator[Node]:
    made = Node()
    async with AsyncExitStack() as stack:
        network = MemoryNetwork()
        made.swarm, *made.servers = await stack.enter_async_context(
            swarms(servers + 1, network=network)
        )
        made.watch = await stack.enter_async_context(
            ReachabilityWatch(
                made.swarm, lambda: made.candidates, is_public=lambda one: one.ip is not None
            )
        )
        yield made


@virtual_time
async def test_each_server_is_asked_about_each_address_and_again_in_time() -> None:
    async with watching(2) as node:
        node.candidates = [UDP, TCP]
        await node.connect(1)
        await node.connect(2)
        await asyncio.sleep(120)
        expected = {(server, address) for server in (1, 2) for address in (UDP, TCP)}
        assert sorted(node.asked, key=str) == sorted(expected, key=str)
        await asyncio.sleep(900)
        assert len(node.asked) == 8
        assert node.watch.verdict is Verdict.PRIVATE


@virtual_time
async def test_a_verdict_is_told_once_and_withdrawn_with_its_address() -> None:
    async with watching(1) as node:
        with node.swarm.events.subscribe() as events:
            await node.connect(1)
            await asyncio.sleep(60)
            node.candidates = []
            await asyncio.sleep(60)
            told = []
            events.push(None)
            while (event := await events.next()) is not None:
                if isinstance(event, ReachabilityChanged):
                    told.append(event.verdict)
        assert told == [Verdict.PRIVATE, Verdict.UNKNOWN]


@virtual_time
async def test_old_servers_are_asked_only_while_there_are_no_others() -> None:
    async with watching(2) as node:
        await node.connect(1, v1.PROTOCOL)
        await asyncio.sleep(60)
        assert node.asked_v1 == [1]
        assert node.watch.verdict is Verdict.UNKNOWN  # one claim is nothing
        await node.connect(2)
        await asyncio.sleep(2000)
        assert node.asked_v1 == [1]
        assert node.asked[0] == (2, UDP)


@virtual_time
async def test_an_old_server_that_does_not_answer_is_asked_once() -> None:
    async with watching(1) as node:
        node.mute = True
        node.candidates = [UDP, TCP]
        await node.connect(1, v1.PROTOCOL)
        await asyncio.sleep(2000)
        assert node.asked_v1 == [1]


@virtual_time
async def test_after_a_change_of_network_all_is_asked_anew() -> None:
    async with watching(1) as node:
        await node.connect(1)
        await asyncio.sleep(60)
        assert len(node.asked) == 1
        node.swarm.events.publish(NetworkChanged(NetworkChange.MOVED, ("192.0.2.7",), ()))
        await asyncio.sleep(0.1)
        assert node.watch.verdict is Verdict.UNKNOWN
        await asyncio.sleep(10)
        assert len(node.asked) == 2
