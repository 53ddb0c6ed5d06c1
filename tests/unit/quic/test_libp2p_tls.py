"""Certificates: the spec's vectors, ours, and every way in which one can be wrong."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.quic import tls_vectors

from dep2p_daemon.errors import AuthenticationError
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.identity.peer_id import PeerId
from dep2p_daemon.quic.certificate import make_certificate
from dep2p_daemon.quic.libp2p_tls import (
    EXTENSION_OID,
    SIGNATURE_PREFIX,
    decode_signed_key,
    encode_signed_key,
    prove_peer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NOW = datetime.datetime(2026, 11, 22, tzinfo=datetime.UTC)
HOST = PrivateKey.from_seed(bytes(range(32)))
NAME = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "somebody")])
CRITICAL = x509.ObjectIdentifier("1.3.6.1.4.1.99999.1")


def spki(key: Any) -> bytes:
    data: bytes = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return data


def forge(
    *,
    key: Any = None,
    signer: Any = None,
    signed_key: bytes | None = None,
    critical: bool = False,
    extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
    start: datetime.timedelta = -datetime.timedelta(hours=1),
    end: datetime.timedelta = datetime.timedelta(hours=1),
    sign: dict[str, Any] | None = None,
) -> x509.Certificate:
    """A certificate that is right but for what the arguments say."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    if signed_key is None:
        signed_key = encode_signed_key(
            HOST.public_key.to_protobuf(), HOST.sign(SIGNATURE_PREFIX + spki(key))
        )
    builder = (
        x509.CertificateBuilder()
        .subject_name(NAME)
        .issuer_name(NAME)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW + start)
        .not_valid_after(NOW + end)
    )
    if signed_key:
        builder = builder.add_extension(
            x509.UnrecognizedExtension(EXTENSION_OID, signed_key), critical=critical
        )
    for extension, is_critical in extra:
        builder = builder.add_extension(extension, critical=is_critical)
    arguments: dict[str, Any] = sign or {"algorithm": hashes.SHA256()}
    return builder.sign(signer or key, **arguments)


def refusal(*chain: x509.Certificate, expected: PeerId | None = None) -> AuthenticationError:
    with pytest.raises(AuthenticationError) as caught:
        prove_peer(chain, now=NOW, expected=expected)
    return caught.value


@pytest.mark.parametrize(("peer", "der"), tls_vectors.VALID.items())
def test_the_valid_vectors(peer: str, der: str) -> None:
    certificate = x509.load_der_x509_certificate(bytes.fromhex(der))
    proven = prove_peer([certificate], now=NOW, expected=PeerId.parse(peer))
    assert str(proven.peer_id) == peer
    assert PeerId.from_public_key(proven.public_key) == proven.peer_id


def test_the_invalid_vector() -> None:
    certificate = x509.load_der_x509_certificate(bytes.fromhex(tls_vectors.INVALID))
    error = refusal(certificate)
    assert error.reason == "CERTIFICATE_SIGNATURE"
    assert "host key" in error.message


def test_our_own_certificate() -> None:
    made = make_certificate(HOST, NOW)
    assert prove_peer([made.certificate], now=NOW).peer_id == HOST.peer_id
    assert made.private_key.public_key() == made.certificate.public_key()
    assert made.certificate.not_valid_before_utc == NOW - datetime.timedelta(hours=1)
    assert made.certificate.not_valid_after_utc.year == 2126
    assert made.certificate.issuer.rdns
    assert make_certificate(HOST).certificate.public_key() != made.certificate.public_key()
    assert "PrivateKey" not in repr(made)


@pytest.mark.parametrize(
    ("make", "sign"),
    [
        (lambda: ec.generate_private_key(ec.SECP384R1()), {"algorithm": hashes.SHA384()}),
        (ed25519.Ed25519PrivateKey.generate, {"algorithm": None}),
        (lambda: rsa.generate_private_key(65537, 2048), {"algorithm": hashes.SHA256()}),
        (
            lambda: rsa.generate_private_key(65537, 2048),
            {
                "algorithm": hashes.SHA256(),
                "rsa_padding": padding.PSS(padding.MGF1(hashes.SHA256()), 32),
            },
        ),
    ],
    ids=["p384", "ed25519", "rsa", "rsa-pss"],
)
def test_other_stacks_certificate_keys(make: Callable[[], Any], sign: dict[str, Any]) -> None:
    key = make()
    assert prove_peer([forge(key=key, sign=sign)], now=NOW).peer_id == HOST.peer_id
    error = refusal(forge(key=key, signer=make(), sign=sign))
    assert error.reason == "CERTIFICATE_SIGNATURE"


