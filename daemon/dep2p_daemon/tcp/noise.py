"""Noise_XX_25519_ChaChaPoly_SHA256: the key exchange and the sealed frames, without I/O.

https://noiseprotocol.org/noise.html (revision 34). What libp2p puts into the handshake
(identities, muxers) is in `noise_handshake.py`.

Flow (I: initiator, R: responder):
  1. I -> R: e
  2. R -> I: e, ee, s, es
  3. I -> R: s, se
  4. both: frames, each direction under a key of its own

Layout of a frame: u16 big-endian length, then at most 65535 bytes of ciphertext.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from dep2p_daemon.errors import AuthenticationError, ProtocolViolationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dep2p_daemon.muxed import Buffer

PROTOCOL_NAME: Final = b"Noise_XX_25519_ChaChaPoly_SHA256"
KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
MAX_CIPHERTEXT: Final = 65535
"""Bytes of one frame behind its length; section 3."""
MAX_PLAINTEXT: Final = MAX_CIPHERTEXT - TAG_BYTES

PATTERN: Final = (("e",), ("e", "ee", "s", "es"), ("s", "se"))
"""XX: the tokens of each handshake message; the initiator sends the first and the third."""

_LENGTH: Final = struct.Struct(">H")
_NONCE: Final = struct.Struct("<4xQ")
_FULL_LENGTH: Final = _LENGTH.pack(MAX_CIPHERTEXT)


class CipherState:
    """One key and its message counter; section 5.1.

    The counter has 64 bits: at 64 KiB a message no connection can wrap it.
    """

    __slots__ = ("_aead", "_nonce")

    def __init__(self, key: bytes) -> None:
        self._aead = ChaCha20Poly1305(key)
        self._nonce = 0

    def encrypt(self, plaintext: Buffer, associated_data: bytes | None = None) -> bytes:
        """Seal `plaintext`; the result is TAG_BYTES longer."""
        nonce = _NONCE.pack(self._nonce)
        self._nonce += 1
        return self._aead.encrypt(nonce, plaintext, associated_data)

    def decrypt(self, ciphertext: Buffer, associated_data: bytes | None = None) -> bytes:
        """Open `ciphertext`. Raises AuthenticationError if it is not the next sealed message."""
        nonce = _NONCE.pack(self._nonce)
        try:
            plaintext = self._aead.decrypt(nonce, ciphertext, associated_data)
        except InvalidTag as error:
            raise AuthenticationError(
                "a Noise message from the peer does not authenticate", reason="NOISE_DECRYPTION"
            ) from error
        self._nonce += 1
        return plaintext


class _SymmetricState:
    """The running hash and chaining key of a handshake; section 5.2."""

    def __init__(self, prologue: bytes) -> None:
        # The name is exactly 32 bytes long and so stands for its own hash.
        self.hash = self._chaining_key = PROTOCOL_NAME
        self._cipher: CipherState | None = None
        self.mix_hash(prologue)

    def mix_hash(self, data: bytes) -> None:
        self.hash = hashlib.sha256(self.hash + data).digest()

    def mix_key(self, secret: bytes) -> None:
        self._chaining_key, key = self._derive(secret)
        self._cipher = CipherState(key)

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        sealed = self._cipher.encrypt(plaintext, self.hash) if self._cipher else plaintext
        self.mix_hash(sealed)
        return sealed

    def decrypt_and_hash(self, sealed: bytes) -> bytes:
        plaintext = self._cipher.decrypt(sealed, self.hash) if self._cipher else sealed
        self.mix_hash(sealed)
        return plaintext

    @property
    def sealing(self) -> bool:
        """Whether there is a key yet: before the first exchange payloads are in the clear."""
        return self._cipher is not None

    def split(self) -> tuple[CipherState, CipherState]:
        """Return the ciphers of initiator-to-responder and responder-to-initiator."""
        first, second = self._derive(b"")
        return CipherState(first), CipherState(second)

    def _derive(self, secret: bytes) -> tuple[bytes, bytes]:
        """HKDF with two outputs; section 4.3."""
        base = hmac.digest(self._chaining_key, secret, "sha256")
        first = hmac.digest(base, b"\x01", "sha256")
        return first, hmac.digest(base, first + b"\x02", "sha256")


class HandshakeState:
    """The XX handshake of one side; section 5.3. Raw payloads, no identities.

    Call `write_message` and `read_message` in the pattern's turns (`writes_next`) until
    `finished`, then `split`. After an error it must be thrown away.
    """

    def __init__(
        self,
        *,
        initiator: bool,
        static: X25519PrivateKey,
        ephemeral: X25519PrivateKey,
        prologue: bytes = b"",
    ) -> None:
        self.initiator = initiator
        self._symmetric = _SymmetricState(prologue)
        self._keys = {"e": ephemeral, "s": static}
        self._remote: dict[str, X25519PublicKey] = {}
        self._step = 0

    @property
    def finished(self) -> bool:
        """True once all three messages have passed."""
        return self._step == len(PATTERN)

    @property
    def writes_next(self) -> bool:
        """Whether the next message is ours."""
        return not self.finished and (self._step % 2 == 0) == self.initiator

    @property
    def handshake_hash(self) -> bytes:
        """The hash over all that was exchanged."""
        return self._symmetric.hash

    @property
    def remote_static(self) -> bytes:
        """The peer's static public key, once its message has been read."""
        return self._remote["s"].public_bytes_raw()

    def write_message(self, payload: bytes) -> bytes:
        """Build our next message, carrying `payload`."""
        message = b""
        for token in self._next_tokens(write=True):
            if token in self._keys:
                public = self._keys[token].public_key().public_bytes_raw()
                if token == "e":
                    self._symmetric.mix_hash(public)
                    message += public
                else:
                    message += self._symmetric.encrypt_and_hash(public)
            else:
                self._exchange(token)
        return message + self._symmetric.encrypt_and_hash(payload)

    def read_message(self, message: bytes) -> bytes:
        """Take the peer's next message and return its payload.

        Raises:
            ProtocolViolationError: it is too short.
            AuthenticationError: it does not authenticate, or carries a key of low order.
        """
        for token in self._next_tokens(write=False):
            if token in self._keys:
                public, message = self._take_key(token, message)
                if token == "e":
                    self._symmetric.mix_hash(public)
                else:
                    public = self._symmetric.decrypt_and_hash(public)
                self._remote[token] = X25519PublicKey.from_public_bytes(public)
            else:
                self._exchange(token)
        if self._symmetric.sealing and len(message) < TAG_BYTES:
            raise _too_short()
        return self._symmetric.decrypt_and_hash(message)

    def split(self) -> tuple[CipherState, CipherState]:
        """Return the ciphers for sending and for receiving."""
        first, second = self._symmetric.split()
        return (first, second) if self.initiator else (second, first)

    def _next_tokens(self, *, write: bool) -> tuple[str, ...]:
        if self.finished or self.writes_next is not write:
            raise ProtocolViolationError(
                "a Noise handshake message out of turn", reason="NOISE_HANDSHAKE"
            )
        self._step += 1
        return PATTERN[self._step - 1]

    def _take_key(self, token: str, message: bytes) -> tuple[bytes, bytes]:
        size = KEY_BYTES + (TAG_BYTES if token == "s" else 0)
        if len(message) < size:
            raise _too_short()
        return message[:size], message[size:]

    def _exchange(self, token: str) -> None:
        """Mix in a Diffie-Hellman result; the token names the initiator's key first."""
        ours, theirs = (token[0], token[1]) if self.initiator else (token[1], token[0])
        try:
            secret = self._keys[ours].exchange(self._remote[theirs])
        except ValueError as error:
            # The library refuses a result of zeros, which a key of low order brings about.
            raise AuthenticationError(
                "the peer sent an X25519 key of low order", reason="NOISE_HANDSHAKE"
            ) from error
        self._symmetric.mix_key(secret)


