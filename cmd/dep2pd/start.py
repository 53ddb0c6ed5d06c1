"""From flags to a running daemon and its exit code; failures in words for people."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from typing import TYPE_CHECKING, Final

import click

# grpc's core logs on its own, to standard error; what matters reaches us as errors.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from dep2p_daemon.errors import ConfigError, Dep2pError
from dep2p_daemon.ops.config_load import load_config
from dep2p_daemon.ops.logging import configure_logging
from dep2p_daemon.ops.open_files import raise_open_files_limit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from dep2p_daemon.daemon import Daemon
    from dep2p_daemon.ops.config import Config

    Console = Callable[[Daemon], Awaitable[None]]

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2

_OS_REMEDIES: Final = {
    errno.EACCES: "run as a user who may use it, or choose another with --data-dir or --socket",
    errno.EROFS: "choose a writable place with --data-dir or --socket",
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room on the disk",
    errno.EMFILE: "raise the limit of open files (ulimit -n, or LimitNOFILE= of the service)",
    errno.ENOTDIR: "choose another place with --data-dir or --socket",
}


def load_or_explain(
    program: str,
    path: Path | None,
    flags: Mapping[str, object],
    defaults: Mapping[str, object] | None = None,
) -> Config | None:
    """The configuration, or None after saying on standard error what is wrong with it."""
    try:
        return load_config(path=path, flags=flags, defaults=defaults)
    except ConfigError as error:
        click.echo(f"{program}: {error.message}", err=True)
        return None


def run_daemon(
    program: str,
    path: Path | None,
    flags: Mapping[str, object],
    *,
    defaults: Mapping[str, object] | None = None,
    console: Console | None = None,
) -> int:
    """Run until told to stop; returns the exit code.

    Args:
        program: the name to complain under.
        path: the configuration file, None for the default one.
        flags: settings from the command line, by dotted key.
        defaults: what this program prefers to the daemon's defaults.
        console: what runs beside the daemon once it is ready.
    """
    config = load_or_explain(program, path, flags, defaults)
    if config is None:
        return EXIT_USAGE
    configure_logging(format=config.log.format, level=config.log.level)
    # Here, so that wrong flags are told before the libraries are loaded.
    from dep2pd.serve import serve

    _make_room(config)
    try:
        asyncio.run(serve(config, console))
    except Exception as error:
        _explain(program, config, error)
        return EXIT_FAILED
    return EXIT_DONE


def _make_room(config: Config) -> None:
    """Raise the limit of open files, and say when it stays too low."""
    import structlog

    room = raise_open_files_limit(config.limits.max_connections)
    if room < config.limits.max_connections:
        structlog.get_logger(__name__).warning(
            "the limit of open files is too low for all connections",
            max_connections=config.limits.max_connections,
            room=room,
            remedy="raise it (ulimit -Hn, LimitNOFILE= of the service), or lower "
            "limits.max_connections",
        )


def _explain(program: str, config: Config, error: Exception) -> None:
    """One clear message; the traceback only where it helps."""
    cause = first_cause(error)
    message, reason, remedy = describe(cause)
    expected = isinstance(cause, Dep2pError | OSError)
    if config.log.format == "json" or config.log.level == "debug" or not expected:
        import structlog

        structlog.get_logger(program).error(
            message,
            reason=reason,
            remedy=remedy,
            exc_info=error if config.log.level == "debug" or not expected else None,
        )
    else:
        click.echo(f"{program}: {message}", err=True)
        if remedy:
            click.echo(f"  remedy: {remedy}", err=True)


def first_cause(error: BaseException) -> BaseException:
    """The first error that is not a group of errors."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def describe(error: BaseException) -> tuple[str, str, str]:
    """Message, reason and remedy of whatever ended the daemon."""
    if isinstance(error, Dep2pError):
        return error.message, error.reason, error.remedy
    if isinstance(error, OSError) and error.strerror:
        subject = f"{error.filename}: " if error.filename else ""
        remedy = _OS_REMEDIES.get(error.errno or 0, "")
        reason = errno.errorcode.get(error.errno or 0, "OS_ERROR")
        return f"{subject}{error.strerror}", reason, remedy
    return (
        f"a mistake in dep2pd: {type(error).__name__}: {error}",
        "INTERNAL",
        "please report it with the lines above",
    )


def leave_at_once(code: int) -> None:
    """End the process without any clean-up; the socket's lock makes that harmless."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
