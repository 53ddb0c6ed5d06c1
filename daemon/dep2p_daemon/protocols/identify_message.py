"""The messages of identify: https://github.com/libp2p/specs/blob/master/identify/README.md

No I/O. On the wire a peer's answer is one or more protobufs, each behind its varint length, up
to the end of the stream; they are merged in order (repeated fields are joined, others replaced).
Field 8, the signed peer record, is not in the specification, but every implementation sends it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from dep2p_daemon.errors import MultiaddrError, ProtocolViolationError
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.wire import varint
from dep2p_daemon.wire.libp2p import identify_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ID_PROTOCOL: Final = "/ipfs/id/1.0.0"
"""The opener sends nothing; the other side answers and closes."""

PUSH_PROTOCOL: Final = "/ipfs/id/push/1.0.0"
"""The opener tells what changed and closes; what is absent is unchanged."""

PROTOCOL_VERSION: Final = "ipfs/0.1.0"
"""What go- and js-libp2p send; a difference means nothing."""

MAX_MESSAGE_BYTES: Final = 8 * 1024
MAX_MESSAGES: Final = 10
"""As go-libp2p reads them."""
MAX_ANSWER_BYTES: Final = MAX_MESSAGES * (MAX_MESSAGE_BYTES + varint.MAX_BYTES)
MAX_PROTOCOLS: Final = 1024
MAX_ADDRESSES: Final = 500
"""go-libp2p's caps; more are cut off."""
MAX_PROTOCOL_CHARACTERS: Final = 1000
MAX_VERSION_CHARACTERS: Final = 128
"""Ours; longer agent and protocol versions are cut off."""

_COMPACT_BYTES: Final = 2 * 1024
"""An answer up to this goes into one message, as go-libp2p does for older implementations."""
_ADDRESSES_BYTES: Final = 2 * 1024
"""What our addresses may fill: twice this (the record has them too) and the rest stay near the
4 KiB that rust-libp2p reads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IdentifyInfo:
    """What a peer told. None or () where it told nothing."""

    public_key: bytes | None = None
    addresses: tuple[Multiaddr, ...] = ()
    protocols: tuple[str, ...] = ()
    observed_address: Multiaddr | None = None
    protocol_version: str | None = None
    agent_version: str | None = None
    signed_peer_record: bytes | None = None


def fitting_addresses(addresses: Sequence[Multiaddr]) -> tuple[Multiaddr, ...]:
    """Return as many of `addresses`, in order, as an answer has room for."""
    room = _ADDRESSES_BYTES
    fitting: list[Multiaddr] = []
    for address in addresses:
        room -= len(bytes(address)) + 2
        if room < 0:
            break
        fitting.append(address)
    return tuple(fitting)


def encode(info: IdentifyInfo) -> bytes:
    """Encode an answer: all messages, each behind its length.

    Protocols that do not fit in ten messages are left out.
    """
    first = pb.Identify(
        public_key=info.public_key,
        listen_addrs=[bytes(address) for address in info.addresses],
        observed_addr=bytes(info.observed_address) if info.observed_address is not None else None,
        protocol_version=info.protocol_version,
        agent_version=info.agent_version,
    )
    messages = [first]
    for protocol in info.protocols:
        if messages[-1].ByteSize() + len(protocol) > _COMPACT_BYTES and messages[-1].protocols:
            if len(messages) == MAX_MESSAGES - 1:
                break
            messages.append(pb.Identify())
        messages[-1].protocols.append(protocol)
    if info.signed_peer_record is not None:
        if messages[-1].ByteSize() + len(info.signed_peer_record) > _COMPACT_BYTES:
            messages.append(pb.Identify())
        messages[-1].signed_peer_record = info.signed_peer_record
    return b"".join(
        varint.encode(len(body)) + body for body in (m.SerializeToString() for m in messages)
    )


def decode(data: bytes) -> IdentifyInfo:
    """Decode all that a peer sent until the end of its stream.

    Addresses that we do not understand are skipped, and so is what exceeds the caps.

    Raises:
        ProtocolViolationError: too long, malformed, or cut off.
    """
    merged = pb.Identify()
    for count, body in enumerate(_frames(data)):
        if count == MAX_MESSAGES:
            raise _violation(f"more than {MAX_MESSAGES} messages")
        try:
            merged.MergeFromString(body)
        except DecodeError as error:
            raise _violation("a message that is no protobuf") from error
    return IdentifyInfo(
        public_key=merged.public_key if merged.HasField("public_key") else None,
        addresses=tuple(_addresses(merged.listen_addrs[:MAX_ADDRESSES])),
        protocols=tuple(_protocols(merged)),
        observed_address=next(iter(_addresses([merged.observed_addr])), None),
        protocol_version=(
            _version(merged.protocol_version) if merged.HasField("protocol_version") else None
        ),
        agent_version=(
            _version(merged.agent_version) if merged.HasField("agent_version") else None
        ),
        signed_peer_record=(
            merged.signed_peer_record if merged.HasField("signed_peer_record") else None
        ),
    )


def _frames(data: bytes) -> Iterator[bytes]:
    offset = 0
    while offset < len(data):
        length, offset = varint.decode(data, offset)
        if length > MAX_MESSAGE_BYTES:
            raise _violation(f"a message of {length} bytes, where {MAX_MESSAGE_BYTES} are allowed")
        if offset + length > len(data):
            raise _violation("a message that is cut off")
        yield data[offset : offset + length]
        offset += length


def _addresses(raw: Sequence[bytes]) -> Iterator[Multiaddr]:
    for data in raw:
        try:
            address = Multiaddr.from_bytes(data)
        except MultiaddrError:
            continue  # of a kind that we do not know, or rubbish
        if address.protocols:
            yield address


def _protocols(message: pb.Identify) -> Iterator[str]:
    for protocol in map(_text, message.protocols[:MAX_PROTOCOLS]):
        if 0 < len(protocol) <= MAX_PROTOCOL_CHARACTERS and protocol.isprintable():
            yield protocol


def _version(value: str) -> str:
    return "".join(filter(str.isprintable, _text(value)[:MAX_VERSION_CHARACTERS]))


def _text(value: str | bytes) -> str:
    """Undo protobuf's surprise: a proto2 string that is not UTF-8 comes out as bytes."""
    return value if isinstance(value, str) else value.decode(errors="replace")


def _violation(what: str) -> ProtocolViolationError:
    return ProtocolViolationError(f"the peer's identify has {what}", reason="IDENTIFY_INVALID")
