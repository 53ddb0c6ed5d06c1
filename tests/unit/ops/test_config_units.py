from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.ops.config_units import (
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("10s", 10), ("2m", 120), ("1.5h", 5400), ("7d", 604800), ("3", 3), (4, 4)],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("128KiB", 131072),
        ("10MB", 10_000_000),
        ("10MB/s", 10_000_000),
        ("1 GiB", 2**30),
        ("5", 5),
        (6, 6),
        ("1.5kB", 1500),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("value", ["", "s", "-1s", "1y", "1e9", "∞", None, True, "9" * 40, []])
def test_what_is_no_value_with_a_unit(value: object) -> None:
    with pytest.raises(ValueError, match="write"):
        parse_duration(value)
    with pytest.raises(ValueError, match="write"):
        parse_size(value)


@given(st.integers(0, 10**12))
def test_a_size_survives_its_text(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.integers(0, 10**9).map(lambda milliseconds: milliseconds / 1000))
def test_a_duration_survives_its_text(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-9)


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for parse in (parse_duration, parse_size):
        try:
            assert parse(text) >= 0
        except ValueError as error:
            assert "write" in str(error)  # noqa: PT017 - both outcomes are right
