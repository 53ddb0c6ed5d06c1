from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.errors import AuthenticationError, PeerError, ProtocolViolationError
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.tcp.noise import HandshakeState
from dep2p_daemon.tcp.noise_handshake import (
    MAX_HANDSHAKE_MESSAGE,
    SIGNATURE_PREFIX,
    NoiseHandshake,
)
from dep2p_daemon.wire.libp2p.noise_pb2 import NoiseExtensions, NoiseHandshakePayload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dep2p_daemon.identity.peer_id import PeerId

ALICE, BOB, MALLORY = (PrivateKey.from_seed(bytes([n] * 32)) for n in (1, 2, 3))
YAMUX = "/yamux/1.0.0"


def run(initiator: NoiseHandshake, responder: NoiseHandshake) -> None:
    """Carry messages until both are done."""
    responder.start()
    message, sender = initiator.start(), initiator
    while message:
        receiver = responder if sender is initiator else initiator
        message, sender = receiver.receive(message), receiver


def dial(
    *,
    initiator_muxers: Sequence[str] = (YAMUX,),
    responder_muxers: Sequence[str] = (YAMUX,),
    expected: PeerId | None = None,
) -> tuple[NoiseHandshake, NoiseHandshake]:
    initiator = NoiseHandshake(
        ALICE, initiator=True, muxers=initiator_muxers, expected_peer=expected
    )
    responder = NoiseHandshake(BOB, initiator=False, muxers=responder_muxers)
    run(initiator, responder)
    return initiator, responder


class Forger:
    """A raw initiator that sends any payload in message 3."""

    def __init__(self) -> None:
        self.static = X25519PrivateKey.generate()
        self.noise = HandshakeState(
            initiator=True, static=self.static, ephemeral=X25519PrivateKey.generate()
        )
        self.responder = NoiseHandshake(BOB, initiator=False, muxers=[YAMUX])
        self.responder.start()
        answer = self.responder.receive(self.noise.write_message(b""))
        self.noise.read_message(answer)

    def signed(self, key: PrivateKey = ALICE, prefix: bytes = SIGNATURE_PREFIX) -> bytes:
        return key.sign(prefix + self.static.public_key().public_bytes_raw())

    def send(self, payload: bytes) -> None:
        self.responder.receive(self.noise.write_message(payload))


def test_both_sides_learn_who_is_there() -> None:
    initiator, responder = dial(expected=BOB.peer_id)
    assert initiator.session is not None
    assert responder.session is not None
    assert initiator.session.remote_peer == BOB.peer_id
    assert initiator.session.remote_key == BOB.public_key
    assert responder.session.remote_peer == ALICE.peer_id
    sealed = b"".join(initiator.session.transport.seal([b"hello"]))
    assert responder.session.transport.open(sealed) == [b"hello"]
    sealed = b"".join(responder.session.transport.seal([b"world"]))
    assert initiator.session.transport.open(sealed) == [b"world"]


@pytest.mark.parametrize(
    ("initiator_muxers", "responder_muxers", "agreed"),
    [
        ([YAMUX], [YAMUX], YAMUX),
        (["/mplex", YAMUX], [YAMUX], YAMUX),
        (["/a", "/b"], ["/b", "/a"], "/a"),
        ([], [YAMUX], None),
        ([YAMUX], [], None),
        ([], [], None),
    ],
)
def test_muxer_within_the_handshake(
    initiator_muxers: list[str], responder_muxers: list[str], agreed: str | None
) -> None:
    sides = dial(initiator_muxers=initiator_muxers, responder_muxers=responder_muxers)
    assert [side.session and side.session.muxer for side in sides] == [agreed, agreed]


def test_no_common_muxer_fails() -> None:
    with pytest.raises(ProtocolViolationError) as caught:
        dial(initiator_muxers=["/mplex"], responder_muxers=[YAMUX])
    assert caught.value.reason == "NO_COMMON_MUXER"


