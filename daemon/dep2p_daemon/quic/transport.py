"""The QUIC transport: dials and listens on `/ip4|ip6/<host>/udp/<port>/quic-v1`.

https://github.com/libp2p/specs/blob/master/quic/README.md. No step is negotiated: TLS names the
peer, QUIC streams are the muxer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Self

import structlog
from typing_extensions import override

from dep2p_daemon.errors import (
    ConfigError,
    ConnectionClosedError,
    Dep2pError,
    InvalidArgumentError,
    PeerError,
    PreconditionError,
    UnreachableError,
)
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.muxed import CloseCode, Connection, Listener, Transport
from dep2p_daemon.quic.context import QuicContext
from dep2p_daemon.quic.driver import EndpointDriver
from dep2p_daemon.quic.settings import QuicSettings
from dep2p_daemon.udp.socket import UdpSocket

if TYPE_CHECKING:
    from types import TracebackType

    from dep2p_daemon.identity.keys import PrivateKey
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.muxed import ReceiveMemory
    from dep2p_daemon.quic.connection import QuicConnection

_log = structlog.get_logger(__name__)


class QuicListener(Listener):
    """One listening UDP socket."""

    def __init__(self, driver: EndpointDriver, backlog: int) -> None:
        self._driver = driver
        self._backlog = backlog
        self._waiting: deque[QuicConnection] = deque()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._closed = False
        driver.endpoint.on_accepted = self._on_accepted

    @property
    @override
    def addresses(self) -> tuple[Multiaddr, ...]:
        return (Multiaddr.for_udp(self._driver.socket.host, self._driver.socket.port),)

    @override
    async def accept(self) -> Connection:
        while True:
            while self._waiting:
                connection = self._waiting.popleft()
                if not connection.is_closed:
                    return connection
            if self._closed:
                raise ConnectionClosedError("the listener is closed", reason="LISTENER_CLOSED")
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
                if self._waiting:
                    self._wake()  # a cancelled turn goes to the next

    @override
    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        endpoint = self._driver.endpoint
        endpoint.on_accepted = None
        while self._waiting:
            await self._waiting.popleft().close(CloseCode.SHUTDOWN, "the listener is closed")
        while self._waiters:
            self._wake()
        if endpoint.sessions:
            endpoint.on_idle = self._on_idle
        else:
            self._on_idle()

    @property
    def is_closed(self) -> bool:
        """True after `close`."""
        return self._closed

    def _on_idle(self) -> None:
        """The last connection has gone, and no more will come."""
        asyncio.get_running_loop().call_soon(self._driver.close, CloseCode.NONE, "")

    def _on_accepted(self, connection: QuicConnection) -> bool:
        if len(self._waiting) >= self._backlog:
            return False
        self._waiting.append(connection)
        self._wake()
        return True

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return


class QuicTransport(Transport):
    """An async context manager; leaving it closes every connection and socket."""

    def __init__(
        self,
        key: PrivateKey,
        settings: QuicSettings | None = None,
        *,
        memory: ReceiveMemory | None = None,
    ) -> None:
        """Prepare a transport for the node of `key`.

        Args:
            key: the node's identity.
            settings: limits and sizes; None: the defaults.
            memory: the bound on unread bytes, to share it with other transports; None: one of
                its own, as large as the settings say.
        """
        self._context = QuicContext.create(
            key, settings if settings is not None else QuicSettings(), memory
        )
        self._drivers: list[EndpointDriver] = []
        self._listeners: dict[EndpointDriver, QuicListener] = {}
        self._is_open = False

    async def __aenter__(self) -> Self:
        self._is_open = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_open = False
        for listener in list(self._listeners.values()):
            await listener.close()
        for driver in self._drivers:
            driver.close(CloseCode.SHUTDOWN, "shutting down")
        self._drivers.clear()
        self._listeners.clear()

    @property
    def context(self) -> QuicContext:
        """What the transport's sockets share: settings, certificate, bounds."""
        return self._context

    @property
    def drivers(self) -> tuple[EndpointDriver, ...]:
        """The open sockets and their endpoints, for metrics and for the rooms that share them."""
        for driver in [driver for driver in self._drivers if driver.socket.is_closed]:
            self._drivers.remove(driver)
            self._listeners.pop(driver, None)
        return tuple(self._drivers)

    @override
    def can_dial(self, address: Multiaddr) -> bool:
        return address.transport == "quic-v1" and address.ip is not None

    @override
    async def dial(self, address: Multiaddr, peer: PeerId) -> Connection:
        host, port = _host_and_port(address)
        try:
            driver = self._driver_for(address)
            target = driver.socket.address(host, port)
        except (ConfigError, OSError) as error:
            raise UnreachableError(
                f"cannot connect to {address}: {error}",
                reason="NO_SOCKET",
                remedy="check that this machine has addresses of that family and that interface",
                address=address,
                peer=peer,
            ) from error
        established: asyncio.Future[QuicConnection] = asyncio.get_running_loop().create_future()

        def failed(error: Dep2pError) -> None:
            if not established.done():
                established.set_exception(error)

        def succeeded(connection: QuicConnection) -> None:
            if not established.done():
                established.set_result(connection)

        session = driver.endpoint.connect(target, peer, on_established=succeeded, on_failed=failed)
        driver.flush()
        try:
            return await established
        except Dep2pError as error:
            driver.flush()  # what is left of it goes now
            raise _dial_error(error, address, peer) from error
        except BaseException:
            session.close(CloseCode.NONE, "the dial was cancelled")
            driver.flush()
            raise

    def send_probe(self, address: Multiaddr, data: bytes) -> bool:
        """Send one datagram to `address` from the listening socket that would dial it (DCUtR).

        Opens the NAT for what comes from there. Never blocks; False when nothing listens on
        that address family, or the kernel refused.
        """
        host, port = _host_and_port(address)
        driver = self._listening_driver(address)
        if driver is None:
            return False
        return driver.socket.send([data], driver.socket.address(host, port)) == 0

    @override
    async def listen(self, address: Multiaddr) -> Listener:
        host, port = _host_and_port(address)
        driver = self._open(host, port)
        listener = QuicListener(driver, self._context.settings.accept_backlog)
        self._listeners[driver] = listener
        return listener

    def _open(self, host: str, port: int) -> EndpointDriver:
        if not self._is_open:
            raise PreconditionError("the QUIC transport is closed", reason="TRANSPORT_CLOSED")
        driver = EndpointDriver(
            self._context, UdpSocket.open(host, port, self._context.settings.udp)
        )
        self._drivers.append(driver)
        return driver

    def _driver_for(self, address: Multiaddr) -> EndpointDriver:
        """The socket to dial from: a listening one, so that the peer sees where we listen."""
        best = self._best_driver(address)
        if best is not None:
            return best
        assert address.ip is not None
        return self._open("0.0.0.0" if address.ip.version == 4 else "::", 0)

    def _listening_driver(self, address: Multiaddr) -> EndpointDriver | None:
        driver = self._best_driver(address)
        return driver if driver is not None and driver.endpoint.on_accepted is not None else None

    def _best_driver(self, address: Multiaddr) -> EndpointDriver | None:
        target = address.ip
        assert target is not None
        best: EndpointDriver | None = None
        best_rank = 0
        for driver in self.drivers:
            listener = self._listeners.get(driver)
            if listener is not None and listener.is_closed:
                continue
            rank = _suitability(driver, target.version, is_loopback=target.is_loopback)
            if rank > best_rank:
                best, best_rank = driver, rank
        return best


