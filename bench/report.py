"""Results of a bench run as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import platform
import statistics
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"


@dataclass
class Figure:
    """One line of the table: the median of some samples, and what it may be at most."""

    what: str
    unit: str
    samples: list[float] = field(default_factory=list)
    at_most: float | None = None
    note: str = ""

    @property
    def median(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples)

    @property
    def verdict(self) -> str:
        """Whether the target holds."""
        if self.at_most is None:
            return "-"
        return "holds" if self.median <= self.at_most else "MISSED"


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpu": cpu,
        "cores": str(len([1 for _ in Path("/sys/devices/system/cpu").glob("cpu[0-9]*")])),
    }


def table(figures: list[Figure]) -> str:
    """The figures as a Markdown table."""
    lines = ["| what | median | samples | at most | verdict |", "| --- | --- | --- | --- | --- |"]
    for figure in figures:
        samples = ", ".join(f"{sample:.4g}" for sample in figure.samples[:5])
        more = " ..." if len(figure.samples) > 5 else ""
        limit = "-" if figure.at_most is None else f"{figure.at_most:g} {figure.unit}"
        note = f" ({figure.note})" if figure.note else ""
        lines.append(
            f"| {figure.what}{note} | {figure.median:.4g} {figure.unit} | {samples}{more} "
            f"| {limit} | {figure.verdict} |"
        )
    return "\n".join(lines)


def write(figures: list[Figure]) -> None:
    """Replace the measured part of docs/benchmarks.md, and that of docs/benchmarks.json."""
    write_section("measured", table(figures), "figures", [asdict(f) for f in figures])


def write_section(mark: str, text: str, key: str, values: list[dict[str, Any]]) -> None:
    """Replace what follows `<!-- mark -->` in docs/benchmarks.md, and `key` in its JSON.

    Beside it stands the machine, since each section may be of another day.
    """
    about = machine()
    raw = DOCS / "benchmarks.json"
    kept = json.loads(raw.read_text()) if raw.exists() else {}
    kept |= {"machine" if key == "figures" else f"{key}_machine": about, key: values}
    raw.write_text(json.dumps(kept, indent=1) + "\n")
    page = DOCS / "benchmarks.md"
    head, found, rest = page.read_text().partition(f"<!-- {mark} -->")
    if not found:
        raise ValueError(f"{page} has no section {mark!r}")
    _, following, rest = rest.partition("\n## ")
    page.write_text(
        f"{head}{found}\n\n"
        + "".join(f"- {name}: {value}\n" for name, value in about.items())
        + f"\n{text}\n{following}{rest}"
    )
