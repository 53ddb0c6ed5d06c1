"""Who is at the other end: the libp2p checks of a TLS certificate.

https://github.com/libp2p/specs/blob/master/tls/tls.md. TLS itself (aioquic) has proven that the
peer holds the certificate's key; here the certificate must prove that the holder of a host key
vouches for that key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from dep2p_daemon.errors import AuthenticationError, Dep2pError
from dep2p_daemon.identity.keys import PublicKey
from dep2p_daemon.identity.peer_id import PeerId

if TYPE_CHECKING:
    import datetime
    from collections.abc import Sequence

ALPN: Final = "libp2p"
SECURITY: Final = "libp2p-tls"
EXTENSION_OID: Final = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
SIGNATURE_PREFIX: Final = b"libp2p-tls-handshake:"

_SEQUENCE: Final = 0x30
_OCTET_STRING: Final = 0x04


@dataclass(frozen=True, slots=True)
class ProvenPeer:
    """The identity that a certificate proves."""

    peer_id: PeerId
    public_key: PublicKey


def encode_signed_key(public_key: bytes, signature: bytes) -> bytes:
    """Encode the extension's value: SEQUENCE { OCTET STRING, OCTET STRING } in DER."""
    return _der(_SEQUENCE, _der(_OCTET_STRING, public_key) + _der(_OCTET_STRING, signature))


def decode_signed_key(value: bytes) -> tuple[bytes, bytes]:
    """Decode the extension's value to (public key, signature). Raises ValueError."""
    body, rest = _pull_der(value, _SEQUENCE)
    public_key, body = _pull_der(body, _OCTET_STRING)
    signature, body = _pull_der(body, _OCTET_STRING)
    if rest or body:
        raise ValueError("bytes after the signed key")
    return public_key, signature


def prove_peer(
    chain: Sequence[x509.Certificate], *, now: datetime.datetime, expected: PeerId | None = None
) -> ProvenPeer:
    """Make every check that the libp2p TLS specification asks for.

    Args:
        chain: what the peer sent, in order; empty when it sent nothing.
        now: the current time, with time zone.
        expected: the peer that was dialled; None for whoever dialled us.

    Raises:
        AuthenticationError: `reason` names the check that failed.
    """
    if not chain:
        raise _refused("CERTIFICATE_MISSING", "the peer sent no certificate")
    if len(chain) > 1:
        raise _refused(
            "CERTIFICATE_CHAIN", f"the peer sent {len(chain)} certificates, where one is allowed"
        )
    certificate = chain[0]
    if now < certificate.not_valid_before_utc:
        raise _refused(
            "CERTIFICATE_EXPIRED",
            f"the peer's certificate is not valid before {certificate.not_valid_before_utc}",
        )
    if now > certificate.not_valid_after_utc:
        raise _refused(
            "CERTIFICATE_EXPIRED",
            f"the peer's certificate was valid until {certificate.not_valid_after_utc}",
        )
    _check_self_signature(certificate)
    public_key, signature = _signed_key(certificate)
    try:
        host_key = PublicKey.from_protobuf(public_key)
    except Dep2pError as error:
        raise _refused("CERTIFICATE_EXTENSION", f"the peer's host key: {error.message}") from error
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if not host_key.verify(SIGNATURE_PREFIX + spki, signature):
        raise _refused(
            "CERTIFICATE_SIGNATURE", "the certificate is not signed by the host key that it names"
        )
    peer_id = PeerId.from_public_key(host_key)
    if expected is not None and peer_id != expected:
        raise AuthenticationError(
            f"expected peer {expected}, but {peer_id} is there",
            reason="PEER_ID_MISMATCH",
            remedy="check the peer id at the end of the address, or ask the peer for a new one",
            expected_peer=expected,
            actual_peer=peer_id,
        )
    return ProvenPeer(peer_id, host_key)


def _check_self_signature(certificate: x509.Certificate) -> None:
    signature, signed = certificate.signature, certificate.tbs_certificate_bytes
    try:
        key = certificate.public_key()
        parameters = certificate.signature_algorithm_parameters
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(parameters, ec.ECDSA):
            key.verify(signature, signed, parameters)
        elif isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, signed)
        elif (
            isinstance(key, rsa.RSAPublicKey)
            and isinstance(parameters, padding.PKCS1v15 | padding.PSS)
            and certificate.signature_hash_algorithm is not None
        ):
            key.verify(signature, signed, parameters, certificate.signature_hash_algorithm)
        else:
            raise _refused("CERTIFICATE_SIGNATURE", "the certificate's key type is not supported")
    except InvalidSignature as error:
        raise _refused(
            "CERTIFICATE_SIGNATURE", "the certificate's self-signature is invalid"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _refused(
            "CERTIFICATE_SIGNATURE", f"the certificate's key or signature is unusable: {error}"
        ) from error


def _signed_key(certificate: x509.Certificate) -> tuple[bytes, bytes]:
    found: bytes | None = None
    try:
        for extension in certificate.extensions:
            if extension.oid == EXTENSION_OID:
                if isinstance(extension.value, x509.UnrecognizedExtension):
                    found = extension.value.value
            elif extension.critical and isinstance(extension.value, x509.UnrecognizedExtension):
                raise _refused(
                    "CERTIFICATE_EXTENSION",
                    f"unknown critical extension {extension.oid.dotted_string}",
                )
        if found is None:
            raise _refused(
                "CERTIFICATE_EXTENSION",
                "the certificate has no libp2p extension: the peer does not speak libp2p",
            )
        return decode_signed_key(found)
    except (ValueError, x509.DuplicateExtension) as error:
        raise _refused(
            "CERTIFICATE_EXTENSION", f"the certificate's extensions are malformed: {error}"
        ) from error


def _refused(reason: str, message: str) -> AuthenticationError:
    return AuthenticationError(message, reason=reason)


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def _pull_der(data: bytes, tag: int) -> tuple[bytes, bytes]:
    """Split off one element: its content, and what follows it."""
    if len(data) < 2 or data[0] != tag:
        raise ValueError("not the DER element that was expected")
    length, start = data[1], 2
    if length >= 0x80:
        count = length & 0x7F
        start += count
        length = int.from_bytes(data[2:start], "big")
        if not 1 <= count <= 2 or len(data) < start or length < (0x80 if count == 1 else 0x100):
            raise ValueError("a malformed DER length")
    end = start + length
    if len(data) < end:
        raise ValueError("a truncated DER element")
    return data[start:end], data[end:]
