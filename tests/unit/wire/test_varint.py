from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.errors import ProtocolViolationError
from dep2p_daemon.wire import varint

# https://github.com/multiformats/unsigned-varint#examples-of-unsigned-varints
EXAMPLES = {1: "01", 127: "7f", 128: "8001", 255: "ff01", 300: "ac02", 16384: "808001"}


@pytest.mark.parametrize(("value", "encoded"), EXAMPLES.items())
def test_examples_of_the_specification(value: int, encoded: str) -> None:
    assert varint.encode(value).hex() == encoded
    assert varint.decode(bytes.fromhex(encoded)) == (value, len(encoded) // 2)


@given(st.integers(0, varint.MAX_VALUE), st.binary(max_size=4), st.binary(max_size=4))
def test_round_trip_wherever_it_stands(value: int, before: bytes, after: bytes) -> None:
    encoded = varint.encode(value)
    assert len(encoded) <= varint.MAX_BYTES
    end = len(before) + len(encoded)
    assert varint.decode(before + encoded + after, len(before)) == (value, end)


@given(st.binary(max_size=12))
def test_what_decodes_is_the_only_encoding_of_its_value(data: bytes) -> None:
    try:
        value, end = varint.decode(data)
    except ProtocolViolationError:
        return
    assert varint.encode(value) == data[:end]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "VARINT_TRUNCATED"),
        (b"\x80", "VARINT_TRUNCATED"),
        (b"\xff" * 8, "VARINT_TRUNCATED"),
        (b"\xff" * 9, "VARINT_MALFORMED"),
        (b"\xff" * 9 + b"\x01", "VARINT_MALFORMED"),
        (b"\x80\x00", "VARINT_MALFORMED"),
        (b"\x81\x80\x00", "VARINT_MALFORMED"),
    ],
)
def test_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ProtocolViolationError) as caught:
        varint.decode(data)
    assert caught.value.reason == reason


@pytest.mark.parametrize("value", [-1, varint.MAX_VALUE + 1])
def test_only_what_fits_is_encoded(value: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        varint.encode(value)


@given(st.binary(max_size=300))
def test_prefixed_bytes_round_trip_and_no_cut_goes_unseen(data: bytes) -> None:
    encoded = varint.encode_prefixed(data)
    assert varint.decode_prefixed(encoded, 0, max_bytes=300) == (data, len(encoded))
    for end in range(len(encoded)):
        with pytest.raises(ProtocolViolationError):
            varint.decode_prefixed(encoded[:end], 0, max_bytes=300)


def test_a_length_beyond_the_bound_is_refused_before_it_is_believed() -> None:
    with pytest.raises(ProtocolViolationError) as caught:
        varint.decode_prefixed(varint.encode(1 << 40) + b"x", 0, max_bytes=1000)
    assert caught.value.reason == "LENGTH_TOO_LARGE"
