"""One connection on an endpoint, from its first packet to its last.

Drives an `AioquicConnection` sans-IO: datagrams, the clock and the application's calls go in;
datagrams, a deadline and calls to `QuicConnection` and `QuicStream` come out. A peer is
surfaced only after its certificate was checked, a dialled one only after the handshake is
confirmed: until then the server may still refuse our certificate.
"""

from __future__ import annotations

import datetime
import errno
import functools
import math
import os
import socket
from typing import TYPE_CHECKING, Final

import structlog
from aioquic.quic import events
from aioquic.quic.packet import QuicErrorCode, QuicFrameType
from aioquic.tls import AlertDescription

from dep2p_daemon.errors import (
    AuthenticationError,
    ConnectionClosedError,
    Dep2pError,
    UnreachableError,
)
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.muxed import CloseCode, Direction
from dep2p_daemon.quic.connection import QuicConnection
from dep2p_daemon.quic.deadlines import Deadline
from dep2p_daemon.quic.libp2p_tls import ALPN, prove_peer
from dep2p_daemon.quic.reasons import explain_end, explain_failed_handshake
from dep2p_daemon.quic.stream_set import StreamSet

if TYPE_CHECKING:
    from collections.abc import Callable

    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.quic.aioquic_connection import AioquicConnection
    from dep2p_daemon.quic.connection_table import Farewell
    from dep2p_daemon.quic.endpoint import Endpoint
    from dep2p_daemon.udp.demultiplexer import SocketAddress

MAX_CLOSE_MESSAGE: Final = 256
"""Bytes of a close message that go on the wire: it has to fit one packet."""

_log = structlog.get_logger(__name__)


