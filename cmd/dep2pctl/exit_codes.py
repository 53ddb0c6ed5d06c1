"""How `dep2pctl` ends: part of its contract with scripts (docs/cli.md)."""

from __future__ import annotations

import enum
from typing import Final

import dep2p


class ExitCode(enum.IntEnum):
    """Exit codes of every command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_REACHABLE = 3
    DEADLINE = 4
    REFUSED = 5
    INTERRUPTED = 130
    """By SIGINT, as shells have it: the usual end of commands that run until then."""


_CODES: Final = (
    (dep2p.DaemonNotReachableError, ExitCode.NOT_REACHABLE),
    (dep2p.DeadlineError, ExitCode.DEADLINE),
    (dep2p.RefusedError, ExitCode.REFUSED),
    (dep2p.InvalidArgumentError, ExitCode.USAGE),
)


def exit_code_of(error: dep2p.Dep2pError) -> ExitCode:
    """The exit code that tells a script of this error."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), ExitCode.FAILED)
