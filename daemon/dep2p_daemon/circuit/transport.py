"""Circuits as a transport: dials `…/p2p/R/p2p-circuit`, takes what relays bring.

https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#stop-protocol

A circuit is a raw pipe; both ends upgrade it like a TCP connection (Noise, yamux), the dialler
as the initiator. Who is at the other end is what that handshake proves: the relay's word is
only compared with it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import structlog
from typing_extensions import override

from dep2p_daemon.circuit import hop
from dep2p_daemon.circuit.channel import CircuitChannel
from dep2p_daemon.circuit.messages import (
    MAX_MESSAGE_BYTES,
    STOP_PROTOCOL,
    Status,
    StopConnect,
    StopStatus,
    decode_stop,
    encode_stop,
)
from dep2p_daemon.errors import (
    AuthenticationError,
    ConfigError,
    Dep2pError,
    InvalidArgumentError,
    ProtocolViolationError,
    UnreachableError,
)
from dep2p_daemon.muxed import (
    CloseCode,
    Connection,
    Listener,
    ReceiveMemory,
    Transport,
    read_message,
    write_message,
)
from dep2p_daemon.tcp.settings import TcpSettings
from dep2p_daemon.tcp.upgrade import upgrade

if TYPE_CHECKING:
    from dep2p_daemon.identity.keys import PrivateKey
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.muxed import CircuitLimits, Stream
    from dep2p_daemon.swarm.swarm import Swarm

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class CircuitSettings:
    """Deadlines and caps of the circuits that end here. Times in seconds."""

    relay_timeout: float = 8.0
    """For the connection to the relay. The three together fit into the swarm's
    `circuit_timeout`, so that the error says which of them ran out."""
    connect_timeout: float = 8.0
    """For the relay's answer to CONNECT, the target's consent included."""
    upgrade_timeout: float = 8.0
    """For the handshake with the other end, and for a relay's stop message."""
    max_pending: int = 64
    """Inbound circuits that are being set up, over all relays; ours."""
    max_pending_per_relay: int = 32
    """The same, over one relay."""
    tcp: TcpSettings = field(default_factory=TcpSettings)
    """Of Noise and yamux on circuits; `receive_memory` bounds all circuits together."""


