"""The TCP transport: dials and listens on `/ip4|ip6/<host>/tcp/<port>`, with Noise and Yamux.

https://github.com/libp2p/specs/blob/master/addressing/README.md#tcp. What happens on a
connected socket is in `upgrade.py`.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self

import structlog
from typing_extensions import override

from dep2p_daemon.errors import (
    ConnectionClosedError,
    Dep2pError,
    PeerError,
    PreconditionError,
    ProtocolNotSupportedError,
    UnreachableError,
)
from dep2p_daemon.muxed import CloseCode, Connection, Listener, ReceiveMemory, Transport
from dep2p_daemon.tcp.admission import HalfOpen
from dep2p_daemon.tcp.channel import SocketChannel
from dep2p_daemon.tcp.settings import TcpSettings
from dep2p_daemon.tcp.simultaneous import PATIENCE, Crossings, connect_repeatedly
from dep2p_daemon.tcp.sockets import (
    connect,
    listening_socket,
    multiaddr_of,
    reset_at_close,
    socket_address,
)
from dep2p_daemon.tcp.upgrade import upgrade
from dep2p_daemon.tcp.waiters import Waiters

if TYPE_CHECKING:
    import socket
    from collections.abc import Coroutine
    from types import TracebackType

    from dep2p_daemon.identity.keys import PrivateKey
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr

ACCEPT_BACKOFF: Final = (0.05, 1.0)
"""First and longest pause in seconds while the machine has no descriptor or memory to spare."""
_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_log = structlog.get_logger(__name__)


class TcpListener(Listener):
    """One listening socket. Made by `TcpTransport.listen`."""

    def __init__(self, transport: TcpTransport, sock: socket.socket) -> None:
        self._transport = transport
        self._socket = sock
        self._address = multiaddr_of(sock.getsockname())
        self._accepted: deque[Connection] = deque()
        self._room = asyncio.Semaphore(transport.settings.accept_backlog)
        self._waiters = Waiters()
        self._tasks: set[asyncio.Task[None]] = set()
        self.is_closed = False

    def start(self) -> None:
        """Start accepting."""
        self._spawn(self._accept_sockets())

    @property
    @override
    def addresses(self) -> tuple[Multiaddr, ...]:
        return (self._address,)

    @override
    async def accept(self) -> Connection:
        while True:
            while self._accepted:
                connection = self._accepted.popleft()
                self._room.release()
                if not connection.is_closed:
                    return connection
            if self.is_closed:
                raise ConnectionClosedError("the listener is closed", reason="LISTENER_CLOSED")
            await self._waiters.wait()

    @override
    async def close(self) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        self._waiters.wake_all()
        try:
            if tasks:
                await asyncio.wait(tasks)
            while self._accepted:
                await self._accepted.popleft().close(CloseCode.SHUTDOWN)
        finally:
            # If we were cancelled above, the loop may still watch the descriptor.
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()

    async def _accept_sockets(self) -> None:
        loop = asyncio.get_running_loop()
        pause, longest = ACCEPT_BACKOFF
        while True:
            try:
                sock, name = await loop.sock_accept(self._socket)
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    # The connection died in the backlog; accept(2) tells of it here.
                    _log.debug("inbound connection failed", error=str(error))
                    continue
                _log.warning(
                    "cannot accept connections", reason="OUT_OF_RESOURCES", error=str(error)
                )
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest)
                continue
            pause = ACCEPT_BACKOFF[0]
            self._take(sock, name)
            # A flood never makes us wait: let the others have their turn.
            await asyncio.sleep(0)

    def _take(self, sock: socket.socket, name: tuple[str, int]) -> None:
        if self._transport.crossings.take(sock, name):
            return  # whoever dials this very address goes on with it
        half_open = self._transport.half_open
        host = name[0]
        limit = half_open.enter(host)
        if limit is not None:
            sock.close()
            if half_open.worth_logging(asyncio.get_running_loop().time()):
                _log.warning("inbound connection refused", reason="HALF_OPEN", limit=limit, ip=host)
            return

        def done(task: asyncio.Task[None]) -> None:
            half_open.leave(host)
            if task.cancelled():
                sock.close()  # it may have been cancelled before its first step

        self._spawn(self._upgrade(sock, multiaddr_of(name))).add_done_callback(done)

    async def _upgrade(self, sock: socket.socket, remote: Multiaddr) -> None:
        """Upgrade one inbound socket and queue the connection; its failure is nobody else's."""
        settings = self._transport.settings
        try:
            async with asyncio.timeout(settings.upgrade_timeout):
                connection = await self._transport.upgrade(
                    sock, remote, initiator=False, expected_peer=None
                )
        except (Dep2pError, TimeoutError) as error:
            reason = error.reason if isinstance(error, Dep2pError) else "UPGRADE_TIMEOUT"
            _log.debug(
                "inbound upgrade failed", address=str(remote), reason=reason, error=str(error)
            )
            return
        except Exception:
            _log.exception("inbound upgrade failed by a defect", address=str(remote))
            return
        try:
            await self._room.acquire()
        except asyncio.CancelledError:
            await connection.close(CloseCode.SHUTDOWN)
            raise
        self._accepted.append(connection)
        self._waiters.wake_one()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._transport.spawn(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class TcpTransport(Transport):
    """An async context manager; leaving it closes every connection and socket."""

    def __init__(self, key: PrivateKey, settings: TcpSettings | None = None) -> None:
        self._key = key
        self.settings = settings or TcpSettings()
        self.memory = ReceiveMemory(self.settings.receive_memory)
        """Unread bytes of all connections; share it with `upgrade` on other channels."""
        self.half_open = HalfOpen(
            total=self.settings.max_half_open, per_ip=self.settings.max_half_open_per_ip
        )
        self.crossings = Crossings()
        """Dials that a connection from the peer's side may complete."""
        self._group = asyncio.TaskGroup()
        self._listeners: list[TcpListener] = []
        self._upgrading: set[SocketChannel] = set()
        self._connections: set[Connection] = set()
        self._is_open = False

    @property
    def local_peer(self) -> PeerId:
        """Who this node is."""
        return self._key.peer_id

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._is_open = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_open = False
        self.crossings.close()
        try:
            for listener in self._listeners:
                await listener.close()
            for channel in self._upgrading:
                channel.abort()
            await asyncio.gather(
                *(connection.close(CloseCode.SHUTDOWN) for connection in self._connections)
            )
        except BaseException as error:
            # Cancelled while saying goodbye: the group ends what is left.
            await self._group.__aexit__(type(error), error, error.__traceback__)
            raise
        # What went wrong inside the `async with` is its own error, not one of our tasks'.
        await self._group.__aexit__(None, None, None)

    @override
    def can_dial(self, address: Multiaddr) -> bool:
        return address.transport == "tcp" and address.ip is not None

    @override
    async def dial(self, address: Multiaddr, peer: PeerId) -> Connection:
        self._check_open()
        address = address.without_peer_id()
        sock = await connect(address, self._source_for(address))
        try:
            return await self.upgrade(sock, address, initiator=True, expected_peer=peer)
        except Dep2pError as error:
            raise _dial_error(error, address, peer) from error

    def expect_simultaneous(self, address: Multiaddr, *, seconds: float) -> None:
        """Keep the connection of a peer that may connect before `dial_simultaneously` is called.

        For who begins the handshake, before the peer is told where to connect to.
        """
        if self._is_open:
            self.crossings.expect(address.without_peer_id(), seconds)

    async def dial_simultaneously(
        self, address: Multiaddr, peer: PeerId, *, initiator: bool
    ) -> Connection:
        """Connect from the listening port while `peer` connects to us (DCUtR).

        `initiator` says who begins the handshake, whichever side's SYN made the connection. The
        caller sets the deadline.

        Raises:
            PreconditionError: nothing of that address family listens here.
            UnreachableError, AuthenticationError: as `dial`.
        """
        self._check_open()
        address = address.without_peer_id()
        source = self._source_for(address)
        if source is None:
            raise PreconditionError(
                f"no listening socket to reach {address} from", reason="NOT_LISTENING"
            )
        # What comes to the listener from there is served by it, as by one who does not begin.
        connect_both_ways = self.crossings.connect if initiator else connect_repeatedly
        sock = await connect_both_ways(address, source)
        reset_at_close(sock)  # a handshake that fails leaves the ports to the next connection
        try:
            connection = await self.upgrade(
                sock,
                address,
                initiator=initiator,
                expected_peer=peer,
                patience=None if initiator else PATIENCE,
            )
        except Dep2pError as error:
            raise _dial_error(error, address, peer) from error
        with suppress(OSError):  # closed already
            reset_at_close(sock, on=False)
        return connection

    @override
    async def listen(self, address: Multiaddr) -> Listener:
        self._check_open()
        listener = TcpListener(self, listening_socket(address, self.settings.listen_backlog))
        self._listeners = [*(one for one in self._listeners if not one.is_closed), listener]
        listener.start()
        return listener

    async def upgrade(
        self,
        sock: socket.socket,
        remote: Multiaddr,
        *,
        initiator: bool,
        expected_peer: PeerId | None,
        patience: float | None = None,
    ) -> Connection:
        """Make a connection of a connected socket, which is closed on any error.

        `patience` is for `upgrade.upgrade`.
        """
        try:
            self._check_open()
            local = multiaddr_of(sock.getsockname())
            channel = SocketChannel(sock)
        except OSError as error:
            sock.close()
            raise ConnectionClosedError(f"the TCP connection broke: {error}") from error
        except PreconditionError:
            sock.close()
            raise
        self._upgrading.add(channel)
        try:
            connection = await upgrade(
                channel,
                key=self._key,
                initiator=initiator,
                expected_peer=expected_peer,
                task_group=self._group,
                local_address=local,
                remote_address=remote,
                settings=self.settings,
                memory=self.memory,
                patience=patience,
            )
        finally:
            self._upgrading.discard(channel)
        self._connections.add(connection)
        self.spawn(self._forget(connection))
        return connection

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` as a task of the transport; it must not raise."""
        return self._group.create_task(work)

    async def _forget(self, connection: Connection) -> None:
        await connection.wait_closed()
        self._connections.discard(connection)

    def _check_open(self) -> None:
        if not self._is_open:
            raise PreconditionError("the TCP transport is closed", reason="TRANSPORT_CLOSED")

    def _source_for(self, address: Multiaddr) -> tuple[str, int] | None:
        """The listening address to dial from, so that the peer sees where we listen."""
        target = address.ip
        wildcard: tuple[str, int] | None = None
        for listener in self._listeners:
            (own,) = listener.addresses
            if listener.is_closed or own.ip is None or target is None:
                continue
            if own.ip.version != target.version:
                continue
            _, name = socket_address(own)
            if own.ip.is_unspecified:
                wildcard = name
            elif own.ip.is_loopback == target.is_loopback:
                return name
        return wildcard


def _dial_error(error: Dep2pError, address: Multiaddr, peer: PeerId) -> Dep2pError:
    """Add what was dialled to an error that only knows why."""
    what = f"cannot connect to {address}: {error.message}"
    context = {**error.metadata, "address": address, "peer": peer}
    if error.reason == "UNEXPECTED_END":
        return UnreachableError(
            f"cannot connect to {address}: it closed the connection during the handshake",
            reason="CLOSED_DURING_HANDSHAKE",
            remedy="the peer may be at a limit, or something else listens on this port",
            **context,
        )
    if isinstance(error, ProtocolNotSupportedError):
        remedy = "over TCP this node speaks Noise and Yamux only: the peer must offer both"
        return UnreachableError(what, reason=error.reason, remedy=remedy, **context)
    if isinstance(error, ConnectionClosedError):
        return UnreachableError(what, reason=error.reason, remedy=error.remedy, **context)
    if not isinstance(error, PeerError):
        return error
    return type(error)(what, reason=error.reason, remedy=error.remedy, **context)
