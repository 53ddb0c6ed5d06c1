"""`python -m bench [SCENARIO...]`: see `bench/__init__.py`."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from bench.report import table, write
from bench.scenarios import SCENARIOS

if TYPE_CHECKING:
    from bench.report import Figure


async def run(names: list[str]) -> list[Figure]:
    """Run the scenarios one after the other: the machine has two cores."""
    figures: list[Figure] = []
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        measured = await SCENARIOS[name]()
        for figure in measured:
            print(
                f"  {figure.what}: {figure.median:.4g} {figure.unit} {figure.verdict}",
                file=sys.stderr,
                flush=True,
            )
        figures += measured
    return figures


def main() -> int:
    """Run what was named, or everything and keep it in docs/."""
    if sys.argv[1:] == ["loss"]:
        from bench import loss

        loss.main()
        return 0
    unknown = [name for name in sys.argv[1:] if name not in SCENARIOS]
    if unknown:
        print(f"no scenario {', '.join(unknown)}; there are: {', '.join(SCENARIOS)}")
        return 2
    figures = asyncio.run(run(sys.argv[1:] or list(SCENARIOS)))
    print(table(figures))
    if not sys.argv[1:]:
        write(figures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
