"""Our daemon and js-libp2p, directly, over QUIC and over TCP, dialled from either side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.interop import exchanges
from tests.interop.js_peer import JsError, JsPeer

import dep2p
from dep2p.v1 import peer_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.interop.conftest import OurNode

    StartOurs = Callable[..., Awaitable[OurNode]]

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120)]

SECURITY = {"quic": "libp2p-tls", "tcp": "/noise"}
MUXER = {"quic": "quic", "tcp": "/yamux/1.0.0"}
IDENTIFY = {"/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0", "/ipfs/ping/1.0.0"}


async def assert_they_know_each_other(us: OurNode, js: JsPeer, transport: str) -> None:
    """Identify went both ways and told the truth; so does ping."""
    seen_by_js = await js.identified(us.peer_id)
    node = await us.node.get_node()
    assert seen_by_js["agent_version"] == f"dep2pd/{node.version}"
    assert set(seen_by_js["protocols"]) == set(node.protocols)
    assert set(node.protocols) >= IDENTIFY | {exchanges.OUR_ECHO}
    own = {address.removesuffix(f"/p2p/{us.peer_id}") for address in node.addresses}
    assert own
    assert set(seen_by_js["listen_addresses"]) == own
    assert set(seen_by_js["signed_addresses"]) == own

    seen_by_us = await us.identified(js.peer_id)
    assert seen_by_us.connected
    assert "js-libp2p" in seen_by_us.agent_version
    assert set(seen_by_us.protocols) >= IDENTIFY | {exchanges.JS_ECHO}
    own_of_js = {address.removesuffix(f"/p2p/{js.peer_id}") for address in js.addresses}
    assert set(seen_by_us.addresses) >= own_of_js

    (connection,) = await us.node.list_connections(js.peer_id)
    assert connection.peer_id == js.peer_id
    assert connection.path == peer_pb2.PATH_DIRECT
    assert (connection.security, connection.muxer) == (SECURITY[transport], MUXER[transport])
    assert not connection.HasField("relay")

    pongs = [pong async for pong in us.node.ping(js.peer_id, count=3, interval=0.01)]
    assert [pong.sequence for pong in pongs] == [1, 2, 3]
    assert all(pong.rtt_ms > 0 for pong in pongs)
    assert (await js.call("ping", peer_id=us.peer_id))["rtt_ms"] >= 0


async def exchange_everything(us: OurNode, js: JsPeer, muxer: str) -> None:
    """Echo, half-close and reset, opened from either side."""
    await exchanges.we_echo_at_js(us.node, js)
    await exchanges.js_echoes_at_us(js, us.peer_id)
    await exchanges.we_half_close_first(us.node, js)
    await exchanges.js_half_closes_first(us.node, js)
    await exchanges.js_resets_us(us.node, js)
    await exchanges.we_reset_js(us.node, js, muxer)
    await exchanges.we_answer_js(us.node, js, us.peer_id, muxer)


async def test_we_dial_js(ours: StartOurs, transport: str) -> None:
    us = await ours("us")
    async with JsPeer(transports=[transport]) as js:
        await exchanges.serve_all(js)
        connection = await us.node.dial(js.address(transport))
        assert connection.peer_id == js.peer_id
        assert connection.direction == peer_pb2.DIRECTION_OUTBOUND
        await assert_they_know_each_other(us, js, transport)
        await exchange_everything(us, js, MUXER[transport])
        assert len(await js.call("connections")) == 1

        assert await us.node.disconnect(js.peer_id) == 1
        closed = await js.event("connection:close", lambda event: event["peer_id"] == us.peer_id)
        assert closed["direction"] == "inbound"


async def test_js_dials_us(ours: StartOurs, transport: str) -> None:
    us = await ours("us")
    async with JsPeer(transports=[transport]) as js:
        await exchanges.serve_all(js)
        connection = await js.call("dial", address=us.address(transport))
        assert connection["peer_id"] == us.peer_id
        await assert_they_know_each_other(us, js, transport)
        await exchange_everything(us, js, MUXER[transport])
        assert len(await us.node.list_connections()) == 1


async def test_js_finds_somebody_else_at_our_address(ours: StartOurs, transport: str) -> None:
    us, other = await ours("us"), await ours("other")
    async with JsPeer(transports=[transport]) as js:
        wrong = us.address(transport).replace(us.peer_id, other.peer_id)
        with pytest.raises(JsError):
            await js.call("dial", address=wrong)
        with pytest.raises(dep2p.Dep2pError) as refused:
            await us.node.dial(js.address(transport).replace(js.peer_id, other.peer_id))
        assert js.peer_id in refused.value.message
        assert await js.call("connections") == []
