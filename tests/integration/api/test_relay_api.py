"""RelayService, and what a relay's own daemon tells: two peers talk through a third."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from typing import TYPE_CHECKING

import pytest
from tests.api_nodes import (
    TRANSPORTS,
    ApiNode,
    EventLog,
    api_node,
    api_nodes,
    config_in,
    short_directory,
)

import dep2p
from dep2p.v1 import event_pb2, peer_pb2, relay_pb2
from dep2p_daemon.identity.keys import PrivateKey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ECHO = "/dep2p/echo/1.0.0"
STRANGER = str(PrivateKey.from_seed(bytes(32)).peer_id)


@pytest.fixture(params=TRANSPORTS)
async def three(
    request: pytest.FixtureRequest,
) -> AsyncIterator[tuple[ApiNode, ApiNode, ApiNode, str]]:
    """A relay, a listener and a dialler, not connected yet, and the relay's address."""
    async with api_nodes() as start:
        relay = await start(relay_server={"enabled": True})
        yield relay, await start(), await start(), relay.address(request.param)


async def test_two_peers_talk_through_a_relay(
    three: tuple[ApiNode, ApiNode, ApiNode, str],
) -> None:
    relay, listener, dialler, address = three
    held = await listener.client.connect_relay(address)
    assert held.state == relay_pb2.Relay.STATE_RESERVED
    assert held.peer_id == relay.peer_id
    assert held.expire_time.seconds
    target = f"{address}/p2p-circuit/p2p/{listener.peer_id}"
    assert target in held.circuit_addresses
    assert target in (await listener.client.get_node()).addresses
    connection = await dialler.client.dial(target)
    assert connection.path == peer_pb2.PATH_RELAYED
    assert connection.relay == relay.peer_id
    assert connection.remote_address.endswith(f"/p2p/{relay.peer_id}/p2p-circuit")
    async with await dialler.client.open_stream(listener.peer_id, [ECHO]) as stream:
        assert stream.relayed
        await stream.write(b"Hello via Relay!")
        await stream.close_write()
        assert await stream.read_all() == b"Hello via Relay!"
    node = await relay.client.get_node()
    assert (node.relay_server_enabled, node.reservation_count, node.circuit_count) == (True, 1, 1)


async def test_the_relay_tells_of_reservations_and_circuits(
    three: tuple[ApiNode, ApiNode, ApiNode, str],
) -> None:
    relay, listener, dialler, address = three
    created = event_pb2.ReservationChanged.CHANGE_CREATED
    async with EventLog(relay.client) as log:
        await listener.client.connect_relay(address)
        reservation = await log.wait("reservation_changed")
        assert reservation.reservation_changed.peer_id == listener.peer_id
        assert reservation.reservation_changed.change == created
        await dialler.client.dial(f"{address}/p2p-circuit/p2p/{listener.peer_id}")
        opened = (await log.wait("circuit_opened")).circuit_opened
        assert (opened.source, opened.target) == (dialler.peer_id, listener.peer_id)
        async with EventLog(relay.client) as late:
            event = await late.wait("circuit_opened")
            assert event.snapshot
            assert event.circuit_opened.circuit_id == opened.circuit_id
            assert (await late.wait("reservation_changed")).snapshot
        await dialler.client.disconnect(listener.peer_id)
        closed = (await log.wait("circuit_closed")).circuit_closed
        assert closed.circuit_id == opened.circuit_id
        assert closed.source_to_target_bytes > 0
        assert closed.target_to_source_bytes > 0
        assert closed.close_reason


async def test_a_target_without_a_reservation(
    three: tuple[ApiNode, ApiNode, ApiNode, str],
) -> None:
    _, listener, dialler, address = three
    with pytest.raises(dep2p.NoReservationError) as caught:
        await dialler.client.dial(f"{address}/p2p-circuit/p2p/{listener.peer_id}")
    assert "target peer not connected to relay" in caught.value.message
    assert caught.value.reason == "NO_RESERVATION"
    assert caught.value.remedy


