"""Runs a README's commands as its reader would: three machines, terminals, copied values.

A comment above each fenced block says what the reader does with it:

    on: MACHINE            runs here, to its end (`bash` blocks)
      exit: CODE           with this exit code instead of 0
      as: NAME; until: T   stays open in the background, once it has printed T
      needs: TOOL          skipped where the tool is absent (in CI: fails)
      file: NAME           the `toml` block before it is saved under this name
    value: NAME            the reader puts a value into a variable; the test knows it
    shows [: NAME]         what the last command, or the one in the background, prints (`text`)
      not here: TEXT       but not the lines with TEXT: the test's machine cannot show them
    not run: REASON

In `text` blocks "…" is anything, an IP address and a port are any, and lines may lie between.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_BLOCK = re.compile(
    r"(?:^<!-- (?P<comment>[^\n]*) -->\n)?^```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """One fenced block and what its comment says."""

    kind: str
    body: str
    marks: Mapping[str, str]
    line: int


def blocks(text: str) -> Iterator[Block]:
    """Every fenced block of a page, in order."""
    for match in _BLOCK.finditer(text):
        marks: dict[str, str] = {}
        for part in (match["comment"] or "").split(";"):
            key, _, value = part.partition(":")
            if key.strip():
                marks[key.strip()] = value.strip()
        yield Block(match["kind"], match["body"], marks, text.count("\n", 0, match.start()) + 1)


def shown(expected: str, output: str) -> str | None:
    """Return the first expected line that `output` lacks, in order; None when all are there."""
    position = 0
    for line in filter(None, expected.splitlines()):
        pattern = re.escape(line).replace("…", ".*?")
        pattern = re.sub(r"\d+(?:\\\.\d+){3}", r"[\\d.]+", pattern)
        pattern = re.sub(r"\b4001\b", r"\\d+", pattern)
        found = re.compile(pattern).search(output, position)
        if found is None:
            return line
        position = found.end()
    return None


class Terminal:
    """One command in bash: its output so far, and its end."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.output = ""
        self._news = asyncio.Condition()

    async def start(self, env: Mapping[str, str], directory: Path) -> None:
        """Start it in a process group of its own."""
        self._process = await asyncio.create_subprocess_exec(
            "bash",
            "-eo",
            "pipefail",
            "-c",
            self.command,
            cwd=directory,
            env=dict(env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while data := await self._process.stdout.read(65536):
            async with self._news:
                self.output += data.decode(errors="replace")
                self._news.notify_all()
        async with self._news:
            self._news.notify_all()

    async def wait_for(self, expected: str, seconds: float) -> None:
        """Wait until it has printed these lines (see `shown`)."""

        def decided() -> bool:
            return shown(expected, self.output) is None or self._reader.done()

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._news:
                await self._news.wait_for(decided)
        missing = shown(expected, self.output)
        assert missing is None, f"$ {self.command}\nnever printed {missing!r}:\n{self.output}"

    async def wait(self, seconds: float) -> int:
        """Wait for its end; returns the exit code."""
        async with asyncio.timeout(seconds):
            await self._reader
            return await self._process.wait()

    async def end(self, seconds: float) -> None:
        """End its process group: SIGINT as Ctrl-C would, then SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGINT)
        try:
            await self.wait(seconds)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._reader
            await self._process.wait()
