"""Every pair of networks, in both dial directions: direct where it can be, else why not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.e2e.nat_matrix import (
    KINDS,
    MEDIAN_SECONDS,
    Cell,
    expected,
    median_of_direct,
    row,
    table,
)
from tests.requires import require_natlab

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "nat-matrix.md"


@pytest.mark.parametrize("dialler", KINDS)
async def test_a_dialler_with_every_listener(
    dialler: str, record_property: Callable[[str, object], None]
) -> None:
    require_natlab()
    cells = await row(dialler)
    for cell in cells:  # kept in the report of `pytest --junit-xml`
        record_property(
            f"{cell.dialler} to {cell.listener}",
            f"{cell.outcome} over {cell.transport} after {cell.seconds:.2f} s",
        )
    found = {cell.listener: cell.outcome for cell in cells}
    assert found == {listener: expected(dialler, listener) for listener in KINDS}, cells
    assert median_of_direct(cells) < MEDIAN_SECONDS, cells


def test_the_page_has_every_pair_with_its_outcome() -> None:
    rows = re.findall(r"^\| \*\*([\w-]+)\*\* \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    found = {
        (dialler, listener): text.split(" ")[0]
        for dialler, texts in rows
        for listener, text in zip(KINDS, texts.split(" | "), strict=True)
    }
    assert found == {(one, other): expected(one, other) for one in KINDS for other in KINDS}
    assert " of " not in " ".join(texts for _, texts in rows), "pairs with several outcomes"


def test_a_pair_with_two_outcomes_shows_both() -> None:
    cells = [
        Cell("none", "none", "direct", "QUIC", 1.0),
        Cell("none", "none", "direct", "QUIC", 3.0),
        Cell("none", "none", "PUNCH_FAILED", "QUIC", 7.0),
    ]
    assert "PUNCH_FAILED 1 of 3 7.0 s / direct QUIC 2 of 3 2.0 s" in table(cells)