async def test_relays_are_listed_watched_and_given_up(
    three: tuple[ApiNode, ApiNode, ApiNode, str],
) -> None:
    relay, listener, _, address = three
    assert await listener.client.list_relays() == []
    async with contextlib.aclosing(listener.client.watch_relays()) as changes:
        states = [await _connect_and_watch(listener, address, changes)]
        (held,) = await listener.client.list_relays()
        assert (held.peer_id, held.state) == (relay.peer_id, relay_pb2.Relay.STATE_RESERVED)
        async with contextlib.aclosing(listener.client.watch_relays()) as late:
            assert (await anext(late)).peer_id == relay.peer_id, "the state first"
        await listener.client.disconnect_relay(relay.peer_id)
        async for change in changes:
            states.append(change.state)
            if change.state == relay_pb2.Relay.STATE_DISCONNECTED:
                break
    assert relay_pb2.Relay.STATE_RESERVED in states
    assert await listener.client.list_relays() == []
    assert not any("p2p-circuit" in a for a in (await listener.client.get_node()).addresses)
    with pytest.raises(dep2p.NotFoundError):
        await listener.client.disconnect_relay(relay.peer_id)


async def _connect_and_watch(
    listener: ApiNode, address: str, changes: AsyncIterator[relay_pb2.Relay]
) -> relay_pb2.Relay.State.ValueType:
    connecting = asyncio.create_task(listener.client.connect_relay(address))
    async for change in changes:
        if change.state == relay_pb2.Relay.STATE_RESERVED:
            await connecting
            return change.state
    raise AssertionError("the watch ended")


async def test_a_relay_that_is_none(three: tuple[ApiNode, ApiNode, ApiNode, str]) -> None:
    _, listener, dialler, _ = three
    with pytest.raises(dep2p.PreconditionError) as caught:
        await dialler.client.connect_relay(listener.address())
    assert caught.value.reason == "RELAY_NOT_SUPPORTED"


async def test_a_relays_address_without_its_peer_id() -> None:
    async with api_nodes() as start:
        a = await start()
        with pytest.raises(dep2p.InvalidArgumentError) as caught:
            await a.client.connect_relay("/ip4/203.0.113.10/udp/4001/quic-v1")
        assert "/p2p/" in caught.value.remedy


async def test_a_relay_that_refuses() -> None:
    async with api_nodes() as start:
        relay = await start(relay_server={"enabled": True, "max_reservations": 0})
        a = await start()
        with pytest.raises(dep2p.RefusedError) as caught:
            await a.client.connect_relay(relay.address())
        assert caught.value.reason in ("RESERVATION_REFUSED", "RESOURCE_LIMIT_EXCEEDED")


async def test_a_relay_that_does_not_answer() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"/ip4/127.0.0.1/udp/{silent.getsockname()[1]}/quic-v1/p2p/{STRANGER}"
        async with api_nodes() as start:
            a = await start()
            with pytest.raises(dep2p.DeadlineError) as caught:
                await a.client.connect_relay(address, timeout=0.5)
            assert caught.value.reason == "RELAY_TIMEOUT"
            assert address in caught.value.message
            assert "firewall" in caught.value.remedy


async def test_limits_are_told_with_what_is_left() -> None:
    async with api_nodes() as start:
        relay = await start(
            relay_server={"enabled": True, "circuit_duration": 600, "circuit_data": 1_000_000}
        )
        listener, dialler = await start(), await start()
        held = await listener.client.connect_relay(relay.address())
        assert (held.limits.duration_seconds, held.limits.data_bytes) == (600, 1_000_000)
        await dialler.client.dial(f"{relay.address()}/p2p-circuit/p2p/{listener.peer_id}")
        async with await dialler.client.open_stream(listener.peer_id, [ECHO]) as stream:
            await stream.write(bytes(100_000))
            await stream.read_exactly(100_000)
            (connection,) = await dialler.client.list_connections(listener.peer_id)
            limits = connection.limits
            assert (limits.duration_seconds, limits.data_bytes) == (600, 1_000_000)
            assert 0 < limits.remaining_seconds < 600
            assert 0 < limits.remaining_bytes <= 900_000


async def test_direct_only_rather_fails_than_uses_the_relay(
    three: tuple[ApiNode, ApiNode, ApiNode, str],
) -> None:
    _, listener, dialler, address = three
    await listener.client.connect_relay(address)
    target = f"{address}/p2p-circuit/p2p/{listener.peer_id}"
    await dialler.client.dial(target, policy="relayed")
    with pytest.raises(dep2p.PreconditionError) as caught:
        await dialler.client.open_stream(target, [ECHO], direct_only=True)
    assert caught.value.reason == "NO_DIRECT_PATH"


