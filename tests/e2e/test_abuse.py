"""Random bytes and endless handshakes at a running daemon: it stays up, small and useful."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from typing import TYPE_CHECKING

import pytest
from bench.processes import Usage
from tests.e2e.processes import daemons

if TYPE_CHECKING:
    from tests.e2e.processes import Daemon

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(120)]

DATAGRAMS = 20_000
CONNECTIONS = 300
MAX_GROWTH = 16 * 1024 * 1024
MAX_LOG_LINES = 50


def port(daemon: Daemon, transport: str) -> int:
    parts = daemon.address(transport).split("/")
    return int(parts[parts.index("udp" if transport == "quic-v1" else "tcp") + 1])


def errors(daemon: Daemon) -> list[str]:
    """What went wrong inside: rubbish from outside must not get so far."""
    return [line["message"] for line in daemon.lines if line["level"] == "error"]


async def still_useful(daemon: Daemon, friend: Daemon) -> None:
    for transport in ("quic-v1", "tcp"):
        done = await friend.ctl("ping", daemon.address(transport), "--count=1")
        assert done.code == 0, done.stderr
        await friend.ctl("disconnect", daemon.peer_id)


async def test_random_datagrams() -> None:
    rng = random.Random(1)
    async with daemons() as start:
        daemon, friend = await start("target"), await start("friend")
        await still_useful(daemon, friend)
        before, lines = Usage.of(daemon.pid).resident_bytes, len(daemon.lines)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect(("127.0.0.1", port(daemon, "quic-v1")))
            for number in range(DATAGRAMS):
                data = bytearray(rng.randbytes(rng.choice((1, 20, 64, 600, 1200, 1400))))
                if number % 4 == 0:
                    # A plausible Initial: long header, version 1, random connection ids.
                    data[:6] = bytes((0xC0 | data[0] & 0x0F, 0, 0, 0, 1, 8))
                with contextlib.suppress(ConnectionRefusedError, BlockingIOError):
                    sender.send(data)
                if number % 100 == 0:
                    await asyncio.sleep(0)
        await still_useful(daemon, friend)
        assert Usage.of(daemon.pid).resident_bytes - before < MAX_GROWTH
        assert len(daemon.lines) - lines < MAX_LOG_LINES
        assert errors(daemon) == []


async def test_random_tcp_bytes() -> None:
    rng = random.Random(2)
    async with daemons() as start:
        daemon, friend = await start("target"), await start("friend")
        await still_useful(daemon, friend)
        before = Usage.of(daemon.pid).resident_bytes
        for number in range(CONNECTIONS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port(daemon, "tcp"))
            with contextlib.suppress(OSError):
                if number % 3 == 0:
                    writer.write(b"\x13/multistream/1.0.0\n\x07/noise\n")
                writer.write(rng.randbytes(rng.choice((1, 100, 5000, 70_000))))
                if number % 2:
                    writer.write_eof()
                    await reader.read()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await still_useful(daemon, friend)
        assert Usage.of(daemon.pid).resident_bytes - before < MAX_GROWTH
        assert errors(daemon) == []


async def test_handshakes_without_end_meet_a_cap() -> None:
    """Half-open TCP upgrades: over the cap they are closed at once, friends still get in."""
    async with daemons() as start:
        daemon, friend = await start("target"), await start("friend")
        writers: list[asyncio.StreamWriter] = []
        try:
            for _ in range(CONNECTIONS):
                reader, writer = await asyncio.open_connection("127.0.0.1", port(daemon, "tcp"))
                writers.append(writer)
            # The last one is over the cap: it is closed, not kept waiting.
            with contextlib.suppress(OSError):
                async with asyncio.timeout(5):
                    assert await reader.read(64) == b""
            done = await friend.ctl("ping", daemon.address("quic-v1"), "--count=1")
            assert done.code == 0, done.stderr
        finally:
            for writer in writers:
                writer.close()
