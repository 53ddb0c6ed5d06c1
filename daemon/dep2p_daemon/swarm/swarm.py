"""The swarm: transports, listeners, connections and streams, and the tasks under them.

One task group owns everything. Each connection has one task that accepts its streams; each
inbound stream has one that negotiates its protocol and runs its handler. What a peer does wrong
ends its stream or its connection and nothing else.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Self

import structlog

from dep2p_daemon.errors import (
    ConfigError,
    ConnectionClosedError,
    InvalidArgumentError,
    NotFoundError,
    PreconditionError,
    ResourceLimitError,
)
from dep2p_daemon.muxed import CloseCode, Direction
from dep2p_daemon.swarm.addresses import OwnAddresses
from dep2p_daemon.swarm.connections import ConnectionTable, DialPolicy
from dep2p_daemon.swarm.dialing import AddressSource, Dialer
from dep2p_daemon.swarm.events import (
    AddressesChanged,
    ConnectionClosed,
    ConnectionOpened,
    SwarmObserver,
)
from dep2p_daemon.swarm.inbound import StreamServer
from dep2p_daemon.swarm.outbound import open_negotiated
from dep2p_daemon.swarm.registry import Handler, ProtocolRegistry, check_protocol
from dep2p_daemon.swarm.settings import SwarmSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence

    from dep2p_daemon.events import EventBus
    from dep2p_daemon.identity.keys import PrivateKey
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.muxed import Connection, Listener, Stream, Transport
    from dep2p_daemon.swarm.dial import DnsResolver
    from dep2p_daemon.swarm.dial_trail import DialBook
    from dep2p_daemon.swarm.peerstore import Peerstore
    from dep2p_daemon.swarm.ranking import IPNetwork

_log = structlog.get_logger(__name__)

DEFAULT_SETTINGS: Final = SwarmSettings()

REFUSAL_LOG_INTERVAL: Final = 10.0
"""Seconds between two log lines about refused connections; each tells how many there were."""


class Swarm:
    """All connections of this node. Used as an async context manager, which owns all tasks.

    Transports are entered and left by whoever made them, around the swarm.
    """

    def __init__(
        self,
        *,
        key: PrivateKey,
        peerstore: Peerstore,
        events: EventBus,
        resolver: DnsResolver | None = None,
        settings: SwarmSettings = DEFAULT_SETTINGS,
    ) -> None:
        self.key = key
        self.local_peer = key.peer_id
        self.peerstore = peerstore
        self.events = events
        self.gate: Callable[[Connection], str | None] | None = None
        """Judges each inbound connection: a reason (UPPER_SNAKE) refuses it."""
        self.may_carry: Callable[[Connection], Awaitable[bool]] | None = None
        """Asked before an open connection is used for a new stream; may take some seconds."""
        self._settings = settings
        self._transports: list[Transport] = []
        self._listeners: list[Listener] = []
        self._observers: list[SwarmObserver] = []
        self._registry = ProtocolRegistry(self._node_changed)
        self._streams = StreamServer(self._registry, settings)
        self._table = ConnectionTable(settings)
        self._addresses = OwnAddresses(on_change=self._addresses_changed)
        self._sources: list[AddressSource] = [peerstore.addresses]
        self._dialer = Dialer(
            self, sources=self._sources, resolver=resolver, settings=settings.dial
        )
        self._tasks = asyncio.TaskGroup()
        self._serving: set[asyncio.Task[None]] = set()
        self._background: set[asyncio.Task[None]] = set()
        self._refused = 0
        self._refusal_logged = -REFUSAL_LOG_INTERVAL
        self._open = False

    # ------------------------------------------------------------------ life

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._open = True
        self.spawn(self._watch_interfaces())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._open = False
        try:
            for task in self._background:
                task.cancel()
            async with asyncio.timeout(self._settings.shutdown_timeout):
                await self._close_all()
        except TimeoutError:
            _log.warning("connections did not close in time", count=len(self._table))
        finally:
            for task in (*self._background, *self._serving):
                task.cancel()
            await self._tasks.__aexit__(None, None, None)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` in the swarm's task group until it ends, or the swarm does.

        An error of `work` is logged and ends nothing else.
        """
        task = _start(self._tasks, work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def observe(self, observer: SwarmObserver) -> None:
        """Tell `observer` of everything from now on, before the event bus is told."""
        self._observers.append(observer)

    async def _close_all(self) -> None:
        closing = [listener.close() for listener in self._listeners]
        closing += [
            connection.close(CloseCode.SHUTDOWN, "the node is stopping")
            for connection in self._table.all()
        ]
        for result in await asyncio.gather(*closing, return_exceptions=True):
            if isinstance(result, Exception):
                _log.error("something did not close", error=repr(result))
        if self._serving:
            await asyncio.wait(self._serving)

    # ------------------------------------------------------------ addresses

    def add_transport(self, transport: Transport) -> None:
        """Dial and listen with `transport` too; earlier ones are asked first."""
        self._transports.append(transport)

    def transport_for(self, address: Multiaddr) -> Transport | None:
        """Return who can dial and listen on `address` (without a trailing `/p2p`)."""
        return next((t for t in self._transports if t.can_dial(address)), None)

    async def listen(self, addresses: Iterable[Multiaddr]) -> tuple[Multiaddr, ...]:
        """Listen on all of `addresses`, or on none; return what they are bound to.

        Raises:
            ConfigError: one cannot be bound, or no transport listens on such.
        """
        listeners: list[Listener] = []
        try:
            for address in addresses:
                transport = self.transport_for(address)
                if transport is None:
                    raise ConfigError(
                        f"this node cannot listen on {address}",
                        reason="NO_TRANSPORT",
                        remedy="use /ip4/<address>/udp/<port>/quic-v1 or /ip4/<address>/tcp/<port>",
                        address=address,
                    )
                listeners.append(await transport.listen(address))
        except BaseException:
            for listener in listeners:
                await listener.close()
            raise
        for listener in listeners:
            self._listeners.append(listener)
            self.spawn(self._accept(listener))
        self._addresses.set_listening(self.listen_addresses)
        return tuple(address for listener in listeners for address in listener.addresses)

    @property
    def listen_addresses(self) -> tuple[Multiaddr, ...]:
        """What the listeners are bound to; 0.0.0.0 stays 0.0.0.0."""
        return tuple(address for listener in self._listeners for address in listener.addresses)

    @property
    def own_addresses(self) -> tuple[Multiaddr, ...]:
        """What to tell peers, without `/p2p`: announced, observed, circuit, listening ones."""
        return self._addresses.current

    def set_announced(self, addresses: Sequence[Multiaddr]) -> None:
        """Tell peers these public addresses, which the machine cannot know."""
        self._addresses.set_announced(addresses)

    def set_circuit_addresses(self, addresses: Sequence[Multiaddr]) -> None:
        """Tell peers these addresses at relays (`…/p2p/<relay>/p2p-circuit`)."""
        self._addresses.set_circuits(addresses)

    def set_observed(self, addresses: Sequence[Multiaddr]) -> None:
        """Tell peers these addresses, under which enough of them see our listening sockets."""
        self._addresses.set_observed(addresses)

    def set_confirmed(self, addresses: Sequence[Multiaddr]) -> None:
        """Tell peers these addresses, at which strangers have reached us (AutoNAT)."""
        self._addresses.set_confirmed(addresses)

    def vouched_without_confirmation(self, address: Multiaddr) -> bool:
        """Whether more than an old confirmation speaks for `address` being ours."""
        return self._addresses.vouched_without_confirmation(address)

    def set_mapped(self, addresses: Sequence[Multiaddr]) -> None:
        """Tell peers these addresses, which a gateway forwards to our listening sockets."""
        self._addresses.set_mapped(addresses)

    def add_address_source(self, source: AddressSource) -> None:
        """Ask `source` too for the addresses of a peer that is dialled by its id alone."""
        self._sources.append(source)

    def networks(self) -> Sequence[IPNetwork]:
        """The networks that this machine has an interface in."""
        return self._addresses.networks

    def read_interfaces(self) -> None:
        """Look at the machine's addresses now; it is done every few seconds anyway."""
        self._addresses.read_interfaces()

    def forget_failures(self) -> None:
        """The network changed: addresses that failed may be dialled again at once."""
        self._dialer.backoff.clear()

    async def _watch_interfaces(self) -> None:
        while True:
            await asyncio.sleep(self._settings.address_interval)
            self.read_interfaces()

    def _addresses_changed(self, addresses: tuple[Multiaddr, ...]) -> None:
        _log.info("addresses changed", addresses=[str(address) for address in addresses])
        self._node_changed()
        self.events.publish(AddressesChanged(addresses))

    # ------------------------------------------------------------ protocols

    @property
    def protocols(self) -> tuple[str, ...]:
        """The protocols served here, sorted."""
        return self._registry.protocols

    def set_handler(self, protocol: str, handler: Handler) -> None:
        """Serve `protocol`. The handler owns the stream; one that raises has it reset.

        It runs until the stream is done: running handlers are what the caps count.

        Raises:
            AlreadyExistsError: somebody serves it.
            InvalidArgumentError: not a protocol id.
        """
        self._registry.set(protocol, handler)

    def remove_handler(self, protocol: str) -> None:
        """Stop serving `protocol`; its open streams live on. Idempotent."""
        self._registry.remove(protocol)

    def _node_changed(self) -> None:
        for observer in self._observers:
            observer.node_changed()

    # ---------------------------------------------------------- connections

    def connections(self, peer: PeerId | None = None) -> tuple[Connection, ...]:
        """The open connections, of one peer or of all, oldest first."""
        return self._table.all(peer)

    def connected_peers(self) -> tuple[PeerId, ...]:
        """The peers with at least one open connection."""
        return self._table.peers()

    def best_connection(
        self, peer: PeerId, policy: DialPolicy = DialPolicy.AUTO
    ) -> Connection | None:
        """Return the connection that new streams use: direct, then unlimited, then newest."""
        return self._table.best(peer, policy)

    async def dial(
        self,
        peer: PeerId,
        addresses: Sequence[Multiaddr] = (),
        *,
        policy: DialPolicy = DialPolicy.AUTO,
        force_new: bool = False,
        timeout: float | None = None,
    ) -> Connection:
        """Return a connection to `peer`: an open one that `policy` allows, or a new one.

        With `addresses` only these are tried, whatever their past; without, all that are known.
        Concurrent dials to one peer with one policy share one attempt. Cancelling is safe.

        Raises:
            InvalidArgumentError: the peer is ourselves, or an address is another peer's.
            UnreachableError: no address is known, or all failed; says which and why.
            DialTimeoutError: `timeout` seconds passed, or every address' own time did.
            AuthenticationError: another peer answers at every address.
            RelayRefusedError: a relay refused the circuit, and nothing else worked.
            ResourceLimitError: one more connection would be too many.
        """
        if peer == self.local_peer:
            raise InvalidArgumentError(
                f"{peer} is this node itself",
                reason="DIAL_SELF",
                remedy="give the peer id of another node",
                peer=peer,
            )
        if not self._open:
            raise _stopping()
        existing = None if force_new else self._table.best(peer, policy)
        if existing is not None:
            if self.may_carry is None or await self.may_carry(existing):
                return existing
            # Somebody may have made another one meanwhile. This one stays, for what runs on it.
            other = self._table.best(peer, policy)
            if other is not None and other is not existing:
                return other
        self._table.check_room(peer)
        connection = await self._dialer.dial(
            peer, addresses, policy=policy, force_new=force_new, timeout=timeout
        )
        if force_new:
            return connection
        # The peer may have dialled us meanwhile, and of the two connections one survives.
        return self._table.best(peer, policy) or connection

    @property
    def dial_trails(self) -> DialBook:
        """What was tried at the last dials of each peer."""
        return self._dialer.trails

    def add_connection(self, connection: Connection) -> bool:
        """Take over a connection that a peer made; False when it was refused (and closed)."""
        reason = self.gate(connection) if self.gate is not None else None
        if reason is not None:
            self._refuse(connection, CloseCode.GATED, reason)
            return False
        try:
            self.adopt(connection)
        except ResourceLimitError:
            return False
        return True

    def adopt(self, connection: Connection, *, wanted: bool = False) -> None:
        """Take a connection over, past the gate; `wanted`: never end it as a twin.

        Raises:
            ResourceLimitError: one more would be too many; it is being closed.
        """
        peer = connection.remote_peer
        try:
            inbound = connection if connection.direction is Direction.INBOUND else None
            self._table.check_room(peer, inbound)
        except ResourceLimitError as error:
            self._refuse(connection, CloseCode.RESOURCE_LIMIT_EXCEEDED, error.metadata["limit"])
            raise
        for twin in self._table.add(connection, wanted=wanted):
            self.retire(twin.connection, CloseCode.SUPPLANTED, "supplanted by a simultaneous dial")
        self._dialer.backoff.succeeded(peer)
        self.peerstore.seen(peer)
        task = _start(self._tasks, self._serve(connection))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        _log.info(
            "connection opened",
            peer=str(peer),
            connection=connection.id,
            direction=connection.direction.value,
            path=connection.path,
            address=str(connection.remote_address),
        )
        self.events.publish(ConnectionOpened(connection))

    async def disconnect(self, peer: PeerId, connection_id: str | None = None) -> int:
        """Close all connections with `peer`, or one of them; return how many.

        Raises:
            NotFoundError: the peer has no connection of that id.
        """
        chosen = [
            connection
            for connection in self._table.all(peer)
            if connection_id is None or connection.id == connection_id
        ]
        if connection_id is not None and not chosen:
            raise NotFoundError(
                f"there is no connection {connection_id} with {peer}",
                connection_id=connection_id,
                peer=peer,
            )
        for connection in chosen:
            await connection.close()
            self._closed(connection, await connection.wait_closed())
        return len(chosen)

    def set_remote_protocols(self, connection: Connection, protocols: Iterable[str]) -> None:
        """Remember what identify listed: streams of these protocols need no round trip."""
        entry = self._table.get(connection)
        if entry is not None:
            entry.remote_protocols = frozenset(protocols)

    async def _accept(self, listener: Listener) -> None:
        while True:
            try:
                connection = await listener.accept()
            except ConnectionClosedError:
                return
            try:
                self.add_connection(connection)
            except Exception:
                # The gate is somebody else's code, and the listener must outlive it.
                _log.exception("a connection could not be taken over")
                await connection.close()

    async def _serve(self, connection: Connection) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                observers = {
                    _start(tasks, observer.connection_opened(connection))
                    for observer in self._observers
                }
                for observer in observers:
                    observer.add_done_callback(observers.discard)
                await self._streams.serve(connection)
                for observer in observers:
                    observer.cancel()
        finally:
            await connection.close()
            self._closed(connection, await connection.wait_closed())

    def _closed(self, connection: Connection, error: ConnectionClosedError) -> None:
        """Tell of a connection's end, once."""
        if not self._table.remove(connection):
            return
        self.peerstore.seen(connection.remote_peer)
        _log.info(
            "connection closed",
            peer=str(connection.remote_peer),
            connection=connection.id,
            path=connection.path,
            reason=error.reason,
            error=error.message,
        )
        for observer in self._observers:
            observer.connection_closed(connection)
        self.events.publish(ConnectionClosed(connection, error))

    def _refuse(self, connection: Connection, code: CloseCode, reason: str) -> None:
        now = asyncio.get_running_loop().time()
        self._refused += 1
        # Who knocks without end must not fill the log.
        if now - self._refusal_logged >= REFUSAL_LOG_INTERVAL:
            _log.warning(
                "connection refused",
                peer=str(connection.remote_peer),
                address=str(connection.remote_address),
                reason=reason,
                refused=self._refused,
            )
            self._refused, self._refusal_logged = 0, now
        self.spawn(connection.close(code, reason))

    def retire(
        self, connection: Connection, code: CloseCode = CloseCode.NONE, message: str = ""
    ) -> None:
        """Close a connection soon, but not while anything runs over it, the peer's circuits too."""
        self.spawn(self._retire(connection, code, message))

    async def _retire(self, connection: Connection, code: CloseCode, message: str) -> None:
        while not connection.is_closed:
            idle = not connection.streams
            await asyncio.sleep(self._settings.supplanted_linger)
            if idle and not connection.streams:
                await connection.close(code, message)

    # -------------------------------------------------------------- streams

    async def open_stream(
        self,
        peer: PeerId,
        protocols: Sequence[str],
        *,
        addresses: Sequence[Multiaddr] = (),
        policy: DialPolicy = DialPolicy.AUTO,
        connection: Connection | None = None,
    ) -> Stream:
        """Open a stream to `peer` for the first of `protocols` that it supports.

        It goes over `connection`, else over the best one that `policy` allows, which is dialled
        where there is none. The caller owns the stream. When identify has listed the (only)
        protocol, the peer's consent is not waited for: a refusal, which is unlikely then, is
        raised by the stream's first `read`.

        Raises:
            ProtocolNotSupportedError: the peer supports none of them.
            DialTimeoutError: the peer did not answer the negotiation.
            ConnectionClosedError, StreamResetError, and what `dial` raises.
        """
        for protocol in protocols:
            check_protocol(protocol)
        if connection is not None:
            return await self._open_on(connection, protocols)
        chosen = await self.dial(peer, addresses, policy=policy)
        try:
            return await self._open_on(chosen, protocols)
        except ConnectionClosedError:
            # It broke before its end was known; what is left, or a new one, may do.
            chosen = await self.dial(peer, addresses, policy=policy)
            return await self._open_on(chosen, protocols)

    async def _open_on(self, connection: Connection, protocols: Sequence[str]) -> Stream:
        entry = self._table.get(connection)
        return await open_negotiated(
            connection,
            protocols,
            listed=entry.remote_protocols if entry is not None else frozenset(),
            timeout=self._settings.negotiation_timeout,
        )


def _start(tasks: asyncio.TaskGroup, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Run `work` in `tasks` with its errors contained: the group must outlive it."""

    async def contained() -> None:
        try:
            await work
        except Exception:
            _log.exception("a task of the swarm failed")

    task = tasks.create_task(contained())
    # Cancelled before its first step, the task would leave `work` behind unawaited.
    task.add_done_callback(lambda _: work.close())
    return task


def _stopping() -> PreconditionError:
    return PreconditionError("the node is stopping", reason="STOPPING")
