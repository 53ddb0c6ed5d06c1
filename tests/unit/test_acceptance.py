"""docs/acceptance.md names only tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ACCEPTANCE = ROOT / "docs" / "acceptance.md"
BREAKS = "\n## Ten tests and the break each was seen to catch\n"
TEST_NAME = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?(?:::(\w+))?`")


def named_tests(text: str) -> list[tuple[str, tuple[str, ...]]]:
    return [
        (match[1], tuple(part for part in match.groups()[1:] if part))
        for match in TEST_NAME.finditer(text)
    ]


def missing(path: str, parts: tuple[str, ...]) -> str | None:
    file = ROOT / path
    if not file.is_file():
        return f"{path} does not exist"
    body: list[ast.stmt] = ast.parse(file.read_text()).body
    for part in parts:
        for node in body:
            if (
                isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                and node.name == part
            ):
                body = node.body
                break
        else:
            return f"{path} has no {'::'.join(parts)}"
    return None


def test_every_named_test_exists() -> None:
    names = named_tests(ACCEPTANCE.read_text())
    assert len(names) > 30, "the table lost its rows"
    assert [problem for name in names if (problem := missing(*name))] == []


@pytest.mark.parametrize(
    "text",
    [
        "| x | `tests/unit/test_acceptance.py::test_that_nobody_wrote` |",
        "| x | `tests/unit/test_nothing.py` |",
    ],
)
def test_a_name_that_does_not_exist_is_noticed(text: str) -> None:
    (name,) = named_tests(text)
    assert missing(*name)


def test_every_row_shows_something() -> None:
    sentences = ACCEPTANCE.read_text().partition(BREAKS)[0]
    rows = re.findall(r"^\|(.+)\|(.+)\|$", sentences, re.MULTILINE)
    shown = re.compile(r"`(tests/|make |\.ci/run|bench/|dep2p)")
    headings = {"sentence", "---"}
    assert [
        left for left, right in rows if left.strip() not in headings and not shown.search(right)
    ] == []


def test_ten_tests_name_the_break_that_they_caught() -> None:
    _, found, breaks = ACCEPTANCE.read_text().partition(BREAKS)
    assert found
    rows = re.findall(r"^\| (`tests/.+?`) \| (.+?) \| (.+) \|$", breaks, re.MULTILINE)
    assert len(rows) == 10
    assert all(len(named_tests(test)) == 1 for test, _, _ in rows)
