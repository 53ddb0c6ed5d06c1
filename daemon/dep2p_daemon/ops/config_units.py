"""Values with units in configuration: durations ("1h"), byte counts ("10MB") and their text."""

from __future__ import annotations

import re
from typing import Final

_DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS: Final = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}
_NUMBER_WITH_UNIT: Final = re.compile(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]*)\s*")


def parse_duration(value: object) -> float:
    """Seconds from a number of seconds or a text like "500ms", "10s", "2m", "1h", "7d".

    Raises:
        ValueError: the text is none of these; the message shows the right form.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = _NUMBER_WITH_UNIT.fullmatch(value) if isinstance(value, str) else None
    if match is not None:
        unit = match[2].lower() or "s"
        if unit in _DURATION_UNITS:
            return float(match[1]) * _DURATION_UNITS[unit]
    raise ValueError("write 500ms, 10s, 2m, 1h or a number of seconds")


def parse_size(value: object) -> int:
    """Bytes from a number or a text like "128KiB", "10MB"; a trailing "/s" is allowed.

    Raises:
        ValueError: the text is none of these; the message shows the right form.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = value.removesuffix("/s") if isinstance(value, str) else ""
    match = _NUMBER_WITH_UNIT.fullmatch(text)
    if match is not None and match[2].upper() in _SIZE_UNITS:
        return int(float(match[1]) * _SIZE_UNITS[match[2].upper()])
    raise ValueError("write 128KiB, 10MB or a number of bytes")


def format_duration(seconds: float) -> str:
    """A text that `parse_duration` reads back as `seconds`, to the nanosecond."""
    for unit in ("d", "h", "m", "s"):
        count = seconds / _DURATION_UNITS[unit]
        if count >= 1 and count == int(count):
            return f"{int(count)}{unit}"
    milliseconds = round(seconds * 1000, 6)
    if milliseconds == int(milliseconds):
        return f"{int(milliseconds)}ms"
    return f"{seconds:.9f}".rstrip("0") + "s"


def format_size(size: int) -> str:
    """A text that `parse_size` reads back as `size`."""
    for unit, text in (
        ("GIB", "GiB"),
        ("GB", "GB"),
        ("MIB", "MiB"),
        ("MB", "MB"),
        ("KIB", "KiB"),
        ("KB", "KB"),
    ):
        if size >= _SIZE_UNITS[unit] and size % _SIZE_UNITS[unit] == 0:
            return f"{size // _SIZE_UNITS[unit]}{text}"
    return str(size)
