"""Swarm and protocols over real QUIC and TCP on loopback."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from dep2p_daemon.errors import (
    AuthenticationError,
    DialTimeoutError,
    StreamResetError,
    UnreachableError,
)
from dep2p_daemon.events import EventBus
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.muxed import CloseCode, Stream, read_exactly
from dep2p_daemon.protocols import echo, perf, ping
from dep2p_daemon.protocols.identify import Identify
from dep2p_daemon.quic.settings import QuicSettings
from dep2p_daemon.quic.transport import QuicTransport
from dep2p_daemon.swarm.events import ConnectionClosed
from dep2p_daemon.swarm.peerstore import Peerstore
from dep2p_daemon.swarm.settings import SwarmSettings
from dep2p_daemon.swarm.swarm import DEFAULT_SETTINGS, Swarm
from dep2p_daemon.tcp.settings import TcpSettings
from dep2p_daemon.tcp.transport import TcpTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from dep2p_daemon.identity.peer_id import PeerId

QUIC = Multiaddr.for_udp("127.0.0.1", 0)
TCP = Multiaddr.for_tcp("127.0.0.1", 0)
BOTH = [pytest.param(QUIC, id="quic"), pytest.param(TCP, id="tcp")]


@dataclass
class Node:
    swarm: Swarm
    identify: Identify
    addresses: tuple[Multiaddr, ...]

    @property
    def peer(self) -> PeerId:
        return self.swarm.local_peer


@asynccontextmanager
async def node(
    *listen: Multiaddr,
    key: PrivateKey | None = None,
    peerstore: Path | None = None,
    settings: SwarmSettings = DEFAULT_SETTINGS,
) -> AsyncIterator[Node]:
    key = key or PrivateKey.generate()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(Peerstore(peerstore))
        quic = await stack.enter_async_context(QuicTransport(key, QuicSettings()))
        tcp = await stack.enter_async_context(TcpTransport(key, TcpSettings()))
        swarm = await stack.enter_async_context(
            Swarm(key=key, peerstore=store, events=EventBus(), settings=settings)
        )
        swarm.add_transport(quic)
        swarm.add_transport(tcp)
        identify = Identify(swarm)
        identify.register()
        ping.register(swarm)
        echo.register(swarm)
        perf.register(swarm)
        yield Node(swarm, identify, await swarm.listen(listen))


async def echoed(stream: Stream, payload: bytes) -> bytes:
    async def send() -> None:
        await stream.write(payload)
        await stream.close_write()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(send())
        answer = await read_exactly(stream, len(payload))
        assert await stream.read() == b""
    await stream.aclose()
    return answer


@pytest.mark.parametrize("listen", BOTH)
async def test_dial_identify_ping_echo_perf(listen: Multiaddr) -> None:
    async with node(listen) as there, node() as here:
        connection = await here.swarm.dial(there.peer, there.addresses)
        assert connection.path == "direct"
        assert connection.remote_address == there.addresses[0]
        assert await here.identify.wait_identified(connection)
        known = here.swarm.peerstore.get(there.peer)
        assert known is not None
        assert known.agent_version == "dep2pd/0.1.0"
        assert echo.PROTOCOL in known.protocols
        assert here.swarm.peerstore.addresses(there.peer) == there.addresses
        async with aclosing(ping.ping(here.swarm, connection)) as rtts:
            assert all([0 < await anext(rtts) < 5.0 for _ in range(3)])
        payload = os.urandom(4 * 1024 * 1024)
        stream = await here.swarm.open_stream(there.peer, [echo.PROTOCOL])
        assert await echoed(stream, payload) == payload
        stream = await here.swarm.open_stream(there.peer, [perf.PROTOCOL])
        reports = [
            report
            async for report in perf.measure(
                stream, upload_bytes=3_000_000, download_bytes=5_000_000
            )
        ]
        assert (reports[-1].uploaded, reports[-1].downloaded) == (3_000_000, 5_000_000)


@pytest.mark.parametrize("listen", BOTH)
async def test_many_dials_at_once_share_one_connection(listen: Multiaddr) -> None:
    async with node(listen) as there, node() as here:
        connections = await asyncio.gather(
            *(here.swarm.dial(there.peer, there.addresses) for _ in range(20))
        )
        assert len(set(connections)) == 1
        assert len(there.swarm.connections()) <= 1


async def test_many_peers_are_dialled_at_once() -> None:
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(node())
        others = [await stack.enter_async_context(node(QUIC if n % 2 else TCP)) for n in range(10)]
        await asyncio.gather(*(here.swarm.dial(o.peer, o.addresses) for o in others))
        assert set(here.swarm.connected_peers()) == {other.peer for other in others}
        streams = await asyncio.gather(
            *(here.swarm.open_stream(other.peer, [echo.PROTOCOL]) for other in others)
        )
        payload = os.urandom(100_000)
        answers = await asyncio.gather(*(echoed(stream, payload) for stream in streams))
        assert set(answers) == {payload}


async def test_with_both_transports_quic_wins_and_without_udp_tcp_does() -> None:
    async with node(QUIC, TCP) as there, node() as here:
        connection = await here.swarm.dial(there.peer, there.addresses)
        assert connection.muxer == "quic"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as swallows:
        swallows.bind(("127.0.0.1", 0))
        dead = Multiaddr.for_udp("127.0.0.1", swallows.getsockname()[1])
        async with node(TCP) as there, node() as here:
            connection = await here.swarm.dial(there.peer, [dead, *there.addresses])
            assert connection.muxer == "/yamux/1.0.0"


async def test_a_silent_address_is_named_with_the_time_waited() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as swallows:
        swallows.bind(("127.0.0.1", 0))
        dead = Multiaddr.for_udp("127.0.0.1", swallows.getsockname()[1])
        async with node(QUIC) as other, node() as here:
            with pytest.raises(DialTimeoutError) as caught:
                await here.swarm.dial(other.peer, [dead], timeout=0.5)
            assert f"{dead}: no answer yet (0.5 s)" in caught.value.message
            assert f"UDP port {dead.port}" in caught.value.remedy


async def test_a_closed_tcp_port_is_refused_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = Multiaddr.for_tcp("127.0.0.1", unused.getsockname()[1])
        async with node() as here, node() as other:
            with pytest.raises(UnreachableError) as caught:
                await here.swarm.dial(other.peer, [closed])
            assert str(closed) in caught.value.message
            assert "refused" in caught.value.message


@pytest.mark.parametrize("listen", BOTH)
async def test_another_peer_at_the_address_is_found_out(listen: Multiaddr) -> None:
    stranger = PrivateKey.generate().peer_id
    async with node(listen) as there, node() as here:
        with pytest.raises(AuthenticationError) as caught:
            await here.swarm.dial(stranger, there.addresses)
        assert str(there.addresses[0]) in caught.value.message
        assert here.swarm.connections() == ()


@pytest.mark.parametrize("listen", BOTH)
async def test_a_cancelled_dial_leaves_nothing_behind(listen: Multiaddr) -> None:
    async with node(listen) as there, node() as here:
        dial = asyncio.create_task(here.swarm.dial(there.peer, there.addresses))
        await asyncio.sleep(0)
        dial.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dial
        assert here.swarm.connections() == ()
        assert (await here.swarm.dial(there.peer, there.addresses)).remote_peer == there.peer


@pytest.mark.parametrize("listen", BOTH)
async def test_simultaneous_dials_end_as_one_connection(listen: Multiaddr) -> None:
    settings = SwarmSettings(supplanted_linger=0.1)
    async with node(listen, settings=settings) as one, node(listen, settings=settings) as two:
        small, large = sorted((one, two), key=lambda node: node.peer)
        with large.swarm.events.subscribe() as events:
            await asyncio.gather(
                small.swarm.dial(large.peer, large.addresses),
                large.swarm.dial(small.peer, small.addresses),
            )
            while not isinstance(event := await events.next(), ConnectionClosed):
                pass
        assert event.error.code == CloseCode.SUPPLANTED
        (ours,) = large.swarm.connections()
        assert ours.remote_peer == small.peer
        stream = await large.swarm.open_stream(small.peer, [echo.PROTOCOL])
        assert await echoed(stream, b"still here") == b"still here"


@pytest.mark.parametrize("listen", BOTH)
async def test_streams_over_the_cap_are_reset_and_the_connection_lives(listen: Multiaddr) -> None:
    settings = SwarmSettings(max_inbound_streams_per_connection=4)
    async with node(listen, settings=settings) as there, node() as here:
        connection = await here.swarm.dial(there.peer, there.addresses)
        await here.identify.wait_identified(connection)
        held = [await here.swarm.open_stream(there.peer, [echo.PROTOCOL]) for _ in range(4)]
        for stream in held:
            await stream.write(b"x")
            assert await stream.read() == b"x"
        over = await here.swarm.open_stream(there.peer, [echo.PROTOCOL])
        with pytest.raises(StreamResetError):
            await over.read()
        for stream in held:
            stream.reset()
        assert not connection.is_closed


@pytest.mark.parametrize("listen", BOTH)
async def test_the_end_of_a_node_reaches_its_peers(listen: Multiaddr) -> None:
    async with node() as here:
        with here.swarm.events.subscribe() as events:
            async with node(listen) as there:
                connection = await here.swarm.dial(there.peer, there.addresses)
                stream = await here.swarm.open_stream(there.peer, [echo.PROTOCOL])
            while not isinstance(event := await events.next(), ConnectionClosed):
                pass
        assert event.connection is connection
        assert event.error.remote
        with pytest.raises((StreamResetError, type(event.error))):
            await stream.read()


async def test_a_restarted_node_finds_its_peer_by_id_alone(tmp_path: Path) -> None:
    file, key = tmp_path / "peerstore.sqlite", PrivateKey.generate()
    async with node(QUIC) as there:
        async with node(key=key, peerstore=file) as here:
            connection = await here.swarm.dial(there.peer, there.addresses)
            assert await here.identify.wait_identified(connection)
        async with node(key=key, peerstore=file) as here:
            assert (await here.swarm.dial(there.peer)).remote_peer == there.peer


async def test_listening_on_all_interfaces_gives_addresses_that_can_be_dialled() -> None:
    listen = Multiaddr.for_tcp("0.0.0.0", 0)
    async with node(listen) as there, node() as here:
        own = there.swarm.own_addresses
        assert own
        assert not any(address.is_unspecified for address in own)
        assert any(address.is_loopback for address in own)
        for address in own:
            connection = await here.swarm.dial(there.peer, [address], force_new=True)
            assert connection.remote_address == address
