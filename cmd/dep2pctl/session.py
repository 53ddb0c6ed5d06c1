"""What every command shares: the daemon to talk to, the form of the output, the exit code."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import click

import dep2p
from dep2pctl.exit_codes import ExitCode, exit_code_of
from dep2pctl.output import write_error, write_json

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping
    from pathlib import Path


@dataclass
class Session:
    """The options that belong to no single command; click's context object."""

    socket: Path | None = None
    """None: the daemon of this user."""
    output: str = "table"

    @property
    def json(self) -> bool:
        """Whether a program reads the output."""
        return self.output == "json"

    def show(self, value: Mapping[str, Any], for_people: Callable[[], None]) -> None:
        """Print a result: as one JSON object, or by calling `for_people`."""
        if self.json:
            write_json(value)
        else:
            for_people()

    def show_line(self, value: Mapping[str, Any], for_people: str) -> None:
        """Print one of many results: a JSON object, or a text, on a line of its own."""
        if self.json:
            write_json(value, one_line=True)
        else:
            click.echo(for_people)

    def run(self, work: Callable[[dep2p.Node], Awaitable[None]]) -> None:
        """Run `work` with a connection to the daemon; errors of the API end the program."""

        async def connected() -> None:
            async with dep2p.connect(self.socket) as node:
                await work(node)

        self.run_without_daemon(connected)

    def run_without_daemon(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work`, which connects by itself; errors of the API end the program."""

        async def run() -> None:
            await work()

        try:
            asyncio.run(run())
        except KeyboardInterrupt:
            sys.exit(ExitCode.INTERRUPTED)
        except Exception as raised:
            # A TaskGroup wraps what ended it.
            causes = list(_causes(raised))
            for error in causes:
                if isinstance(error, dep2p.Dep2pError):
                    self.fail(error)
            if any(isinstance(error, BrokenPipeError) for error in causes):
                # Whoever read our output has enough (`| head`): that is no failure of ours.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit(ExitCode.DONE)
            raise

    def fail(self, error: dep2p.Dep2pError) -> NoReturn:
        """Tell of the error and end with its exit code."""
        code = exit_code_of(error)
        write_error(error, code, as_json=self.json)
        sys.exit(code)


def _causes(error: Exception) -> Iterator[Exception]:
    if isinstance(error, ExceptionGroup):
        for inner in error.exceptions:
            yield from _causes(inner)
    else:
        yield error


pass_session = click.make_pass_decorator(Session)