def _too_short() -> ProtocolViolationError:
    return ProtocolViolationError("a Noise message is too short", reason="NOISE_HANDSHAKE")


class FrameReader:
    """Cuts received bytes into frames; holds at most one incomplete frame."""

    def __init__(self) -> None:
        self._partial = b""

    @property
    def empty(self) -> bool:
        """True when no incomplete frame is held."""
        return not self._partial

    def feed(self, data: Buffer) -> list[Buffer]:
        """Take bytes; return the contents of the frames that they complete.

        The frames are views into `data`, except one that began in an earlier call.
        """
        frames: list[Buffer] = []
        view = memoryview(data)
        offset, end = 0, len(view)
        if self._partial:
            offset = self._complete(view, frames)
            if self._partial:
                self._partial += view[offset:]
                return frames
        while end - offset >= 2:
            size = view[offset] << 8 | view[offset + 1]
            stop = offset + 2 + size
            if stop > end:
                break
            frames.append(view[offset + 2 : stop])
            offset = stop
        if offset < end:
            self._partial += view[offset:]
        return frames

    def _complete(self, view: memoryview, frames: list[Buffer]) -> int:
        """Finish the frame that is held, if `view` suffices; return how much was taken."""
        held = len(self._partial)
        if held == 1:
            self._partial += view[:1]
            return 1 + (self._complete(view[1:], frames) if len(view) else 0)
        missing = 2 + int.from_bytes(self._partial[:2], "big") - held
        if len(view) < missing:
            return 0
        frames.append(memoryview(b"".join((self._partial, view[:missing])))[2:])
        self._partial = b""
        return missing


class NoiseTransport:
    """The two ciphers after the handshake: plaintext in, frames out, and back."""

    def __init__(self, send: CipherState, receive: CipherState) -> None:
        self._send = send
        self._receive = receive
        self._reader = FrameReader()

    @property
    def at_frame_boundary(self) -> bool:
        """True when the peer may end the channel here without a frame being cut."""
        return self._reader.empty

    def seal(self, parts: Iterable[Buffer]) -> list[bytes]:
        """Seal `parts`, one after the other, in as few frames as hold them.

        Returns the frames as pieces for one gathering write: length, ciphertext, and so on.
        """
        pieces: list[bytes] = []
        segment: list[Buffer] = []
        size = 0
        for part in parts:
            length = len(part)
            if size + length > MAX_PLAINTEXT:
                if size:
                    self._seal_segment(segment, size, pieces)
                    segment, size = [], 0
                if length > MAX_PLAINTEXT:
                    view = memoryview(part)
                    while len(view) > MAX_PLAINTEXT:
                        self._seal_segment([view[:MAX_PLAINTEXT]], MAX_PLAINTEXT, pieces)
                        view = view[MAX_PLAINTEXT:]
                    part, length = view, len(view)
            segment.append(part)
            size += length
        if size:
            self._seal_segment(segment, size, pieces)
        return pieces

    def _seal_segment(self, segment: list[Buffer], size: int, pieces: list[bytes]) -> None:
        pieces.append(_FULL_LENGTH if size == MAX_PLAINTEXT else _LENGTH.pack(size + TAG_BYTES))
        pieces.append(self._send.encrypt(b"".join(segment) if len(segment) > 1 else segment[0]))

    def open(self, data: Buffer) -> list[bytes]:
        """Take received bytes; return the plaintexts of the frames that they complete.

        Raises:
            AuthenticationError: a frame does not authenticate; the connection is dead.
        """
        decrypt = self._receive.decrypt
        return [decrypt(frame) for frame in self._reader.feed(data)]
