"""The hop and stop messages of circuit relay v2.

https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#protobuf

On the wire each is one protobuf behind its varint length (`muxed.read_message` and
`write_message`). Here they are frozen dataclasses, one per kind, that hold only what the kind
needs; the deprecated `Peer.addrs` of requests is accepted and ignored.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from dep2p_daemon.errors import MultiaddrError, PeerIdError, ProtocolViolationError
from dep2p_daemon.identity.peer_id import PeerId
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.muxed import CircuitLimits
from dep2p_daemon.wire.libp2p import circuit_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

HOP_PROTOCOL: Final = "/libp2p/circuit/relay/0.2.0/hop"
"""From a client to its relay: RESERVE and CONNECT."""

STOP_PROTOCOL: Final = "/libp2p/circuit/relay/0.2.0/stop"
"""From a relay to the target of a circuit: CONNECT."""

MAX_MESSAGE_BYTES: Final = 4096
"""Longer messages are refused unread, as go-libp2p does."""

MAX_ADDRESSES_BYTES: Final = 3072
"""What the addresses of a reservation may fill of a message; the rest is the voucher's."""

_MAX_UINT32: Final = (1 << 32) - 1
_MAX_UINT64: Final = (1 << 64) - 1
_TYPE_FIELD: Final = 1
_HOP_STATUS_FIELD: Final = 5
_STOP_STATUS_FIELD: Final = 4


class Status(enum.IntEnum):
    """The relay's and the target's answers (specs: relay/circuit-v2.md, status codes)."""

    UNUSED = 0
    OK = 100
    RESERVATION_REFUSED = 200
    RESOURCE_LIMIT_EXCEEDED = 201
    PERMISSION_DENIED = 202
    CONNECTION_FAILED = 203
    NO_RESERVATION = 204
    MALFORMED_MESSAGE = 400
    UNEXPECTED_MESSAGE = 401


@dataclass(frozen=True, slots=True)
class ReservationGrant:
    """What a relay grants a client."""

    expires_at: int
    """Unix time in seconds."""
    addresses: tuple[Multiaddr, ...]
    """The relay's, with its `/p2p` and without `/p2p-circuit`."""
    voucher: bytes
    """A sealed `voucher.Voucher`; empty when the relay gave none."""


@dataclass(frozen=True, slots=True)
class HopReserve:
    """A client asks its relay for a reservation, or to refresh the one it holds."""


@dataclass(frozen=True, slots=True)
class HopConnect:
    """A client asks a relay for a circuit to `target`."""

    target: PeerId


@dataclass(frozen=True, slots=True)
class HopStatus:
    """The relay's answer. `status` may be a number that `Status` does not know."""

    status: int
    reservation: ReservationGrant | None = None
    limits: CircuitLimits | None = None
    """None when the relay limits nothing."""


@dataclass(frozen=True, slots=True)
class StopConnect:
    """A relay offers the target a circuit from `source`. The peer id is the relay's claim."""

    source: PeerId
    limits: CircuitLimits | None = None


@dataclass(frozen=True, slots=True)
class StopStatus:
    """The target's answer. `status` may be a number that `Status` does not know."""

    status: int


HopMessage: TypeAlias = HopReserve | HopConnect | HopStatus
StopMessage: TypeAlias = StopConnect | StopStatus


def status_name(status: int) -> str:
    """Return the spec's name of a status, or "STATUS_<n>" for one it does not have."""
    try:
        return Status(status).name
    except ValueError:
        return f"STATUS_{status}"


def encode_hop(message: HopMessage) -> bytes:
    """Return the protobuf bytes of `message`, without the length."""
    # The type is set also where it is zero: proto2 "required" peers reject its absence.
    match message:
        case HopReserve():
            wire = pb.HopMessage(type=pb.HopMessage.RESERVE)
        case HopConnect(target):
            wire = pb.HopMessage(type=pb.HopMessage.CONNECT, peer=pb.Peer(id=bytes(target)))
        case HopStatus(status, reservation, limits):
            wire = pb.HopMessage(type=pb.HopMessage.STATUS, status=_wire_status(status))
            if reservation is not None:
                wire.reservation.CopyFrom(_wire_reservation(reservation))
            if limits is not None:
                wire.limit.CopyFrom(_wire_limits(limits))
    return wire.SerializeToString()


def encode_stop(message: StopMessage) -> bytes:
    """Return the protobuf bytes of `message`, without the length."""
    match message:
        case StopConnect(source, limits):
            wire = pb.StopMessage(type=pb.StopMessage.CONNECT, peer=pb.Peer(id=bytes(source)))
            if limits is not None:
                wire.limit.CopyFrom(_wire_limits(limits))
        case StopStatus(status):
            wire = pb.StopMessage(type=pb.StopMessage.STATUS, status=_wire_status(status))
    return wire.SerializeToString()


