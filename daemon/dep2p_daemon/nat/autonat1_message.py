"""The message of AutoNAT v1: https://github.com/libp2p/specs/blob/master/autonat/autonat-v1.md

On the wire it is one protobuf behind its varint length (`muxed.read_message` and
`write_message`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from dep2p_daemon.errors import MultiaddrError, PeerIdError
from dep2p_daemon.identity.peer_id import PeerId
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.nat.autonat2_message import malformed
from dep2p_daemon.wire.libp2p import autonat1_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

PROTOCOL: Final = "/libp2p/autonat/1.0.0"

MAX_MESSAGE_BYTES: Final = 4096
"""Ours; go-libp2p sends 16 addresses at most."""
MAX_ADDRESSES: Final = 16
"""Addresses of a request that are looked at (go-libp2p's)."""
MAX_TEXT_CHARACTERS: Final = 200
"""Of a status text; longer ones are cut."""


class Status(enum.IntEnum):
    """The specification's numbers."""

    OK = 0
    E_DIAL_ERROR = 100
    E_DIAL_REFUSED = 101
    E_BAD_REQUEST = 200
    E_INTERNAL_ERROR = 300


@dataclass(frozen=True, slots=True)
class Dial:
    """Please dial me."""

    peer: PeerId
    addresses: tuple[Multiaddr, ...] = ()


@dataclass(frozen=True, slots=True)
class DialResponse:
    """The server's word."""

    status: Status
    text: str = ""
    address: Multiaddr | None = None
    """What it reached, when the status is OK."""


def encode(message: Dial | DialResponse) -> bytes:
    """Return the protobuf. Enums are set also where they are zero: their absence is no OK."""
    if isinstance(message, Dial):
        peer = pb.Message.PeerInfo(
            id=bytes(message.peer), addrs=[bytes(address) for address in message.addresses]
        )
        wire = pb.Message(type=pb.Message.DIAL, dial=pb.Message.Dial(peer=peer))
    else:
        response = pb.Message.DialResponse(
            status=pb.Message.ResponseStatus.Name(message.status),  # type: ignore[arg-type]
            statusText=message.text,
            addr=None if message.address is None else bytes(message.address),
        )
        wire = pb.Message(type=pb.Message.DIAL_RESPONSE, dialResponse=response)
    return wire.SerializeToString()


def decode(data: bytes) -> Dial | DialResponse:
    """Parse the protobuf; addresses that do not parse are left out.

    Raises:
        ProtocolViolationError: reason AUTONAT_MALFORMED.
    """
    wire = pb.Message()
    try:
        wire.ParseFromString(data)
    except DecodeError as error:
        raise malformed("an AutoNAT v1 message cannot be parsed") from error
    if not wire.HasField("type"):
        raise malformed("an AutoNAT v1 message has no known type")
    if wire.type == pb.Message.DIAL:
        try:
            peer = PeerId.from_bytes(wire.dial.peer.id)
        except PeerIdError as error:
            raise malformed("an AutoNAT v1 request has no peer id") from error
        return Dial(peer, _addresses(wire.dial.peer.addrs))
    response = wire.dialResponse
    # A status that we do not know does not parse, and is absent then.
    if not response.HasField("status"):
        raise malformed("an AutoNAT v1 response has no known status")
    found = _addresses([response.addr])
    return DialResponse(
        Status(response.status),
        response.statusText[:MAX_TEXT_CHARACTERS],
        found[0] if found else None,
    )


def _addresses(values: Sequence[bytes]) -> tuple[Multiaddr, ...]:
    found: list[Multiaddr] = []
    for value in values[:MAX_ADDRESSES]:
        try:
            found.append(Multiaddr.from_bytes(value))
        except MultiaddrError:
            continue
    return tuple(found)
