"""Whose datagram this is: from connection ids and reset tokens to sessions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dep2p_daemon.quic.connection_ids import RESET_TOKEN_LENGTH

if TYPE_CHECKING:
    from dep2p_daemon.quic.session import Session
    from dep2p_daemon.udp.demultiplexer import SocketAddress


@dataclass(slots=True, eq=False)
class Farewell:
    """A connection that is over: its ids stay known until its last packets have passed.

    After a close of ours the close is repeated as more packets come, ever less often
    (RFC 9000 section 10.2.1); after the peer's, they are dropped.
    """

    connection_ids: list[bytes]
    datagrams: list[bytes]
    local: bytes | None
    received: int = 0

    def answer(self, count: int) -> list[bytes]:
        """What to say to `count` more datagrams."""
        before, self.received = self.received, self.received + count
        return self.datagrams if before.bit_length() != self.received.bit_length() else []


class ConnectionTable:
    """The connection ids of one endpoint, and the peers' reset tokens."""

    def __init__(self) -> None:
        self._owners: dict[bytes, Session | Farewell] = {}
        self._reset_tokens: dict[bytes, Session] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def find(self, connection_id: bytes) -> Session | Farewell | None:
        """Who has `connection_id`."""
        return self._owners.get(connection_id)

    def find_reset(self, datagram: bytes, sender: SocketAddress) -> Session | None:
        """The session that a stateless reset of its peer ends (RFC 9000 section 10.3.1)."""
        session = self._reset_tokens.get(datagram[-RESET_TOKEN_LENGTH:])
        return session if session is not None and session.quic.is_peer_address(sender) else None

    def register(self, session: Session, connection_id: bytes) -> None:
        """Lead datagrams for `connection_id` to `session`."""
        if connection_id not in session.connection_ids:
            session.connection_ids.append(connection_id)
        self._owners[connection_id] = session

    def unregister(self, session: Session, connection_id: bytes) -> None:
        """Forget an id of `session`."""
        if connection_id in session.connection_ids:
            session.connection_ids.remove(connection_id)
        if self._owners.get(connection_id) is session:
            del self._owners[connection_id]

    def watch_reset_token(self, session: Session) -> None:
        """Recognise the reset of the peer's current connection id, and of no earlier one."""
        token = session.quic.peer_reset_token
        if token == session.reset_token:
            return
        if session.reset_token is not None:
            self._reset_tokens.pop(session.reset_token, None)
        session.reset_token = token
        if token is not None:
            self._reset_tokens[token] = session

    def remove(self, session: Session, farewell: list[bytes]) -> Farewell | None:
        """Forget `session`; returns what stands in its place until `forget`, if anything has to."""
        if session.reset_token is not None:
            self._reset_tokens.pop(session.reset_token, None)
        ids, session.connection_ids = session.connection_ids, []
        if not session.quic.has_begun or not ids:
            for connection_id in ids:
                self._owners.pop(connection_id, None)
            return None
        entry = Farewell(ids, farewell, session.local)
        for connection_id in ids:
            self._owners[connection_id] = entry
        return entry

    def forget(self, farewell: Farewell) -> None:
        """The closing period is over."""
        for connection_id in farewell.connection_ids:
            if self._owners.get(connection_id) is farewell:
                del self._owners[connection_id]
