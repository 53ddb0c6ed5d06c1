from __future__ import annotations

import pytest

from dep2p_daemon.circuit.voucher import DOMAIN, PAYLOAD_TYPE, Voucher
from dep2p_daemon.errors import AuthenticationError, ProtocolViolationError
from dep2p_daemon.identity.envelope import seal
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.wire.libp2p import circuit_pb2, record_pb2

RELAY = PrivateKey.from_seed(b"r" * 32)
CLIENT = PrivateKey.from_seed(b"c" * 32).peer_id
STRANGER = PrivateKey.from_seed(b"s" * 32)
VOUCHER = Voucher(RELAY.peer_id, CLIENT, 2_000_000_000)
NOW = 1_999_999_999.0


def test_a_voucher_opens_as_it_was_sealed() -> None:
    sealed = VOUCHER.seal(RELAY)
    assert Voucher.open(sealed, relay=RELAY.peer_id, peer=CLIENT, now=NOW) == VOUCHER


def test_its_envelope_has_the_type_of_the_spec_and_its_payload_the_field_order() -> None:
    envelope = record_pb2.Envelope.FromString(VOUCHER.seal(RELAY))
    assert envelope.payload_type == b"\x03\x02"
    relay, peer = bytes(RELAY.peer_id), bytes(CLIENT)
    assert envelope.payload == (
        b"\x0a" + bytes([len(relay)]) + relay
        + b"\x12" + bytes([len(peer)]) + peer
        + b"\x18\x80\xa8\xd6\xb9\x07"
    )  # fmt: skip


@pytest.mark.parametrize("position", range(0, 250, 7))
def test_a_tampered_voucher_is_refused(position: int) -> None:
    sealed = bytearray(VOUCHER.seal(RELAY))
    sealed[position % len(sealed)] ^= 0x01
    with pytest.raises((AuthenticationError, ProtocolViolationError)):
        Voucher.open(bytes(sealed), relay=RELAY.peer_id, peer=CLIENT, now=NOW)


def test_an_expired_voucher_is_refused() -> None:
    with pytest.raises(ProtocolViolationError, match="clocks") as raised:
        Voucher.open(VOUCHER.seal(RELAY), relay=RELAY.peer_id, peer=CLIENT, now=2_000_000_000.0)
    assert raised.value.reason == "VOUCHER_EXPIRED"


@pytest.mark.parametrize(
    ("voucher", "key", "reason"),
    [
        (VOUCHER, STRANGER, "VOUCHER_RELAY_MISMATCH"),
        (Voucher(STRANGER.peer_id, CLIENT, 2**40), RELAY, "VOUCHER_RELAY_MISMATCH"),
        (Voucher(RELAY.peer_id, STRANGER.peer_id, 2**40), RELAY, "VOUCHER_PEER_MISMATCH"),
    ],
)
def test_a_voucher_of_about_or_for_somebody_else_is_refused(
    voucher: Voucher, key: PrivateKey, reason: str
) -> None:
    with pytest.raises(AuthenticationError) as raised:
        Voucher.open(voucher.seal(key), relay=RELAY.peer_id, peer=CLIENT, now=NOW)
    assert raised.value.reason == reason


@pytest.mark.parametrize("payload", [b"\xff", circuit_pb2.ReservationVoucher().SerializeToString()])
def test_a_signed_payload_that_is_no_voucher_is_refused(payload: bytes) -> None:
    sealed = seal(RELAY, domain=DOMAIN, payload_type=PAYLOAD_TYPE, payload=payload)
    with pytest.raises(ProtocolViolationError) as raised:
        Voucher.open(sealed, relay=RELAY.peer_id, peer=CLIENT, now=NOW)
    assert raised.value.reason == "VOUCHER_MALFORMED"
