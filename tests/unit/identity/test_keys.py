from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.errors import InvalidArgumentError, ProtocolViolationError
from dep2p_daemon.identity.keys import KeyType, PrivateKey, PublicKey
from dep2p_daemon.wire.libp2p import crypto_pb2 as pb

HERE = Path(__file__).parent
# The specification's test vectors: peer-ids/peer-ids.md#test-vectors
SPEC: dict[str, dict[str, str]] = json.loads((HERE / "spec_keys.json").read_text())
# Made once with @libp2p/crypto and @libp2p/peer-record 9 of npm.
JS: dict[str, dict[str, str]] = json.loads((HERE / "js_libp2p_vectors.json").read_text())

MESSAGE = b"a message"
DER = serialization.Encoding.DER
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo


def spec_public_key(kind: str) -> PublicKey:
    return PublicKey.from_protobuf(bytes.fromhex(SPEC[kind]["public"]))


def sign_with_spec_key(kind: str, message: bytes) -> bytes:
    """Sign with `cryptography` alone, as a node with that key would."""
    data = pb.PrivateKey.FromString(bytes.fromhex(SPEC[kind]["private"])).data
    key: Any
    match kind:
        case "ED25519":
            return PrivateKey.from_protobuf(bytes.fromhex(SPEC[kind]["private"])).sign(message)
        case "SECP256K1":
            key = ec.derive_private_key(int.from_bytes(data, "big"), ec.SECP256K1())
            return bytes(key.sign(message, ec.ECDSA(hashes.SHA256())))
        case "ECDSA":
            key = serialization.load_der_private_key(data, None)
            return bytes(key.sign(message, ec.ECDSA(hashes.SHA256())))
    key = serialization.load_der_private_key(data, None)
    return bytes(key.sign(message, padding.PKCS1v15(), hashes.SHA256()))


@pytest.mark.parametrize("kind", SPEC)
def test_public_keys_of_the_specification(kind: str) -> None:
    key = spec_public_key(kind)
    assert key.type is KeyType[kind]
    assert key.to_protobuf().hex() == SPEC[kind]["public"]


@pytest.mark.parametrize("kind", SPEC)
def test_a_signature_holds_for_its_message_and_key_only(kind: str) -> None:
    key = spec_public_key(kind)
    signature = sign_with_spec_key(kind, MESSAGE)
    assert key.verify(MESSAGE, signature)
    assert not key.verify(MESSAGE + b"!", signature)
    assert not key.verify(MESSAGE, signature[:-1])
    assert not key.verify(MESSAGE, b"")
    damaged = bytes([*signature[:-1], signature[-1] ^ 1])
    assert not key.verify(MESSAGE, damaged)
    for other in SPEC:
        if other != kind:
            assert not spec_public_key(other).verify(MESSAGE, signature)


@pytest.mark.parametrize("kind", JS)
def test_signatures_of_js_libp2p(kind: str) -> None:
    key = PublicKey.from_protobuf(bytes.fromhex(JS[kind]["public_key"]))
    assert key.type is KeyType[kind]
    assert key.verify(b"signed by js-libp2p", bytes.fromhex(JS[kind]["signature"]))


@given(st.sampled_from(sorted(SPEC)), st.binary(max_size=100), st.binary(max_size=600))
def test_no_random_signature_holds_or_raises(kind: str, message: bytes, signature: bytes) -> None:
    assert not spec_public_key(kind).verify(message, signature)


def test_our_key_is_the_one_of_the_specification() -> None:
    data = bytes.fromhex(SPEC["ED25519"]["private"])
    key = PrivateKey.from_protobuf(data)
    assert key.to_protobuf() == data
    assert key.public_key == spec_public_key("ED25519")


def test_a_seed_gives_the_key_that_js_libp2p_makes_of_it() -> None:
    key = PrivateKey.from_seed(bytes([7]) * 32)
    assert key.public_key.to_protobuf().hex() == JS["ED25519"]["public_key"]
    assert key.sign(b"signed by js-libp2p").hex() == JS["ED25519"]["signature"]


def test_an_old_key_file_with_the_public_key_twice() -> None:
    key = PrivateKey.generate()
    data = pb.PrivateKey.FromString(key.to_protobuf()).data
    old = pb.PrivateKey(type=pb.ED25519, data=data + data[32:]).SerializeToString()
    assert PrivateKey.from_protobuf(old).peer_id == key.peer_id


def test_a_private_key_that_is_damaged_is_refused() -> None:
    data = PrivateKey.generate().to_protobuf()
    for position in range(4, len(data)):
        damaged = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        with pytest.raises(InvalidArgumentError) as caught:
            PrivateKey.from_protobuf(damaged)
        assert caught.value.reason == "PRIVATE_KEY_INVALID"
    for end in range(len(data)):
        with pytest.raises(InvalidArgumentError):
            PrivateKey.from_protobuf(data[:end])


