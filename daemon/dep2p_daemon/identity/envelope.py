"""Signed envelopes: https://github.com/libp2p/specs/blob/master/RFC/0002-signed-envelopes.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from dep2p_daemon.errors import AuthenticationError, ProtocolViolationError
from dep2p_daemon.identity.keys import PublicKey
from dep2p_daemon.wire import varint
from dep2p_daemon.wire.libp2p import record_pb2

if TYPE_CHECKING:
    from dep2p_daemon.identity.keys import PrivateKey

MAX_ENVELOPE_BYTES: Final = 64 * 1024
"""Ours: 500 addresses of a peer record fit several times."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What was inside an envelope whose signature holds."""

    public_key: PublicKey
    payload: bytes


def seal(key: PrivateKey, *, domain: str, payload_type: bytes, payload: bytes) -> bytes:
    """Sign `payload` for `domain` and return the envelope."""
    return record_pb2.Envelope(
        public_key=key.public_key.to_protobuf(),
        payload_type=payload_type,
        payload=payload,
        signature=key.sign(_signed_bytes(domain, payload_type, payload)),
    ).SerializeToString(deterministic=True)


def open_envelope(data: bytes, *, domain: str, payload_type: bytes) -> Envelope:
    """Check type and signature, then hand the payload out.

    Raises:
        ProtocolViolationError: malformed, too long, or of another type.
        AuthenticationError: the key is unusable or the signature does not hold.
    """
    if len(data) > MAX_ENVELOPE_BYTES:
        raise ProtocolViolationError(
            f"a signed envelope of {len(data)} bytes, where {MAX_ENVELOPE_BYTES} are allowed",
            reason="ENVELOPE_INVALID",
        )
    try:
        message = record_pb2.Envelope.FromString(data)
    except DecodeError as error:
        raise ProtocolViolationError(
            "a malformed signed envelope", reason="ENVELOPE_INVALID"
        ) from error
    if message.payload_type != payload_type:
        raise ProtocolViolationError(
            f"a signed envelope of type {message.payload_type[:16].hex()}, "
            f"not {payload_type.hex()}",
            reason="ENVELOPE_INVALID",
        )
    key = PublicKey.from_protobuf(message.public_key)
    if not key.verify(_signed_bytes(domain, payload_type, message.payload), message.signature):
        raise AuthenticationError(
            "the signature of an envelope does not hold", reason="ENVELOPE_SIGNATURE_INVALID"
        )
    return Envelope(key, message.payload)


def _signed_bytes(domain: str, payload_type: bytes, payload: bytes) -> bytes:
    out = bytearray()
    for part in (domain.encode(), payload_type, payload):
        out += varint.encode(len(part)) + part
    return bytes(out)
