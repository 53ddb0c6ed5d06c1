from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.wire import multibase

# https://datatracker.ietf.org/doc/html/draft-msporny-base58-03#section-5
BASE58 = {
    b"Hello World!": "2NEpo7TZRRrLZSi2U",
    b"The quick brown fox jumps over the lazy dog.": (
        "USm3fpXnKG5EUBx2ndxBDMPVciP5hGey2Jh4NDv6gmeo1LkMeiKrLJUUBk6Z"
    ),
    bytes.fromhex("0000287fb4cd"): "11233QC4",
    b"": "",
}

# https://github.com/multiformats/multibase/blob/master/tests/basic.csv: "yes mani !"
MULTIBASE = [
    "f796573206d616e692021",
    "F796573206D616E692021",
    "bpfsxgidnmfxgsibb",
    "BPFSXGIDNMFXGSIBB",
    "k2lcpzo5yikidynfl",
    "z7paNL19xttacUY",
    "ueWVzIG1hbmkgIQ",
]


@pytest.mark.parametrize(("data", "text"), BASE58.items())
def test_base58_examples(data: bytes, text: str) -> None:
    assert multibase.encode_base58(data) == text
    assert multibase.decode_base58(text) == data


@pytest.mark.parametrize("text", MULTIBASE)
def test_multibase_examples(text: str) -> None:
    assert multibase.decode(text) == b"yes mani !"


@given(st.binary(max_size=64))
def test_base58_round_trip(data: bytes) -> None:
    assert multibase.decode_base58(multibase.encode_base58(data)) == data
    assert multibase.decode("z" + multibase.encode_base58(data)) == data


@given(st.binary(max_size=64))
def test_base64url_round_trip(data: bytes) -> None:
    assert multibase.decode(multibase.encode_base64url(data)) == data


@given(st.text(max_size=600) | st.from_regex(r"[fFbBkzu][0-9A-Za-z_-]{0,40}"))
def test_random_texts_decode_or_are_a_value_error(text: str) -> None:
    for decode in (multibase.decode, multibase.decode_base58):
        with contextlib.suppress(ValueError):
            assert len(decode(text)) <= len(text)


@pytest.mark.parametrize("text", ["0", "O", "I", "l", "é", " "])
def test_base58_knows_no_other_digits(text: str) -> None:
    with pytest.raises(ValueError, match="no digit"):
        multibase.decode_base58(text)


@pytest.mark.parametrize("decode", [multibase.decode, multibase.decode_base58])
def test_long_texts_are_refused_before_they_cost_time(decode: object) -> None:
    assert callable(decode)
    with pytest.raises(ValueError, match="longer than"):
        decode("z" * (multibase.MAX_TEXT_CHARS + 1))
