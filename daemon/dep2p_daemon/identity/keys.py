"""Keys of peers, the four types of libp2p.

https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md#keys

Our own key is Ed25519. Of other peers all four key types are verified. A public key is held
in its canonical encoding, whatever encoding it came in, because the peer id is a hash of it.
"""

from __future__ import annotations

import enum
import hmac
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from google.protobuf.message import DecodeError
from typing_extensions import override

from dep2p_daemon.errors import InvalidArgumentError, ProtocolViolationError
from dep2p_daemon.wire.libp2p import crypto_pb2 as pb

if TYPE_CHECKING:
    from dep2p_daemon.identity.peer_id import PeerId

MAX_KEY_BYTES: Final = 2048
"""Ours: an RSA key of 8192 bits takes 1065 bytes, and nothing takes more."""

MIN_RSA_BITS: Final = 2048
"""go-libp2p's lower bound of an RSA modulus."""

MAX_RSA_BITS: Final = 8192
"""go-libp2p's upper bound: verification with longer ones costs too much."""

ED25519_SEED_BYTES: Final = 32


class KeyType(enum.IntEnum):
    """The kinds of keys (the specification's numbers)."""

    RSA = 0
    ED25519 = 1
    SECP256K1 = 2
    ECDSA = 3


_Loaded: TypeAlias = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A peer's public key, valid and in its canonical encoding.

    Raises ProtocolViolationError (reason PUBLIC_KEY_INVALID) when `data` is no such key.
    """

    type: KeyType
    data: bytes
    """Ed25519: 32 raw bytes. secp256k1: 33 bytes, compressed. Others: DER of the SPKI."""

    def __post_init__(self) -> None:
        key = _load(self.type, bytes(self.data))
        object.__setattr__(self, "data", _canonical(self.type, key))

    @classmethod
    def from_protobuf(cls, data: bytes) -> PublicKey:
        """Parse a `PublicKey` message; one that is not canonical gives the same key.

        Raises:
            ProtocolViolationError: reason PUBLIC_KEY_INVALID; the text says what is wrong.
        """
        message = _parse(pb.PublicKey(), data)
        return cls(KeyType(message.type), message.data)

    def to_protobuf(self) -> bytes:
        """Return the canonical `PublicKey` message, of which the peer id is made."""
        message = pb.PublicKey(type=pb.KeyType.ValueType(self.type), data=self.data)
        return message.SerializeToString(deterministic=True)

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Whether `signature` over `message` was made with this key. Never raises."""
        key = _load(self.type, self.data)
        try:
            match key:
                case ed25519.Ed25519PublicKey():
                    key.verify(signature, message)
                case ec.EllipticCurvePublicKey():
                    key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
                case rsa.RSAPublicKey():
                    key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            return False
        return True


