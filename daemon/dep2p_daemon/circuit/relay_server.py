"""The relay: answers RESERVE and CONNECT on hop streams and joins circuits.

https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#hop-protocol

It refuses over relayed connections, never dials a target (only a connection that is open
will do), books a circuit's place for both peers before it asks the target, and gives it back on
every path. One hop stream is one exchange; nothing is read past a message, because what
follows belongs to the circuit.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

import structlog

from dep2p_daemon.circuit.addresses import reservation_addresses
from dep2p_daemon.circuit.admission import (
    AccessPolicy,
    Admission,
    AdmissionLimits,
    AllowAll,
    Client,
    Refusal,
    Reservation,
)
from dep2p_daemon.circuit.circuits import Circuits
from dep2p_daemon.circuit.events import (
    CircuitStatus,
    ReservationChange,
    ReservationChanged,
    ReservationStatus,
)
from dep2p_daemon.circuit.messages import (
    HOP_PROTOCOL,
    MAX_MESSAGE_BYTES,
    HopConnect,
    HopReserve,
    HopStatus,
    ReservationGrant,
    Status,
    StopConnect,
    decode_hop,
    encode_hop,
)
from dep2p_daemon.circuit.stop import offer_circuit
from dep2p_daemon.circuit.voucher import Voucher
from dep2p_daemon.errors import Dep2pError, ProtocolViolationError
from dep2p_daemon.muxed import CircuitLimits, CloseCode, read_message, write_message

if TYPE_CHECKING:
    from dep2p_daemon.events import EventBus
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.muxed import Connection, Stream
    from dep2p_daemon.swarm.swarm import Swarm

log = structlog.get_logger(__name__)

SWEEP_INTERVAL: Final = 30.0
"""Seconds between two looks at the open circuits for stalled ones."""


_STATUS_FROM_CLIENT: Final = Refusal(Status.UNEXPECTED_MESSAGE, "STATUS_FROM_CLIENT")


@dataclass(frozen=True, kw_only=True, slots=True)
class RelayServerSettings:
    """What the relay gives, and how long it waits. None means unlimited."""

    admission: AdmissionLimits = field(default_factory=AdmissionLimits)
    access: AccessPolicy = field(default_factory=AllowAll)
    pair_rate: float | None = 10 * 1024 * 1024
    """Bytes per second between two peers, all their circuits and both directions together."""
    total_rate: float | None = None
    """Bytes per second of all circuits together, shared fairly."""
    circuit_duration: float | None = None
    """Seconds after which a circuit is reset; announced to both ends."""
    circuit_data: int | None = None
    """Bytes in each direction after which a circuit is reset; announced to both ends."""
    handshake_timeout: float = 30.0
    """Seconds for each exchange, the target's answer among them (go-libp2p: 60 s)."""
    max_pending_per_peer: int = 32
    """Exchanges that one peer may have under way; ours. Circuits that run do not count."""