@pytest.mark.parametrize("kind", ["RSA", "ECDSA", "SECP256K1"])
def test_our_own_key_is_ed25519(kind: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"type {kind}"):
        PrivateKey.from_protobuf(bytes.fromhex(SPEC[kind]["private"]))


@pytest.mark.parametrize("seed", [b"", bytes(31), bytes(33)])
def test_a_seed_has_32_bytes(seed: bytes) -> None:
    with pytest.raises(InvalidArgumentError):
        PrivateKey.from_seed(seed)


def test_the_secret_is_not_shown() -> None:
    key = PrivateKey.generate()
    assert repr(key) == f"PrivateKey(of {key.peer_id})"
    assert str(key) == repr(key)


@given(st.binary(max_size=200))
def test_random_protobufs_give_a_key_or_our_error(data: bytes) -> None:
    try:
        key = PublicKey.from_protobuf(data)
    except ProtocolViolationError:
        return
    assert PublicKey.from_protobuf(key.to_protobuf()) == key


@given(st.binary(max_size=200))
def test_random_protobufs_are_no_private_key(data: bytes) -> None:
    with pytest.raises(InvalidArgumentError):
        PrivateKey.from_protobuf(data)


@given(st.sampled_from(sorted(KeyType)), st.binary(max_size=100))
def test_random_key_data_gives_a_key_or_our_error(kind: KeyType, data: bytes) -> None:
    try:
        key = PublicKey(kind, data)
    except ProtocolViolationError:
        return
    assert not key.verify(MESSAGE, data)


@given(st.sampled_from(sorted(SPEC)), st.data())
def test_a_cut_or_changed_key_is_refused_or_another_key(kind: str, data: st.DataObject) -> None:
    encoded = bytes.fromhex(SPEC[kind]["public"])
    position = data.draw(st.integers(0, len(encoded) - 1))
    changed = data.draw(st.integers(0, 255))
    for damaged in (
        encoded[:position],
        encoded[:position] + bytes([changed]) + encoded[position + 1 :],
    ):
        try:
            key = PublicKey.from_protobuf(damaged)
        except ProtocolViolationError:
            continue
        assert (key == spec_public_key(kind)) == (key.to_protobuf() == encoded)


@pytest.mark.parametrize(
    "encoded",
    [
        "12201ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e0801",  # data first
        "0881001220" + "1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e",
        "080112201ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e1a0161",
    ],
)
def test_a_protobuf_in_another_form_is_the_same_key(encoded: str) -> None:
    key = PublicKey.from_protobuf(bytes.fromhex(encoded))
    assert key == spec_public_key("ED25519")
    assert key.to_protobuf().hex() == SPEC["ED25519"]["public"]


def test_a_secp256k1_point_in_another_form_is_the_same_key() -> None:
    key = spec_public_key("SECP256K1")
    point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), key.data)
    uncompressed = point.public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    assert PublicKey(KeyType.SECP256K1, uncompressed) == key


def test_other_curves_kinds_and_sizes_are_refused() -> None:
    p384 = ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(DER, SPKI)
    rsa_1024 = rsa.generate_private_key(65537, 1024).public_key().public_bytes(DER, SPKI)
    dsa_key = dsa.generate_private_key(2048).public_key().public_bytes(DER, SPKI)
    spec_rsa, spec_ecdsa = spec_public_key("RSA").data, spec_public_key("ECDSA").data
    for kind, data in (
        (KeyType.ECDSA, p384),
        (KeyType.ECDSA, spec_rsa),
        (KeyType.RSA, spec_ecdsa),
        (KeyType.RSA, rsa_1024),
        (KeyType.RSA, dsa_key),
        (KeyType.RSA, bytes(4000)),
        (KeyType.ED25519, bytes(31)),
        (KeyType.SECP256K1, b"\x02" + bytes([255]) * 32),
    ):
        with pytest.raises(ProtocolViolationError) as caught:
            PublicKey(kind, data)
        assert caught.value.reason == "PUBLIC_KEY_INVALID"


def test_a_huge_rsa_modulus_is_refused() -> None:
    # Not a real key: only its size matters, and making a real one takes minutes.
    numbers = rsa.RSAPublicNumbers(65537, (1 << 16383) | 1)
    data = numbers.public_key().public_bytes(DER, SPKI)
    with pytest.raises(ProtocolViolationError):
        PublicKey(KeyType.RSA, data)
    numbers = rsa.RSAPublicNumbers(65537, (1 << 8192) | 1)
    with pytest.raises(ProtocolViolationError, match="8193 bits"):
        PublicKey(KeyType.RSA, numbers.public_key().public_bytes(DER, SPKI))


def test_an_ecdsa_signature_is_der() -> None:
    r, s = decode_dss_signature(sign_with_spec_key("ECDSA", MESSAGE))
    raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    assert not spec_public_key("ECDSA").verify(MESSAGE, raw)


def test_keys_are_values() -> None:
    one, two = PrivateKey.generate().public_key, PrivateKey.generate().public_key
    assert one != two
    assert {one: 1}[PublicKey(KeyType.ED25519, one.data)] == 1
