from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.errors import (
    AuthenticationError,
    InvalidArgumentError,
    PeerError,
    ProtocolViolationError,
)
from dep2p_daemon.identity.envelope import open_envelope, seal
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.identity.peer_id import PeerId
from dep2p_daemon.identity.peer_record import DOMAIN, MAX_ADDRESSES, PAYLOAD_TYPE, PeerRecord
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.wire.libp2p import record_pb2 as pb

# Made once with @libp2p/peer-record 9 of npm.
JS: dict[str, dict[str, str]] = json.loads(
    (Path(__file__).parent / "js_libp2p_vectors.json").read_text()
)
KEY = PrivateKey.from_seed(bytes(32))
ADDRESSES = (Multiaddr.for_udp("203.0.113.10", 4001), Multiaddr.for_tcp("2001:db8::1", 4001))


def seal_payload(payload: bytes, key: PrivateKey = KEY) -> bytes:
    return seal(key, domain=DOMAIN, payload_type=PAYLOAD_TYPE, payload=payload)


@pytest.mark.parametrize("kind", JS)
def test_a_record_of_js_libp2p(kind: str) -> None:
    record = PeerRecord.open(bytes.fromhex(JS[kind]["envelope"]))
    assert record == PeerRecord(PeerId.parse(JS[kind]["peer_id"]), 12345, ADDRESSES)


def test_our_record_is_the_one_that_js_libp2p_makes() -> None:
    key = PrivateKey.from_seed(bytes([7]) * 32)
    theirs = bytes.fromhex(JS["ED25519"]["envelope"])
    ours = PeerRecord(key.peer_id, 12345, ADDRESSES).seal(key)
    domain_and_type = {"domain": "libp2p-peer-record", "payload_type": b"\x03\x01"}
    assert open_envelope(ours, **domain_and_type) == open_envelope(theirs, **domain_and_type)  # type: ignore[arg-type]


@given(st.integers(0, 2**64 - 1), st.integers(0, 20))
def test_round_trip(seq: int, count: int) -> None:
    addresses = tuple(Multiaddr.for_udp("10.0.0.1", 1 + port) for port in range(count))
    record = PeerRecord(KEY.peer_id, seq, addresses)
    assert PeerRecord.open(record.seal(KEY)) == record


def test_nobody_signs_for_somebody_else() -> None:
    record = PeerRecord(KEY.peer_id, 1, ADDRESSES)
    with pytest.raises(InvalidArgumentError):
        record.seal(PrivateKey.generate())
    forged = pb.PeerRecord(peer_id=bytes(KEY.peer_id), seq=1).SerializeToString()
    with pytest.raises(AuthenticationError) as caught:
        PeerRecord.open(seal_payload(forged, PrivateKey.generate()))
    assert caught.value.reason == "PEER_RECORD_SIGNER"


def test_a_record_under_another_domain_is_refused() -> None:
    payload = pb.PeerRecord(peer_id=bytes(KEY.peer_id), seq=1).SerializeToString()
    data = seal(KEY, domain="libp2p-routing-state", payload_type=PAYLOAD_TYPE, payload=payload)
    with pytest.raises(AuthenticationError):
        PeerRecord.open(data)


def test_an_address_of_an_unknown_kind_does_not_cost_the_others() -> None:
    message = pb.PeerRecord(peer_id=bytes(KEY.peer_id), seq=1)
    for data in (b"\xff\x7f", bytes(ADDRESSES[0]), b"", b"\x04\x01"):
        message.addresses.add(multiaddr=data)
    record = PeerRecord.open(seal_payload(message.SerializeToString()))
    assert record.addresses == ADDRESSES[:1]


def test_addresses_are_bounded() -> None:
    message = pb.PeerRecord(peer_id=bytes(KEY.peer_id), seq=1)
    for _ in range(MAX_ADDRESSES + 1):
        message.addresses.add(multiaddr=bytes(ADDRESSES[0]))
    assert len(PeerRecord.open(seal_payload(message.SerializeToString())).addresses) == 500


@given(st.binary(max_size=200))
def test_a_signed_payload_that_is_no_record_is_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolViolationError) as caught:
        PeerRecord.open(seal_payload(payload))
    assert caught.value.reason == "PEER_RECORD_MALFORMED"


@given(st.binary(max_size=200))
def test_random_bytes_raise_our_errors_only(data: bytes) -> None:
    with pytest.raises(PeerError):
        PeerRecord.open(data)
