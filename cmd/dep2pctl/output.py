"""What `dep2pctl` writes: JSON for programs, aligned text and tables for people, errors."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from dep2pctl.as_json import SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import dep2p

UNLIMITED_WIDTH = 100_000
"""Columns of a table that goes to a file or a program: nothing is folded there."""


def write_json(value: Mapping[str, Any], *, one_line: bool = False, err: bool = False) -> None:
    """Print one JSON object, with the version of its schema."""
    versioned = {"schema_version": SCHEMA_VERSION, **value}
    click.echo(json.dumps(versioned, ensure_ascii=False, indent=None if one_line else 2), err=err)


def write_fields(rows: Iterable[tuple[str, object]]) -> None:
    """Print labels and values in two columns; a list takes a line for each of its items."""
    texts = [(label, _lines(value)) for label, value in rows]
    width = max((len(label) for label, _ in texts), default=0)
    for label, lines in texts:
        for index, line in enumerate(lines):
            click.echo(f"{label if index == 0 else '':<{width}}  {line}".rstrip())


def write_table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print a table: folded to a terminal's width, one row a line anywhere else."""
    rows = list(rows)
    if not rows:
        click.echo(empty)
        return
    # Only here: importing it takes a tenth of the time that `dep2pctl id` may take.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*(Text("\n".join(_lines(cell))) for cell in row))
    width = None if sys.stdout.isatty() else UNLIMITED_WIDTH
    console = Console(file=sys.stdout, width=width, highlight=False)
    if sys.stdout.isatty():
        console.print(table)
        return
    with console.capture() as capture:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))


def write_error(error: dep2p.Dep2pError, exit_code: int, *, as_json: bool) -> None:
    """Say on standard error what happened and what to do about it."""
    if as_json:
        details = {
            "message": error.message,
            "reason": error.reason,
            "remedy": error.remedy,
            "metadata": error.metadata,
            "exit_code": exit_code,
        }
        write_json({"error": details}, one_line=True, err=True)
        return
    click.echo(f"dep2pctl: {printable(error.message)}", err=True)
    if error.remedy:
        click.echo(f"hint: {printable(error.remedy)}", err=True)


def printable(text: str) -> str:
    """Text from a peer, unable to command a terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _lines(value: object) -> list[str]:
    if value is None or value == "":
        return ["-"]
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    if isinstance(value, str):
        return [printable(line) for line in value.split("\n")]
    if isinstance(value, list | tuple):
        return [line for item in value for line in _lines(item)] or ["-"]
    return [str(value)]


def milliseconds(value: float | None) -> str:
    """A round trip for people."""
    if value is None:
        return "-"
    return (
        f"{value:.0f} ms"
        if value >= 100
        else f"{value:.2f} ms"
        if value < 10
        else f"{value:.1f} ms"
    )


def byte_count(size: float) -> str:
    """A number of bytes for people, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def duration(seconds: float) -> str:
    """A time span for people: its two largest units."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    parts: list[str] = []
    rest = int(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count or (parts and len(parts) < 2):
            parts.append(f"{count}{unit}")
        if len(parts) == 2:
            break
    return "".join(part for part in parts if not part.startswith("0")) or "0s"
