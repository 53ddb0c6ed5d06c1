"""libp2p's Noise handshake: who is there, and which muxer to use; without I/O.

https://github.com/libp2p/specs/blob/master/noise/README.md (r5) and
https://github.com/libp2p/specs/blob/master/connections/inlined-muxer-negotiation.md

Flow (I: initiator, R: responder; the payloads of the three XX messages):
  1. I -> R: nothing
  2. R -> I: R's identity key, its signature of R's static Noise key, R's muxers
  3. I -> R: the same of I; both now know each other and take the first of I's muxers
     that R has too
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from google.protobuf.message import DecodeError

from dep2p_daemon.errors import AuthenticationError, Dep2pError, ProtocolViolationError
from dep2p_daemon.identity.keys import PublicKey
from dep2p_daemon.identity.peer_id import PeerId
from dep2p_daemon.tcp.noise import HandshakeState, NoiseTransport
from dep2p_daemon.wire.libp2p import noise_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dep2p_daemon.identity.keys import PrivateKey

NOISE_PROTOCOL: Final = "/noise"
SIGNATURE_PREFIX: Final = b"noise-libp2p-static-key:"
MAX_HANDSHAKE_MESSAGE: Final = 16 * 1024
"""Longest handshake message taken, in bytes. Ours: an 8192-bit RSA identity and a hundred
muxers fit; what strangers can make us hold stays small."""
MAX_MUXERS: Final = 64
"""Muxer ids looked at in a peer's list; ours: nobody has more than three."""


@dataclass(frozen=True, slots=True)
class NoiseSession:
    """What a finished handshake has proven and agreed on."""

    remote_key: PublicKey
    remote_peer: PeerId
    muxer: str | None
    """Agreed on within the handshake; None: negotiate it with multistream-select."""
    transport: NoiseTransport


class _State(enum.Enum):
    START = enum.auto()
    SENT_EPHEMERAL = enum.auto()
    AWAIT_EPHEMERAL = enum.auto()
    AWAIT_FINAL = enum.auto()
    DONE = enum.auto()
    FAILED = enum.auto()


class _Input(enum.Enum):
    BEGIN_INITIATOR = enum.auto()
    BEGIN_RESPONDER = enum.auto()
    MESSAGE = enum.auto()


_TRANSITIONS: Final[dict[tuple[_State, _Input], _State]] = {
    (_State.START, _Input.BEGIN_INITIATOR): _State.SENT_EPHEMERAL,
    (_State.START, _Input.BEGIN_RESPONDER): _State.AWAIT_EPHEMERAL,
    (_State.SENT_EPHEMERAL, _Input.MESSAGE): _State.DONE,
    (_State.AWAIT_EPHEMERAL, _Input.MESSAGE): _State.AWAIT_FINAL,
    (_State.AWAIT_FINAL, _Input.MESSAGE): _State.DONE,
}
"""Every step there is: a pair that is missing is a message out of turn."""


