"""Fails when a release of aioquic breaks what `aioquic_connection.py` changes in it.

What is only overridden is compared with the stock class: if the stock method is renamed, its
override becomes dead code and no other test may notice.
"""

from __future__ import annotations

import asyncio
import datetime
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic.congestion.cubic import CubicCongestionControl
from aioquic.quic.connection import QuicConnection as StockConnection
from aioquic.quic.packet import pull_quic_transport_parameters
from aioquic.quic.recovery import QuicPacketPacer, QuicPacketRecovery
from aioquic.tls import CipherSuite
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from dep2p_daemon.errors import StreamResetError
from dep2p_daemon.muxed import read_exactly
from dep2p_daemon.quic.aioquic_connection import AioquicConnection
from dep2p_daemon.quic.congestion import CubicControl
from dep2p_daemon.quic.libp2p_tls import prove_peer
from dep2p_daemon.quic.pacer import PASS_PACKETS, BurstPacer
from dep2p_daemon.quic.recovery import BulkRecovery
from dep2p_daemon.quic.settings import KIB, MIB, QuicSettings
from dep2p_daemon.quic.streams_connection import StreamsConnection

MakeNode = Callable[..., Any]


def connect(wire: Any, client: Any, server: Any) -> Any:
    dial = client.dial(server)
    wire.pump()
    wire.advance(1)
    return dial.connection, server.accepted[-1]


@pytest.mark.parametrize(
    ("ours", "stock", "name"),
    [
        (CubicControl, CubicCongestionControl, "on_packet_acked"),
        (CubicControl, CubicCongestionControl, "on_packet_sent"),
        (CubicControl, CubicCongestionControl, "on_packets_expired"),
        (CubicControl, CubicCongestionControl, "on_packets_lost"),
        (CubicControl, CubicCongestionControl, "on_persistent_congestion"),
        (CubicControl, CubicCongestionControl, "on_rtt_measurement"),
        (AioquicConnection, StockConnection, "_initialize"),
        (AioquicConnection, StockConnection, "_replenish_connection_ids"),
        (StreamsConnection, StockConnection, "_get_or_create_stream"),
        (StreamsConnection, StockConnection, "_get_or_create_stream_for_send"),
        (AioquicConnection, StockConnection, "_handle_ack_frame"),
        (StreamsConnection, StockConnection, "_write_stream_limits"),
        (StreamsConnection, StockConnection, "_write_connection_limits"),
        (BulkRecovery, QuicPacketRecovery, "reschedule_data"),
        (BulkRecovery, QuicPacketRecovery, "_on_packets_lost"),
        (BurstPacer, QuicPacketPacer, "next_send_time"),
        (BurstPacer, QuicPacketPacer, "update_after_send"),
        (BurstPacer, QuicPacketPacer, "update_rate"),
    ],
)
def test_what_is_overridden_exists_and_takes_the_same_arguments(
    ours: type, stock: type, name: str
) -> None:
    assert name in vars(ours)
    assert name in vars(stock)
    assert list(inspect.signature(getattr(ours, name)).parameters) == list(
        inspect.signature(getattr(stock, name)).parameters
    )


async def test_no_credit_before_consumption(wire: Any, make_node: MakeNode) -> None:
    settings = QuicSettings(
        max_connection_unread=0, initial_stream_window=64 * KIB, initial_connection_window=96 * KIB
    )
    server, client = make_node(settings).listen(), make_node()
    ours, theirs = connect(wire, client, server)
    received = []
    for _ in range(2):
        stream = await ours.open_stream()
        await stream.write(bytes(200 * KIB))
        wire.advance(20)
        received.append(await theirs.accept_stream())
    # The stock class would have doubled both windows as they filled.
    fuller = received[0]
    assert [s.unread_bytes for s in received] == [64 * KIB, 32 * KIB]
    quic = theirs._session.quic
    assert quic._local_max_data.value == quic._local_max_data.sent == 96 * KIB
    assert {s.max_stream_data_local for s in quic._streams.values()} == {64 * KIB}
    # A quarter of a window consumed is worth announcing, and never more than was consumed.
    taken = len(await read_exactly(fuller, 50 * KIB))
    wire.advance(1)
    assert taken * 3 // 4 - 24 * KIB <= quic._local_max_data.sent - 96 * KIB <= taken
    assert 32 * KIB <= quic._streams[fuller.id].max_stream_data_local_sent - 64 * KIB <= taken
    assert received[0].unread_bytes > 64 * KIB - taken
    assert received[0].unread_bytes + received[1].unread_bytes <= 96 * KIB