def _suitability(driver: EndpointDriver, version: int, *, is_loopback: bool) -> int:
    """0: packets from this socket cannot get there; else the more the better."""
    socket = driver.socket
    if (4 if ":" not in socket.host else 6) != version:
        return 0
    listening = 2 if driver.endpoint.on_accepted is not None else 0
    if socket.is_wildcard:
        return 1 + listening
    if socket.is_loopback != is_loopback:
        return 0
    return 2 + listening


def _host_and_port(address: Multiaddr) -> tuple[str, int]:
    if address.transport != "quic-v1" or address.ip is None or address.port is None:
        raise InvalidArgumentError(
            f"{address} is not a QUIC address with an IP",
            reason="NOT_A_QUIC_ADDRESS",
            remedy="use /ip4/<address>/udp/<port>/quic-v1",
            address=address,
        )
    host = str(address.ip)
    zone = address.value("ip6zone")
    return (f"{host}%{zone}" if zone else host), address.port


def _dial_error(error: Dep2pError, address: Multiaddr, peer: PeerId) -> Dep2pError:
    """Add what was dialled to an error that only knows why."""
    if isinstance(error, ConnectionClosedError) or not isinstance(error, PeerError):
        return UnreachableError(
            f"cannot connect to {address}: {error.message}",
            reason=error.reason,
            remedy=error.remedy,
            address=address,
            peer=peer,
        )
    return type(error)(
        f"cannot connect to {address}: {error.message}",
        reason=error.reason,
        remedy=error.remedy,
        **{**error.metadata, "address": address, "peer": peer},
    )
