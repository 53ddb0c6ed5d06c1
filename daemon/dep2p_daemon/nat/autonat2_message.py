"""The messages of AutoNAT v2: https://github.com/libp2p/specs/blob/master/autonat/autonat-v2.md

On the wire each is one protobuf behind its varint length (`muxed.read_message` and
`write_message`). Those of the dial-request stream are members of one oneof; those of the
dial-back stream stand by themselves. Status 0 is an error on the first and OK on the second, and
absent fields read as 0: so a dial response without fields says "internal error".
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from google.protobuf.message import DecodeError, Message

from dep2p_daemon.errors import MultiaddrError, ProtocolViolationError
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.wire.libp2p import autonat2_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

DIAL_REQUEST_PROTOCOL: Final = "/libp2p/autonat/2/dial-request"
"""From the client to the server."""

DIAL_BACK_PROTOCOL: Final = "/libp2p/autonat/2/dial-back"
"""From the server to the client, over a connection that the server made for it."""

MAX_MESSAGE_BYTES: Final = 8192
MAX_DIAL_BACK_BYTES: Final = 1024
MAX_ADDRESSES: Final = 50
"""Addresses of a request that are looked at (these three are go-libp2p's)."""
MAX_DATA_BYTES: Final = 4096
"""Payload of one DialDataResponse."""

_MessageT = TypeVar("_MessageT", bound=Message)


class ResponseStatus(enum.IntEnum):
    """What became of a request."""

    E_INTERNAL_ERROR = 0
    E_REQUEST_REJECTED = 100
    """A limit, or a connection that must not ask."""
    E_DIAL_REFUSED = 101
    """The server dials none of the addresses."""
    OK = 200


class DialStatus(enum.IntEnum):
    """What became of the dial; means something only where the response is OK."""

    UNUSED = 0
    E_DIAL_ERROR = 100
    """No connection."""
    E_DIAL_BACK_ERROR = 101
    """A connection, but the nonce could not be handed over."""
    OK = 200


@dataclass(frozen=True, slots=True)
class DialRequest:
    """Please dial one of these and show the nonce there."""

    addresses: tuple[Multiaddr | None, ...]
    """The most important first; None for one that does not parse, so that indexes hold."""
    nonce: int


@dataclass(frozen=True, slots=True)
class DialResponse:
    """The server's verdict. The statuses may be numbers that the specification does not have."""

    status: int
    index: int = 0
    """The address that was dialled."""
    dial_status: int = DialStatus.UNUSED


@dataclass(frozen=True, slots=True)
class DialDataRequest:
    """Before it dials a foreign address, the server wants the client to spend this much."""

    index: int
    size: int
    """In bytes."""


@dataclass(frozen=True, slots=True)
class DialDataResponse:
    """A part of what was asked for; its content means nothing."""

    data: bytes


RequestMessage: TypeAlias = DialRequest | DialResponse | DialDataRequest | DialDataResponse


def encode(message: RequestMessage) -> bytes:
    """Return the protobuf of a message of the dial-request stream."""
    match message:
        case DialRequest(addresses, nonce):
            wire = pb.Message(
                dialRequest=pb.DialRequest(
                    addrs=[b"" if address is None else bytes(address) for address in addresses],
                    nonce=nonce,
                )
            )
        case DialResponse(status, index, dial_status):
            wire = pb.Message()
            # All enums are open in proto3, the generated types do not know it.
            wire.dialResponse.status = status  # type: ignore[assignment]
            wire.dialResponse.addrIdx = index
            wire.dialResponse.dialStatus = dial_status  # type: ignore[assignment]
            wire.dialResponse.SetInParent()
        case DialDataRequest(index, size):
            wire = pb.Message(dialDataRequest=pb.DialDataRequest(addrIdx=index, numBytes=size))
        case DialDataResponse(data):
            wire = pb.Message(dialDataResponse=pb.DialDataResponse(data=data))
    return wire.SerializeToString()


def decode(data: bytes) -> RequestMessage:
    """Parse a message of the dial-request stream; of its addresses, `MAX_ADDRESSES`.

    Raises:
        ProtocolViolationError: reason AUTONAT_MALFORMED.
    """
    wire = _parse(pb.Message(), data)
    match wire.WhichOneof("msg"):
        case "dialRequest":
            return DialRequest(_addresses(wire.dialRequest.addrs), wire.dialRequest.nonce)
        case "dialResponse":
            response = wire.dialResponse
            return DialResponse(response.status, response.addrIdx, response.dialStatus)
        case "dialDataRequest":
            return DialDataRequest(wire.dialDataRequest.addrIdx, wire.dialDataRequest.numBytes)
        case "dialDataResponse":
            return DialDataResponse(wire.dialDataResponse.data)
        case _:
            raise malformed("an AutoNAT message is of no known kind")


def encode_dial_back(nonce: int) -> bytes:
    """Return the protobuf that proves that the server reached the client."""
    return pb.DialBack(nonce=nonce).SerializeToString()


def decode_dial_back(data: bytes) -> int:
    """Return the nonce. Raises ProtocolViolationError."""
    return int(_parse(pb.DialBack(), data).nonce)


def encode_dial_back_response() -> bytes:
    """Return the protobuf of OK, which is empty: behind its length it is one byte."""
    return pb.DialBackResponse().SerializeToString()


def decode_dial_back_response(data: bytes) -> bool:
    """Return whether the client took the nonce. Raises ProtocolViolationError."""
    return _parse(pb.DialBackResponse(), data).status == pb.DialBackResponse.OK


def malformed(what: str) -> ProtocolViolationError:
    """Return the error of a peer that does not keep to the protocol."""
    return ProtocolViolationError(what, reason="AUTONAT_MALFORMED")


def _parse(message: _MessageT, data: bytes) -> _MessageT:
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise malformed("an AutoNAT message cannot be parsed") from error
    return message


def _addresses(values: Sequence[bytes]) -> tuple[Multiaddr | None, ...]:
    found: list[Multiaddr | None] = []
    for value in values[:MAX_ADDRESSES]:
        try:
            found.append(Multiaddr.from_bytes(value))
        except MultiaddrError:
            found.append(None)
    return tuple(found)
