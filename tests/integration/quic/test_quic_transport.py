"""Dialling, listening and ending connections over real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.waiting import until

from dep2p_daemon.errors import (
    AuthenticationError,
    ConfigError,
    ConnectionClosedError,
    InvalidArgumentError,
    PreconditionError,
    UnreachableError,
)
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.muxed import CloseCode, Direction
from dep2p_daemon.quic.settings import QuicSettings
from dep2p_daemon.quic.transport import QuicTransport
from dep2p_daemon.udp.settings import UdpSettings
from dep2p_daemon.udp.socket import UdpSocket

MakeNode = Callable[..., Awaitable[Any]]
LOOPBACK = "/ip4/127.0.0.1/udp/0/quic-v1"


async def test_both_ends_know_each_other(make_node: MakeNode) -> None:
    server, client = await make_node(listen=LOOPBACK), await make_node(listen=LOOPBACK)
    ours, theirs = await client.dial(server)
    assert ours.remote_peer == server.key.peer_id
    assert ours.remote_key == server.key.public_key
    assert theirs.remote_peer == client.key.peer_id
    assert ours.local_peer == theirs.remote_peer
    assert (ours.direction, theirs.direction) == (Direction.OUTBOUND, Direction.INBOUND)
    assert (ours.security, ours.muxer) == ("libp2p-tls", "quic")
    assert ours.remote_address == server.address
    # The dial leaves from the listening socket, so that the peer sees where we listen.
    assert theirs.remote_address == client.address == ours.local_address
    assert theirs.local_address == server.address
    assert ours.rtt is not None
    assert 0 < ours.rtt < 1


@pytest.mark.parametrize("host", ["/ip6/::1", "/ip4/0.0.0.0", "/ip6/::"])
async def test_listen_addresses(make_node: MakeNode, host: str) -> None:
    server = await make_node(listen=f"{host}/udp/0/quic-v1")
    client = await make_node()
    loopback = "/ip4/127.0.0.1" if "ip4" in host else "/ip6/::1"
    address = Multiaddr.parse(f"{loopback}/udp/{server.address.port}/quic-v1")
    ours, theirs = await asyncio.gather(
        client.transport.dial(address, server.key.peer_id), server.listener.accept()
    )
    assert theirs.local_address == address
    assert ours.local_address.host == address.host
    stream = await ours.open_stream()
    await stream.write(b"x" * 10_000)
    inbound = await theirs.accept_stream()
    assert await inbound.read(1)


async def test_replies_leave_from_the_address_that_was_hit(make_node: MakeNode) -> None:
    server = await make_node(listen="/ip4/0.0.0.0/udp/0/quic-v1")
    client = await make_node()
    # A client drops what comes from an address it did not dial (RFC 9000 section 9).
    address = Multiaddr.parse(f"/ip4/127.0.0.2/udp/{server.address.port}/quic-v1")
    ours, theirs = await asyncio.gather(
        client.transport.dial(address, server.key.peer_id), server.listener.accept()
    )
    assert theirs.local_address == address
    assert not ours.is_closed


async def test_one_socket_dials_and_listens_both_ways(make_node: MakeNode) -> None:
    one, two = await make_node(listen=LOOPBACK), await make_node(listen=LOOPBACK)
    forth, back = await asyncio.gather(one.dial(two), two.dial(one))
    for opener, accepter in (forth, back, forth[::-1], back[::-1]):
        stream = await opener.open_stream()
        await stream.write(b"hello")
        await stream.close_write()
        assert await (await accepter.accept_stream()).read() == b"hello"
    assert len(one.transport.drivers) == len(two.transport.drivers) == 1


async def test_a_wrong_peer_id_is_refused_and_told_to_both_sides(make_node: MakeNode) -> None:
    server, client = await make_node(listen=LOOPBACK), await make_node()
    expected = PrivateKey.generate().peer_id
    with pytest.raises(AuthenticationError) as caught:
        await client.transport.dial(server.address, expected)
    assert caught.value.reason == "PEER_ID_MISMATCH"
    assert caught.value.metadata["actual_peer"] == str(server.key.peer_id)
    assert caught.value.metadata["expected_peer"] == str(expected)
    # The listener never saw a connection, and keeps none.
    await until(lambda: not server.endpoint.sessions)
    assert server.endpoint.counters.handshakes_failed == 1
    assert server.endpoint.half_open == 0
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(server.listener.accept(), 0.01)


async def test_nobody_there_is_told_at_once(make_node: MakeNode) -> None:
    client = await make_node()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    address = Multiaddr.for_udp("127.0.0.1", port)
    with pytest.raises(UnreachableError) as caught:
        await client.transport.dial(address, client.key.peer_id)
    assert caught.value.reason == "CONNECTION_REFUSED"
    assert str(address) in caught.value.message
    assert not client.endpoint.sessions


async def test_a_cancelled_dial_leaves_nothing(make_node: MakeNode) -> None:
    client = await make_node()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        address = Multiaddr.for_udp("127.0.0.1", silent.getsockname()[1])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.transport.dial(address, client.key.peer_id)
        assert not client.endpoint.sessions
        assert not client.transport.context.sessions
        assert client.endpoint.known_connection_ids == 0


async def test_a_cancelled_dial_frees_the_server_too(make_node: MakeNode) -> None:
    server, client = await make_node(listen=LOOPBACK), await make_node()
    dial = asyncio.create_task(client.transport.dial(server.address, server.key.peer_id))
    await until(lambda: server.endpoint.half_open)
    dial.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dial
    await until(lambda: not server.endpoint.sessions)
    assert server.endpoint.half_open == 0


async def test_close_carries_code_and_message(make_node: MakeNode) -> None:
    server, client = await make_node(listen=LOOPBACK), await make_node()
    ours, theirs = await client.dial(server)
    stream = await ours.open_stream()
    await stream.write(b"x")
    inbound = await theirs.accept_stream()
    reading = asyncio.create_task(inbound.read(10))
    assert await reading == b"x"
    reading = asyncio.create_task(inbound.read())
    await asyncio.sleep(0)
    await ours.close(CloseCode.SUPPLANTED, "another one is better")
    await ours.close()  # idempotent
    error = await theirs.wait_closed()
    assert (error.code, error.remote) == (CloseCode.SUPPLANTED, True)
    assert "another one is better" in error.message
    with pytest.raises(ConnectionClosedError):
        await reading
    for connection, remote in ((ours, False), (theirs, True)):
        assert connection.is_closed
        assert connection.streams == ()
        for attempt in (connection.open_stream(), connection.accept_stream()):
            with pytest.raises(ConnectionClosedError) as caught:
                await attempt
            assert caught.value.remote is remote
            assert caught.value.code == CloseCode.SUPPLANTED
    with pytest.raises(ConnectionClosedError):
        await stream.write(b"y")
    with pytest.raises(ConnectionClosedError):
        await stream.read()


async def test_leaving_the_transport_closes_everything(make_node: MakeNode) -> None:
    server = await make_node(listen=LOOPBACK)
    key = PrivateKey.generate()
    async with QuicTransport(key) as transport:
        connection = await transport.dial(server.address, server.key.peer_id)
        theirs = await server.listener.accept()
    assert connection.is_closed
    assert (await theirs.wait_closed()).code == CloseCode.SHUTDOWN
    with pytest.raises(PreconditionError):
        await transport.listen(Multiaddr.parse(LOOPBACK))


async def test_a_closed_listener_keeps_its_connections(make_node: MakeNode) -> None:
    server, client = await make_node(listen=LOOPBACK), await make_node()
    ours, theirs = await client.dial(server)
    address = server.address
    accepting = asyncio.create_task(server.listener.accept())
    await asyncio.sleep(0)
    await server.listener.close()
    await server.listener.close()
    with pytest.raises(ConnectionClosedError):
        await accepting
    stream = await ours.open_stream()
    await stream.write(b"still here")
    assert await (await theirs.accept_stream()).read() == b"still here"
    dropped = server.endpoint.counters.dropped
    dial = asyncio.create_task(client.transport.dial(address, server.key.peer_id))
    await until(lambda: server.endpoint.counters.dropped != dropped)
    assert len(server.endpoint.sessions) == 1
    dial.cancel()
    # The socket closes behind the last connection.
    await ours.close()
    await theirs.wait_closed()
    await until(lambda: not server.transport.drivers)


async def test_the_port_is_taken(make_node: MakeNode) -> None:
    server, other = await make_node(listen=LOOPBACK), await make_node()
    with pytest.raises(ConfigError) as caught:
        await other.transport.listen(server.address)
    assert caught.value.reason == "LISTEN_FAILED"
    assert str(server.address.port) in caught.value.message


@pytest.mark.parametrize(
    "address",
    ["/ip4/127.0.0.1/tcp/1", "/dns4/example.com/udp/1/quic-v1", "/ip4/1.2.3.4/udp/1/quic"],
)
async def test_other_addresses_are_not_ours(make_node: MakeNode, address: str) -> None:
    client = await make_node()
    parsed = Multiaddr.parse(address)
    assert not client.transport.can_dial(parsed)
    with pytest.raises(InvalidArgumentError):
        await client.transport.dial(parsed, client.key.peer_id)
    assert client.transport.can_dial(Multiaddr.parse("/ip6/::1/udp/1/quic-v1"))


async def test_the_connection_cap_refuses_and_says_so(make_node: MakeNode) -> None:
    server = await make_node(QuicSettings(max_connections=1), listen=LOOPBACK)
    one, two = await make_node(), await make_node()
    await one.dial(server)
    with pytest.raises(UnreachableError) as caught:
        await two.transport.dial(server.address, server.key.peer_id)
    assert caught.value.reason == "CONNECTION_REFUSED"
    assert server.endpoint.counters.refused == 1


async def test_a_full_backlog_refuses(make_node: MakeNode) -> None:
    server = await make_node(QuicSettings(accept_backlog=1), listen=LOOPBACK)
    client = await make_node()
    kept = await client.transport.dial(server.address, server.key.peer_id)
    with pytest.raises(UnreachableError) as caught:
        await client.transport.dial(server.address, server.key.peer_id)
    assert f"{CloseCode.RESOURCE_LIMIT_EXCEEDED:#x}" in caught.value.message
    assert not kept.is_closed


async def test_retry_under_load_is_transparent(make_node: MakeNode) -> None:
    server = await make_node(QuicSettings(retry_threshold=0), listen=LOOPBACK)
    client = await make_node()
    ours, theirs = await client.dial(server)
    assert server.endpoint.counters.retries_sent == 1
    stream = await ours.open_stream()
    await stream.write(b"proven")
    assert await (await theirs.accept_stream()).read() == b"proven"


async def test_a_restarted_server_resets_old_connections_at_once(make_node: MakeNode) -> None:
    client = await make_node()
    key = PrivateKey.generate()
    server = await make_node(listen=LOOPBACK, key=key)
    ours, _ = await client.dial(server)
    address = server.address
    # As kill -9 does it: no farewell.
    server.transport.drivers[0].socket.close()
    reborn = await make_node(listen=str(address), key=key)
    stream = await ours.open_stream()
    await stream.write(b"are you there? " * 10)
    async with asyncio.timeout(5):
        error = await ours.wait_closed()
    assert error.reason == "STATELESS_RESET"
    assert reborn.endpoint.counters.resets_sent == 1
    assert client.endpoint.counters.resets_received == 1
    again, _ = await client.dial(reborn)
    assert not again.is_closed


async def test_silence_ends_a_connection(make_node: MakeNode) -> None:
    server = await make_node(QuicSettings(idle_timeout=0.3), listen=LOOPBACK)
    client = await make_node()
    _, theirs = await client.dial(server)
    client.transport.drivers[0].socket.close()
    error = await theirs.wait_closed()
    assert error.reason == "CONNECTION_TIMED_OUT"
    assert not server.endpoint.sessions


async def test_without_offload_everything_works(make_node: MakeNode) -> None:
    settings = QuicSettings(udp=UdpSettings(offload=False))
    server, client = await make_node(settings, listen=LOOPBACK), await make_node(settings)
    ours, theirs = await client.dial(server)
    stream = await ours.open_stream()
    await stream.write(b"z" * 200_000)
    await stream.close_write()
    inbound = await theirs.accept_stream()
    received = 0
    while data := await inbound.read():
        received += len(data)
    assert received == 200_000


async def test_a_cancelled_accept_passes_its_turn_on(make_node: MakeNode) -> None:
    server, client = await make_node(listen=LOOPBACK), await make_node()
    _, theirs = await client.dial(server)
    first, second = (asyncio.create_task(server.listener.accept()) for _ in range(2))
    await asyncio.sleep(0)
    assert server.listener._on_accepted(theirs)
    first.cancel()
    assert await second is theirs


async def test_dials_leave_from_a_socket_that_can_get_there(make_node: MakeNode) -> None:
    node = await make_node(listen=LOOPBACK)
    transport = node.transport
    near = Multiaddr.parse("/ip4/127.0.0.9/udp/1/quic-v1")
    far = Multiaddr.parse("/ip4/192.0.2.1/udp/1/quic-v1")
    assert transport._driver_for(near) is transport.drivers[0]
    ephemeral = transport._driver_for(far)
    assert ephemeral is not transport.drivers[0]
    assert ephemeral.socket.is_wildcard
    assert transport._driver_for(far) is ephemeral
    # One that is on its way out takes no new connections.
    await (await make_node()).dial(node)
    await node.listener.close()
    assert transport._driver_for(near) is ephemeral
    wildcard = await transport.listen(Multiaddr.parse("/ip4/0.0.0.0/udp/0/quic-v1"))
    for target in (near, far):
        assert transport._driver_for(target).socket.port == wildcard.addresses[0].port


async def test_an_earlier_deadline_is_not_missed(make_node: MakeNode) -> None:
    server, client = await make_node(listen=LOOPBACK), await make_node()
    ours, _ = await client.dial(server)
    async with asyncio.timeout(5):
        recovery = ours._session.quic._loss
        loop = asyncio.get_running_loop()
        drivers = [client.transport.drivers[0], server.transport.drivers[0]]
        await until(lambda: all(d._timer and d._timer.when() > loop.time() + 6 for d in drivers))
        # One packet alone is acknowledged by a timer of a millisecond.
        stream = await ours.open_stream()
        await stream.write(b"x")
        await until(lambda: recovery.bytes_in_flight > 0)
        await until(lambda: recovery.bytes_in_flight == 0)


async def test_a_family_that_the_machine_lacks_is_unreachable(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await make_node()

    def refuse(*_: object) -> None:
        raise ConfigError("cannot listen on UDP :: port 0: Address family not supported")

    monkeypatch.setattr(UdpSocket, "open", refuse)
    address = Multiaddr.parse("/ip6/::1/udp/1/quic-v1")
    with pytest.raises(UnreachableError, match="Address family not supported"):
        await client.transport.dial(address, client.key.peer_id)


async def test_an_interface_that_does_not_exist_is_unreachable(make_node: MakeNode) -> None:
    client = await make_node()
    address = Multiaddr.parse("/ip6zone/nonesuch0/ip6/fe80::1/udp/1/quic-v1")
    with pytest.raises(UnreachableError) as caught:
        await client.transport.dial(address, client.key.peer_id)
    assert caught.value.reason == "NO_SOCKET"
