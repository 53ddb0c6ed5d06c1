"""Peer ids.

https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md#peer-ids

A peer id is the multihash of a public key's protobuf: up to 42 bytes the protobuf itself
("identity"), of longer ones the SHA-256.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from typing_extensions import override

from dep2p_daemon.errors import PeerIdError, ProtocolViolationError
from dep2p_daemon.identity.keys import PublicKey
from dep2p_daemon.wire import multibase

MAX_INLINE_KEY_BYTES: Final = 42
"""Longer public-key protobufs are hashed."""

MAX_TEXT_CHARS: Final = 128
"""Ours: the longest form of the longest id has 101 characters (hexadecimal)."""

_IDENTITY: Final = 0x00
_SHA2_256: Final = b"\x12\x20"
"""Multihash code and length of a SHA-256."""
_CID_V1_LIBP2P_KEY: Final = b"\x01\x72"
_ED25519_PREFIX: Final = bytes.fromhex("002408011220")
"""What every id of an Ed25519 key begins with: 36 bytes inline, type 1, 32 bytes of key."""

_FORM: Final = (
    "a peer id looks like 12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA; "
    "`dep2pctl id` on the peer's machine prints it"
)


@dataclass(frozen=True, slots=True, order=True, repr=False)
class PeerId:
    """Who a peer is. Ordered and compared by its bytes; raises PeerIdError for other bytes."""

    multihash: bytes

    def __post_init__(self) -> None:
        if why := _fault(self.multihash):
            raise _invalid(f"{len(self.multihash)} bytes are no peer id: {why}")

    @classmethod
    def from_public_key(cls, key: PublicKey) -> PeerId:
        """Return the id of `key`'s holder."""
        encoded = key.to_protobuf()
        if len(encoded) <= MAX_INLINE_KEY_BYTES:
            return cls(bytes((_IDENTITY, len(encoded))) + encoded)
        return cls(_SHA2_256 + hashlib.sha256(encoded).digest())

    @classmethod
    def from_bytes(cls, data: bytes) -> PeerId:
        """Parse the binary form. Raises PeerIdError."""
        return cls(bytes(data))

    @classmethod
    def parse(cls, text: str) -> PeerId:
        """Parse base58btc (`12D3KooW...`, `Qm...`) or a CIDv1 (`bafz...`, `k51...`).

        Raises:
            PeerIdError: says what is wrong and what a peer id looks like.
        """
        if not text:
            raise _invalid("the peer id is empty")
        shown = text if len(text) <= MAX_TEXT_CHARS else text[:MAX_TEXT_CHARS] + "..."
        try:
            if len(text) > MAX_TEXT_CHARS:
                raise ValueError(f"it is longer than {MAX_TEXT_CHARS} characters")
            if text.startswith(("1", "Qm")):
                data = multibase.decode_base58(text)
            else:
                data = multibase.decode(text)
                if not data.startswith(_CID_V1_LIBP2P_KEY):
                    raise ValueError("it is not the CID of a libp2p key")
                data = data.removeprefix(_CID_V1_LIBP2P_KEY)
        except ValueError as error:
            raise _invalid(f'"{shown}" is no peer id: {error}') from error
        if why := _fault(data):
            raise _invalid(f'"{shown}" is no peer id: {why}')
        return cls(data)

    @property
    def public_key(self) -> PublicKey | None:
        """The key itself where the id holds it (Ed25519, secp256k1), None for a hash."""
        if self.multihash[0] != _IDENTITY:
            return None
        return PublicKey.from_protobuf(self.multihash[2:])

    @property
    def short(self) -> str:
        """The last 8 characters: enough to tell peers apart in a log or a table."""
        return str(self)[-8:]

    def to_bytes(self) -> bytes:
        """Return the binary form, a multihash."""
        return self.multihash

    def __bytes__(self) -> bytes:
        return self.multihash

    @override
    def __str__(self) -> str:
        return _text(self.multihash)

    @override
    def __repr__(self) -> str:
        return f"PeerId({self})"


@lru_cache(maxsize=8192)
def _text(multihash: bytes) -> str:
    return multibase.encode_base58(multihash)


def _invalid(message: str) -> PeerIdError:
    return PeerIdError(message, remedy=_FORM)


def _fault(multihash: bytes) -> str | None:
    """Say why `multihash` is no peer id; None when it is one."""
    if multihash.startswith(_SHA2_256):
        return None if len(multihash) == 2 + 32 else "it is cut off or too long"
    if multihash.startswith(_ED25519_PREFIX):
        return None if len(multihash) == 2 + 36 else "it is cut off or too long"
    if len(multihash) < 2 or multihash[0] != _IDENTITY:
        return "it is neither a SHA-256 nor an inline key"
    encoded = multihash[2:]
    if len(encoded) != multihash[1] or len(encoded) > MAX_INLINE_KEY_BYTES:
        return "it is cut off or too long"
    try:
        canonical = PublicKey.from_protobuf(encoded).to_protobuf()
    except ProtocolViolationError:
        return "it holds no public key"
    # The id is made of the canonical form alone, so nobody can ever prove another one.
    return None if canonical == encoded else "its public key is not in canonical form"
