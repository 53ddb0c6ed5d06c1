"""Real `dep2pd`, `dep2pctl` and `dep2p-relay-server` processes for tests.

    async with daemons() as start:
        relay = await start("relay", "--preset=relay")
        peer = await start("peer", f"--relay={relay.address()}")
        done = await peer.ctl("ping", relay.peer_id, "--count=1")
        assert done.code == 0

Every daemon listens on 127.0.0.1, has a directory of its own with a short socket path, writes
JSON log lines and is known to be ready by its "ready" line. At the end all are stopped by pid;
when the block fails, the ends of their logs are part of the error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

BIN = Path(sys.executable).parent
READY_SECONDS = 30.0
STOP_SECONDS = 20.0
CTL_SECONDS = 45.0
LOG_LINES_IN_FAILURES = 40


def environment(**more: str) -> dict[str, str]:
    """The tests' environment without settings of ours, and with bytecode caching as installed."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("DEP2P_") and name != "PYTHONDONTWRITEBYTECODE"
    }
    return kept | {"LC_ALL": "C.UTF-8"} | more


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def json(self) -> Any:
        """Standard output as one JSON value."""
        return json.loads(self.stdout)

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.stdout.decode()


async def run(
    *command: str | Path,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    timeout: float = CTL_SECONDS,
) -> Done:
    """Run a command to its end; one that does not end is killed and fails the test."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(**(env or {})),
    )
    try:
        async with asyncio.timeout(timeout):
            stdout, stderr = await process.communicate(stdin)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return Done(process.returncode, stdout, stderr.decode())


class NotReadyError(Exception):
    """A daemon ended, or took too long, before it was ready."""


class Daemon:
    """One daemon process, or several in turn: `start` after `kill` keeps identity and socket."""

    def __init__(self, name: str, directory: Path, flags: tuple[str, ...]) -> None:
        self.name = name
        self.directory = directory
        self.flags = flags
        self.socket = directory / "s"
        self.data_dir = directory / "data"
        self.program = "dep2pd"
        self.listen = "127.0.0.1"
        """Empty: the daemon's default, all interfaces."""
        self.prefix: tuple[str, ...] = ()
        """Before the command, and gone with its `exec`: the pid stays the daemon's own."""
        self.env: dict[str, str] = {}
        self.config = ""
        """Text of its configuration file, written at each start."""
        self.peer_id = ""
        self.addresses: list[str] = []
        """As the ready line gave them: full multiaddrs with /p2p."""
        self.lines: list[dict[str, Any]] = []
        """Log lines since the last start."""
        self.unstructured: list[str] = []
        """What standard error had beside log lines: start failures."""
        self.output: list[str] = []
        """Lines of standard output since the last start."""
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._news = asyncio.Condition()

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The last one started."""
        assert self._process is not None
        return self._process

    @property
    def started(self) -> bool:
        """Whether it ever was; it may have ended since."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """Of the last process started."""
        return self.process.pid

    async def launch(self) -> None:
        """Start the process without waiting for anything."""
        self.lines, self.unstructured, self.output = [], [], []
        # Also when empty: the default configuration file of this machine takes no part.
        config = self.directory / "dep2pd.toml"
        config.write_text(self.config)
        flags = [
            f"--data-dir={self.data_dir}",
            f"--socket={self.socket}",
            "--log-format=json",
        ]
        if self.listen and not any(flag.startswith("--listen") for flag in self.flags):
            flags.append(f"--listen={self.listen}")
        if not any(flag.startswith("--port") for flag in self.flags):
            flags.append("--port=0")
        if not any(flag.startswith("--log-level") for flag in self.flags):
            flags.append("--log-level=info")
        self._process = await asyncio.create_subprocess_exec(
            *self.prefix,
            BIN / self.program,
            *flags,
            *self.flags,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(DEP2P_CONFIG=str(config), **self.env),
        )
        assert self._process.stderr is not None
        assert self._process.stdout is not None
        self._readers = [
            asyncio.create_task(self._read(self._process.stderr, self._on_log)),
            asyncio.create_task(self._read(self._process.stdout, self.output.append)),
        ]

    async def start(self) -> None:
        """Start the process and wait until it is ready."""
        await self.launch()
        ready = await self.wait_for_line("ready", READY_SECONDS)
        self.peer_id = ready["peer_id"]
        self.addresses = ready["addresses"]

    async def wait_for_line(self, message: str, timeout: float = 20.0, **values: object) -> Any:
        """Return the first log line with this message, and these values, waiting for it."""
        wanted = {"message": message, **values}
        found = await self._wait(
            lambda: next((line for line in self.lines if wanted.items() <= line.items()), None),
            timeout,
        )
        if found is None:
            raise NotReadyError(f"{self.name}: no log line {message!r}\n{self.log_tail()}")
        return found

    async def wait_for_output(self, text: str, timeout: float = 20.0) -> Any:
        """Return the first line of standard output that contains `text`, waiting for it."""
        found = await self._wait(
            lambda: next((line for line in self.output if text in line), None), timeout
        )
        if found is None:
            raise NotReadyError(f"{self.name} never wrote {text!r}\n{self.log_tail()}")
        return found

    async def _wait(self, look: Callable[[], Any], timeout: float) -> Any:
        def decided() -> bool:
            return look() is not None or all(reader.done() for reader in self._readers)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout), self._news:
                await self._news.wait_for(decided)
        return look()

    async def wait_ended(self, timeout: float = STOP_SECONDS) -> int:
        """Wait for the process's own end and return its exit code (-9 for SIGKILL)."""
        async with asyncio.timeout(timeout):
            code = await self.process.wait()
            await asyncio.gather(*self._readers)
        return code

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; returns the exit code. Killed if it hangs."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)
        try:
            return await self.wait_ended()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
            raise

    async def kill(self) -> None:
        """SIGKILL, and wait."""
        await self.stop(signal.SIGKILL)

    async def ctl(self, *args: str, stdin: bytes = b"", timeout: float = CTL_SECONDS) -> Done:
        """Run `dep2pctl` against this daemon."""
        return await run(
            BIN / "dep2pctl", f"--socket={self.socket}", *args, stdin=stdin, timeout=timeout
        )

    @contextlib.asynccontextmanager
    async def ctl_running(self, *args: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run `dep2pctl` with pipes beside the block; killed at its end if it still runs."""
        process = await asyncio.create_subprocess_exec(
            BIN / "dep2pctl",
            f"--socket={self.socket}",
            *args,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(),
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.communicate()

    async def ctl_json(self, *args: str) -> Any:
        """Run `dep2pctl -o json`, which must succeed, and return what it printed."""
        done = await self.ctl("-o", "json", *args)
        assert done.code == 0, f"dep2pctl {' '.join(args)} ended with {done.code}: {done.stderr}"
        return done.json

    def address(self, transport: str = "quic-v1") -> str:
        """A loopback address with /p2p over "quic-v1" or "tcp"."""
        return next(
            address
            for address in self.addresses
            if f"/{transport}/" in address and "p2p-circuit" not in address
        )

    def log_tail(self) -> str:
        """The last lines of the log."""
        lines = [json.dumps(line) for line in self.lines[-LOG_LINES_IN_FAILURES:]]
        text = "\n".join([*lines, *self.unstructured, *self.output[-LOG_LINES_IN_FAILURES:]])
        return f"--- {self.name} ---\n{text}"

    async def _read(self, stream: asyncio.StreamReader, take: Callable[[str], None]) -> None:
        while line := await stream.readline():
            take(line.decode("utf-8", "replace").rstrip("\n"))
            async with self._news:
                self._news.notify_all()
        async with self._news:
            self._news.notify_all()

    def _on_log(self, line: str) -> None:
        try:
            self.lines.append(json.loads(line))
        except ValueError:
            self.unstructured.append(line)


class Daemons:
    """Starts daemons; all of them end with the `daemons` block."""

    def __init__(self) -> None:
        self.all: list[Daemon] = []

    def prepare(self, name: str, *flags: str) -> Daemon:
        """Return a daemon that has its directory, and is not started."""
        directory = Path(tempfile.mkdtemp(prefix="d2-", dir="/tmp"))
        daemon = Daemon(name, directory, flags)
        self.all.append(daemon)
        return daemon

    async def __call__(self, name: str, *flags: str) -> Daemon:
        """Start a daemon and wait until it is ready."""
        daemon = self.prepare(name, *flags)
        await daemon.start()
        return daemon


@contextlib.asynccontextmanager
async def daemons() -> AsyncIterator[Daemons]:
    """Give a `Daemons`; see the module's text."""
    start = Daemons()
    try:
        yield start
    except BaseException as error:
        for daemon in start.all:
            error.add_note(daemon.log_tail())
        raise
    finally:
        for daemon in reversed(start.all):
            if daemon.started:
                with contextlib.suppress(TimeoutError):
                    await daemon.stop()
            shutil.rmtree(daemon.directory, ignore_errors=True)