async def test_relays_of_the_configuration_are_held_from_the_start() -> None:
    async with api_nodes() as start:
        relay = await start(relay_server={"enabled": True})
        a = await start(relays=[relay.address()])
        async with contextlib.aclosing(a.client.watch_relays()) as changes:
            async for change in changes:
                if change.state == relay_pb2.Relay.STATE_RESERVED:
                    break
        assert change.peer_id == relay.peer_id


async def test_a_relay_by_host_and_port_is_listed_before_and_after_it_is_found() -> None:
    async with api_nodes() as start:
        relay = await start(relay_server={"enabled": True})
        port = relay.address().split("/")[4]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            nobody = f"127.0.0.1:{silent.getsockname()[1]}"
            node = await start(relays=[nobody, f"127.0.0.1:{port}"], relay_client={"wanted": 0})
            async for found in node.client.watch_relays():
                if found.peer_id == relay.peer_id and found.state == relay_pb2.Relay.STATE_RESERVED:
                    break
            by_address = {found.address: found for found in await node.client.list_relays()}
            assert by_address[nobody].peer_id == ""
            assert by_address[nobody].source == relay_pb2.Relay.SOURCE_CONFIGURED
            (held,) = (found for found in by_address.values() if found.peer_id)
            assert (held.peer_id, held.state) == (relay.peer_id, relay_pb2.Relay.STATE_RESERVED)
            assert held.remote_address == f"/ip4/127.0.0.1/udp/{port}/quic-v1"
            async with EventLog(node.client, "relay_changed") as events:
                await events.wait("relay_changed", lambda e: e.relay_changed.address == nobody)


async def test_a_relay_by_host_and_port_is_held_on_request_and_forgotten_with_its_pin() -> None:
    async with api_nodes() as start:
        relay = await start(relay_server={"enabled": True})
        node = await start(relay_client={"wanted": 0})
        host = f"127.0.0.1:{relay.address().split('/')[4]}"
        held = await node.client.connect_relay(host)
        assert (held.peer_id, held.state) == (relay.peer_id, relay_pb2.Relay.STATE_RESERVED)
        assert held.source == relay_pb2.Relay.SOURCE_REQUESTED
        pins = node.config.relay_pins_path
        assert relay.peer_id in pins.read_text()
        assert await node.client.disconnect_relay(host) == relay.peer_id
        assert await node.client.list_relays() == []
        assert relay.peer_id not in pins.read_text(), "who answers there next is believed again"
        with pytest.raises(dep2p.NotFoundError):
            await node.client.disconnect_relay(host)
        # By the peer's id it is the same.
        await node.client.connect_relay(host)
        await node.client.disconnect_relay(relay.peer_id)
        assert relay.peer_id not in pins.read_text()


async def test_a_relay_that_is_still_searched_for_can_be_given_up() -> None:
    async with api_nodes() as start:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            nobody = f"127.0.0.1:{silent.getsockname()[1]}"
            node = await start(relays=[nobody])
            async for found in node.client.watch_relays():
                if found.address == nobody:
                    break
            assert await node.client.disconnect_relay(nobody) == ""
            assert await node.client.list_relays() == []
            with pytest.raises(dep2p.DeadlineError):
                await node.client.connect_relay(nobody, timeout=1)


async def test_relays_that_were_known_are_used_again_after_a_restart() -> None:
    async with api_nodes() as start:
        relay = await start(relay_server={"enabled": True})
        directory = short_directory()
        try:
            for first in (True, False):
                async with api_node(config_in(directory)) as node:
                    if first:
                        await node.client.dial(relay.address())
                    async for found in node.client.watch_relays():
                        if found.state == relay_pb2.Relay.STATE_RESERVED:
                            break
                    assert found.source == relay_pb2.Relay.SOURCE_DISCOVERED
        finally:
            shutil.rmtree(directory)


async def test_a_connected_relay_is_reserved_at_by_itself_and_shown_as_discovered() -> None:
    async with api_nodes() as start:
        relay = await start(relay_server={"enabled": True})
        node = await start()
        await node.client.dial(relay.address())
        async for found in node.client.watch_relays():
            if found.state == relay_pb2.Relay.STATE_RESERVED:
                break
        assert (found.peer_id, found.source) == (relay.peer_id, relay_pb2.Relay.SOURCE_DISCOVERED)
        await node.client.disconnect_relay(relay.peer_id)
        assert await node.client.list_relays() == []
