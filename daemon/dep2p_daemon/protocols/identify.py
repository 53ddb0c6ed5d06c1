"""Identify and identify push: https://github.com/libp2p/specs/blob/master/identify/README.md

Flow:
  1. On each new connection we ask who the peer is (`/ipfs/id/1.0.0`), and answer when it asks.
  2. What it told goes to the peerstore; its protocols also to the swarm, for lazy negotiation.
  3. When our protocols or addresses change, the peers that were told the old ones get a push.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from dep2p_daemon import __version__
from dep2p_daemon.errors import (
    AuthenticationError,
    Dep2pError,
    DialTimeoutError,
    PeerError,
    ProtocolViolationError,
)
from dep2p_daemon.identity.keys import PublicKey
from dep2p_daemon.identity.peer_record import PeerRecord
from dep2p_daemon.muxed import CloseCode
from dep2p_daemon.protocols.identify_message import (
    ID_PROTOCOL,
    MAX_ANSWER_BYTES,
    PROTOCOL_VERSION,
    PUSH_PROTOCOL,
    IdentifyInfo,
    decode,
    encode,
    fitting_addresses,
)
from dep2p_daemon.swarm.events import PeerIdentified

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.muxed import Connection, Stream
    from dep2p_daemon.swarm.swarm import Swarm

_log = structlog.get_logger(__name__)

AGENT_VERSION: Final = f"dep2pd/{__version__}"


@dataclass(frozen=True, kw_only=True, slots=True)
class IdentifySettings:
    """Times in seconds."""

    timeout: float = 5.0
    """For one exchange (go-libp2p's)."""
    address_ttl: float = 24 * 3600.0
    """How long a peer's addresses are kept after it told them, or was last connected."""
    push_delay: float = 0.2
    """Changes that follow each other within this time make one push."""
    max_pushes: int = 32
    """Pushes under way at once (go-libp2p's)."""
    push_burst: int = 10
    """Pushes a peer may send in a row ..."""
    push_interval: float = 5.0
    """... and afterwards one per this time (go-libp2p's)."""


_DONE: Final = asyncio.Event()
_DONE.set()


@dataclass(slots=True, eq=False)
class _Session:
    """Identify's view of one connection."""

    connection: Connection
    done: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the peer's answer came, or will not come."""
    identified: bool = False
    protocols: frozenset[str] = frozenset()
    addresses: tuple[Multiaddr, ...] = ()
    record: bytes | None = None
    """The peer's signed record, which is believed before `addresses`."""
    told: int | None = None
    """The version of ourselves that the peer knows; None while it has not asked."""
    push_tokens: float = 0.0
    push_time: float = 0.0

    def finish(self) -> None:
        """Tell who waits; an event of its own is of no more use, and takes a kilobyte."""
        self.done.set()
        self.done = _DONE


class Identify:
    """Tells peers who we are and learns who they are, on all connections of a swarm."""

    def __init__(self, swarm: Swarm, settings: IdentifySettings = IdentifySettings()) -> None:
        self._swarm = swarm
        self._settings = settings
        self._sessions: dict[str, _Session] = {}
        self._version = 0
        self._changed = asyncio.Event()
        self._pusher: asyncio.Task[None] | None = None
        self._records: dict[tuple[Multiaddr, ...], bytes] = {}
        self._recorded_version: int | None = None
        self._sequence = 0

    def register(self) -> None:
        """Begin: answer, and ask on every new connection."""
        self._swarm.set_handler(ID_PROTOCOL, self._answer)
        self._swarm.set_handler(PUSH_PROTOCOL, self._receive_push)
        self._swarm.observe(self)

    async def wait_identified(self, connection: Connection) -> bool:
        """Wait until the peer on `connection` was identified; False when it could not be.

        Takes 5 s at most from the connection's start.
        """
        if connection.is_closed:
            return False
        session = self._session(connection)
        await session.done.wait()
        return session.identified

    async def refresh(self, connection: Connection) -> None:
        """Ask the peer again: what it sees as our address may have changed (a new NAT mapping).

        Raises:
            Dep2pError: it did not answer, or broke the protocol.
        """
        if not connection.is_closed:
            await self._ask(self._session(connection))

    def _session(self, connection: Connection) -> _Session:
        session = self._sessions.get(connection.id)
        if session is None:
            session = _Session(connection, push_tokens=self._settings.push_burst)
            self._sessions[connection.id] = session
        return session

    # --------------------------------------------------------- the swarm tells

    async def connection_opened(self, connection: Connection) -> None:
        """Ask the peer who it is."""
        session = self._session(connection)
        try:
            await self._ask(session)
        except Dep2pError as error:
            _log.debug(
                "identify failed",
                peer=str(connection.remote_peer),
                connection=connection.id,
                reason=error.reason,
                error=error.message,
            )
        finally:
            session.finish()

    def connection_closed(self, connection: Connection) -> None:
        """Keep the peer's addresses for a while from now on."""
        session = self._sessions.pop(connection.id, None)
        if session is not None:
            session.finish()
            self._keep_addresses(session)

    def node_changed(self) -> None:
        """Tell the peers, soon."""
        self._version += 1
        if not any(session.told is not None for session in self._sessions.values()):
            return
        self._changed.set()
        if self._pusher is None or self._pusher.done():
            self._pusher = self._swarm.spawn(self._push_changes())

    # ------------------------------------------------------------------- asking

    async def _ask(self, session: _Session) -> None:
        connection = session.connection
        try:
            async with asyncio.timeout(self._settings.timeout):
                stream = await self._swarm.open_stream(
                    connection.remote_peer, [ID_PROTOCOL], connection=connection
                )
        except TimeoutError:
            raise DialTimeoutError("the peer did not answer identify") from None
        try:
            info = await self._read(stream)
        except BaseException:
            stream.reset()
            raise
        await stream.aclose()
        self._learn(session, info)
        session.identified = True

    async def _read(self, stream: Stream) -> IdentifyInfo:
        """Read until the peer's end; one that never closes is taken at what it said in time."""
        data = bytearray()
        try:
            async with asyncio.timeout(self._settings.timeout):
                while chunk := await stream.read():
                    data += chunk
                    if len(data) > MAX_ANSWER_BYTES:
                        raise ProtocolViolationError(
                            f"the peer's identify is longer than {MAX_ANSWER_BYTES} bytes",
                            reason="IDENTIFY_INVALID",
                        )
        except TimeoutError:
            if not data:
                raise DialTimeoutError("the peer did not answer identify") from None
        return decode(bytes(data))

    def _learn(self, session: _Session, info: IdentifyInfo) -> None:
        """Check what a peer told and keep it. Raises PeerError."""
        connection = session.connection
        peer = connection.remote_peer
        if (
            info.public_key is not None
            and PublicKey.from_protobuf(info.public_key) != connection.remote_key
        ):
            raise AuthenticationError("identify names another key than the handshake's")
        store = self._swarm.peerstore
        if info.protocols:
            session.protocols = frozenset(info.protocols)
            store.set_protocols(peer, session.protocols)
            self._swarm.set_remote_protocols(connection, session.protocols)
        if info.agent_version is not None or info.protocol_version is not None:
            store.set_agent(peer, info.agent_version or "", info.protocol_version or "")
        if info.addresses or info.signed_peer_record is not None:
            session.addresses = info.addresses
            session.record = self._own_record(connection, info)
            self._keep_addresses(session)
        _log.debug(
            "peer identified",
            peer=str(peer),
            connection=connection.id,
            agent=info.agent_version,
            protocols=len(session.protocols),
            addresses=[str(address) for address in store.addresses(peer)],
        )
        self._swarm.events.publish(PeerIdentified(peer, connection, info.observed_address))

    def _own_record(self, connection: Connection, info: IdentifyInfo) -> bytes | None:
        """Return the signed record if it holds and is the peer's own."""
        if info.signed_peer_record is None:
            return None
        try:
            record = PeerRecord.open(info.signed_peer_record)
        except Dep2pError as error:
            _log.debug("signed peer record ignored", reason=error.reason, error=error.message)
            return None
        return info.signed_peer_record if record.peer_id == connection.remote_peer else None

    def _keep_addresses(self, session: _Session) -> None:
        """Put the peer's addresses into the peerstore, or keep them there for longer."""
        connection, store = session.connection, self._swarm.peerstore

        def useful(address: Multiaddr) -> bool:
            near = _near(connection) or not address.is_loopback
            return near and not address.is_unspecified

        ttl = self._settings.address_ttl
        if session.record is not None:
            try:
                store.consume_record(session.record, ttl=ttl, accept=useful)
            except PeerError as error:
                # Older than one that we know: the peer's clock went back, or it replays.
                _log.debug("signed peer record ignored", reason=error.reason, error=error.message)
            else:
                return
        store.add_addresses(
            connection.remote_peer,
            filter(useful, session.addresses),
            ttl=ttl,
            source="identify",
        )

    # ---------------------------------------------------------------- answering

    async def _answer(self, stream: Stream) -> None:
        async with asyncio.timeout(self._settings.timeout):
            await self._tell(stream)
            await stream.aclose()

    async def _tell(self, stream: Stream) -> None:
        connection = stream.connection
        # Before the first await: a change from here on makes a push.
        self._session(connection).told = self._version
        await stream.write(self._describe(connection))
        await stream.close_write()

    def _describe(self, connection: Connection) -> bytes:
        near = _near(connection)
        addresses = fitting_addresses(
            [address for address in self._swarm.own_addresses if near or not address.is_loopback]
        )
        return encode(
            IdentifyInfo(
                public_key=self._swarm.key.public_key.to_protobuf(),
                addresses=addresses,
                protocols=self._swarm.protocols,
                # Of a relayed connection this is the relay's address up to /p2p-circuit.
                observed_address=connection.remote_address,
                protocol_version=PROTOCOL_VERSION,
                agent_version=AGENT_VERSION,
                signed_peer_record=self._record(addresses),
            )
        )

    def _record(self, addresses: Sequence[Multiaddr]) -> bytes:
        """Return our signed peer record; its sequence number grows with every change."""
        if self._recorded_version != self._version:
            self._recorded_version = self._version
            self._sequence = max(self._sequence + 1, time.time_ns())
            self._records.clear()
        key = tuple(addresses)
        record = self._records.get(key)
        if record is None:
            record = PeerRecord(self._swarm.local_peer, self._sequence, key).seal(self._swarm.key)
            self._records[key] = record
        return record

    # --------------------------------------------------------------------- push

    async def _push_changes(self) -> None:
        while self._changed.is_set():
            await asyncio.sleep(self._settings.push_delay)
            self._changed.clear()
            slots = asyncio.Semaphore(self._settings.max_pushes)
            async with asyncio.TaskGroup() as tasks:
                for session in list(self._sessions.values()):
                    if session.told not in (None, self._version) and (
                        PUSH_PROTOCOL in session.protocols
                    ):
                        tasks.create_task(self._push(session, slots))

    async def _push(self, session: _Session, slots: asyncio.Semaphore) -> None:
        connection = session.connection
        async with slots:
            try:
                async with asyncio.timeout(self._settings.timeout):
                    stream = await self._swarm.open_stream(
                        connection.remote_peer, [PUSH_PROTOCOL], connection=connection
                    )
                    try:
                        await self._tell(stream)
                        # Until the peer's end: one that is told to stop sending while it still
                        # answers the negotiation would drop what we told.
                        while await stream.read():
                            pass
                    except BaseException:
                        stream.reset()
                        raise
            except (Dep2pError, TimeoutError) as error:
                _log.debug(
                    "identify push failed", peer=str(connection.remote_peer), error=str(error)
                )

    async def _receive_push(self, stream: Stream) -> None:
        session = self._session(stream.connection)
        if not self._may_push(session, asyncio.get_running_loop().time()):
            _log.debug(
                "identify push refused",
                peer=str(stream.connection.remote_peer),
                reason="RATE_LIMITED",
            )
            stream.reset(CloseCode.RATE_LIMITED)
            return
        self._learn(session, await self._read(stream))
        await stream.aclose()

    def _may_push(self, session: _Session, now: float) -> bool:
        refill = (now - session.push_time) / self._settings.push_interval
        session.push_time = now
        session.push_tokens = min(session.push_tokens + refill, float(self._settings.push_burst))
        if session.push_tokens < 1.0:
            return False
        session.push_tokens -= 1.0
        return True


def _near(connection: Connection) -> bool:
    """Whether the peer is on this machine, so that loopback addresses mean something to it."""
    return not connection.relayed and connection.remote_address.is_loopback