class NoiseHandshake:
    """One side of the handshake: the peer's messages in, ours out, then `session`.

    Messages are without their two length bytes. After an error the handshake is over.
    """

    def __init__(
        self,
        key: PrivateKey,
        *,
        initiator: bool,
        muxers: Sequence[str],
        expected_peer: PeerId | None = None,
    ) -> None:
        self._key = key
        self._initiator = initiator
        self._muxers = tuple(muxers)
        self._expected_peer = expected_peer
        # A static key of its own for every session: nothing to store, nothing to leak.
        self._static = X25519PrivateKey.generate()
        self._noise = HandshakeState(
            initiator=initiator, static=self._static, ephemeral=X25519PrivateKey.generate()
        )
        self._state = _State.START
        self.session: NoiseSession | None = None
        """The outcome; set when `receive` has taken the peer's last message."""

    def start(self) -> bytes:
        """Return our first message, b"" for the responder."""
        if self._initiator:
            self._step(_Input.BEGIN_INITIATOR)
            return self._noise.write_message(b"")
        self._step(_Input.BEGIN_RESPONDER)
        return b""

    def receive(self, message: bytes) -> bytes:
        """Take the peer's next message; return ours that answers it, b"" if none does.

        Raises:
            AuthenticationError: the peer did not prove its identity, or is not the one that
                was expected.
            ProtocolViolationError: it sent something else.
        """
        state = self._state
        self._step(_Input.MESSAGE)
        try:
            payload = self._noise.read_message(message)
            if state is _State.AWAIT_EPHEMERAL:
                return self._noise.write_message(self._payload())
            remote_key, muxer = self._check(payload)
            answer = b"" if self._noise.finished else self._noise.write_message(self._payload())
            send, receive = self._noise.split()
        except Dep2pError:
            self._state = _State.FAILED
            raise
        self.session = NoiseSession(
            remote_key=remote_key,
            remote_peer=PeerId.from_public_key(remote_key),
            muxer=muxer,
            transport=NoiseTransport(send, receive),
        )
        return answer

    def _step(self, event: _Input) -> None:
        following = _TRANSITIONS.get((self._state, event))
        if following is None:
            raise _violation("a handshake message out of turn")
        self._state = following

    def _payload(self) -> bytes:
        static = self._static.public_key().public_bytes_raw()
        return noise_pb2.NoiseHandshakePayload(
            identity_key=self._key.public_key.to_protobuf(),
            identity_sig=self._key.sign(SIGNATURE_PREFIX + static),
            extensions=noise_pb2.NoiseExtensions(stream_muxers=self._muxers),
        ).SerializeToString()

    def _check(self, data: bytes) -> tuple[PublicKey, str | None]:
        """Check the peer's payload; return its key and the muxer that both have."""
        try:
            payload = noise_pb2.NoiseHandshakePayload.FromString(data)
        except DecodeError as error:
            raise _violation("a handshake payload that is no protobuf") from error
        try:
            key = PublicKey.from_protobuf(payload.identity_key)
        except Dep2pError as error:
            raise AuthenticationError(
                f"the peer's identity key is unusable: {error.message}", reason="IDENTITY_KEY"
            ) from error
        if not key.verify(SIGNATURE_PREFIX + self._noise.remote_static, payload.identity_sig):
            raise AuthenticationError(
                "the peer's signature does not match its identity key", reason="IDENTITY_SIGNATURE"
            )
        self._check_peer(PeerId.from_public_key(key))
        # The protobuf library hands out what is not UTF-8 as bytes; str() makes it a mismatch.
        muxers = [str(muxer) for muxer in payload.extensions.stream_muxers[:MAX_MUXERS]]
        return key, self._choose_muxer(muxers)

    def _check_peer(self, peer: PeerId) -> None:
        expected = self._expected_peer
        if expected is not None and peer != expected:
            raise AuthenticationError(
                f"expected the peer {expected}, but {peer} answered",
                reason="PEER_ID_MISMATCH",
                remedy="check the peer id at the end of the address: another node answers there",
                expected=expected,
                actual=peer,
            )

    def _choose_muxer(self, theirs: Sequence[str]) -> str | None:
        """Return the first of the initiator's muxers that the responder has too.

        None when either side sent no list: then multistream-select decides.
        """
        if not theirs or not self._muxers:
            return None
        first, second = (self._muxers, theirs) if self._initiator else (theirs, self._muxers)
        for muxer in first:
            if muxer in second:
                return muxer
        raise ProtocolViolationError(
            f"the peer has no muxer in common with us: {', '.join(theirs)[:200]}",
            reason="NO_COMMON_MUXER",
        )


def _violation(what: str) -> ProtocolViolationError:
    return ProtocolViolationError(
        f"the peer broke the Noise handshake: {what}", reason="NOISE_HANDSHAKE"
    )
