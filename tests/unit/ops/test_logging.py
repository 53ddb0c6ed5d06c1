from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import structlog

from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.ops.logging import configure_logging


def configured(**settings: Any) -> io.StringIO:
    stream = io.StringIO()
    configure_logging(**({"format": "json", "level": "info"} | settings), stream=stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_json_line_has_message_level_logger_time_and_values() -> None:
    out = configured()
    address = Multiaddr.parse("/ip4/127.0.0.1/tcp/1")
    structlog.get_logger("dep2p_daemon.swarm.dial").info(
        "dialling", address=address, path=Path("/x"), error=ValueError("no"), count=3, none=None
    )
    (line,) = lines(out)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "message": "dialling",
        "level": "info",
        "logger": "swarm.dial",
        "address": "/ip4/127.0.0.1/tcp/1",
        "path": "/x",
        "error": "no",
        "count": 3,
        "none": None,
    }


def test_bytes_and_keys_are_never_written() -> None:
    secret = PrivateKey.from_seed(b"s" * 32)
    for format_ in ("json", "console"):
        out = configured(format=format_)
        structlog.get_logger("x").info("made", seed=b"s" * 32, key=secret, raw=bytearray(b"ss"))
        assert "ssss" not in out.getvalue()
        assert b"s".hex() * 8 not in out.getvalue()
        assert "<32 bytes>" in out.getvalue()


def test_levels_below_the_threshold_are_dropped() -> None:
    out = configured(level="warning")
    logger = structlog.get_logger("x")
    logger.info("hidden")
    logger.warning("shown")
    assert [line["message"] for line in lines(out)] == ["shown"]


def test_debug_shows_ours_and_not_the_libraries() -> None:
    out = configured(level="debug")
    structlog.get_logger("x").debug("ours")
    logging.getLogger("asyncio").debug("theirs")
    logging.getLogger("quic").warning("a broken datagram")
    logging.getLogger("asyncio").warning("a slow %s", "callback")
    assert [line["message"] for line in lines(out)] == ["ours", "a slow callback"]


def test_tracebacks_are_part_of_the_line() -> None:
    out = configured()
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        structlog.get_logger("x").exception("failed", reason="BOOM")
        logging.getLogger("asyncio").exception("lost")
    ours, theirs = lines(out)
    assert ours["reason"] == "BOOM"
    assert "RuntimeError: boom" in ours["exception"]
    assert "RuntimeError: boom" in theirs["exception"]


def test_console_lines_are_for_people() -> None:
    out = configured(format="console")
    structlog.get_logger("dep2p_daemon.swarm").warning("refused", reason="TOO_MANY")
    assert "[warning" in out.getvalue()
    assert "refused [swarm] reason=TOO_MANY" in out.getvalue()
    assert "\x1b[" not in out.getvalue()


def test_a_closed_stream_does_not_break_who_logs() -> None:
    out = configured()
    out.close()
    structlog.get_logger("x").warning("nobody listens")


def test_configuring_again_leaves_one_line_for_one_record() -> None:
    configured()
    out = configured()
    logging.getLogger("grpc").error("once")
    assert len(lines(out)) == 1