def test_another_peer_than_expected_is_refused() -> None:
    with pytest.raises(AuthenticationError) as caught:
        dial(expected=MALLORY.peer_id)
    assert caught.value.reason == "PEER_ID_MISMATCH"
    assert str(MALLORY.peer_id) in str(caught.value)
    assert str(BOB.peer_id) in str(caught.value)


def test_message_one_has_no_payload() -> None:
    initiator = NoiseHandshake(ALICE, initiator=True, muxers=[YAMUX])
    assert len(initiator.start()) == 32


def test_handshake_messages_stay_far_below_our_own_bound() -> None:
    responder = NoiseHandshake(BOB, initiator=False, muxers=[YAMUX])
    initiator = NoiseHandshake(ALICE, initiator=True, muxers=[YAMUX])
    responder.start()
    assert len(responder.receive(initiator.start())) < MAX_HANDSHAKE_MESSAGE / 10


def test_forger_baseline_passes() -> None:
    forger = Forger()
    forger.send(
        NoiseHandshakePayload(
            identity_key=ALICE.public_key.to_protobuf(), identity_sig=forger.signed()
        ).SerializeToString()
    )
    assert forger.responder.session is not None
    assert forger.responder.session.remote_peer == ALICE.peer_id
    assert forger.responder.session.muxer is None


def test_signature_by_another_key() -> None:
    forger = Forger()
    payload = NoiseHandshakePayload(
        identity_key=ALICE.public_key.to_protobuf(), identity_sig=forger.signed(MALLORY)
    )
    with pytest.raises(AuthenticationError, match="signature"):
        forger.send(payload.SerializeToString())
    assert forger.responder.session is None


def test_signature_of_another_session() -> None:
    earlier, forger = Forger(), Forger()
    payload = NoiseHandshakePayload(
        identity_key=ALICE.public_key.to_protobuf(), identity_sig=earlier.signed()
    )
    with pytest.raises(AuthenticationError):
        forger.send(payload.SerializeToString())


def test_signature_with_another_prefix() -> None:
    forger = Forger()
    payload = NoiseHandshakePayload(
        identity_key=ALICE.public_key.to_protobuf(),
        identity_sig=forger.signed(prefix=b"libp2p-tls-handshake:"),
    )
    with pytest.raises(AuthenticationError):
        forger.send(payload.SerializeToString())


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        NoiseHandshakePayload(
            identity_key=b"\x08\x63\x12\x01x", identity_sig=b""
        ).SerializeToString(),
    ],
    ids=["empty", "no protobuf", "key type 99"],
)
def test_unusable_payload(payload: bytes) -> None:
    with pytest.raises(PeerError):
        Forger().send(payload)


@given(st.binary(max_size=300))
def test_random_payloads_give_our_errors(payload: bytes) -> None:
    with pytest.raises(PeerError):
        Forger().send(payload)


def test_muxer_ids_that_are_not_utf8() -> None:
    forger = Forger()
    payload = NoiseHandshakePayload(
        identity_key=ALICE.public_key.to_protobuf(), identity_sig=forger.signed()
    )
    extensions = NoiseExtensions(stream_muxers=["??"]).SerializeToString()
    data = payload.SerializeToString() + b"\x22\x04" + extensions.replace(b"??", b"\xff\xfe")
    with pytest.raises(ProtocolViolationError):
        forger.send(data)


def test_nothing_is_taken_after_an_error() -> None:
    initiator = NoiseHandshake(ALICE, initiator=True, muxers=[YAMUX])
    initiator.start()
    for _ in range(2):
        with pytest.raises(ProtocolViolationError):
            initiator.receive(b"short")


def test_nothing_is_taken_before_the_start() -> None:
    with pytest.raises(ProtocolViolationError, match="out of turn"):
        NoiseHandshake(ALICE, initiator=True, muxers=[YAMUX]).receive(bytes(100))
