"""All QUIC connections of one UDP socket: who a datagram is for, and who may begin.

sans-IO: datagrams and calls come in with the clock's time, datagrams go out through a
`DatagramSender`, and `next_deadline` says when to call again. `driver.py` puts it on a socket
and a loop.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import structlog
from aioquic.quic.packet import encode_quic_retry
from aioquic.quic.retry import QuicRetryTokenHandler

from dep2p_daemon.errors import Dep2pError, ResourceLimitError
from dep2p_daemon.muxed import CloseCode, Direction
from dep2p_daemon.quic.admission import Admission, RateLimiter, Verdict
from dep2p_daemon.quic.aioquic_connection import AioquicConnection
from dep2p_daemon.quic.connection_ids import CONNECTION_ID_LENGTH, RESET_TOKEN_LENGTH
from dep2p_daemon.quic.deadlines import Deadline, DeadlineQueue
from dep2p_daemon.quic.packets import (
    MAX_CONNECTION_ID,
    MIN_CLIENT_CHOSEN_ID,
    MIN_INITIAL_DATAGRAM,
    VERSION_1,
    LongHeader,
    connection_refused,
    parse_long_header,
    version_negotiation,
)
from dep2p_daemon.quic.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.quic.connection import QuicConnection
    from dep2p_daemon.quic.context import QuicContext
    from dep2p_daemon.udp.demultiplexer import SocketAddress

REFUSAL_LOG_INTERVAL: Final = 10.0
"""Seconds between two log lines about refused handshakes."""

_FATAL_SEND_ERRORS: Final = frozenset(
    {
        errno.EACCES,
        errno.EADDRNOTAVAIL,
        errno.EAFNOSUPPORT,
        errno.ECONNREFUSED,
        errno.EHOSTUNREACH,
        errno.EINVAL,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EPERM,
    }
)
"""Errors that end a dial at once; established connections ride them out."""

_log = structlog.get_logger(__name__)


class DatagramSender(Protocol):
    """What an endpoint sends through: `udp.socket.UdpSocket`, or a test."""

    @property
    def is_blocked(self) -> bool:
        """True while nothing new should be sent."""
        ...

    def send(
        self, datagrams: Sequence[bytes], destination: SocketAddress, local: bytes | None = None
    ) -> int:
        """Send datagrams, or drop them; returns 0 or an errno."""
        ...


@dataclass(slots=True)
class EndpointCounters:
    """What an endpoint refused or dropped, in datagrams unless it says otherwise."""

    dropped: int = 0
    """Of no connection, and no beginning of one."""
    retries_sent: int = 0
    refused: int = 0
    """Initials answered with CONNECTION_REFUSED, or dropped at a cap."""
    version_negotiations_sent: int = 0
    resets_sent: int = 0
    resets_received: int = 0
    handshakes_failed: int = 0
    """Inbound handshakes."""


@dataclass(slots=True, eq=False)
class Farewell:
    """A connection that is over: its ids stay known until its last packets have passed.

    After a close of ours the close is repeated as more packets come, ever less often
    (RFC 9000 section 10.2.1); after the peer's, they are dropped.
    """

    connection_ids: set[bytes]
    datagrams: list[bytes]
    local: bytes | None
    received: int = 0


class Endpoint:
    """The QUIC side of one UDP socket."""

    def __init__(
        self,
        context: QuicContext,
        sender: DatagramSender,
        *,
        clock: Callable[[], float],
        local_host: str,
        local_port: int,
        on_work: Callable[[], None],
    ) -> None:
        """Serve a socket that is bound to `local_host`:`local_port`.

        Args:
            context: what the transport's endpoints share.
            sender: where datagrams go.
            clock: monotonic time in seconds; the `now` of all calls.
            local_host: bound address; may be unspecified.
            local_port: bound port.
            on_work: called when `flush` has something to do, or a deadline came nearer.
        """
        self.context = context
        self.clock = clock
        self.local_host = local_host
        self.local_port = local_port
        self.counters = EndpointCounters()
        self.on_accepted: Callable[[QuicConnection], bool] | None = None
        """Takes an authenticated inbound connection, or returns False; None: none wanted."""
        self.on_idle: Callable[[], None] | None = None
        """Called when the last session has gone."""
        settings = context.settings
        self._sender = sender
        self._on_work = on_work
        self._table: dict[bytes, Session | Farewell] = {}
        self._reset_tokens: dict[bytes, Session] = {}
        self._sessions: set[Session] = set()
        self._dirty: list[Session] = []
        self._deadlines: DeadlineQueue[Session | Farewell] = DeadlineQueue()
        self._admission = Admission(settings)
        self._retry_tokens = QuicRetryTokenHandler()
        self._answers = RateLimiter(settings.stateless_resets_per_second)
        self._refusal_log = RateLimiter(1 / REFUSAL_LOG_INTERVAL)

    @property
    def sessions(self) -> frozenset[Session]:
        """The connections and handshakes of this endpoint."""
        return frozenset(self._sessions)

    @property
    def known_connection_ids(self) -> int:
        """Number of connection ids that lead somewhere."""
        return len(self._table)

    @property
    def half_open(self) -> int:
        """Inbound handshakes in progress."""
        return self._admission.half_open

    @property
    def next_deadline(self) -> float | None:
        """When `handle_timers` should be called."""
        return self._deadlines.next_at

    @property
    def has_work(self) -> bool:
        """Whether `flush` has something to do."""
        return bool(self._dirty)

    # Datagrams in

    def receive(self, datagrams: list[bytes], sender: SocketAddress, local: bytes | None) -> None:
        """Take datagrams of one sender in; neighbours of one connection are handled as one."""
        now = self.clock()
        run: list[bytes] = []
        current: Session | Farewell | None = None
        current_id = b""
        for datagram in datagrams:
            if datagram[0] & 0x80:
                found = self._find_by_long_header(datagram, sender, local, now)
                current_id = b""
            else:
                connection_id = datagram[1 : 1 + CONNECTION_ID_LENGTH]
                if connection_id == current_id:
                    run.append(datagram)
                    continue
                found = self._table.get(connection_id)
                if found is None:
                    self._handle_stray(datagram, sender, local, now)
                    continue
                if run and current is not found:
                    self._deliver(current, run, sender, local, now)
                    run = []
                current, current_id = found, connection_id
                run.append(datagram)
                continue
            if run and found is not current:
                self._deliver(current, run, sender, local, now)
                run = []
            if found is not None:
                current = found
                run.append(datagram)
        if run:
            self._deliver(current, run, sender, local, now)

    def _deliver(
        self,
        target: Session | Farewell | None,
        datagrams: list[bytes],
        sender: SocketAddress,
        local: bytes | None,
        now: float,
    ) -> None:
        if isinstance(target, Farewell):
            self._repeat_farewell(target, len(datagrams), sender)
        elif target is not None and not target.is_over:
            try:
                target.receive(datagrams, sender, local, now)
            except Exception:
                self._crashed(target)

    def _find_by_long_header(
        self, datagram: bytes, sender: SocketAddress, local: bytes | None, now: float
    ) -> Session | Farewell | None:
        header = parse_long_header(datagram)
        if header is None or len(header.destination) > MAX_CONNECTION_ID:
            self.counters.dropped += 1
            return None
        found = self._table.get(header.destination)
        if found is not None:
            return found
        if header.version not in (0, VERSION_1):
            # An answer must not be larger than what set it off.
            if len(datagram) >= MIN_INITIAL_DATAGRAM and self._answers.allow(now):
                self.counters.version_negotiations_sent += 1
                self._sender.send([version_negotiation(header)], sender, local)
            else:
                self.counters.dropped += 1
            return None
        if (
            not header.is_initial
            or len(datagram) < MIN_INITIAL_DATAGRAM
            or len(header.destination) < MIN_CLIENT_CHOSEN_ID
            or len(header.source) > MAX_CONNECTION_ID
            or self.on_accepted is None
        ):
            self.counters.dropped += 1
            return None
        return self._begin_inbound(header, sender, local, now)

    def _begin_inbound(
        self, header: LongHeader, sender: SocketAddress, local: bytes | None, now: float
    ) -> Session | None:
        original_id: bytes | None = None
        if header.token:
            try:
                original_id = self._retry_tokens.validate_token(
                    address=_address_of(sender),
                    destination_cid=header.destination,
                    token=header.token,
                    now=now,
                )
            except ValueError:
                original_id = None  # as if it had sent none
        validated = original_id is not None
        verdict = self._admission.judge(
            sender[0], validated=validated, connections=len(self.context.sessions)
        )
        if verdict is not Verdict.ACCEPT:
            self._turn_away(verdict, header, sender, local, now)
            return None
        quic = AioquicConnection(
            configuration=self.context.configuration(is_client=False),
            connection_ids=self.context.connection_ids,
            max_inbound_streams=self.context.settings.max_inbound_streams,
            max_datagram_size=self.context.settings.max_datagram_size,
            connection_window=self.context.settings.initial_connection_window,
            original_destination_connection_id=original_id or header.destination,
            retry_source_connection_id=header.destination if validated else None,
        )
        group = self._admission.opened(sender[0])

        def established(connection: QuicConnection) -> None:
            self._admission.finished(group)
            if self.on_accepted is None or not self.on_accepted(connection):
                session.refuse(CloseCode.RESOURCE_LIMIT_EXCEEDED, "nobody accepts connections")

        def failed(error: Dep2pError) -> None:
            self._admission.finished(group)
            self.counters.handshakes_failed += 1
            _log.debug(
                "inbound handshake failed",
                address=sender[0],
                reason=error.reason,
                error=error.message,
            )

        session = Session(
            self,
            quic,
            direction=Direction.INBOUND,
            address=sender,
            local=local,
            expected_peer=None,
            now=now,
            on_established=established,
            on_failed=failed,
        )
        self._add(session)
        # Known to the end: a late copy of the Initial must not begin another connection.
        self.register(session, header.destination)
        return session

    def _turn_away(
        self,
        verdict: Verdict,
        header: LongHeader,
        sender: SocketAddress,
        local: bytes | None,
        now: float,
    ) -> None:
        if verdict is Verdict.RETRY:
            self.counters.retries_sent += 1
            source_id = self.context.connection_ids.new()
            token = self._retry_tokens.create_token(
                address=_address_of(sender),
                original_destination_connection_id=header.destination,
                retry_source_connection_id=source_id,
                now=now,
            )
            retry = encode_quic_retry(
                version=VERSION_1,
                source_cid=source_id,
                destination_cid=header.source,
                original_destination_cid=header.destination,
                retry_token=token,
            )
            self._sender.send([retry], sender, local)
            return
        self.counters.refused += 1
        if verdict is Verdict.REFUSE:
            self._sender.send([connection_refused(header)], sender, local)
        if self._refusal_log.allow(now):
            _log.warning(
                "handshakes refused",
                reason="MAX_CONNECTIONS" if verdict is Verdict.REFUSE else "MAX_HALF_OPEN",
                address=sender[0],
                refused=self.counters.refused,
                connections=len(self.context.sessions),
                half_open=self._admission.half_open,
            )

    def _handle_stray(
        self, datagram: bytes, sender: SocketAddress, local: bytes | None, now: float
    ) -> None:
        """A short header with an id that nobody has."""
        session = self._reset_tokens.get(datagram[-RESET_TOKEN_LENGTH:])
        if session is not None and session.quic.is_peer_address(sender):
            self.counters.resets_received += 1
            session.stateless_reset()
            return
        reset = None
        if datagram[0] & 0x40:
            reset = self.context.connection_ids.stateless_reset(datagram)
        if reset is None or not self._answers.allow(now):
            self.counters.dropped += 1
            return
        self.counters.resets_sent += 1
        self._sender.send([reset], sender, local)

    def _repeat_farewell(self, farewell: Farewell, count: int, sender: SocketAddress) -> None:
        before, farewell.received = farewell.received, farewell.received + count
        if farewell.datagrams and before.bit_length() != farewell.received.bit_length():
            self._sender.send(farewell.datagrams, sender, farewell.local)

    # Dialling

    def connect(
        self,
        address: SocketAddress,
        peer: PeerId,
        *,
        on_established: Callable[[QuicConnection], None],
        on_failed: Callable[[Dep2pError], None],
    ) -> Session:
        """Begin a handshake with `peer` at `address`; one of the callbacks tells how it went.

        Raises:
            ResourceLimitError: too many connections.
        """
        now = self.clock()
        settings = self.context.settings
        if len(self.context.sessions) >= settings.max_connections:
            raise ResourceLimitError(
                f"there are {settings.max_connections} QUIC connections already",
                remedy="close some, or raise the limit",
                limit="max_connections",
            )
        quic = AioquicConnection(
            configuration=self.context.configuration(is_client=True),
            connection_ids=self.context.connection_ids,
            max_inbound_streams=settings.max_inbound_streams,
            max_datagram_size=settings.max_datagram_size,
            connection_window=settings.initial_connection_window,
        )
        session = Session(
            self,
            quic,
            direction=Direction.OUTBOUND,
            address=address,
            local=None,
            expected_peer=peer,
            now=now,
            on_established=on_established,
            on_failed=on_failed,
        )
        self._add(session)
        quic.connect(address, now)
        self.mark_dirty(session)
        return session

    def unreachable(self, address: SocketAddress, code: int) -> None:
        """The network says that `address` cannot be reached: end the handshakes with it."""
        if code not in _FATAL_SEND_ERRORS:
            return
        for session in [s for s in self._sessions if s.address == address and s.is_dialling]:
            session.unreachable(code)

    # Sessions

    def register(self, session: Session, connection_id: bytes) -> None:
        """Lead datagrams for `connection_id` to `session`."""
        session.connection_ids.add(connection_id)
        self._table[connection_id] = session

    def unregister(self, session: Session, connection_id: bytes) -> None:
        """Forget an id of `session`."""
        session.connection_ids.discard(connection_id)
        if self._table.get(connection_id) is session:
            del self._table[connection_id]

    def watch_reset_token(self, session: Session) -> None:
        """Recognise a stateless reset of the peer's current connection id."""
        token = session.quic.peer_reset_token
        if token == session.reset_token:
            return
        if session.reset_token is not None:
            self._reset_tokens.pop(session.reset_token, None)
        session.reset_token = token
        if token is not None:
            self._reset_tokens[token] = session

    def mark_dirty(self, session: Session) -> None:
        """Have `session` transmit at the next flush."""
        if not session.is_dirty:
            session.is_dirty = True
            self._dirty.append(session)
            if len(self._dirty) == 1:
                self._on_work()

    def _add(self, session: Session) -> None:
        self._sessions.add(session)
        self.context.sessions.add(session)
        self.register(session, session.quic.host_cid)

    def _crashed(self, session: Session) -> None:
        """The boundary of one connection: what went wrong in it ends it, and only it."""
        _log.exception("a connection failed", address=session.address[0])
        try:
            session.crashed()
        except Exception:
            _log.exception("a failed connection could not be ended", address=session.address[0])
            self._remove(session, [], self.clock())

    def _remove(self, session: Session, farewell: list[bytes], now: float) -> None:
        self._sessions.discard(session)
        self.context.sessions.discard(session)
        self._deadlines.cancel(session.deadline)
        if session.reset_token is not None:
            self._reset_tokens.pop(session.reset_token, None)
        ids, session.connection_ids = session.connection_ids, set()
        if session.quic.has_begun and ids:
            entry = Farewell(ids, farewell, session.local)
            for connection_id in ids:
                self._table[connection_id] = entry
            self._deadlines.set(Deadline(entry), now + session.quic.closing_period)
        else:
            for connection_id in ids:
                self._table.pop(connection_id, None)
        if not self._sessions and self.on_idle is not None:
            self.on_idle()

    # Datagrams out, and time

    def flush(self) -> None:
        """Send what the dirty sessions have: one pass each."""
        if self._sender.is_blocked:
            return  # the sender calls back
        now = self.clock()
        dirty, self._dirty = self._dirty, []
        for session in dirty:
            session.is_dirty = False
            if session in self._sessions:
                self._transmit(session, now)

    def _transmit(self, session: Session, now: float) -> None:
        if session.direction is Direction.INBOUND and not session.quic.has_begun:
            # Its Initial was not one: nothing of it could be decrypted.
            self.counters.dropped += 1
            session.close(CloseCode.NONE, "")
            self._remove(session, [], now)
            return
        try:
            datagrams = session.transmit(now)
            deadline = session.next_deadline()
        except Exception:
            self._crashed(session)
            self._remove(session, [], now)
            return
        error = self._send(datagrams, session.local)
        if session.is_over:
            self._remove(session, [data for data, _ in datagrams], now)
            return
        if error in _FATAL_SEND_ERRORS and session.is_dialling:
            session.unreachable(error)
        if session.quic.peer_reset_token != session.reset_token and session.connection is not None:
            self.watch_reset_token(session)
        self._deadlines.set(session.deadline, deadline)

    def _send(self, datagrams: list[tuple[bytes, SocketAddress]], local: bytes | None) -> int:
        """Send, grouping neighbours with the same destination."""
        if not datagrams:
            return 0
        destination = datagrams[0][1]
        if all(address is destination or address == destination for _, address in datagrams):
            return self._sender.send([data for data, _ in datagrams], destination, local)
        error = 0
        for data, address in datagrams:
            error = self._sender.send([data], address, local) or error
        return error

    def handle_timers(self) -> None:
        """Do what is due."""
        now = self.clock()
        for item in self._deadlines.due(now):
            if isinstance(item, Farewell):
                for connection_id in item.connection_ids:
                    if self._table.get(connection_id) is item:
                        del self._table[connection_id]
            elif item in self._sessions:
                try:
                    item.timer_fired(now)
                except Exception:
                    self._crashed(item)
                self.mark_dirty(item)

    def close(self, code: int, message: str) -> None:
        """End all sessions and send the farewells."""
        if self._sessions:
            for session in list(self._sessions):
                session.close(code, message)
            self.flush()


def _address_of(address: SocketAddress) -> tuple[str, int]:
    """Host and port, for tokens; a scope is of no use to the other side of a link."""
    return (address[0].partition("%")[0], address[1])
