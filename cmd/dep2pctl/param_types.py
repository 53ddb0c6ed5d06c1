"""Arguments with units: durations (10s) and byte counts (100MB)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import click
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Mapping

    Number = click.ParamType[float]
else:
    Number = click.ParamType  # not generic in older versions


class _WithUnit(Number):
    """A number followed by a unit."""

    def __init__(self, name: str, units: Mapping[str, float], examples: str) -> None:
        self.name = name
        self._units = units
        self._examples = examples

    @override
    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, int | float):
            return float(value)
        match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]*)", str(value).strip())
        unit = self._units.get(match[2].lower()) if match else None
        if match is None or unit is None:
            self.fail(f"{value!r} is not a {self.name}; write {self._examples}", param, ctx)
        return float(match[1]) * unit


DURATION: Final = _WithUnit(
    "duration", {"": 1, "ms": 0.001, "s": 1, "m": 60, "h": 3600}, "500ms, 10s, 2m or 1h"
)
"""Seconds."""

SIZE: Final = _WithUnit(
    "size",
    {
        "": 1,
        "b": 1,
        "kb": 1e3,
        "mb": 1e6,
        "gb": 1e9,
        "kib": 2**10,
        "mib": 2**20,
        "gib": 2**30,
    },
    "100MB, 64KiB or a number of bytes",
)
"""Bytes."""