class CircuitTransport(Transport):
    """Dials circuits and serves the stop protocol. An async context manager that owns them.

    It takes circuits only from relays that were named with `accept_from`: those where we hold,
    or are about to hold, a reservation.
    """

    def __init__(
        self, swarm: Swarm, key: PrivateKey, settings: CircuitSettings | None = None
    ) -> None:
        self._swarm = swarm
        self._key = key
        self._settings = settings or CircuitSettings()
        self._memory = ReceiveMemory(self._settings.tcp.receive_memory)
        self._relays: set[PeerId] = set()
        self._pending: Counter[PeerId] = Counter()
        self._connections: set[Connection] = set()
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._swarm.set_handler(STOP_PROTOCOL, self._serve_stop)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._swarm.remove_handler(STOP_PROTOCOL)
        try:
            for connection in tuple(self._connections):
                await connection.close(CloseCode.SHUTDOWN)
        finally:
            await self._tasks.__aexit__(None, None, None)

    def accept_from(self, relay: PeerId) -> None:
        """Take circuits that `relay` brings from now on."""
        self._relays.add(relay)

    def refuse_from(self, relay: PeerId) -> None:
        """Take no more circuits from `relay`; those that run live on. Idempotent."""
        self._relays.discard(relay)

    # Outbound.

    @override
    def can_dial(self, address: Multiaddr) -> bool:
        return address.is_circuit

    @override
    async def dial(self, address: Multiaddr, peer: PeerId) -> Connection:
        """Connect to `peer` through the relay that `address` names.

        Raises:
            RelayRefusedError: the relay said no; `reason` is its status, such as
                NO_RESERVATION.
            UnreachableError: the relay, or the peer behind it, did not answer; says which.
            AuthenticationError: the relay connected us to somebody else.
            PreconditionError: reason RELAY_NOT_SUPPORTED, the peer named as relay is none.
            MultiaddrError, InvalidArgumentError: no address of a circuit to `peer`.
        """
        settings = self._settings
        relay, relay_addresses = self._relay_of(address, peer)
        bound = log.bind(relay=str(relay), peer=str(peer))
        bound.debug("circuit: reaching the relay", addresses=[str(a) for a in relay_addresses])
        carrier = await hop.reach_relay(self._swarm, relay, relay_addresses, settings.relay_timeout)
        bound.debug("circuit: asking the relay", connection=carrier.id)
        stream, limits = await hop.connect(
            self._swarm, carrier, peer, timeout=settings.connect_timeout
        )
        bound.debug("circuit: securing it end to end", limits=limits)
        return await self._upgrade(stream, peer, initiator=True, limits=limits)

    @override
    async def listen(self, address: Multiaddr) -> Listener:
        raise ConfigError(
            f"{address} cannot be listened on: a circuit address comes with a reservation",
            reason="CIRCUIT_LISTEN",
            remedy="use `dep2pctl relay connect <relay address>` instead",
            address=address,
        )

    def _relay_of(self, address: Multiaddr, peer: PeerId) -> tuple[PeerId, tuple[Multiaddr, ...]]:
        if address.protocols.count("p2p-circuit") > 1:
            raise InvalidArgumentError(
                f"{address} leads through two relays; a relay refuses to be reached through "
                "another",
                reason="NESTED_CIRCUIT",
                remedy="use an address with one /p2p-circuit",
                address=address,
            )
        relay_address, _ = address.split_circuit()
        relay = relay_address.peer_id
        assert relay is not None  # split_circuit has seen to it
        if relay in (peer, self._swarm.local_peer) or address.peer_id not in (None, peer):
            raise InvalidArgumentError(
                f"{address} is no circuit to {peer}: relay, target and this node must be three",
                reason="CIRCUIT_ENDS",
                remedy="dial a relay directly, by its address without /p2p-circuit",
                address=address,
            )
        # A bare /p2p/<relay>/p2p-circuit: the relay's addresses are known, or they are not.
        bare = relay_address.protocols == ("p2p",)
        return relay, () if bare else (relay_address.without_peer_id(),)

    # Inbound.

    async def _serve_stop(self, stream: Stream) -> None:
        """Answer a relay's offer; runs until the circuit has ended."""
        relay = stream.connection.remote_peer
        settings = self._settings
        connection: Connection | None = None
        counted = (
            self._pending.total() < settings.max_pending
            and self._pending[relay] < settings.max_pending_per_relay
        )
        self._pending[relay] += counted
        try:
            async with asyncio.timeout(settings.upgrade_timeout):
                offer = await self._take_offer(stream, counted=counted)
            if offer is not None:
                connection = await self._upgrade(
                    stream, offer.source, initiator=False, limits=offer.limits
                )
        except TimeoutError:
            log.info("inbound circuit failed", relay=str(relay), reason="TIMEOUT")
            stream.reset()
        except Dep2pError as error:
            log.info(
                "inbound circuit failed",
                relay=str(relay),
                reason=error.reason,
                error=error.message,
            )
            stream.reset()
        finally:
            self._pending[relay] -= counted
            if not self._pending[relay]:
                del self._pending[relay]
        if connection is not None and self._swarm.add_connection(connection):
            await connection.wait_closed()

    async def _take_offer(self, stream: Stream, *, counted: bool) -> StopConnect | None:
        """Read the relay's message and answer it; None when it was refused."""
        carrier = stream.connection
        try:
            offer = decode_stop(await read_message(stream, MAX_MESSAGE_BYTES))
        except ProtocolViolationError as error:
            await self._refuse(stream, Status.MALFORMED_MESSAGE, error.reason)
            return None
        if not isinstance(offer, StopConnect):
            refusal = (Status.UNEXPECTED_MESSAGE, "NO_CONNECT")
        elif carrier.relayed:
            refusal = (Status.PERMISSION_DENIED, "RELAYED_CONNECTION")
        elif carrier.remote_peer not in self._relays:
            refusal = (Status.PERMISSION_DENIED, "NOT_OUR_RELAY")
        elif offer.source in (self._swarm.local_peer, carrier.remote_peer):
            refusal = (Status.PERMISSION_DENIED, "CIRCUIT_ENDS")
        elif not counted:
            refusal = (Status.RESOURCE_LIMIT_EXCEEDED, "TOO_MANY_PENDING_CIRCUITS")
        else:
            await write_message(stream, encode_stop(StopStatus(Status.OK)))
            return offer
        await self._refuse(stream, *refusal)
        return None

    async def _refuse(self, stream: Stream, status: Status, reason: str) -> None:
        log.info(
            "inbound circuit refused",
            relay=str(stream.connection.remote_peer),
            status=status.name,
            reason=reason,
        )
        await write_message(stream, encode_stop(StopStatus(status)))
        await stream.aclose()

    # Both.

    async def _upgrade(
        self, stream: Stream, peer: PeerId, *, initiator: bool, limits: CircuitLimits | None
    ) -> Connection:
        """Secure and multiplex the pipe. The stream is the connection's, or is reset."""
        carrier = stream.connection
        relay = carrier.remote_peer
        timeout = self._settings.upgrade_timeout
        try:
            async with asyncio.timeout(timeout):
                connection = await upgrade(
                    CircuitChannel(stream, limits),
                    key=self._key,
                    initiator=initiator,
                    expected_peer=peer,
                    task_group=self._tasks,
                    local_address=carrier.local_address,
                    remote_address=carrier.remote_address.with_peer_id(relay) / "/p2p-circuit",
                    relay=relay,
                    limits=limits,
                    settings=self._settings.tcp,
                    memory=self._memory,
                )
        except TimeoutError:
            stream.reset()
            raise UnreachableError(
                f"{peer} did not answer through the relay {relay} within {timeout:g} s",
                reason="CIRCUIT_TIMEOUT",
                remedy="try again; if it stays so, look at the listening node's log",
                relay=relay,
                peer=peer,
                waited_seconds=timeout,
            ) from None
        except AuthenticationError as error:
            stream.reset()
            raise AuthenticationError(
                f"the relay {relay} connected us to somebody else than {peer}: {error.message}",
                reason="CIRCUIT_PEER_MISMATCH",
                remedy="use another relay: this one is broken, or cheats",
                relay=relay,
                peer=peer,
            ) from error
        except BaseException:
            stream.reset()
            raise
        self._connections.add(connection)
        self._tasks.create_task(self._watch(connection), name=f"circuit {connection.id}")
        return connection

    async def _watch(self, connection: Connection) -> None:
        await connection.wait_closed()
        self._connections.discard(connection)
