"""PeerService: dials and their errors, lists and pages, pings, throughput."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
from tests.api_nodes import TRANSPORTS, api_nodes
from tests.waiting import until

import dep2p
from dep2p.v1 import peer_pb2, peer_service_pb2
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr

STRANGER = str(PrivateKey.from_seed(bytes(32)).peer_id)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_dial_tells_of_the_connection(transport: str) -> None:
    async with api_nodes() as start:
        a, b = await start(), await start()
        connection = await a.client.dial(b.address(transport))
        assert connection.peer_id == b.peer_id
        assert connection.path == peer_pb2.PATH_DIRECT
        assert connection.direction == peer_pb2.DIRECTION_OUTBOUND
        assert f"{connection.remote_address}/p2p/{b.peer_id}" == b.address(transport)
        assert not connection.HasField("relay")
        assert not connection.HasField("limits")
        security = {"quic-v1": ("libp2p-tls", "quic"), "tcp": ("/noise", "/yamux/1.0.0")}
        assert (connection.security, connection.muxer) == security[transport]
        again = await a.client.dial(b.peer_id)
        assert again.connection_id == connection.connection_id
        new = await a.client.dial(b.address(transport), force_new=True)
        assert new.connection_id != connection.connection_id


@pytest.mark.parametrize(
    ("target", "reason", "shown"),
    [
        ("/ip4/203.0.113.10/udp/4001/quic-v1", "PEER_ID_MISSING", "/p2p/"),
        (
            f"/ip4/203.0.113.10/udp/4001/quic-v1/p2p/{STRANGER}/p2p/{STRANGER}",
            "CIRCUIT_MISSING",
            "/p2p-circuit/p2p/",
        ),
        ("/ip4/300.1.1.1/tcp/1", "MULTIADDR_INVALID", ""),
        ("", "", ""),
    ],
)
async def test_an_address_that_lacks_a_part_is_explained(
    target: str, reason: str, shown: str
) -> None:
    async with api_nodes() as start:
        a = await start()
        with pytest.raises(dep2p.InvalidArgumentError) as caught:
            await a.client.dial(target)
        assert caught.value.reason.startswith(reason)
        assert shown in caught.value.remedy


async def test_dialling_ourselves_is_a_mistake() -> None:
    async with api_nodes() as start:
        a = await start()
        with pytest.raises(dep2p.InvalidArgumentError) as caught:
            await a.client.dial(a.address())
        assert caught.value.reason == "DIAL_SELF"


async def test_a_peer_that_nothing_is_known_of() -> None:
    async with api_nodes() as start:
        a = await start()
        with pytest.raises(dep2p.UnreachableError) as caught:
            await a.client.dial(STRANGER)
        assert caught.value.reason == "NO_ADDRESSES"


async def test_an_address_that_refuses_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with api_nodes() as start:
        a = await start()
        with pytest.raises(dep2p.UnreachableError) as caught:
            await a.client.dial(f"/ip4/127.0.0.1/tcp/{port}/p2p/{STRANGER}")
        assert f"/ip4/127.0.0.1/tcp/{port}" in caught.value.metadata["addresses"]
        assert "refused" in caught.value.message
        assert "check that the peer runs" in caught.value.remedy


async def test_a_deadline_says_what_was_tried() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        async with api_nodes() as start:
            a = await start()
            began = time.monotonic()
            with pytest.raises(dep2p.DeadlineError) as caught:
                await a.client.dial(f"/ip4/127.0.0.1/udp/{port}/quic-v1/p2p/{STRANGER}", timeout=1)
            assert time.monotonic() - began < 5
    assert f"/ip4/127.0.0.1/udp/{port}/quic-v1" in caught.value.message
    assert caught.value.reason == "DIAL_TIMEOUT"


async def test_a_cancelled_dial_leaves_nothing_behind() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        async with api_nodes() as start:
            a = await start()
            dial = asyncio.create_task(
                a.client.dial(f"/ip4/127.0.0.1/udp/{port}/quic-v1/p2p/{STRANGER}")
            )
            await until(lambda: a.daemon.swarm._dialer._shared)
            dial.cancel()
            await asyncio.wait((dial,))
            await until(lambda: not a.daemon.swarm._dialer._shared)
            await a.server._running.wait_idle()


async def test_another_identity_at_the_address() -> None:
    async with api_nodes() as start:
        a, b = await start(), await start()
        wrong = Multiaddr.parse(b.address()).without_peer_id()
        with pytest.raises(dep2p.PeerFailedError) as caught:
            await a.client.dial(f"{wrong}/p2p/{STRANGER}")
        assert caught.value.metadata["peer"] == STRANGER


async def test_policies() -> None:
    async with api_nodes() as start:
        a, b = await start(), await start()
        with pytest.raises(dep2p.UnreachableError):
            await a.client.dial(b.address(), policy="relayed")
        assert (await a.client.dial(b.address(), policy="direct")).peer_id == b.peer_id
        request = peer_service_pb2.DialRequest(peer=b.peer_id)
        request.policy = 99  # type: ignore[assignment]
        with pytest.raises(Exception, match="no dial policy 99"):
            await a.client._peers.Dial(request)


async def test_disconnect_all_or_one() -> None:
    async with api_nodes() as start:
        a, b = await start(), await start()
        first = await a.client.dial(b.address("quic-v1"))
        await a.client.dial(b.address("tcp"), force_new=True)
        assert await a.client.disconnect(b.peer_id, first.connection_id) == 1
        (left,) = await a.client.list_connections(b.peer_id)
        assert left.muxer == "/yamux/1.0.0"
        assert await a.client.disconnect(b.peer_id) == 1
        assert await a.client.disconnect(b.peer_id) == 0
        with pytest.raises(dep2p.NotFoundError):
            await a.client.disconnect(b.peer_id, "c999")
        with pytest.raises(dep2p.InvalidArgumentError):
            await a.client.disconnect("nobody")


async def test_lists_of_peers() -> None:
    async with api_nodes() as start:
        a = await start()
        others = [await start() for _ in range(3)]
        for other in others:
            await a.client.dial(other.address())
        peers = await a.client.list_peers()
        assert [peer.peer_id for peer in peers] == sorted(other.peer_id for other in others)
        assert all(peer.connected and peer.path == peer_pb2.PATH_DIRECT for peer in peers)
        gone = others[0].peer_id
        await a.client.disconnect(gone)
        assert gone not in {peer.peer_id for peer in await a.client.list_peers()}
        known = {peer.peer_id: peer for peer in await a.client.list_peers(include_known=True)}
        assert set(known) == {other.peer_id for other in others}
        assert not known[gone].connected
        assert known[gone].path == peer_pb2.PATH_UNSPECIFIED


async def test_pages() -> None:
    async with api_nodes() as start:
        a, b = await start(), await start()
        for _ in range(5):
            await a.client.dial(b.address(), force_new=True)
        everything = await a.client.list_connections()
        assert len(everything) == 5
        found, token = [], ""
        stub = a.client._peers
        while True:
            page = await stub.ListConnections(
                peer_service_pb2.ListConnectionsRequest(page_size=2, page_token=token)
            )
            assert len(page.connections) <= 2
            found += [connection.connection_id for connection in page.connections]
            if len(found) == 2:  # one that was listed goes: none is skipped or told twice
                await a.client.disconnect(b.peer_id, found[0])
            token = page.next_page_token
            if not token:
                break
        assert found == [connection.connection_id for connection in everything]
        for page_size, page_token in ((-1, ""), (0, "~"), (0, "/w")):
            request = peer_service_pb2.ListConnectionsRequest(
                page_size=page_size, page_token=page_token
            )
            with pytest.raises(Exception, match="page"):
                await stub.ListConnections(request)


async def test_get_peer() -> None:
    async with api_nodes() as start:
        a, b = await start(), await start()
        with pytest.raises(dep2p.NotFoundError) as caught:
            await a.client.get_peer(b.peer_id)
        assert caught.value.reason == "PEER_NOT_FOUND"
        await a.client.dial(b.address())
        await a.daemon.identify.wait_identified(a.daemon.swarm.connections()[0])
        peer = await a.client.get_peer(b.peer_id)
        assert peer.agent_version.startswith("dep2pd/")
        assert "/ipfs/ping/1.0.0" in peer.protocols
        assert str(Multiaddr.parse(b.address()).without_peer_id()) in peer.addresses
        assert peer.connection_count == 1
        assert peer.last_seen_time.seconds


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_ping(transport: str) -> None:
    async with api_nodes() as start:
        a, b = await start(), await start()
        answers = [p async for p in a.client.ping(b.address(transport), count=3, interval=0)]
        assert [answer.sequence for answer in answers] == [1, 2, 3]
        assert all(0 < answer.rtt_ms < 5000 for answer in answers)
        assert all(answer.path == peer_pb2.PATH_DIRECT for answer in answers)
        assert all(transport in answer.remote_address for answer in answers)
        assert (await a.client.get_peer(b.peer_id)).HasField("rtt_ms")
        with pytest.raises(dep2p.InvalidArgumentError):
            await anext(a.client.ping(b.peer_id, count=-1))


async def test_ping_goes_on_until_it_is_left() -> None:
    async with api_nodes() as start:
        a, b = await start(), await start()
        pings = a.client.ping(b.address(), interval=0.001)
        for sequence in range(1, 20):
            assert (await anext(pings)).sequence == sequence
        await pings.aclose()
        await a.server._running.wait_idle()


async def test_ping_follows_the_connection_that_new_streams_use() -> None:
    async with api_nodes() as start:
        a, b = await start(), await start()
        await a.client.dial(b.address("tcp"))
        pings = a.client.ping(b.peer_id, interval=0.001)
        assert "/tcp/" in (await anext(pings)).remote_address
        await a.client.dial(b.address("quic-v1"), force_new=True)
        async for answer in pings:
            if "quic-v1" in answer.remote_address:
                break
        await pings.aclose()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("up", "down"), [(3_000_000, 0), (0, 3_000_000), (70_000, 50_000)])
async def test_throughput(transport: str, up: int, down: int) -> None:
    async with api_nodes() as start:
        a, b = await start(), await start(perf={"enabled": True})
        reports = [
            report
            async for report in a.client.measure_throughput(
                b.address(transport), upload_bytes=up, download_bytes=down
            )
        ]
        last = reports[-1]
        assert [report.final for report in reports] == [False] * (len(reports) - 1) + [True]
        assert (last.uploaded_bytes, last.downloaded_bytes) == (up, down)
        assert last.elapsed_seconds > 0
        assert last.path == peer_pb2.PATH_DIRECT


async def test_throughput_with_a_peer_that_does_not_serve_it() -> None:
    async with api_nodes() as start:
        a, b = await start(), await start()
        with pytest.raises(dep2p.ProtocolNotSupportedError) as caught:
            await anext(a.client.measure_throughput(b.address(), upload_bytes=1))
        assert "[perf]" in caught.value.remedy
        with pytest.raises(dep2p.InvalidArgumentError):
            await anext(a.client.measure_throughput(b.address()))


async def test_direct_only_streams_use_no_relay_where_none_is_needed() -> None:
    async with api_nodes() as start:
        a, b = await start(), await start()
        async with await a.client.open_stream(
            b.address(), ["/dep2p/echo/1.0.0"], direct_only=True
        ) as stream:
            assert not stream.relayed


async def test_a_peer_is_explained_by_what_was_tried() -> None:
    async with api_nodes() as start:
        a, b = await start(), await start()
        untried = await a.client.explain_peer(b.peer_id)
        assert (untried.reason, len(untried.dials)) == ("NOT_TRIED", 0)
        connection = await a.client.dial(b.address())
        explained = await a.client.explain_peer(b.peer_id)
        assert explained.reason == "DIRECT"
        assert [c.connection_id for c in explained.connections] == [connection.connection_id]
        (dial,) = explained.dials
        assert dial.connection_id == connection.connection_id
        assert [attempt.address for attempt in dial.attempts] == [connection.remote_address]
        with pytest.raises(dep2p.InvalidArgumentError):
            await a.client.explain_peer("nobody")
