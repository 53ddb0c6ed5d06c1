"""Our TLS certificate: self-signed, made at start, vouched for by the node key.

https://github.com/libp2p/specs/blob/master/tls/tls.md
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from dep2p_daemon.quic.libp2p_tls import EXTENSION_OID, SIGNATURE_PREFIX, encode_signed_key

if TYPE_CHECKING:
    from dep2p_daemon.identity.keys import PrivateKey

BACKDATED: Final = datetime.timedelta(hours=1)
"""Clocks differ."""
LIFETIME: Final = datetime.timedelta(days=36_500)


@dataclass(frozen=True, slots=True)
class TlsCertificate:
    """A certificate and its key; one pair serves all connections of a process."""

    certificate: x509.Certificate
    private_key: ec.EllipticCurvePrivateKey = field(repr=False)


def make_certificate(key: PrivateKey, now: datetime.datetime | None = None) -> TlsCertificate:
    """Make a fresh P-256 key and a certificate for it that carries `key`'s signature."""
    if now is None:
        now = datetime.datetime.now(datetime.UTC)
    private_key = ec.generate_private_key(ec.SECP256R1())
    spki = private_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    signed_key = encode_signed_key(key.public_key.to_protobuf(), key.sign(SIGNATURE_PREFIX + spki))
    serial = x509.random_serial_number()
    # go's parser wants an issuer that is not empty.
    name = x509.Name([x509.NameAttribute(NameOID.SERIAL_NUMBER, str(serial))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private_key.public_key())
        .serial_number(serial)
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.UnrecognizedExtension(EXTENSION_OID, signed_key), critical=False)
        .sign(private_key, hashes.SHA256())
    )
    return TlsCertificate(certificate, private_key)
