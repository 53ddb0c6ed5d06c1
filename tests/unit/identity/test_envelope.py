from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.errors import AuthenticationError, PeerError, ProtocolViolationError
from dep2p_daemon.identity.envelope import MAX_BYTES, open_envelope, seal
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.wire.libp2p import record_pb2 as pb

KEY = PrivateKey.from_seed(bytes(32))
DOMAIN = "dep2p-test"
TYPE = b"\x12\x34"


def sealed(payload: bytes = b"payload") -> bytes:
    return seal(KEY, domain=DOMAIN, payload_type=TYPE, payload=payload)


@given(st.binary(max_size=500), st.text(max_size=40), st.binary(max_size=20))
def test_round_trip(payload: bytes, domain: str, payload_type: bytes) -> None:
    data = seal(KEY, domain=domain, payload_type=payload_type, payload=payload)
    envelope = open_envelope(data, domain=domain, payload_type=payload_type)
    assert envelope.payload == payload
    assert envelope.public_key == KEY.public_key


def test_the_signed_bytes_are_those_of_the_rfc() -> None:
    message = pb.Envelope.FromString(sealed())
    signed = b"\x0adep2p-test" + b"\x02\x12\x34" + b"\x07payload"
    assert KEY.public_key.verify(signed, message.signature)


def test_a_signature_holds_for_its_domain_only() -> None:
    with pytest.raises(AuthenticationError):
        open_envelope(sealed(), domain="another", payload_type=TYPE)


def test_a_payload_of_another_type_is_not_handed_out() -> None:
    with pytest.raises(ProtocolViolationError) as caught:
        open_envelope(sealed(), domain=DOMAIN, payload_type=b"\x03\x01")
    assert caught.value.reason == "ENVELOPE_TYPE"


@pytest.mark.parametrize("field", ["public_key", "payload", "signature"])
def test_a_changed_field_is_noticed(field: str) -> None:
    message = pb.Envelope.FromString(sealed())
    other = pb.Envelope.FromString(
        seal(PrivateKey.generate(), domain=DOMAIN, payload_type=TYPE, payload=b"other")
    )
    setattr(message, field, getattr(other, field))
    with pytest.raises(AuthenticationError):
        open_envelope(message.SerializeToString(), domain=DOMAIN, payload_type=TYPE)


def test_fields_cannot_be_shifted_into_each_other() -> None:
    # Without the lengths between them, "ab" + "c" and "a" + "bc" would sign the same bytes.
    data = seal(KEY, domain="ab", payload_type=b"c", payload=b"d")
    message = pb.Envelope.FromString(data)
    message.payload_type = b"bc"
    with pytest.raises(AuthenticationError):
        open_envelope(message.SerializeToString(), domain="a", payload_type=b"bc")


@given(st.binary(max_size=300))
def test_random_bytes_raise_our_errors_only(data: bytes) -> None:
    with pytest.raises(PeerError):
        open_envelope(data, domain=DOMAIN, payload_type=TYPE)


@given(st.integers(0, len(sealed()) - 1), st.integers(1, 255))
def test_every_cut_and_every_changed_byte_is_refused(position: int, change: int) -> None:
    data = sealed()
    with pytest.raises(PeerError):
        open_envelope(data[:position], domain=DOMAIN, payload_type=TYPE)
    changed = data[:position] + bytes([data[position] ^ change]) + data[position + 1 :]
    try:
        envelope = open_envelope(changed, domain=DOMAIN, payload_type=TYPE)
    except PeerError:
        return
    # A protobuf has several forms; what it says must be what was signed.
    assert envelope.payload == b"payload"
    assert envelope.public_key == KEY.public_key


def test_a_long_envelope_is_not_even_parsed() -> None:
    data = seal(KEY, domain=DOMAIN, payload_type=TYPE, payload=bytes(MAX_BYTES))
    with pytest.raises(ProtocolViolationError, match="are allowed"):
        open_envelope(data, domain=DOMAIN, payload_type=TYPE)