async def test_lost_credit_is_told_again(wire: Any, make_node: MakeNode) -> None:
    settings = QuicSettings(initial_stream_window=64 * KIB, initial_connection_window=64 * KIB)
    server, client = make_node(settings).listen(), make_node()
    ours, theirs = connect(wire, client, server)
    stream = await ours.open_stream()
    await stream.write(bytes(128 * KIB))
    wire.advance(5)
    inbound = await theirs.accept_stream()
    wire.keep = lambda to, _d: to != client.address
    await read_exactly(inbound, 64 * KIB)
    wire.pump()
    wire.keep = lambda _to, _d: True
    wire.advance(10)
    assert inbound.unread_bytes == 64 * KIB


async def test_flow_control_errors_are_still_found(wire: Any, make_node: MakeNode) -> None:
    settings = QuicSettings(initial_stream_window=8 * KIB)
    server, client = make_node(settings).listen(), make_node()
    ours, theirs = connect(wire, client, server)
    ours._session.quic._remote_max_stream_data_bidi_remote = MIB  # does not keep to the limit
    stream = await ours.open_stream()
    await stream.write(bytes(9 * KIB))
    wire.advance(1)
    assert "FLOW_CONTROL_ERROR" in (await theirs.wait_closed()).message


async def test_limits_are_in_the_transport_parameters(wire: Any, make_node: MakeNode) -> None:
    settings = QuicSettings(
        max_inbound_streams=77,
        initial_stream_window=33 * KIB,
        initial_connection_window=55 * KIB,
        idle_timeout=20.0,
    )
    server, client = make_node(settings).listen(), make_node(settings)
    ours, theirs = connect(wire, client, server)
    for connection, peer in ((ours, theirs), (theirs, ours)):
        extensions = dict(connection._session.quic.tls.received_extensions)
        parameters = pull_quic_transport_parameters(
            Buffer(data=extensions[tls.ExtensionType.QUIC_TRANSPORT_PARAMETERS])
        )
        assert parameters.initial_max_streams_bidi == 77
        assert parameters.initial_max_streams_uni == 0
        assert parameters.initial_max_data == 55 * KIB
        assert parameters.initial_max_stream_data_bidi_local == 33 * KIB
        assert parameters.initial_max_stream_data_bidi_remote == 33 * KIB
        assert parameters.max_idle_timeout == 20_000
        if connection is ours:
            first = peer._session.quic._host_cids[0].cid
            assert parameters.stateless_reset_token == server.context.connection_ids.reset_token(
                first
            )
        assert parameters.version_information is not None
        assert list(parameters.version_information.available_versions) == [1]


async def test_all_reset_tokens_can_be_made_again_after_a_restart(
    wire: Any, make_node: MakeNode
) -> None:
    server, client = make_node().listen(), make_node()
    ours, _ = connect(wire, client, server)
    peer_ids = [ours._session.quic._peer_cid, *ours._session.quic._peer_cid_available]
    assert len(peer_ids) == 4
    for peer_id in peer_ids:
        assert peer_id.stateless_reset_token == server.context.connection_ids.reset_token(
            peer_id.cid
        )
        assert server.context.connection_ids.is_ours(peer_id.cid)