def decode_hop(data: bytes) -> HopMessage:
    """Parse a hop message.

    Raises:
        ProtocolViolationError: reason MALFORMED_MESSAGE; the text says what is wrong.
    """
    wire = pb.HopMessage()
    _parse(wire, data)
    match _type_of(wire, wire.type):
        case pb.HopMessage.RESERVE:
            return HopReserve()
        case pb.HopMessage.CONNECT:
            return HopConnect(_peer_id(wire))
        case _:
            return HopStatus(
                _status_of(wire, _HOP_STATUS_FIELD),
                _reservation_of(wire.reservation) if wire.HasField("reservation") else None,
                _limits_of(wire.limit) if wire.HasField("limit") else None,
            )


def decode_stop(data: bytes) -> StopMessage:
    """Parse a stop message.

    Raises:
        ProtocolViolationError: reason MALFORMED_MESSAGE; the text says what is wrong.
    """
    wire = pb.StopMessage()
    _parse(wire, data)
    if _type_of(wire, wire.type) == pb.StopMessage.CONNECT:
        limits = _limits_of(wire.limit) if wire.HasField("limit") else None
        return StopConnect(_peer_id(wire), limits)
    return StopStatus(_status_of(wire, _STOP_STATUS_FIELD))


def fitting_addresses(addresses: Sequence[Multiaddr]) -> tuple[Multiaddr, ...]:
    """Return the first addresses of a reservation that fit into one message."""
    fitting: list[Multiaddr] = []
    room = MAX_ADDRESSES_BYTES
    for address in addresses:
        room -= len(bytes(address)) + 3  # tag and length
        if room < 0:
            break
        fitting.append(address)
    return tuple(fitting)


def _malformed(message: str) -> ProtocolViolationError:
    return ProtocolViolationError(message, reason="MALFORMED_MESSAGE")


def _parse(wire: Message, data: bytes) -> None:
    if len(data) > MAX_MESSAGE_BYTES:
        raise _malformed(f"a message of {len(data)} bytes, where {MAX_MESSAGE_BYTES} are allowed")
    try:
        wire.ParseFromString(data)
    except DecodeError as error:
        raise _malformed("a circuit message is no protobuf") from error


def _unknown_enum(wire: Message, field: int) -> int | None:
    """Return the number of an enum field whose value the schema does not have."""
    fields = UnknownFieldSet(wire)
    for unknown in (fields[index] for index in range(len(fields))):
        if unknown.field_number == field and isinstance(unknown.data, int):
            return unknown.data
    return None


def _type_of(wire: Message, value: int) -> int:
    # An absent type is read as its zero value: that is what proto3 senders without explicit
    # presence mean, and go-libp2p reads it so. A number the schema lacks is an error.
    if not wire.HasField("type"):
        unknown = _unknown_enum(wire, _TYPE_FIELD)
        if unknown is not None:
            raise _malformed(f"a circuit message of unknown type {unknown}")
    return value


def _status_of(wire: pb.HopMessage | pb.StopMessage, field: int) -> int:
    if wire.HasField("status"):
        return int(wire.status)
    return _unknown_enum(wire, field) or Status.UNUSED


def _wire_status(status: int) -> pb.Status.ValueType:
    return pb.Status.ValueType(Status(status))


def _peer_id(wire: pb.HopMessage | pb.StopMessage) -> PeerId:
    if not wire.HasField("peer"):
        raise _malformed("a CONNECT without a peer")
    try:
        return PeerId.from_bytes(wire.peer.id)
    except PeerIdError as error:
        raise _malformed("the peer of a CONNECT has no valid peer id") from error


def _wire_reservation(reservation: ReservationGrant) -> pb.Reservation:
    wire = pb.Reservation(
        expire=reservation.expires_at, addrs=[bytes(a) for a in reservation.addresses]
    )
    if reservation.voucher:
        wire.voucher = reservation.voucher
    return wire


def _reservation_of(wire: pb.Reservation) -> ReservationGrant:
    addresses: list[Multiaddr] = []
    for raw in wire.addrs:
        try:
            addresses.append(Multiaddr.from_bytes(raw))
        except MultiaddrError:
            continue  # a kind of address that we cannot use, not a broken relay
    return ReservationGrant(wire.expire, tuple(addresses), wire.voucher)


def _wire_limits(limits: CircuitLimits) -> pb.Limit:
    wire = pb.Limit()
    if limits.duration is not None:
        # Rounded up: 0 would read as unlimited.
        wire.duration = min(max(1, math.ceil(limits.duration)), _MAX_UINT32)
    if limits.data is not None:
        wire.data = min(max(1, limits.data), _MAX_UINT64)
    return wire


def _limits_of(wire: pb.Limit) -> CircuitLimits:
    return CircuitLimits(
        duration=float(wire.duration) if wire.duration else None, data=wire.data or None
    )