def test_the_extension_may_be_critical() -> None:
    assert prove_peer([forge(critical=True)], now=NOW).peer_id == HOST.peer_id


def test_unknown_extensions() -> None:
    unknown = x509.UnrecognizedExtension(CRITICAL, b"\x05\x00")
    assert prove_peer([forge(extra=[(unknown, False)])], now=NOW).peer_id == HOST.peer_id
    assert refusal(forge(extra=[(unknown, True)])).reason == "CERTIFICATE_EXTENSION"
    known = x509.BasicConstraints(ca=True, path_length=None)
    assert prove_peer([forge(extra=[(known, True)])], now=NOW).peer_id == HOST.peer_id


def test_the_chain_is_exactly_one() -> None:
    assert refusal().reason == "CERTIFICATE_MISSING"
    assert refusal(forge(), forge()).reason == "CERTIFICATE_CHAIN"


def test_validity() -> None:
    hour = datetime.timedelta(hours=1)
    assert refusal(forge(start=hour, end=2 * hour)).reason == "CERTIFICATE_EXPIRED"
    assert refusal(forge(start=-2 * hour, end=-hour)).reason == "CERTIFICATE_EXPIRED"


def test_a_wrong_self_signature() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    error = refusal(forge(signer=other))
    assert error.reason == "CERTIFICATE_SIGNATURE"
    assert "self-signature" in error.message


def test_a_signature_over_something_else() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    for signed in (spki(key), SIGNATURE_PREFIX, SIGNATURE_PREFIX + spki(key) + b"\x00"):
        value = encode_signed_key(HOST.public_key.to_protobuf(), HOST.sign(signed))
        assert refusal(forge(key=key, signed_key=value)).reason == "CERTIFICATE_SIGNATURE"


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\x30\x00",
        b"\x30\x80",
        b"\x04\x02\x04\x00",
        b"\x30\x04\x04\x00\x04\x00\x00",
        b"\x30\x05\x04\x00\x04\x00\x00",
        b"\x30\x81\x04\x04\x00\x04\x00",
        encode_signed_key(b"not a key", b"sig"),
        encode_signed_key(b"", b""),
    ],
    ids=lambda value: value.hex(),
)
def test_malformed_extensions(value: bytes) -> None:
    error = refusal(forge(signed_key=value or b"\x00"))
    assert error.reason == "CERTIFICATE_EXTENSION"


def test_no_extension_at_all() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    other = [(x509.UnrecognizedExtension(CRITICAL, b"\x05\x00"), False)]
    error = refusal(forge(key=key, signed_key=b"", extra=other))
    assert error.reason == "CERTIFICATE_EXTENSION"
    assert "no libp2p extension" in error.message


def test_somebody_else() -> None:
    expected = PrivateKey.from_seed(bytes(32)).peer_id
    error = refusal(forge(), expected=expected)
    assert error.reason == "PEER_ID_MISMATCH"
    assert error.metadata == {"expected_peer": str(expected), "actual_peer": str(HOST.peer_id)}
    assert str(expected) in error.message


@given(st.binary(max_size=700), st.binary(max_size=700))
def test_signed_keys_round_trip(public_key: bytes, signature: bytes) -> None:
    encoded = encode_signed_key(public_key, signature)
    assert decode_signed_key(encoded) == (public_key, signature)
    for cut in range(0, len(encoded), 97):
        with pytest.raises(ValueError, match="DER"):
            decode_signed_key(encoded[:cut])


@given(st.binary(max_size=64))
def test_signed_keys_of_rubbish(data: bytes) -> None:
    try:
        public_key, signature = decode_signed_key(data)
    except ValueError:
        return
    assert encode_signed_key(public_key, signature) == data
