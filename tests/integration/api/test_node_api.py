"""NodeService: who the node is, and what its watchers are told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time

import pytest
from tests.api_nodes import EventLog, api_nodes

import dep2p
from dep2p.v1 import peer_pb2
from dep2p_daemon import __version__
from dep2p_daemon.rpc import node_service


async def test_get_node() -> None:
    async with api_nodes() as start:
        before = time.time()
        a, b = await start(), await start(perf={"enabled": True})
        node = await b.client.get_node()
        assert node.peer_id == str(b.daemon.key.peer_id)
        assert sorted(node.addresses) == sorted(
            f"{address}/p2p/{node.peer_id}" for address in node.listen_addresses
        )
        ports = {address.split("/")[4] for address in node.listen_addresses}
        assert len(node.listen_addresses) == 2
        assert len(ports) == 1, "UDP and TCP on one number"
        assert {"/ipfs/id/1.0.0", "/ipfs/ping/1.0.0", "/perf/1.0.0"} <= set(node.protocols)
        assert "/perf/1.0.0" not in (await a.client.get_node()).protocols
        assert node.version == __version__
        assert node.preset == "desktop"
        assert before - 1 < node.start_time.ToNanoseconds() / 1e9 < time.time()
        assert node.data_dir == str(b.config.node.data_dir)
        assert node.process_id == os.getpid()
        assert not node.relay_server_enabled
        assert (node.connection_count, node.peer_count, node.stream_count) == (0, 0, 0)
        await a.client.dial(b.address())
        node = await a.client.get_node()
        assert (node.connection_count, node.peer_count) == (1, 1)


async def test_a_watch_begins_with_the_state_and_goes_on_with_changes() -> None:
    async with api_nodes() as start:
        a, b, c = await start(), await start(), await start()
        await a.client.dial(b.address())
        await a.daemon.identify.wait_identified(a.daemon.swarm.connections()[0])
        async with EventLog(a.client) as log:
            opened = await log.wait("connection_opened")
            assert opened.snapshot
            assert opened.connection_opened.peer_id == b.peer_id
            assert opened.connection_opened.path == peer_pb2.PATH_DIRECT
            identified = await log.wait("peer_identified")
            assert identified.snapshot
            assert "/ipfs/ping/1.0.0" in identified.peer_identified.protocols
            addresses = await log.wait("addresses_changed")
            assert list(addresses.addresses_changed.addresses) == [
                str(address) for address in a.daemon.addresses()
            ]
            await a.client.dial(c.address("tcp"))
            event = await log.wait(
                "connection_opened", lambda event: event.connection_opened.peer_id == c.peer_id
            )
            assert not event.snapshot
            assert event.connection_opened.muxer == "/yamux/1.0.0"
            await log.wait(
                "peer_identified", lambda event: event.peer_identified.peer_id == c.peer_id
            )
            await a.client.disconnect(b.peer_id)
            closed = await log.wait("connection_closed")
            assert closed.connection_closed.connection.peer_id == b.peer_id
            assert closed.connection_closed.reason
            assert closed.connection_closed.message
        kinds = [str(event.WhichOneof("event")) for event in log.seen if event.snapshot]
        assert len(kinds) == len(set(kinds))
        assert {"addresses_changed", "connection_opened", "peer_identified"} <= set(kinds)


async def test_a_watch_may_leave_the_state_out_and_choose_types() -> None:
    async with api_nodes() as start:
        a, b = await start(), await start()
        await a.client.dial(b.address())
        async with EventLog(a.client, "connection_closed", skip_snapshot=True) as log:
            await asyncio.sleep(0.05)  # the watch is on; there is nothing to tell of that
            await a.client.disconnect(b.peer_id)
            await log.wait("connection_closed")
            assert {event.WhichOneof("event") for event in log.seen} == {"connection_closed"}


async def test_a_type_that_does_not_exist_is_refused() -> None:
    async with api_nodes() as start:
        a = await start()
        with pytest.raises(dep2p.InvalidArgumentError) as caught:
            await anext(a.client.watch_events("connection_exploded"))
        assert caught.value.reason == "EVENT_TYPE_UNKNOWN"
        assert "connection_opened" in caught.value.remedy


async def test_watches_are_bounded_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_service, "MAX_WATCHERS", 2)
    async with api_nodes() as start:
        a = await start()
        own = set(a.daemon.events._subscriptions)
        for _ in range(3):
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(2):
                    watch = await stack.enter_async_context(
                        contextlib.aclosing(a.client.watch_events())
                    )
                    await anext(watch)
                with pytest.raises(dep2p.LimitError):
                    await anext(a.client.watch_events())
            await a.server._running.wait_idle()
        assert a.daemon.events._subscriptions == own
