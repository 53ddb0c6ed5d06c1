"""The client's side of the hop protocol: reach a relay, reserve there, ask for a circuit.

https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#hop-protocol

One hop stream is one exchange. Nothing is read past the relay's STATUS: after a CONNECT the
next bytes are the target's.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from dep2p_daemon.circuit.messages import (
    HOP_PROTOCOL,
    MAX_MESSAGE_BYTES,
    HopConnect,
    HopMessage,
    HopReserve,
    HopStatus,
    Status,
    decode_hop,
    encode_hop,
)
from dep2p_daemon.circuit.refusals import connect_refused, reserve_refused
from dep2p_daemon.circuit.voucher import Voucher
from dep2p_daemon.errors import (
    AuthenticationError,
    ConnectionClosedError,
    Dep2pError,
    PreconditionError,
    ProtocolNotSupportedError,
    ProtocolViolationError,
    StreamResetError,
    UnreachableError,
)
from dep2p_daemon.muxed import read_message, write_message
from dep2p_daemon.swarm.dialing import DialPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.muxed import CircuitLimits, Connection, Stream
    from dep2p_daemon.swarm.swarm import Swarm

_MISMATCH: Final = "PEER_ID_MISMATCH"

log = structlog.get_logger(__name__)

MAX_RESERVATION: Final = 30 * 24 * 3600.0
"""Seconds that a relay is believed to keep a reservation; ours. It may promise more, but the number
on the wire has 64 bits, and what comes of it must be a time that clocks and the API can tell."""


@dataclass(frozen=True, slots=True)
class Granted:
    """A reservation as the relay granted it, checked."""

    expires_at: float
    """Unix time in seconds, by the relay's clock."""
    addresses: tuple[Multiaddr, ...]
    """The relay's own, with its `/p2p`; may be empty."""
    limits: CircuitLimits | None


