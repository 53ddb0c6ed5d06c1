"""Log lines on standard error: structlog's own, and those of the libraries through it.

A line is a static message with key=value (`console`) or one JSON object (`json`). Byte strings
are never written out: a key, a token or a peer's payload cannot slip into a log.
"""

from __future__ import annotations

import logging
import sys
from pathlib import PurePath
from typing import TYPE_CHECKING, Final, Literal, TextIO

import structlog
from typing_extensions import override

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

LIBRARY_LEVELS: Final = {
    "asyncio": logging.WARNING,  # slow callbacks and lost exceptions
    "grpc": logging.WARNING,
    "grpc._cython.cygrpc": logging.ERROR,
    "quic": logging.ERROR,  # aioquic: a line for every broken datagram
    "charset_normalizer": logging.ERROR,
}
"""Standard-library loggers and the least severe level that is ours to show, even at debug."""


def configure_logging(
    *,
    format: Literal["console", "json"],
    level: Literal["debug", "info", "warning", "error"],
    stream: TextIO | None = None,
) -> None:
    """Set up all logging of the process; called once by a program, before anything logs."""
    out = sys.stderr if stream is None else stream
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=_processors(format, colours=out.isatty()),
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=_LineLoggerFactory(out),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    for handler in tuple(root.handlers):
        root.removeHandler(handler)
    root.addHandler(_ToStructlog())
    root.setLevel(max(threshold, logging.WARNING))
    for name, least in LIBRARY_LEVELS.items():
        logging.getLogger(name).setLevel(max(threshold, least))


def _processors(format: str, *, colours: bool) -> list[Processor]:
    common: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _add_logger_name,
        _plain_values,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if format == "json":
        return [
            *common,
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(default=str, ensure_ascii=False),
        ]
    renderer = structlog.dev.ConsoleRenderer(
        colors=colours,
        exception_formatter=structlog.dev.plain_traceback,
        pad_event_to=0,
        sort_keys=False,
    )
    return [*common, renderer]


class _LineLogger:
    """Writes finished lines."""

    def __init__(self, name: str, out: TextIO) -> None:
        self.name = name
        self._out = out

    def msg(self, line: str) -> None:
        try:
            self._out.write(line + "\n")
            self._out.flush()
        except (OSError, ValueError):
            # The terminal is gone, or the stream closed at exit: there is nobody left to tell,
            # and a lost log line must not end a connection.
            return

    debug = info = warning = warn = error = critical = exception = log = msg


class _LineLoggerFactory:
    """structlog calls it with the arguments of `get_logger`."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __call__(self, *args: object) -> _LineLogger:
        return _LineLogger(str(args[0]) if args else "dep2pd", self._out)


class _ToStructlog(logging.Handler):
    """Brings the libraries' records into the same stream and format."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        try:
            structlog.get_logger(record.name).log(
                record.levelno, record.getMessage(), exc_info=record.exc_info
            )
        except Exception:
            self.handleError(record)


def _add_logger_name(logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event["logger"] = logger.name.removeprefix("dep2p_daemon.")
    return event


def _plain_values(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Texts for our value types; of byte strings only the length."""
    for key, value in event.items():
        if isinstance(value, bytes | bytearray | memoryview):
            event[key] = f"<{len(value)} bytes>"
        elif isinstance(value, PurePath) or type(value).__module__.startswith("dep2p"):
            event[key] = str(value)
        elif isinstance(value, BaseException) and key != "exc_info":
            event[key] = str(value) or type(value).__name__
    return event
