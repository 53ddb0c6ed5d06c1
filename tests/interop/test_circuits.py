"""Circuits between our daemons and js-libp2p nodes: each in each of the three roles.

Every leg of a circuit runs over the same transport; inside it is Noise and Yamux end to end,
whoever relays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.interop import exchanges
from tests.interop.js_peer import RELAY_LIMITS, JsError, JsPeer

import dep2p
from dep2p.v1 import peer_pb2, relay_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.interop.conftest import OurNode

    from dep2p.v1.peer_pb2 import Connection

    StartOurs = Callable[..., Awaitable[OurNode]]

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120)]

NOBODY = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
MEGABYTE = 1_000_000
INNER_MUXER = "/yamux/1.0.0"


def assert_relayed(connection: Connection, peer_id: str, relay: str) -> None:
    """The connection ends at `peer_id`, proven by Noise, and goes through `relay`."""
    assert connection.peer_id == peer_id
    assert connection.path == peer_pb2.PATH_RELAYED
    assert connection.relay == relay
    assert connection.remote_address.endswith(f"/p2p/{relay}/p2p-circuit")
    assert (connection.security, connection.muxer) == ("/noise", INNER_MUXER)


async def exchange_through_circuit(us: OurNode, js: JsPeer) -> None:
    """What also holds on a direct connection: bytes, half-close, reset, identify, ping."""
    assert "js-libp2p" in (await us.identified(js.peer_id)).agent_version
    assert (await js.identified(us.peer_id))["agent_version"].startswith("dep2pd/")
    async for pong in us.node.ping(js.peer_id, count=1):
        assert pong.path == peer_pb2.PATH_RELAYED
    await exchanges.js_pings_us(js, us.peer_id)
    await exchanges.we_echo_at_js(us.node, js)
    await exchanges.js_echoes_at_us(js, us.peer_id)
    await exchanges.we_half_close_first(us.node, js)
    await exchanges.js_half_closes_first(us.node, js)
    await exchanges.js_resets_us(us.node, js)
    await exchanges.we_reset_js(us.node, js, INNER_MUXER)
    await exchanges.we_answer_js(us.node, js, us.peer_id, INNER_MUXER)


async def test_js_reserves_and_dials_through_our_relay(ours: StartOurs, transport: str) -> None:
    relay = await ours("relay", "--preset=relay")
    async with (
        JsPeer(transports=[transport], reserve_at=relay.address(transport)) as listener,
        JsPeer(transports=[transport], listen=False) as dialer,
    ):
        assert (await relay.node.get_node()).reservation_count == 1
        circuit = listener.circuit_address(transport)
        assert circuit.startswith(f"{relay.address(transport)}/p2p-circuit")

        connection = await dialer.call("dial", address=circuit)
        assert connection["peer_id"] == listener.peer_id
        assert connection["limits"] is None, "our relay announces no limit unless it has one"
        assert (await relay.node.get_node()).circuit_count == 1

        await listener.call("serve", protocol=exchanges.SINK, behaviour="sink")
        await listener.call("serve", protocol=exchanges.HOLD, behaviour="hold")
        echoed = await dialer.call(
            "service_echo", peer_id=listener.peer_id, size=exchanges.MEGABYTES_4
        )
        assert echoed["length"] == exchanges.MEGABYTES_4
        assert echoed["sha256"] == echoed["sent_sha256"]

        opened = {"peer_id": listener.peer_id, "protocol": exchanges.SINK}
        stream = (await dialer.call("open", **opened))["stream"]
        sent = await dialer.call("send", stream=stream, size=exchanges.MEGABYTES_4)
        await dialer.call("close_write", stream=stream)
        assert (await dialer.call("ended", stream=stream))["ended"] == "end"
        report = await listener.served(exchanges.SINK)
        assert (report["ended"], report["sha256"]) == ("end", sent["sent_sha256"])

        opened = {"peer_id": listener.peer_id, "protocol": exchanges.HOLD}
        stream = (await dialer.call("open", **opened))["stream"]
        await dialer.call("send", stream=stream, size=10)
        await dialer.call("reset", stream=stream)
        assert (await listener.served(exchanges.HOLD))["ended"] == "reset"

        with pytest.raises(JsError, match="NO_RESERVATION"):
            await dialer.call(
                "dial", address=f"{relay.address(transport)}/p2p-circuit/p2p/{NOBODY}"
            )


async def test_js_is_told_our_relays_limits_and_meets_them(ours: StartOurs, transport: str) -> None:
    relay = await ours("relay", "--preset=relay", relay_server__circuit_data="1MB")
    async with (
        JsPeer(transports=[transport], reserve_at=relay.address(transport)) as listener,
        JsPeer(transports=[transport], listen=False) as dialer,
    ):
        connection = await dialer.call("dial", address=listener.circuit_address(transport))
        assert 0 < connection["limits"]["bytes"] <= MEGABYTE
        await listener.call("serve", protocol=exchanges.SINK, behaviour="sink")
        opened = {"peer_id": listener.peer_id, "protocol": exchanges.SINK}

        stream = (await dialer.call("open", **opened))["stream"]
        sent = await dialer.send_all(stream, MEGABYTE // 2)
        await dialer.call("ended", stream=stream)
        assert (await listener.served(exchanges.SINK))["sha256"] == sent["sent_sha256"]

        stream = (await dialer.call("open", **opened))["stream"]
        with pytest.raises(JsError):  # more than what may wait in windows and buffers
            await dialer.send_all(stream, exchanges.MEGABYTES_4)
        assert (await listener.served(exchanges.SINK))["ended"] != "end", "cut is not complete"
        await dialer.event("connection:close", lambda event: event["peer_id"] == listener.peer_id)


async def test_we_reserve_and_dial_through_a_js_relay(ours: StartOurs, transport: str) -> None:
    listener, dialer = await ours("listener"), await ours("dialer")
    async with JsPeer(transports=[transport], relay_server=RELAY_LIMITS) as js_relay:
        held = await listener.node.connect_relay(js_relay.address(transport))
        assert held.peer_id == js_relay.peer_id
        assert held.state == relay_pb2.Relay.STATE_RESERVED
        assert await js_relay.call("reservations") == [listener.peer_id]
        assert held.limits.data_bytes == RELAY_LIMITS["data_bytes"]
        circuits = [a for a in (await listener.node.get_node()).addresses if "/p2p-circuit/" in a]
        assert f"{js_relay.address(transport)}/p2p-circuit/p2p/{listener.peer_id}" in circuits

        connection = await dialer.node.dial(
            f"{js_relay.address(transport)}/p2p-circuit/p2p/{listener.peer_id}", policy="relayed"
        )
        assert_relayed(connection, listener.peer_id, js_relay.peer_id)
        assert connection.limits.data_bytes == RELAY_LIMITS["data_bytes"]
        assert connection.limits.remaining_bytes <= RELAY_LIMITS["data_bytes"]
        await exchanges.we_echo_at(dialer.node, listener.peer_id, exchanges.OUR_ECHO)
        await exchanges.we_talk_to_ourselves(dialer.node, listener.node, listener.peer_id)

        with pytest.raises(dep2p.NoReservationError, match="target peer not connected to relay"):
            await dialer.node.dial(f"{js_relay.address(transport)}/p2p-circuit/p2p/{NOBODY}")


async def test_js_dials_us_through_our_relay(ours: StartOurs, transport: str) -> None:
    relay, us = await ours("relay", "--preset=relay"), await ours("us")
    await us.node.connect_relay(relay.address(transport))
    async with JsPeer(transports=[transport]) as js:
        await exchanges.serve_all(js)
        target = f"{relay.address(transport)}/p2p-circuit/p2p/{us.peer_id}"
        connection = await js.call("dial", address=target)
        assert connection["peer_id"] == us.peer_id
        assert "/p2p-circuit" in connection["remote_address"]
        await js.identified(us.peer_id)
        (connection,) = await us.node.list_connections(js.peer_id)
        assert_relayed(connection, js.peer_id, relay.peer_id)
        await exchange_through_circuit(us, js)


async def test_we_dial_js_through_our_relay(ours: StartOurs, transport: str) -> None:
    relay, us = await ours("relay", "--preset=relay"), await ours("us")
    async with JsPeer(transports=[transport], reserve_at=relay.address(transport)) as js:
        await exchanges.serve_all(js)
        target = f"{relay.address(transport)}/p2p-circuit/p2p/{js.peer_id}"
        connection = await us.node.dial(target, policy="relayed")
        assert_relayed(connection, js.peer_id, relay.peer_id)
        await exchange_through_circuit(us, js)


async def test_js_dials_us_through_a_js_relay(ours: StartOurs, transport: str) -> None:
    us = await ours("us")
    async with (
        JsPeer(transports=[transport], relay_server=RELAY_LIMITS) as js_relay,
        JsPeer(transports=[transport]) as js,
    ):
        await exchanges.serve_all(js)
        await us.node.connect_relay(js_relay.address(transport))
        target = f"{js_relay.address(transport)}/p2p-circuit/p2p/{us.peer_id}"
        assert (await js.call("dial", address=target))["peer_id"] == us.peer_id
        await js.identified(us.peer_id)
        (connection,) = await us.node.list_connections(js.peer_id)
        assert_relayed(connection, js.peer_id, js_relay.peer_id)
        await exchange_through_circuit(us, js)


async def test_we_dial_js_through_a_js_relay(ours: StartOurs, transport: str) -> None:
    us = await ours("us")
    async with (
        JsPeer(transports=[transport], relay_server=RELAY_LIMITS) as js_relay,
        JsPeer(transports=[transport], reserve_at=js_relay.address(transport)) as js,
    ):
        await exchanges.serve_all(js)
        target = f"{js_relay.address(transport)}/p2p-circuit/p2p/{js.peer_id}"
        connection = await us.node.dial(target, policy="relayed")
        assert_relayed(connection, js.peer_id, js_relay.peer_id)
        await exchange_through_circuit(us, js)
