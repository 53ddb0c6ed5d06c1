from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.errors import AuthenticationError, ProtocolViolationError
from dep2p_daemon.tcp.noise import (
    MAX_PLAINTEXT,
    CipherState,
    FrameReader,
    HandshakeState,
    NoiseTransport,
)

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "noise_vectors.json").read_text()
)
"""Noise_XX_25519_ChaChaPoly_SHA256 of cacophony.txt and snow.txt, as snow ships them."""


def private(data: str) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(bytes.fromhex(data))


def handshake(*, initiator: bool, prologue: bytes = b"") -> HandshakeState:
    return HandshakeState(
        initiator=initiator,
        static=X25519PrivateKey.generate(),
        ephemeral=X25519PrivateKey.generate(),
        prologue=prologue,
    )


def transports() -> tuple[NoiseTransport, NoiseTransport]:
    keys = bytes(32), bytes([1] * 32)
    return (
        NoiseTransport(CipherState(keys[0]), CipherState(keys[1])),
        NoiseTransport(CipherState(keys[1]), CipherState(keys[0])),
    )


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector["source"]))
def test_official_vectors(vector: dict[str, Any]) -> None:
    sides = [
        HandshakeState(
            initiator=role == "init",
            static=private(vector[f"{role}_static"]),
            ephemeral=private(vector[f"{role}_ephemeral"]),
            prologue=bytes.fromhex(vector[f"{role}_prologue"]),
        )
        for role in ("init", "resp")
    ]
    messages = [(bytes.fromhex(m["payload"]), m["ciphertext"]) for m in vector["messages"]]
    for index, (payload, ciphertext) in enumerate(messages[:3]):
        writer, reader = sides[index % 2], sides[1 - index % 2]
        message = writer.write_message(payload)
        assert message.hex() == ciphertext
        assert reader.read_message(message) == payload
    assert all(side.finished for side in sides)
    if "handshake_hash" in vector:
        assert [side.handshake_hash.hex() for side in sides] == [vector["handshake_hash"]] * 2
    ciphers = [side.split() for side in sides]
    for index, (payload, ciphertext) in enumerate(messages[3:], start=3):
        writer_index = index % 2
        sealed = ciphers[writer_index][0].encrypt(payload)
        assert sealed.hex() == ciphertext
        assert ciphers[1 - writer_index][1].decrypt(sealed) == payload
    assert sides[1].remote_static == private(vector["init_static"]).public_key().public_bytes_raw()


def test_the_vectors_are_there() -> None:
    assert {vector["source"] for vector in VECTORS} == {"cacophony", "snow"}


def test_turns_are_kept() -> None:
    initiator = handshake(initiator=True)
    with pytest.raises(ProtocolViolationError):
        initiator.read_message(bytes(32))
    initiator.write_message(b"")
    with pytest.raises(ProtocolViolationError):
        initiator.write_message(b"")


def test_other_prologue_does_not_authenticate() -> None:
    initiator, responder = handshake(initiator=True), handshake(initiator=False, prologue=b"x")
    responder.read_message(initiator.write_message(b""))
    with pytest.raises(AuthenticationError):
        initiator.read_message(responder.write_message(b""))


def test_key_of_low_order_is_refused() -> None:
    responder = handshake(initiator=False)
    responder.read_message(bytes(32))
    with pytest.raises(AuthenticationError, match="low order"):
        responder.write_message(b"")


@given(st.binary(max_size=200), st.integers(0, 2))
def test_random_handshake_messages_give_our_errors(data: bytes, step: int) -> None:
    initiator, responder = handshake(initiator=True), handshake(initiator=False)
    reader = responder
    if step >= 1:
        responder.read_message(initiator.write_message(b""))
        reader = initiator
    if step == 2:
        initiator.read_message(responder.write_message(b""))
        reader = responder
    if step == 0 and len(data) >= 32:
        assert reader.read_message(data) == data[32:]
        return
    with pytest.raises((ProtocolViolationError, AuthenticationError)):
        reader.read_message(data)


@given(st.lists(st.binary(max_size=70_000), max_size=4), st.lists(st.integers(1, 70_000)))
def test_frames_survive_any_cut(parts: list[bytes], cuts: list[int]) -> None:
    sender, receiver = transports()
    wire = b"".join(sender.seal(parts))
    received = []
    for cut in [*cuts, len(wire)]:
        received += receiver.open(wire[:cut])
        wire = wire[cut:]
    assert b"".join(received) == b"".join(parts)
    assert receiver.at_frame_boundary


def test_frames_survive_single_bytes() -> None:
    sender, receiver = transports()
    wire = b"".join(sender.seal([b"hello"])) + b"".join(sender.seal([b"world"]))
    received = []
    for index in range(len(wire)):
        received += receiver.open(wire[index : index + 1])
    assert received == [b"hello", b"world"]


def test_parts_share_frames_as_long_as_they_fit() -> None:
    sender, receiver = transports()
    pieces = sender.seal([b"a" * 12, b"b" * (MAX_PLAINTEXT - 12), b"c", b"d"])
    assert [len(piece) for piece in pieces] == [2, 65535, 2, 18]
    assert [len(plaintext) for plaintext in receiver.open(b"".join(pieces))] == [MAX_PLAINTEXT, 2]


def test_nothing_to_seal_is_no_frame() -> None:
    assert transports()[0].seal([b"", b""]) == []


@pytest.mark.parametrize("size", [0, 1, 15])
def test_frame_shorter_than_its_tag(size: int) -> None:
    with pytest.raises(AuthenticationError):
        transports()[0].open(size.to_bytes(2, "big") + bytes(size))


def test_frames_cannot_be_swapped_or_replayed() -> None:
    sender, receiver = transports()
    first, second = (b"".join(sender.seal([text])) for text in (b"first", b"second"))
    with pytest.raises(AuthenticationError):
        receiver.open(second)
    assert receiver.open(first) == [b"first"]
    with pytest.raises(AuthenticationError):
        receiver.open(first)


@given(st.binary(max_size=400))
def test_random_frames_give_our_error_or_nothing(data: bytes) -> None:
    _, receiver = transports()
    with contextlib.suppress(AuthenticationError):
        assert receiver.open(data) == []


def test_incomplete_frame_is_noticed() -> None:
    reader = FrameReader()
    assert reader.feed(b"\x00\x05abc") == []
    assert not reader.empty
    assert [bytes(frame) for frame in reader.feed(b"de\x00")] == [b"abcde"]
    assert not reader.empty


@given(
    frames=st.lists(st.binary(max_size=40), max_size=8),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=60),
)
def test_frames_come_whole_however_small_the_pieces(frames: list[bytes], sizes: list[int]) -> None:
    # js-libp2p over a QUIC circuit cuts a frame into many pieces of 4096 bytes.
    data = b"".join(len(frame).to_bytes(2, "big") + frame for frame in frames)
    reader = FrameReader()
    received: list[bytes] = []
    offset = 0
    for size in (*sizes, len(data)):
        received += [bytes(frame) for frame in reader.feed(data[offset : offset + size])]
        offset += size
    assert received == frames
    assert reader.empty
