"""Installed `dep2pd` processes to measure: started, watched through /proc, ended by pid."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import dep2p

if TYPE_CHECKING:
    from collections.abc import Sequence

BIN = Path(sys.executable).parent
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
READY_SECONDS = 30
STOP_SECONDS = 15


def environment() -> dict[str, str]:
    """As an installed program sees it: bytecode is cached, no daemon of ours is named."""
    dropped = ("PYTHONDONTWRITEBYTECODE", "DEP2P_")
    return {k: v for k, v in os.environ.items() if not k.startswith(dropped)}


@dataclass(frozen=True)
class Usage:
    """What a process has used so far."""

    cpu_seconds: float
    resident_bytes: int

    @classmethod
    def of(cls, pid: int) -> Usage:
        """Read it from /proc; children that ended are not counted."""
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return cls((int(fields[11]) + int(fields[12])) / CLOCK_TICKS, pages * os.sysconf("SC_PAGESIZE"))


class DaemonProcess:
    """One `dep2pd` with a directory of its own; an async context manager ends it."""

    def __init__(self, name: str, *flags: str, config: str = "") -> None:
        self.name = name
        self.flags = flags
        self.directory = Path(tempfile.mkdtemp(prefix=f"dep2p-{name}-", dir="/tmp"))
        self.socket = self.directory / "d.sock"
        self.log = self.directory / "log"
        self.config = config
        self.ready_seconds = 0.0
        self.peer_id = ""
        self.addresses: Sequence[str] = ()
        self.process: asyncio.subprocess.Process

    async def __aenter__(self) -> Self:
        config = self.directory / "dep2pd.toml"
        config.write_text(self.config)
        started = time.monotonic()
        with self.log.open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                str(BIN / "dep2pd"),
                f"--config={config}",
                f"--data-dir={self.directory / 'data'}",
                f"--socket={self.socket}",
                "--log-level=warning",
                *self.flags,
                stdout=log,
                stderr=log,
                env=environment(),
            )
        try:
            await self._wait_ready()
        except BaseException:
            await self.stop()
            raise
        self.ready_seconds = time.monotonic() - started
        async with dep2p.connect(self.socket) as node:
            info = await node.get_node()
        self.peer_id = info.peer_id
        self.addresses = tuple(info.addresses)
        return self

    async def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            if self.process.returncode is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not start:\n{self.log.read_text()[-4000:]}")
            try:
                async with dep2p.connect(self.socket) as node:
                    await node.get_node()
                return
            except dep2p.DaemonNotReachableError:
                await asyncio.sleep(0.01)

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL, by pid; the directory goes too."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self.process.wait(), STOP_SECONDS)
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def usage(self) -> Usage:
        """CPU and memory so far."""
        return Usage.of(self.process.pid)

    def address(self, transport: str) -> str:
        """The loopback address over "quic-v1" or "tcp", with /p2p."""
        for address in self.addresses:
            if f"/{transport}/" in f"{address}/" and "127.0.0.1" in address and "p2p-circuit" not in address:
                return address
        raise RuntimeError(f"{self.name} has no {transport} address among {self.addresses}")
