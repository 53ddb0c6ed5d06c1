"""Signed envelopes: a payload that says what it is, and who signed it.

https://github.com/libp2p/specs/blob/master/RFC/0002-signed-envelopes.md

The signature is over the domain, the payload's type and the payload, each behind its varint
length; not over the protobuf that carries them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from dep2p_daemon.errors import AuthenticationError, ProtocolViolationError
from dep2p_daemon.identity.keys import PublicKey
from dep2p_daemon.wire import varint
from dep2p_daemon.wire.libp2p import record_pb2 as pb

if TYPE_CHECKING:
    from dep2p_daemon.identity.keys import PrivateKey

MAX_BYTES: Final = 64 * 1024
"""Ours: a peer record of 500 addresses takes about half of it."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """The content of an envelope whose signature holds."""

    public_key: PublicKey
    """The signer's."""
    payload: bytes


def seal(key: PrivateKey, *, domain: str, payload_type: bytes, payload: bytes) -> bytes:
    """Return an envelope around `payload`, signed by `key` for `domain` alone."""
    return pb.Envelope(
        public_key=key.public_key.to_protobuf(),
        payload_type=payload_type,
        payload=payload,
        signature=key.sign(_signed_bytes(domain, payload_type, payload)),
    ).SerializeToString(deterministic=True)


def open_envelope(data: bytes, *, domain: str, payload_type: bytes) -> Envelope:
    """Check the type and the signature of an envelope, and return what is in it.

    The payload itself is not parsed here, and nobody should parse an unsigned one.

    Raises:
        ProtocolViolationError: longer than `MAX_BYTES`, malformed, of another type, or signed
            by a key that is none.
        AuthenticationError: the signature does not hold for `domain`.
    """
    if len(data) > MAX_BYTES:
        raise _malformed(f"a signed envelope of {len(data)} bytes, where {MAX_BYTES} are allowed")
    message = pb.Envelope()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise _malformed("a signed envelope is no protobuf") from error
    if message.payload_type != payload_type:
        raise ProtocolViolationError(
            f"a signed envelope of type {message.payload_type[:16].hex() or 'none'}, where "
            f"{payload_type.hex()} was expected",
            reason="ENVELOPE_TYPE",
        )
    key = PublicKey.from_protobuf(message.public_key)
    if not key.verify(_signed_bytes(domain, payload_type, message.payload), message.signature):
        raise AuthenticationError(
            "the signature of an envelope does not hold", reason="ENVELOPE_SIGNATURE"
        )
    return Envelope(key, message.payload)


def _malformed(message: str) -> ProtocolViolationError:
    return ProtocolViolationError(message, reason="ENVELOPE_MALFORMED")


def _signed_bytes(domain: str, payload_type: bytes, payload: bytes) -> bytes:
    parts = (domain.encode("utf-8"), payload_type, payload)
    return b"".join(varint.encode_prefixed(part) for part in parts)