async def test_the_hello_is_small_and_names_nobody(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node()
    hellos = []
    real = tls.pull_client_hello

    def spy(buffer: Buffer) -> tls.ClientHello:
        hellos.append(real(buffer))
        return hellos[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tls, "pull_client_hello", spy)
        connect(wire, client, server)
    (hello,) = hellos
    assert hello.server_name is None
    assert hello.alpn_protocols == ["libp2p"]
    assert hello.key_share is not None
    assert [group for group, _ in hello.key_share] == [tls.Group.X25519, tls.Group.SECP256R1]
    assert hello.cipher_suites[0] == tls.CipherSuite.AES_128_GCM_SHA256


async def test_a_client_without_a_certificate_is_refused(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node()
    dial = client.dial(server)
    dial.session.quic.tls.certificate = None  # sends an empty Certificate message
    wire.advance(1)
    assert not server.accepted
    assert dial.error.reason == "REFUSED"
    assert "CERTIFICATE_MISSING" in dial.error.message


async def test_a_client_with_two_certificates_is_refused(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node()
    dial = client.dial(server)
    context = dial.session.quic.tls
    context.certificate_chain = [context.certificate]
    wire.advance(1)
    assert not server.accepted
    assert "CERTIFICATE_CHAIN" in dial.error.message


async def test_a_server_whose_certificate_names_no_host_key_is_refused(
    wire: Any, make_node: MakeNode
) -> None:
    server, client = make_node().listen(), make_node()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    plain = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(1))
        .not_valid_after(now + datetime.timedelta(1))
        .sign(key, hashes.SHA256())
    )
    server.context.certificate = type(server.context.certificate)(plain, key)
    dial = client.dial(server)
    wire.advance(1)
    assert dial.error.reason == "CERTIFICATE_EXTENSION"
    assert not server.accepted


async def test_a_server_that_speaks_another_protocol(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node()
    dial = client.dial(server)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dep2p_daemon.quic.context.ALPN", "h3")
        wire.pump()
    assert dial.error.reason == "NOT_LIBP2P"


async def test_peer_certificates_are_what_the_peer_sent(
    wire: Any, make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = make_node().listen(), make_node()
    chains: list[Any] = []

    def prove(chain: Any, **options: Any) -> Any:
        chains.append(chain)
        return prove_peer(chain, **options)

    monkeypatch.setattr("dep2p_daemon.quic.session.prove_peer", prove)
    connect(wire, client, server)
    now = datetime.datetime.now(datetime.UTC)
    for chain, key in zip(chains, (server.key, client.key), strict=True):
        assert prove_peer(chain, now=now).peer_id == key.peer_id


async def test_a_batch_is_acknowledged_at_once_a_single_packet_a_moment_later(
    wire: Any, make_node: MakeNode
) -> None:
    server, client = make_node().listen(), make_node()
    ours, _ = connect(wire, client, server)
    wire.advance(5)
    stream = await ours.open_stream()
    start, before = wire.now, len(wire.sent)
    await stream.write(bytes(1300 * 4))
    wire.pump()
    assert server.datagrams_since(start) >= 1
    assert all(at == start for at, _, _ in wire.sent[before:])
    wire.advance(5)
    start = wire.now
    await stream.write(b"x")
    wire.pump()
    assert server.datagrams_since(start) == 0
    wire.advance(0.003)
    assert server.datagrams_since(start) == 1


async def test_answers_carry_the_acknowledgement(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node()
    ours, theirs = connect(wire, client, server)
    stream = await ours.open_stream()
    await stream.write(b"ping")
    wire.pump()
    inbound = await theirs.accept_stream()
    start = wire.now
    before = len(wire.sent)
    await inbound.write(b"pong")
    wire.advance(5)
    assert server.datagrams_since(start) == 1
    assert len(wire.sent) - before == 2  # the answer, and its acknowledgement


async def test_one_pass_is_bounded_and_the_rest_follows(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node(QuicSettings(max_datagram_size=1400))
    ours, theirs = connect(wire, client, server)
    quic = ours._session.quic
    quic._loss._cc.congestion_window = 10 * MIB
    quic._loss._pacer.byte_time = None
    quic._remote_max_data = quic._remote_max_stream_data_bidi_remote = 10 * MIB
    stream = await ours.open_stream()
    await stream.write(bytes(QuicSettings().send_buffer))
    datagrams = ours._session.transmit(wire.now)
    assert len(datagrams) == PASS_PACKETS
    deadline = ours._session.next_deadline()
    assert deadline is not None
    assert deadline <= wire.now  # goes on at once
    assert not theirs.is_closed


async def test_handshake_buffers_are_freed(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node()
    for connection in connect(wire, client, server):
        quic = connection._session.quic
        assert quic._crypto_buffers == {}
        assert [space.is_application_data for space in quic._loss.spaces] == [True]


async def test_tickets_of_other_stacks_are_harmless(wire: Any, make_node: MakeNode) -> None:
    # rustls sends session tickets; ours must take them without the buffers it has freed.
    server, client = make_node().listen(), make_node()
    ours, theirs = connect(wire, client, server)
    ticket = tls.NewSessionTicket(ticket_lifetime=10, ticket_age_add=1, ticket=b"t" * 32)
    buffer = Buffer(capacity=512)
    tls.push_new_session_ticket(buffer, ticket)
    theirs._session.quic._crypto_streams[tls.Epoch.ONE_RTT].sender.write(buffer.data)
    server.endpoint.mark_dirty(theirs._session)
    wire.advance(1)
    assert not ours.is_closed
    assert ours._session.quic.tls._received == b""


async def test_sent_data_is_freed_when_a_stream_is_reset(wire: Any, make_node: MakeNode) -> None:
    server, client = make_node().listen(), make_node()
    ours, _ = connect(wire, client, server)
    stream = await ours.open_stream()
    await stream.write(bytes(200 * KIB))
    client.endpoint.flush()
    stock = ours._session.quic._streams[stream.id]
    stream.reset(3)
    assert len(stock.sender._buffer) == 0
    wire.advance(2)
    assert not ours._session.quic.knows_stream(stream.id)
    assert not ours.is_closed


@pytest.mark.parametrize("who", ["sender resets", "reader resets", "reader stops", "neither"])
async def test_what_nobody_reads_gives_its_credit_back(
    wire: Any, make_node: MakeNode, who: str
) -> None:
    settings = QuicSettings(initial_connection_window=64 * KIB, max_connection_window=64 * KIB)
    server, client = make_node(settings).listen(), make_node()
    ours, theirs = connect(wire, client, server)
    # Ten times the connection's window goes through it, and nobody reads a byte.
    for _ in range(20):
        stream = await ours.open_stream()
        await stream.write(bytes(48 * KIB))
        wire.advance(0.05)
        inbound = await theirs.accept_stream()
        if who == "sender resets":
            wire.keep = lambda _to, _d: False  # the rest of it gets lost
            await stream.write(bytes(16 * KIB))
            wire.advance(0.001)
            wire.keep = lambda _to, _d: True
            stream.reset(1)
        elif who == "reader resets":
            inbound.reset(1)
        elif who == "reader stops":
            inbound.stop_reading(1)
            await inbound.close_write()
        else:
            await stream.close_write()
            wire.advance(1)
            await inbound.aclose()
        wire.advance(1)
        inbound.reset(0)
        stream.reset(0)
        wire.advance(1)
        assert server.context.memory.used == theirs._session.unread_bytes == 0
    assert not theirs.is_closed


async def test_what_arrives_after_a_stop_gives_its_credit_back(
    wire: Any, make_node: MakeNode
) -> None:
    settings = QuicSettings(initial_connection_window=64 * KIB, max_connection_window=64 * KIB)
    server, client = make_node(settings).listen(), make_node()
    ours, theirs = connect(wire, client, server)
    stream = await ours.open_stream()
    await stream.write(b"x")
    wire.pump()
    inbound = await theirs.accept_stream()
    wire.keep = lambda to, _d: to != client.address  # the peer does not hear of it for a while
    inbound.stop_reading(1)
    await stream.write(bytes(40 * KIB))
    for _ in range(40):
        wire.advance(0.01)
    assert theirs._session.quic.bytes_received > 1
    assert theirs._session.unread_bytes == 0


async def test_shared_memory_that_others_fill_closes_nobody_here(
    wire: Any, make_node: MakeNode
) -> None:
    server, client = make_node(QuicSettings(receive_memory=MIB)).listen(), make_node()
    ours, theirs = connect(wire, client, server)
    server.context.memory.used += 2 * MIB
    stream = await ours.open_stream()
    await stream.close_write()
    wire.advance(1)
    assert not theirs.is_closed
    other = await ours.open_stream()
    await other.write(b"x")
    wire.advance(1)
    assert theirs.is_closed  # the only one with anything unread


async def test_a_stream_that_grows_widens_its_connection(
    wire: Any, make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AioquicConnection, "rtt", 0.01)  # this wire has none
    settings = QuicSettings(
        initial_stream_window=32 * KIB,
        max_stream_window=256 * KIB,
        initial_connection_window=32 * KIB,
        max_connection_window=MIB,
    )
    server, client = make_node(settings).listen(), make_node()
    ours, theirs = connect(wire, client, server)
    stream = await ours.open_stream()
    inbound = None
    for _ in range(40):
        await stream.write(bytes(20 * KIB))
        wire.pump()
        inbound = inbound or await theirs.accept_stream()
        while inbound.unread_bytes:
            await inbound.read()
            wire.pump()
        wire.advance(0.001)
        if inbound.window.size > 32 * KIB:
            # Its own reasons to grow would only have taken it as far as the stream.
            assert theirs._session.streams._window.size * 2 >= inbound.window.size * 3
    assert inbound is not None
    assert inbound.window.size == 256 * KIB


async def test_nothing_is_asked_of_a_peer_that_has_sent_everything(
    wire: Any, make_node: MakeNode
) -> None:
    server, client = make_node().listen(), make_node()
    ours, theirs = connect(wire, client, server)
    stream = await ours.open_stream()
    await stream.write(b"all")
    await stream.close_write()
    wire.advance(1)
    inbound = await theirs.accept_stream()
    inbound.stop_reading(5)
    theirs._session.quic.stop_receiving(inbound.id, 5)
    assert not theirs._session.quic._streams[inbound.id].receiver.stop_pending


async def test_a_writer_that_waits_is_told_of_the_stop_and_forgotten(
    wire: Any, make_node: MakeNode
) -> None:
    server, client = make_node().listen(), make_node()
    ours, theirs = connect(wire, client, server)
    ours._session.quic._remote_max_data = 1000
    stream = await ours.open_stream()
    writing = asyncio.create_task(stream.write(bytes(4 * MIB)))
    await asyncio.sleep(0)
    assert ours._session.streams._full == {stream}
    wire.pump()
    (await theirs.accept_stream()).stop_reading(9)
    wire.advance(1)
    with pytest.raises(StreamResetError):
        await writing
    assert ours._session.streams._full == set()


@pytest.mark.parametrize("listener_prefers", [False, True])
async def test_the_listening_side_chooses_the_cipher(
    wire: Any, make_node: MakeNode, listener_prefers: bool
) -> None:
    server = make_node(QuicSettings(prefer_chacha=listener_prefers)).listen()
    client = make_node(QuicSettings(prefer_chacha=not listener_prefers))
    suite = CipherSuite.CHACHA20_POLY1305_SHA256 if listener_prefers else None
    for connection in connect(wire, client, server):
        keys = connection._session.quic.one_rtt_keys
        assert keys.send.cipher_suite is (suite or CipherSuite.AES_128_GCM_SHA256)