class Session:
    """A connection's driver. Made and owned by an `Endpoint`."""

    def __init__(
        self,
        endpoint: Endpoint,
        quic: AioquicConnection,
        *,
        direction: Direction,
        address: SocketAddress,
        local: bytes | None,
        expected_peer: PeerId | None,
        now: float,
        on_established: Callable[[QuicConnection], None],
        on_failed: Callable[[Dep2pError], None],
    ) -> None:
        context = endpoint.context
        settings = context.settings
        self.endpoint = endpoint
        self.quic = quic
        self.direction = direction
        self.address = address
        self.local = local
        """The local IP to send from; None leaves it to the kernel, as roaming clients need."""
        self.connection: QuicConnection | None = None
        self.streams = StreamSet(
            quic,
            context,
            clock=endpoint.clock,
            on_work=functools.partial(endpoint.mark_dirty, self),
        )
        self.connection_ids: list[bytes] = []
        """The ids under which the endpoint finds this session."""
        self.reset_token: bytes | None = None
        """The peer's token under which the endpoint finds this session."""
        self.is_dirty = False
        self.is_over = False
        self.deadline: Deadline[Session | Farewell] = Deadline(self)
        self._context = context
        self._settings = settings
        self._expected_peer = expected_peer
        self._on_established = on_established
        self._on_failed = on_failed
        self._is_established = False
        self._handshake_deadline = (
            now + settings.handshake_timeout if direction is Direction.INBOUND else None
        )
        self._hit = local
        """The local IP that the last datagram came to."""
        self._unacknowledged = 0
        self._pinged_at = -math.inf

    @property
    def is_open(self) -> bool:
        """Whether the peer is proven and the connection not over."""
        return self.connection is not None and not self.is_over

    # Packets and time: for the endpoint

    def receive(
        self, datagrams: list[bytes], address: SocketAddress, local: bytes | None, now: float
    ) -> None:
        """Take datagrams of one sender in."""
        if local is not None:
            self._hit = local
            if self.direction is Direction.INBOUND:
                self.local = local
        self._unacknowledged += len(datagrams)
        self.quic.receive_batch(datagrams, address, now)
        self._process(now)

    def timer_fired(self, now: float) -> None:
        """The deadline has come."""
        if self._handshake_deadline is not None and now >= self._handshake_deadline:
            self.quic.close(
                error_code=QuicErrorCode.CONNECTION_REFUSED,
                frame_type=QuicFrameType.PADDING,
                reason_phrase="handshake timeout",
            )
            self._end(
                ConnectionClosedError("the handshake took too long", reason="HANDSHAKE_TIMEOUT")
            )
            return
        keep_alive_at = self._keep_alive_at()
        if keep_alive_at is not None and now >= keep_alive_at:
            self._pinged_at = now
            self.quic.send_ping(0)
        self.quic.timer_fired(now)
        self._process(now)

    def transmit(self, now: float) -> list[tuple[bytes, SocketAddress]]:
        """Return what is to be sent, each datagram with its destination."""
        if self.is_over and self.quic.close_pending is None:
            return []
        streams = self.streams
        acknowledge = streams.has_written or self._unacknowledged >= 2
        if acknowledge:
            self._unacknowledged = 0
            streams.has_written = False
        datagrams = self.quic.transmit(now, acknowledge=acknowledge)
        streams.after_transmit()
        self._drain()
        return datagrams

    def datagram_refused(self, now: float) -> None:
        """One of the datagrams of the last `transmit` was too large for our own interface."""
        self.quic.datagram_refused(now)
        self.endpoint.mark_dirty(self)

    def next_deadline(self) -> float | None:
        """When `timer_fired` wants to be called; None when the connection is over."""
        deadline = self.quic.get_timer()
        if deadline is None:
            return None
        if self._handshake_deadline is not None:
            deadline = min(deadline, self._handshake_deadline)
        keep_alive_at = self._keep_alive_at()
        return deadline if keep_alive_at is None else min(deadline, keep_alive_at)

    def _keep_alive_at(self) -> float | None:
        idle_since = self.quic.idle_since
        if not self._is_established or self.direction is Direction.INBOUND or idle_since is None:
            return None
        interval = min(self._settings.keep_alive_interval, self.quic.idle_timeout / 2)
        return max(idle_since, self._pinged_at) + interval

    # The end

    def close(self, code: int, message: str) -> None:
        """End the connection and tell the peer. Idempotent."""
        if self.is_over:
            return
        reason = message.encode()[:MAX_CLOSE_MESSAGE].decode(errors="ignore")
        self.quic.close(error_code=code, reason_phrase=reason)
        self._end(
            ConnectionClosedError(
                f"the connection was closed by this side{': ' + message if message else ''}",
                code=code,
            )
        )

    def refuse(self, code: int, message: str) -> None:
        """End an inbound connection that cannot be taken on."""
        _log.info("connection refused", reason=message, address=self.address[0])
        self.close(code, message)

    def evict(self) -> None:
        """End the connection because its unread bytes are too many."""
        _log.warning(
            "connection closed",
            reason="RECEIVE_MEMORY",
            unread_bytes=self.unread_bytes,
            address=self.address[0],
        )
        self.close(CloseCode.RESOURCE_LIMIT_EXCEEDED, "out of receive memory")

    @property
    def is_dialling(self) -> bool:
        """True until a dial has succeeded or failed."""
        return self.direction is Direction.OUTBOUND and not (self._is_established or self.is_over)

    def unreachable(self, code: int) -> None:
        """End a dial whose packets cannot get there, as the errno `code` says."""
        refused = code == errno.ECONNREFUSED
        self._end(
            UnreachableError(
                "nobody listens on that UDP port"
                if refused
                else f"the network says: {os.strerror(code)}",
                reason="CONNECTION_REFUSED" if refused else "NETWORK_UNREACHABLE",
            )
        )

    def stateless_reset(self) -> None:
        """The peer says that it knows nothing of this connection."""
        self.quic.end_by_stateless_reset()
        self._end(
            ConnectionClosedError(
                "the peer has lost the connection: it was restarted",
                reason="STATELESS_RESET",
                remote=True,
            )
        )

    def crashed(self) -> None:
        """Something in here raised: end this connection only."""
        self.quic.close(error_code=QuicErrorCode.INTERNAL_ERROR, frame_type=QuicFrameType.PADDING)
        self._end(ConnectionClosedError("an internal error", reason="INTERNAL"))

    def _end(self, error: Dep2pError) -> None:
        """Tell everybody; what is left to send goes with the next transmit."""
        if self.is_over:
            return
        self.is_over = True
        self._handshake_deadline = None
        closed = (
            error
            if isinstance(error, ConnectionClosedError)
            else ConnectionClosedError(error.message, reason=error.reason)
        )
        self.streams.close(closed)
        if self.connection is not None:
            self.connection.on_closed(closed)
        if not self._is_established:
            self._on_failed(error)
        self.endpoint.mark_dirty(self)

    @property
    def unread_bytes(self) -> int:
        """Bytes that arrived and were not consumed."""
        return self.streams.unread_bytes

    # What aioquic tells

    def _process(self, now: float) -> None:
        """Handle what aioquic found in packets or on a timer."""
        self._drain()
        if self.is_over:
            return
        quic = self.quic
        termination = quic.termination or quic.close_pending
        if termination is not None:
            self._end(self._explain(termination, remote=quic.termination is not None))
            return
        connection = self.connection
        if connection is not None:
            if not self._is_established and quic.handshake_confirmed:
                self._establish()
            connection.rtt = quic.rtt
            if connection.wants_streams and quic.openable_streams:
                connection.on_openable(quic.openable_streams)
            self.streams.account()
            if self._context.memory.exceeded:
                self._context.relieve_memory()
            self._follow_peer(connection, now)
        self.endpoint.mark_dirty(self)

    def _drain(self) -> None:
        """Hand events out; what arrived for one stream goes to it in one piece."""
        next_event = self.quic.next_event
        pieces: list[bytes] = []
        stream_id = -1
        while (event := next_event()) is not None:
            if isinstance(event, events.StreamDataReceived):
                if event.stream_id != stream_id:
                    if pieces:
                        self._on_stream_data(stream_id, pieces)
                        pieces = []
                    stream_id = event.stream_id
                pieces.append(event.data)
                if event.end_stream:
                    self._on_stream_data(stream_id, pieces, end=True)
                    pieces = []
                continue
            if pieces:
                self._on_stream_data(stream_id, pieces)
                pieces = []
            self._on_event(event)
        if pieces:
            self._on_stream_data(stream_id, pieces)

    def _on_event(self, event: events.QuicEvent) -> None:
        match event:
            case events.ConnectionIdIssued():
                self.endpoint.register(self, event.connection_id)
            case events.ConnectionIdRetired():
                self.endpoint.unregister(self, event.connection_id)
            case events.HandshakeCompleted():
                self._on_handshake_completed(event)
            # Streams of somebody who is not, or no longer, a peer are nobody's.
            case events.StopSendingReceived() if self.is_open:
                self.streams.on_stop_sending(event)
            case events.StreamReset() if self.is_open:
                self.streams.on_stream_reset(event)

    def _on_stream_data(self, stream_id: int, pieces: list[bytes], *, end: bool = False) -> None:
        if self.is_open:
            self.streams.on_data(stream_id, pieces, end=end)

    def _on_handshake_completed(self, event: events.HandshakeCompleted) -> None:
        if self.is_over:
            return
        try:
            if event.alpn_protocol != ALPN:
                raise AuthenticationError("the peer does not speak libp2p", reason="NOT_LIBP2P")
            proven = prove_peer(
                self.quic.peer_certificates,
                now=datetime.datetime.now(datetime.UTC),
                expected=self._expected_peer,
            )
        except AuthenticationError as error:
            self.quic.close(
                error_code=QuicErrorCode.CRYPTO_ERROR + AlertDescription.bad_certificate,
                frame_type=QuicFrameType.CRYPTO,
                reason_phrase=error.reason,
            )
            self._end(error)
            return
        self._handshake_deadline = None
        self.connection = QuicConnection(
            self,
            self.streams,
            local_peer=self._context.local_peer,
            proven=proven,
            direction=self.direction,
            local_address=self._local_multiaddr(),
            remote_address=Multiaddr.for_udp(self.address[0], self.address[1]),
        )
        self.streams.connection = self.connection
        self.endpoint.watch_reset_token(self)
        if self.direction is Direction.INBOUND:
            self._establish()

    def _establish(self) -> None:
        assert self.connection is not None
        self._is_established = True
        self.quic.forget_handshake()
        tell, self._on_established, self._on_failed = self._on_established, _nothing, _nothing
        tell(self.connection)

    def _local_multiaddr(self) -> Multiaddr:
        host, port = self.endpoint.local_host, self.endpoint.local_port
        if self._hit is not None:
            family = socket.AF_INET if len(self._hit) == 4 else socket.AF_INET6
            host = socket.inet_ntop(family, self._hit)
        return Multiaddr.for_udp(host, port)

    def _follow_peer(self, connection: QuicConnection, now: float) -> None:
        address = self.quic.validated_peer_address
        if address is not None and address != self.address:
            _log.debug(
                "peer moved", connection=connection.id, before=self.address[0], now=address[0]
            )
            if address[0] != self.address[0]:
                self.quic.begin_path(now)
            self.address = address
            connection.remote_address = Multiaddr.for_udp(address[0], address[1])

    def _explain(self, event: events.ConnectionTerminated, *, remote: bool) -> Dep2pError:
        """Say what aioquic's terse event means for whoever holds or waits for the connection."""
        code, phrase = event.error_code, event.reason_phrase
        if self._is_established:
            return explain_end(code, event.frame_type, phrase, remote=remote)
        return explain_failed_handshake(code, event.frame_type, phrase, remote=remote)


def _nothing(_: object) -> None:
    """Nobody has to be told any more."""
