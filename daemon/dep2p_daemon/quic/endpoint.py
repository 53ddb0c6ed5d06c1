"""All QUIC connections of one UDP socket: who a datagram is for, and who may begin.

sans-IO: datagrams and calls come in with the clock's time, datagrams go out through a
`DatagramSender`, and `next_deadline` says when to call again. `driver.py` puts it on a socket
and a loop.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import structlog

from dep2p_daemon.errors import Dep2pError, ResourceLimitError
from dep2p_daemon.muxed import CloseCode, Direction
from dep2p_daemon.quic.admission import Admission, Verdict
from dep2p_daemon.quic.aioquic_connection import AioquicConnection
from dep2p_daemon.quic.connection_ids import CONNECTION_ID_LENGTH
from dep2p_daemon.quic.connection_table import ConnectionTable, Farewell
from dep2p_daemon.quic.deadlines import Deadline, DeadlineQueue
from dep2p_daemon.quic.packets import (
    MAX_CONNECTION_ID,
    MIN_CLIENT_CHOSEN_ID,
    MIN_INITIAL_DATAGRAM,
    VERSION_1,
    LongHeader,
    parse_long_header,
)
from dep2p_daemon.quic.sender import UNREACHABLE, send_all
from dep2p_daemon.quic.session import Session
from dep2p_daemon.quic.stateless import EndpointCounters, StatelessAnswers

if TYPE_CHECKING:
    from collections.abc import Callable

    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.quic.connection import QuicConnection
    from dep2p_daemon.quic.context import QuicContext
    from dep2p_daemon.quic.sender import DatagramSender
    from dep2p_daemon.udp.demultiplexer import SocketAddress

_log = structlog.get_logger(__name__)


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
        self._table = ConnectionTable()
        self.register = self._table.register
        self.unregister = self._table.unregister
        self.watch_reset_token = self._table.watch_reset_token
        self._sessions: set[Session] = set()
        self._dirty: list[Session] = []
        self._deadlines: DeadlineQueue[Session | Farewell] = DeadlineQueue()
        self._admission = Admission(settings)
        self._stateless = StatelessAnswers(
            context.connection_ids, self.counters, settings.stateless_resets_per_second
        )

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
                found = self._table.find(connection_id)
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
            if answer := target.answer(len(datagrams)):
                self._sender.send(answer, sender, target.local)
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
        found = self._table.find(header.destination)
        if found is not None:
            return found
        if header.version not in (0, VERSION_1):
            answer = self._stateless.version_negotiation(header, datagram, now)
            self._answer(answer, sender, local)
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
        original_id = self._stateless.proven_original_id(header, sender, now)
        validated = original_id is not None
        verdict = self._admission.judge(
            sender[0], validated=validated, connections=len(self.context.sessions)
        )
        if verdict is not Verdict.ACCEPT:
            answer = self._stateless.turn_away(verdict, header, sender, now)
            self._answer(answer, sender, local)
            return None
        quic = self._make_connection(
            is_client=False,
            original_destination_connection_id=original_id or header.destination,
            retry_source_connection_id=header.destination if validated else None,
        )
        finished = self._admission.opened(sender[0], validated=validated)

        def established(connection: QuicConnection) -> None:
            finished()
            if self.on_accepted is None or not self.on_accepted(connection):
                session.refuse(CloseCode.RESOURCE_LIMIT_EXCEEDED, "nobody accepts connections")

        def failed(error: Dep2pError) -> None:
            finished()
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

    def _handle_stray(
        self, datagram: bytes, sender: SocketAddress, local: bytes | None, now: float
    ) -> None:
        """A short header with an id that nobody has."""
        session = self._table.find_reset(datagram, sender)
        if session is not None:
            self.counters.resets_received += 1
            session.stateless_reset()
            return
        self._answer(self._stateless.reset(datagram, now), sender, local)

    def _answer(self, datagram: bytes | None, sender: SocketAddress, local: bytes | None) -> None:
        if datagram is not None:
            self._sender.send([datagram], sender, local)

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
        quic = self._make_connection(is_client=True)
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

    def _make_connection(
        self,
        *,
        is_client: bool,
        original_destination_connection_id: bytes | None = None,
        retry_source_connection_id: bytes | None = None,
    ) -> AioquicConnection:
        settings = self.context.settings
        return AioquicConnection(
            configuration=self.context.configuration(is_client=is_client),
            connection_ids=self.context.connection_ids,
            max_inbound_streams=settings.max_inbound_streams,
            max_datagram_size=settings.max_datagram_size,
            connection_window=settings.initial_connection_window,
            fast_path=settings.fast_path,
            original_destination_connection_id=original_destination_connection_id,
            retry_source_connection_id=retry_source_connection_id,
        )

    def unreachable(self, address: SocketAddress, code: int) -> None:
        """The network says that `address` cannot be reached: end the handshakes with it."""
        if code not in UNREACHABLE:
            return
        for session in [s for s in self._sessions if s.address == address and s.is_dialling]:
            session.unreachable(code)

    # Sessions

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
        self.context.forget(session)
        self._deadlines.cancel(session.deadline)
        entry = self._table.remove(session, farewell)
        if entry is not None:
            self._deadlines.set(Deadline(entry), now + session.quic.closing_period)
        if not self._sessions and self.on_idle is not None:
            self.on_idle()

    # Datagrams out, and time

    def flush(self) -> None:
        """Send what the dirty sessions have: one pass each."""
        if self._sender.is_blocked:
            return  # the sender calls back
        now = self.clock()
        dirty, self._dirty = self._dirty, []
        for index, session in enumerate(dirty):
            if self._sender.is_blocked:  # what is sent now would only wait in memory
                self._dirty = dirty[index:] + self._dirty
                return
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
            error = send_all(self._sender, datagrams, session.local)
            if error == errno.EMSGSIZE:
                session.datagram_refused(now)
            deadline = session.next_deadline()
        except Exception:
            self._crashed(session)
            self._remove(session, [], now)
            return
        if session.is_over:
            self._remove(session, [data for data, _ in datagrams], now)
            return
        if error in UNREACHABLE and session.is_dialling:
            session.unreachable(error)
        if session.quic.peer_reset_token != session.reset_token and session.connection is not None:
            self.watch_reset_token(session)
        self._deadlines.set(session.deadline, deadline)

    def handle_timers(self) -> None:
        """Do what is due."""
        now = self.clock()
        for item in self._deadlines.due(now):
            if isinstance(item, Farewell):
                self._table.forget(item)
            elif item in self._sessions:
                try:
                    item.timer_fired(now)
                except Exception:
                    self._crashed(item)
                self.mark_dirty(item)

    def close(self, code: int, message: str) -> None:
        """End all sessions and send the farewells, as far as the socket takes them."""
        if self._sessions:
            for session in list(self._sessions):
                session.close(code, message)
            self.flush()
            for session in list(self._sessions):
                self._remove(session, [], self.clock())
