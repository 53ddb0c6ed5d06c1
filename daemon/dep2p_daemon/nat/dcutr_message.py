"""The message of DCUtR ("direct connection upgrade through relay").

https://github.com/libp2p/specs/blob/master/relay/DCUtR.md#rpc-messages

On the wire it is one protobuf behind its varint length (`muxed.read_message` and
`write_message`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from dep2p_daemon.errors import MultiaddrError, ProtocolViolationError
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.nat.nat_kind import NatKind
from dep2p_daemon.wire.libp2p import dcutr_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

PROTOCOL: Final = "/libp2p/dcutr"

MAX_MESSAGE_BYTES: Final = 4096
"""Longer messages are refused unread (the spec's limit)."""

MAX_ADDRESSES_READ: Final = 128
"""Addresses of a message that are looked at; ours: a message can hold a thousand tiny ones."""

_ENVELOPE_BYTES: Final = 16
"""What the type takes, and some room."""


class MessageType(enum.IntEnum):
    """The spec's numbers."""

    CONNECT = 100
    SYNC = 300


@dataclass(frozen=True, slots=True)
class DcutrMessage:
    """CONNECT with the sender's addresses, or SYNC, which has none."""

    type: MessageType
    addresses: tuple[Multiaddr, ...] = ()
    """Where the sender can be reached, or hopes so; any peer's claim."""
    nat: NatKind = NatKind.UNKNOWN
    """What stands before the sender; an extension of ours to CONNECT, which others skip."""
    unreadable: int = 0
    """Addresses that did not parse, or were beyond `MAX_ADDRESSES_READ`."""


def encode(message: DcutrMessage) -> bytes:
    """Return the protobuf; addresses that would make it too long are left out."""
    kept: list[bytes] = []
    room = MAX_MESSAGE_BYTES - _ENVELOPE_BYTES
    for address in message.addresses:
        data = bytes(address)
        room -= len(data) + (2 if len(data) < 0x80 else 3)  # tag and length
        if room < 0:
            break
        kept.append(data)
    encoded = pb.HolePunch(type=_pb_type(message.type), obs_addrs=kept)
    if message.nat is not NatKind.UNKNOWN:
        encoded.nat = pb.HolePunch.Nat.Value(message.nat.value)
    return encoded.SerializeToString()


def decode(data: bytes) -> DcutrMessage:
    """Parse the protobuf. Addresses that do not parse are counted and left out.

    Raises:
        ProtocolViolationError: reason DCUTR_MALFORMED; no message, or of no known type.
    """
    message = pb.HolePunch()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise _malformed("cannot be parsed") from error
    if not message.HasField("type"):
        raise _malformed("has no known type")
    try:
        kind = MessageType(message.type)
    except ValueError:
        raise _malformed(f"has the type {message.type}") from None
    addresses, unreadable = _addresses(message.obs_addrs)
    nat = NatKind(pb.HolePunch.Nat.Name(message.nat))  # a value that we do not know is UNKNOWN
    return DcutrMessage(kind, addresses, nat, unreadable)


def _addresses(values: Sequence[bytes]) -> tuple[tuple[Multiaddr, ...], int]:
    found: dict[Multiaddr, None] = {}
    unreadable = max(0, len(values) - MAX_ADDRESSES_READ)
    for value in values[:MAX_ADDRESSES_READ]:
        try:
            found[Multiaddr.from_bytes(value)] = None
        except MultiaddrError:
            unreadable += 1
    return tuple(found), unreadable


def _pb_type(kind: MessageType) -> pb.HolePunch.Type.ValueType:
    return pb.HolePunch.CONNECT if kind is MessageType.CONNECT else pb.HolePunch.SYNC


def _malformed(what: str) -> ProtocolViolationError:
    return ProtocolViolationError(f"a DCUtR message {what}", reason="DCUTR_MALFORMED")
