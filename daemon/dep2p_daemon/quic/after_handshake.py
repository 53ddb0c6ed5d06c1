"""What a connection does without once its handshake is confirmed: half of its memory.

aioquic keeps the state of TLS and of every epoch to the end, and a table of frame handlers for
each connection. Idle connections are many, so what only the handshake needs goes when it is over,
and what is alike in all of them is there once.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic.connection import QuicConnectionAdapter
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.recovery import QuicPacketSpace
from typing_extensions import override

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    from dep2p_daemon.quic.aioquic_connection import AioquicConnection

MAX_TLS_MESSAGE: Final = 1 << 16
"""Bytes of a session ticket; larger ones end the connection."""

_SILENT: Final = QuicConnectionAdapter(logging.getLogger("quic"), {"id": ""})
_EARLIER_EPOCHS: Final = (tls.Epoch.INITIAL, tls.Epoch.HANDSHAKE)
_NO_KEYS: Final = CryptoPair()
_DISCARDED: Final = QuicPacketSpace()
_DISCARDED.discarded = True
_handlers: dict[int, tuple[str, Any]] = {}


def share_handlers(connection: AioquicConnection) -> None:
    """Free a new connection's own table of frame handlers, and what it will hardly use."""
    private: Any = connection
    own = private._QuicConnection__frame_handlers
    private._QuicConnection__frame_handlers = FrameHandlers(connection, own)
    private._datagrams_pending = Few(private._datagrams_pending)
    private._logger = _SILENT


def discard_handshake(connection: AioquicConnection) -> None:
    """Free what only the handshake needed; both sides must know that it is complete."""
    for epoch in _EARLIER_EPOCHS:
        connection._discard_epoch(epoch)
    private: Any = connection
    private.tls = TlsAfterwards(connection.tls)
    connection._crypto_buffers = {}
    one_rtt = tls.Epoch.ONE_RTT
    connection._crypto_streams = {one_rtt: connection._crypto_streams[one_rtt]}
    connection._cryptos_initial = dict.fromkeys(connection._cryptos_initial, _NO_KEYS)
    for epoch in (*_EARLIER_EPOCHS, tls.Epoch.ZERO_RTT):
        connection._cryptos[epoch] = _NO_KEYS
    for epoch in _EARLIER_EPOCHS:
        connection._spaces[epoch] = _DISCARDED
    connection._loss.spaces = [connection._spaces[one_rtt]]
    for path in private._network_paths:
        path.local_challenges = Few(path.local_challenges)
        path.remote_challenges = Few(path.remote_challenges)


class TlsAfterwards:
    """The TLS of a connection whose handshake is over: session tickets may come, and nothing else.

    Has of aioquic's context what its connection still asks for. We resume no sessions.
    """

    __slots__ = ("_received", "received_extensions", "state")

    def __init__(self, context: tls.Context) -> None:
        self.state = context.state
        self.received_extensions = [
            extension
            for extension in context.received_extensions or ()
            if extension[0] == tls.ExtensionType.QUIC_TRANSPORT_PARAMETERS
        ]
        self._received = context._receive_buffer

    def handle_message(self, data: bytes, _output: object) -> None:
        """Take bytes of CRYPTO frames.

        Raises:
            tls.Alert: they are no session tickets.
        """
        self._received += data
        while len(self._received) >= 4:
            kind, stop = self._received[0], 4 + int.from_bytes(self._received[1:4], "big")
            expected = self.state is tls.State.CLIENT_POST_HANDSHAKE
            if not expected or kind != tls.HandshakeType.NEW_SESSION_TICKET:
                raise tls.AlertUnexpectedMessage
            if stop > MAX_TLS_MESSAGE:
                raise tls.AlertDecodeError("a session ticket is too large")
            if len(self._received) < stop:
                return
            tls.pull_new_session_ticket(Buffer(data=self._received[:stop]))
            self._received = self._received[stop:]


class FrameHandlers:
    """aioquic's table of frame handlers, in which the connection is the only difference."""

    __slots__ = ("_connection",)

    def __init__(self, connection: object, own: dict[int, tuple[Callable[..., None], Any]]) -> None:
        """Stand in for the table that `connection` made."""
        self._connection = connection
        if not _handlers:
            _handlers.update(
                (kind, (call.__name__, epochs)) for kind, (call, epochs) in own.items()
            )

    def __getitem__(self, kind: int) -> tuple[Callable[..., None], Any]:
        name, epochs = _handlers[kind]
        return getattr(self._connection, name), epochs


class Few(list[bytes]):
    """A deque for the few things that are in it, mostly none: an empty deque takes 760 bytes."""

    __slots__ = ("_most",)

    def __init__(self, queue: deque[bytes]) -> None:
        """Take the place of `queue`."""
        super().__init__(queue)
        self._most = queue.maxlen

    @override
    def append(self, item: bytes) -> None:
        """Add at the right end; where there is a most, the left end makes room."""
        super().append(item)
        if self._most is not None:
            del self[: -self._most]

    def popleft(self) -> bytes:
        """Take from the left end."""
        return self.pop(0)
