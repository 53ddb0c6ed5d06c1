from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.errors import PeerIdError
from dep2p_daemon.identity.keys import PrivateKey, PublicKey
from dep2p_daemon.identity.peer_id import PeerId

HERE = Path(__file__).parent
SPEC: dict[str, dict[str, str]] = json.loads((HERE / "spec_keys.json").read_text())
JS: dict[str, dict[str, str]] = json.loads((HERE / "js_libp2p_vectors.json").read_text())

# peer-ids/peer-ids.md#decoding
SPEC_ED25519 = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA"
SPEC_SHA256 = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
SPEC_SHA256_CID = "bafzbeie5745rpv2m6tjyuugywy4d5ewrqgqqhfnf445he3omzpjbx5xqxe"

peer_ids = st.binary(min_size=32, max_size=32).map(
    lambda digest: PeerId.from_bytes(b"\x12\x20" + digest)
) | st.binary(min_size=32, max_size=32).map(lambda seed: PrivateKey.from_seed(seed).peer_id)


@pytest.mark.parametrize("text", [SPEC_ED25519, SPEC_SHA256])
def test_examples_of_the_specification(text: str) -> None:
    assert str(PeerId.parse(text)) == text


def test_a_cid_is_the_same_peer_id() -> None:
    assert PeerId.parse(SPEC_SHA256_CID) == PeerId.parse(SPEC_SHA256)


@pytest.mark.parametrize("kind", JS)
def test_peer_ids_of_js_libp2p(kind: str) -> None:
    key = PublicKey.from_protobuf(bytes.fromhex(JS[kind]["public_key"]))
    assert str(PeerId.from_public_key(key)) == JS[kind]["peer_id"]
    assert PeerId.parse(JS[kind]["cid"]) == PeerId.parse(JS[kind]["peer_id"])


@pytest.mark.parametrize("kind", SPEC)
def test_short_keys_are_inside_their_id_and_long_ones_hashed(kind: str) -> None:
    encoded = bytes.fromhex(SPEC[kind]["public"])
    key = PublicKey.from_protobuf(encoded)
    peer = PeerId.from_public_key(key)
    if kind in ("ED25519", "SECP256K1"):
        assert bytes(peer) == bytes([0, len(encoded)]) + encoded
        assert peer.public_key == key
    else:
        assert bytes(peer) == b"\x12\x20" + hashlib.sha256(encoded).digest()
        assert peer.public_key is None


def test_a_key_in_another_form_has_the_same_id() -> None:
    encoded = bytes.fromhex(SPEC["ED25519"]["public"])
    reversed_fields = encoded[2:] + encoded[:2]
    peer = PeerId.from_public_key(PublicKey.from_protobuf(reversed_fields))
    assert peer == PeerId.from_public_key(PublicKey.from_protobuf(encoded))


@given(peer_ids)
def test_round_trips(peer: PeerId) -> None:
    assert PeerId.parse(str(peer)) == peer
    assert PeerId.from_bytes(bytes(peer)) == peer
    assert PeerId.from_bytes(peer.to_bytes()) == peer
    assert peer.short == str(peer)[-8:]
    assert str(peer) in repr(peer)


@given(st.lists(peer_ids, unique=True))
def test_values_ordered_by_their_bytes(peers: list[PeerId]) -> None:
    assert len(set(peers)) == len(peers)
    assert [bytes(peer) for peer in sorted(peers)] == sorted(bytes(peer) for peer in peers)


@given(st.binary(max_size=60))
def test_random_bytes_are_refused_or_an_id(data: bytes) -> None:
    try:
        peer = PeerId.from_bytes(data)
    except PeerIdError:
        return
    assert bytes(peer) == data
    assert PeerId.parse(str(peer)) == peer


@given(st.text(max_size=200) | st.from_regex(r"(12D3KooW|Qm|b|z|f|k|u)[0-9a-zA-Z]{0,60}"))
def test_random_texts_are_refused_or_an_id(text: str) -> None:
    try:
        peer = PeerId.parse(text)
    except PeerIdError:
        return
    assert PeerId.from_bytes(bytes(peer)) == peer


@given(peer_ids)
def test_every_cut_is_refused(peer: PeerId) -> None:
    for end in range(len(bytes(peer))):
        with pytest.raises(PeerIdError):
            PeerId.from_bytes(bytes(peer)[:end])
    with pytest.raises(PeerIdError):
        PeerId.from_bytes(bytes(peer) + b"\0")
    with pytest.raises(PeerIdError):
        PeerId.parse(str(peer)[:-1])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\x00\x00",
        b"\x13\x20" + bytes(32),  # another hash function
        b"\x00\x06" + bytes.fromhex("080112026161"),  # too short a key
        # The specification's key, fields in another order: nobody can prove this id.
        b"\x00\x24"
        + bytes.fromhex("12201ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e0801"),
        b"\x00\x2b" + bytes(43),
    ],
)
def test_refused(data: bytes) -> None:
    with pytest.raises(PeerIdError):
        PeerId.from_bytes(data)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("5Q2STWvBRelayServerID...", "5Q2STWvBRelayServerID"),
        ("12D3KooW", "cut off"),
        ("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx50", '"0"'),
        ("x" * 200, "longer than 128"),
        ("bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi", "libp2p key"),
    ],
)
def test_the_message_says_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(PeerIdError) as caught:
        PeerId.parse(text)
    assert said in caught.value.message
    assert "12D3KooW" in caught.value.remedy
    assert len(caught.value.message) < 300