async def reach_relay(
    swarm: Swarm, relay: PeerId, addresses: Sequence[Multiaddr], timeout: float
) -> Connection:
    """Return a direct connection to the relay: the one that is open, or a new one.

    Raises:
        UnreachableError: reason RELAY_UNREACHABLE; names the addresses, the time and what to
            check.
        AuthenticationError: somebody else is at the address.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    try:
        async with asyncio.timeout(timeout):
            return await swarm.dial(relay, addresses, policy=DialPolicy.DIRECT)
    except (TimeoutError, UnreachableError) as error:
        # Somebody else at one address tells more than silence at another, which may be a guess.
        if isinstance(error, UnreachableError) and _MISMATCH in error.metadata.get("reasons", ""):
            raise _somebody_else(relay, error) from error
        raise _unreachable(relay, addresses, loop.time() - started, error) from error
    except AuthenticationError as error:
        raise _somebody_else(relay, error) from error


async def reserve(swarm: Swarm, connection: Connection, *, timeout: float, now: float) -> Granted:
    """Ask the relay at the other end of `connection` for a reservation, or to refresh ours.

    `now` is Unix time in seconds, to check the grant with.

    Raises:
        RelayRefusedError: the relay said no; `status` and `reason` are the spec's.
        ProtocolViolationError, AuthenticationError: the grant is none, is over, or is vouched
            for by or to somebody else.
        PreconditionError: the peer is no relay.
        UnreachableError: the relay did not answer in time.
    """
    relay = connection.remote_peer
    stream, status = await _exchange(swarm, connection, HopReserve(), timeout)
    await stream.aclose()
    if status.status != Status.OK:
        raise reserve_refused(status.status, relay=relay)
    grant = status.reservation
    if grant is None:
        raise ProtocolViolationError(
            f"the relay {relay} granted a reservation without saying what it is",
            reason="RESERVATION_MISSING",
            relay=relay,
        )
    if grant.expires_at <= now:
        raise ProtocolViolationError(
            f"the reservation of the relay {relay} ended {now - grant.expires_at:.0f} s before it "
            "began",
            reason="RESERVATION_EXPIRED",
            remedy="check the clocks of both machines",
            relay=relay,
        )
    if grant.voucher:
        Voucher.open(grant.voucher, relay=relay, peer=swarm.local_peer, now=now)
    addresses = tuple(
        address
        for address in grant.addresses
        if address.peer_id == relay and not address.is_circuit
    )
    expires_at = min(float(grant.expires_at), now + MAX_RESERVATION)
    return Granted(expires_at, addresses, status.limits)


async def connect(
    swarm: Swarm, connection: Connection, target: PeerId, *, timeout: float
) -> tuple[Stream, CircuitLimits | None]:
    """Ask the relay for a circuit; the stream returned is the pipe to the target.

    Raises:
        RelayRefusedError: the relay said no; `status` and `reason` are the spec's.
        ProtocolViolationError: the relay broke the protocol.
        PreconditionError: the peer is no relay.
        UnreachableError: the relay did not answer in time.
    """
    stream, status = await _exchange(swarm, connection, HopConnect(target), timeout)
    if status.status != Status.OK:
        # A refused hop stream is of no use; left open it would count against the relay's cap.
        stream.reset()
        raise connect_refused(status.status, relay=connection.remote_peer, target=target)
    return stream, status.limits


async def _exchange(
    swarm: Swarm, connection: Connection, request: HopMessage, timeout: float
) -> tuple[Stream, HopStatus]:
    relay = connection.remote_peer
    try:
        async with asyncio.timeout(timeout):
            return await _converse(swarm, connection, request)
    except TimeoutError as error:
        raise UnreachableError(
            f"the relay {relay} did not answer within {timeout:g} s",
            reason="RELAY_TIMEOUT",
            remedy="try again; if it stays so, look at the relay's load and log",
            relay=relay,
            waited_seconds=timeout,
        ) from error
    except (StreamResetError, ConnectionClosedError) as error:
        raise UnreachableError(
            f"the relay {relay} broke off before it answered: {error.message}",
            reason="RELAY_BROKE_OFF",
            remedy="try again; if it stays so, look at the relay's log",
            relay=relay,
        ) from error
    except ProtocolNotSupportedError as error:
        raise PreconditionError(
            f"the peer {relay} is connected, but it is no relay: it does not serve {HOP_PROTOCOL}",
            reason="RELAY_NOT_SUPPORTED",
            remedy="check that the address is the relay's and that it runs `dep2p-relay-server` "
            "(or `dep2pd --preset relay`)",
            relay=relay,
            protocol=HOP_PROTOCOL,
        ) from error


async def _converse(
    swarm: Swarm, connection: Connection, request: HopMessage
) -> tuple[Stream, HopStatus]:
    relay = connection.remote_peer
    stream = await swarm.open_stream(relay, [HOP_PROTOCOL], connection=connection)
    try:
        await write_message(stream, encode_hop(request))
        answer = decode_hop(await read_message(stream, MAX_MESSAGE_BYTES))
        if not isinstance(answer, HopStatus):
            raise ProtocolViolationError(
                f"the relay {relay} answered with something else than a status",
                reason="UNEXPECTED_MESSAGE",
                relay=relay,
            )
    except BaseException:
        stream.reset()
        raise
    return stream, answer


def _somebody_else(relay: PeerId, error: Dep2pError) -> AuthenticationError:
    return AuthenticationError(
        f"the relay {relay} is not at the address that was given: {error.message}",
        reason="RELAY_PEER_MISMATCH",
        remedy="check the relay's peer id, which follows its address: another node answers there",
        relay=relay,
    )


def _unreachable(
    relay: PeerId, addresses: Sequence[Multiaddr], waited: float, error: Exception
) -> UnreachableError:
    # The swarm's error lists each address with its cause and time; our own deadline has none.
    tried = error.metadata.get("addresses") if isinstance(error, UnreachableError) else None
    listed = "; ".join((tried or "").splitlines()) or "; ".join(
        f"{address}: no answer" for address in addresses
    )
    ports = sorted({address.port for address in addresses if address.port is not None})
    let_in = " and ".join(f"UDP and TCP port {port}" for port in ports) or "its UDP and TCP port"
    return UnreachableError(
        f"the relay {relay} could not be reached, tried for {waited:.1f} s: "
        f"{listed or 'none of its addresses is known'}",
        reason="RELAY_UNREACHABLE",
        remedy="check that the relay runs, that its firewall and cloud security group let in "
        f"{let_in}, and that the address is right",
        relay=relay,
        addresses=listed,
        waited_seconds=f"{waited:.1f}",
    )