class RelayServer:
    """Serves the hop protocol. An async context manager; leaving it ends all circuits."""

    def __init__(
        self,
        swarm: Swarm,
        events: EventBus,
        settings: RelayServerSettings | None = None,
    ) -> None:
        self._swarm = swarm
        self._events = events
        self._settings = settings or RelayServerSettings()
        self._limits: CircuitLimits | None = None
        if self._settings.circuit_duration is not None or self._settings.circuit_data is not None:
            self._limits = CircuitLimits(
                self._settings.circuit_duration, self._settings.circuit_data
            )
        self._admission = Admission(self._settings.admission, self._settings.access)
        self._circuits = Circuits(
            events,
            limits=self._limits,
            pair_rate=self._settings.pair_rate,
            total_rate=self._settings.total_rate,
        )
        self._pending: Counter[PeerId] = Counter()
        self._changed = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        self._housekeeper: asyncio.Task[None] | None = None

    @property
    def settings(self) -> RelayServerSettings:
        """What it was started with."""
        return self._settings

    @property
    def reservations(self) -> tuple[ReservationStatus, ...]:
        """The live reservations, oldest first."""
        now = asyncio.get_running_loop().time()
        return tuple(
            _reservation_status(reservation, now)
            for reservation in self._admission.reservations
            if reservation.expires_at > now
        )

    @property
    def circuits(self) -> tuple[CircuitStatus, ...]:
        """The open circuits with their byte counts so far, oldest first."""
        return self._circuits.snapshots

    def close_circuit(self, circuit_id: str) -> None:
        """End one circuit by request. Raises NotFoundError."""
        self._circuits.close(circuit_id)

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._housekeeper = self._tasks.create_task(self._keep_house(), name="relay-housekeeping")
        self._swarm.observe(self)
        self._swarm.set_handler(HOP_PROTOCOL, self._handle)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._swarm.remove_handler(HOP_PROTOCOL)
        self._admission.close()
        assert self._housekeeper is not None
        self._housekeeper.cancel()
        try:
            await self._circuits.close_all()
            for reservation in self._admission.reservations:
                self._end_reservation(reservation.peer)
        finally:
            await self._tasks.__aexit__(None, None, None)

    # The swarm tells of connections (`SwarmObserver`).

    async def connection_opened(self, connection: Connection) -> None:
        """A new connection is no news for a relay."""

    def connection_closed(self, connection: Connection) -> None:
        """A reservation lives as long as its holder is connected."""
        peer = connection.remote_peer
        if self._direct_connection(peer) is None:
            self._end_reservation(peer)

    def node_changed(self) -> None:
        """Addresses are looked up when they are handed out."""

    # One hop stream, one exchange.

    async def _handle(self, stream: Stream) -> None:
        peer = stream.connection.remote_peer
        try:
            with _Exchange(self._pending, peer) as exchange:
                if self._pending[peer] > self._settings.max_pending_per_peer:
                    # Not answered with a status: that would mean to read the request first.
                    log.info(
                        "hop stream refused",
                        peer=str(peer),
                        reason="TOO_MANY_EXCHANGES",
                        limit="max_pending_per_peer",
                    )
                    stream.reset(CloseCode.RESOURCE_LIMIT_EXCEEDED)
                else:
                    await self._converse(stream, exchange)
        except TimeoutError:
            log.info("hop exchange failed", peer=str(peer), reason="TIMEOUT")
            stream.reset()
        except Dep2pError as error:
            log.info("hop exchange failed", peer=str(peer), reason=error.reason)
            stream.reset()
        except BaseException:
            stream.reset()
            raise

    async def _converse(self, stream: Stream, exchange: _Exchange) -> None:
        try:
            async with asyncio.timeout(self._settings.handshake_timeout):
                request = decode_hop(await read_message(stream, MAX_MESSAGE_BYTES))
        except ProtocolViolationError as error:
            return await self._refuse(stream, Refusal(Status.MALFORMED_MESSAGE, error.reason))
        match request:
            case HopReserve():
                await self._reserve(stream)
            case HopConnect(target):
                await self._connect(stream, target, exchange)
            case HopStatus():
                await self._refuse(stream, _STATUS_FROM_CLIENT)

    async def _reserve(self, stream: Stream) -> None:
        connection = stream.connection
        now = asyncio.get_running_loop().time()
        self._expire(now)
        if connection.is_closed:
            return  # its end has been told already: a reservation now would outlive it
        # On the wire the end is a whole second; it is kept until the one that is announced.
        exact = time.time() + self._settings.admission.reservation_ttl
        expires_at = math.ceil(exact)
        granted = self._admission.reserve(_client(connection), now, grace=expires_at - exact)
        if isinstance(granted, Refusal):
            return await self._refuse(stream, granted)
        change = ReservationChange.REFRESHED if granted.refreshed else ReservationChange.CREATED
        self._publish(granted, change, now)
        self._changed.set()
        voucher = Voucher(self._swarm.local_peer, granted.peer, expires_at)
        addresses = reservation_addresses(
            self._swarm.own_addresses,
            relay=self._swarm.local_peer,
            over_loopback=connection.remote_address.is_loopback,
        )
        grant = ReservationGrant(expires_at, addresses, voucher.seal(self._swarm.key))
        await self._answer(stream, HopStatus(Status.OK, grant, self._limits))
        await stream.aclose()

    async def _connect(self, stream: Stream, target: PeerId, exchange: _Exchange) -> None:
        client = _client(stream.connection)
        if self._direct_connection(target) is None:
            # The swarm tells of a connection's end once its streams are wound up; that may be
            # a moment from now, but the reservation is over.
            self._end_reservation(target)
        place = self._admission.connect(client, target, asyncio.get_running_loop().time())
        if isinstance(place, Refusal):
            return await self._refuse(stream, place, target=target)
        try:
            stop = await offer_circuit(
                self._swarm,
                self._direct_connection(target),
                StopConnect(client.peer, self._limits),
                timeout=self._settings.handshake_timeout,
            )
            if isinstance(stop, Refusal):
                return await self._refuse(stream, stop, target=target)
            try:
                await self._answer(stream, HopStatus(Status.OK, limits=self._limits))
            except BaseException:
                stop.reset()
                raise
            exchange.end()
            self._changed.set()
            await self._circuits.carry(place, stream, stop)
        finally:
            self._admission.release(place)

    async def _refuse(
        self, stream: Stream, refusal: Refusal, *, target: PeerId | None = None
    ) -> None:
        """Say no, and end the stream: one left open would count against the peer's cap."""
        log.info(
            "relay request refused",
            peer=str(stream.connection.remote_peer),
            target=str(target) if target is not None else None,
            status=refusal.status.name,
            reason=refusal.reason,
            limit=refusal.limit,
        )
        await self._answer(stream, HopStatus(refusal.status))
        await stream.aclose()

    async def _answer(self, stream: Stream, status: HopStatus) -> None:
        async with asyncio.timeout(self._settings.handshake_timeout):
            await write_message(stream, encode_hop(status))

    # The books and the clock.

    async def _keep_house(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            delay = SWEEP_INTERVAL if len(self._circuits) else None
            expiry = self._admission.next_expiry()
            if expiry is not None:
                until = max(0.0, expiry - loop.time())
                delay = until if delay is None else min(delay, until)
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._changed.wait()
            self._expire(loop.time())
            self._circuits.sweep(loop.time())

    def _expire(self, now: float) -> None:
        for reservation in self._admission.expire(now):
            self._publish(reservation, ReservationChange.ENDED, now)

    def _end_reservation(self, peer: PeerId) -> None:
        ended = self._admission.end_reservation(peer)
        if ended is not None:
            self._publish(ended, ReservationChange.ENDED, asyncio.get_running_loop().time())

    def _publish(self, reservation: Reservation, change: ReservationChange, now: float) -> None:
        status = _reservation_status(reservation, now)
        self._events.publish(ReservationChanged(status, change))
        log.info(
            "reservation changed",
            peer=str(reservation.peer),
            change=change.value,
            address=str(reservation.address),
        )

    def _direct_connection(self, peer: PeerId) -> Connection | None:
        """Return the newest open connection with `peer` that no relay carries."""
        for connection in reversed(self._swarm.connections(peer)):
            if not connection.relayed and not connection.is_closed:
                return connection
        return None


class _Exchange:
    """One exchange under way, counted for its peer until `end`."""

    def __init__(self, pending: Counter[PeerId], peer: PeerId) -> None:
        self._pending = pending
        self._peer = peer
        self._ended = False

    def __enter__(self) -> Self:
        self._pending[self._peer] += 1
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()

    def end(self) -> None:
        """Count it no more. Idempotent."""
        if not self._ended:
            self._ended = True
            self._pending[self._peer] -= 1
            if not self._pending[self._peer]:
                del self._pending[self._peer]


def _client(connection: Connection) -> Client:
    address = connection.remote_address
    return Client(
        peer=connection.remote_peer,
        address=address,
        ip=None if connection.relayed else address.ip,
        relayed=connection.relayed,
    )


def _reservation_status(reservation: Reservation, now: float) -> ReservationStatus:
    to_unix = time.time() - now
    return ReservationStatus(
        peer_id=reservation.peer,
        address=reservation.address,
        created_at=reservation.created_at + to_unix,
        expires_at=reservation.expires_at + to_unix,
    )