class PrivateKey:
    """Our own Ed25519 key. It never shows its secret in a log or a traceback."""

    __slots__ = ("_key", "_peer_id", "_public_key")

    def __init__(self, key: ed25519.Ed25519PrivateKey) -> None:
        from dep2p_daemon.identity.peer_id import PeerId  # it imports this module

        self._key = key
        self._public_key = PublicKey(KeyType.ED25519, key.public_key().public_bytes_raw())
        self._peer_id = PeerId.from_public_key(self._public_key)

    @classmethod
    def generate(cls) -> PrivateKey:
        """Make a new key."""
        return cls(ed25519.Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> PrivateKey:
        """Return the key of a 32-byte seed. Raises InvalidArgumentError for another length."""
        if len(seed) != ED25519_SEED_BYTES:
            raise InvalidArgumentError(
                f"an Ed25519 seed has {ED25519_SEED_BYTES} bytes, not {len(seed)}",
                reason="PRIVATE_KEY_INVALID",
            )
        return cls(ed25519.Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def from_protobuf(cls, data: bytes) -> PrivateKey:
        """Parse a `PrivateKey` message, as libp2p implementations keep it in files.

        Raises:
            InvalidArgumentError: reason PRIVATE_KEY_INVALID: not an Ed25519 key, or damaged.
        """
        try:
            message = _parse(pb.PrivateKey(), data)
        except ProtocolViolationError as error:
            raise _bad_private_key("it is no libp2p key") from error
        if message.type != pb.ED25519:
            raise _bad_private_key(f"it is a key of type {KeyType(message.type).name}, not ED25519")
        seed, public = message.data[:32], message.data[32:]
        # Seed and public key; old files have the public key twice.
        if len(message.data) not in (64, 96):
            raise _bad_private_key(f"it has {len(message.data)} bytes instead of 64")
        key = cls.from_seed(seed)
        known = key.public_key.data
        if not hmac.compare_digest(public, known * (len(public) // len(known))):
            raise _bad_private_key("its public part does not belong to its private part")
        return key

    def to_protobuf(self) -> bytes:
        """Return the `PrivateKey` message: secret, for the key file alone."""
        data = self._key.private_bytes_raw() + self._public_key.data
        message = pb.PrivateKey(type=pb.ED25519, data=data)
        return message.SerializeToString(deterministic=True)

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature over `message`."""
        return self._key.sign(message)

    @property
    def public_key(self) -> PublicKey:
        """The key that verifies what this one signs."""
        return self._public_key

    @property
    def peer_id(self) -> PeerId:
        """The id under which this key's holder is known."""
        return self._peer_id

    @override
    def __repr__(self) -> str:
        return f"PrivateKey(of {self._peer_id})"


def _invalid(message: str) -> ProtocolViolationError:
    return ProtocolViolationError(message, reason="PUBLIC_KEY_INVALID")


def _bad_private_key(why: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"the private key cannot be used: {why}", reason="PRIVATE_KEY_INVALID"
    )


_M = TypeVar("_M", pb.PublicKey, pb.PrivateKey)


def _parse(message: _M, data: bytes) -> _M:
    if len(data) > 2 * MAX_KEY_BYTES:
        raise _invalid(f"a key of {len(data)} bytes, where {MAX_KEY_BYTES} are allowed")
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise _invalid("a key is no protobuf with a type and data") from error
    # A type number that the schema lacks reads as an absent one.
    if not message.HasField("type") or not message.HasField("data"):
        raise _invalid("a key without a known type or without data")
    return message


@lru_cache(maxsize=1024)
def _load(kind: KeyType, data: bytes) -> _Loaded:
    """Parse the key; cached, because the same peers' keys come again and again."""
    if len(data) > MAX_KEY_BYTES:
        raise _invalid(f"a public key of {len(data)} bytes, where {MAX_KEY_BYTES} are allowed")
    try:
        match kind:
            case KeyType.ED25519:
                return ed25519.Ed25519PublicKey.from_public_bytes(data)
            case KeyType.SECP256K1:
                return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), data)
            case KeyType.ECDSA | KeyType.RSA:
                key = serialization.load_der_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _invalid(f"a public key of type {kind.name} does not parse") from error
    if kind is KeyType.RSA and isinstance(key, rsa.RSAPublicKey):
        if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            raise _invalid(
                f"an RSA key of {key.key_size} bits, where {MIN_RSA_BITS} to {MAX_RSA_BITS} "
                "are allowed"
            )
        return key
    if (
        kind is KeyType.ECDSA
        and isinstance(key, ec.EllipticCurvePublicKey)
        and isinstance(key.curve, ec.SECP256R1)
    ):
        return key
    raise _invalid(f"a public key that says {kind.name} is of another kind or curve")


def _canonical(kind: KeyType, key: _Loaded) -> bytes:
    match kind:
        case KeyType.ED25519:
            encoding, form = serialization.Encoding.Raw, serialization.PublicFormat.Raw
        case KeyType.SECP256K1:
            encoding = serialization.Encoding.X962
            form = serialization.PublicFormat.CompressedPoint
        case KeyType.ECDSA | KeyType.RSA:
            encoding = serialization.Encoding.DER
            form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(encoding, form)
