"""What is freed when the handshake is over, and that nobody misses it."""

from __future__ import annotations

import gc
import tracemalloc
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic.connection import QuicConnection as StockConnection
from tests.unit.quic.steady import PEER, SUITES, PeerSeal, steady_connection

from dep2p_daemon.quic.after_handshake import MAX_TLS_MESSAGE, Few, FrameHandlers, TlsAfterwards
from dep2p_daemon.quic.settings import QuicSettings

MakeNode = Callable[..., Any]

SETTLED_BYTES = 21_000
"""Of Python objects, in `quic/` and aioquic, for one end of an idle connection."""


def ticket() -> bytes:
    buffer = Buffer(capacity=200)
    tls.push_new_session_ticket(
        buffer,
        tls.NewSessionTicket(ticket_lifetime=1, ticket_age_add=2, ticket_nonce=b"n", ticket=b"t"),
    )
    return bytes(buffer.data)


def afterwards(*, is_client: bool) -> TlsAfterwards:
    context = tls.Context(is_client=is_client)
    context.state = (
        tls.State.CLIENT_POST_HANDSHAKE if is_client else tls.State.SERVER_POST_HANDSHAKE
    )
    return TlsAfterwards(context)


def test_session_tickets_are_taken_in_pieces_and_ignored() -> None:
    context = afterwards(is_client=True)
    data = ticket() * 3
    for index in range(0, len(data), 7):
        context.handle_message(data[index : index + 7], {})


@pytest.mark.parametrize(
    ("is_client", "data", "alert"),
    [
        (False, ticket(), tls.AlertUnexpectedMessage),
        (True, b"\x14\0\0\x01x", tls.AlertUnexpectedMessage),
        (True, b"\x04" + (MAX_TLS_MESSAGE - 3).to_bytes(3, "big"), tls.AlertDecodeError),
    ],
    ids=["to a server", "another message", "too large"],
)
def test_anything_else_is_an_alert(is_client: bool, data: bytes, alert: type[tls.Alert]) -> None:
    with pytest.raises(alert):
        afterwards(is_client=is_client).handle_message(data, {})


def test_what_was_half_there_is_not_lost() -> None:
    context = tls.Context(is_client=True)
    context.state = tls.State.CLIENT_POST_HANDSHAKE
    data = ticket()
    context._receive_buffer = data[:9]
    afterwards = TlsAfterwards(context)
    afterwards.handle_message(data[9:], {})
    assert afterwards._received == b""


@pytest.mark.parametrize("fast_path", [True, False])
def test_a_crypto_frame_that_is_no_ticket_ends_the_connection(fast_path: bool) -> None:
    connection = steady_connection(is_client=True, suite=SUITES[0], fast_path=fast_path)
    connection.tls.state = tls.State.CLIENT_POST_HANDSHAKE
    connection.forget_handshake()
    connection.receive_batch([PeerSeal(SUITES[0]).packet(0, b"\x06\0\x05\x14\0\0\x01x")], PEER, 1.0)
    assert connection.close_pending is not None
    assert connection.close_pending.error_code == 0x100 + tls.AlertDescription.unexpected_message


def test_every_frame_finds_its_handler() -> None:
    connection: Any = steady_connection(is_client=True, suite=SUITES[0], fast_path=True)
    stock: Any = StockConnection(configuration=connection._configuration)
    own = stock._QuicConnection__frame_handlers
    shared = FrameHandlers(stock, own)
    for kind, (handler, epochs) in own.items():
        assert shared[kind] == (handler, epochs)
    with pytest.raises(KeyError):
        shared[0x2F]


def test_few_things_in_order() -> None:
    few = Few(deque([b"1", b"2"], maxlen=2))
    few.append(b"3")
    assert (few, few.popleft(), few.popleft()) == ([], b"2", b"3")
    unbounded = Few(deque())
    for n in range(9):
        unbounded.append(bytes((n,)))
    assert len(unbounded) == 9


async def test_an_idle_connection_takes_little(wire: Any, make_node: MakeNode) -> None:
    count = 40
    server = make_node(QuicSettings()).listen()
    clients = [make_node(QuicSettings()) for _ in range(count + 10)]

    def connect(some: list[Any]) -> None:
        dials = [client.dial(server) for client in some]
        wire.advance(2)
        wire.sent.clear()
        assert all(dial.connection for dial in dials)
        gc.collect()

    connect(clients[:10])
    tracemalloc.start()
    try:
        connect(clients[10:])
        taken = tracemalloc.take_snapshot().filter_traces(
            [tracemalloc.Filter(True, "*/aioquic/*"), tracemalloc.Filter(True, "*/quic/*")]
        )
    finally:
        tracemalloc.stop()
    each = sum(trace.size for trace in taken.traces) / count / 2
    assert each < SETTLED_BYTES
