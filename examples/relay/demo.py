#!/usr/bin/env python3
"""`make demo`: a relay, a listener and a dialler as real `dep2pd` processes on this machine.

It runs the steps of README.md with the functions of relay_example.py, prints each as it
happens, and ends with exit code 0; when something fails it says what, shows the end of the
daemons' logs and exits with 1. Directories are temporary, traffic stays on loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Self

from relay_example import dial, listen
from texts import LANGUAGES, Speaker, default_language

import dep2p

if TYPE_CHECKING:
    from collections.abc import Callable

DEP2PD = Path(sys.executable).parent / "dep2pd"
READY_SECONDS = 20
DEMO_SECONDS = 60
STOP_SECONDS = 10
LOG_LINES = 25


class DemoError(Exception):
    """Something the demo waits for did not happen."""


class Daemon:
    """One `dep2pd` in a directory of its own; an async context manager ends it by its pid."""

    def __init__(self, role: str, directory: Path, *flags: str) -> None:
        self.role = role
        self.socket = directory / "dep2pd.sock"
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self._directory = directory
        self._flags = flags
        self._process: asyncio.subprocess.Process
        self._reader: asyncio.Task[None]
        self._ready = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._directory.mkdir()
        # No setting of the caller's own daemon may reach this one.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("DEP2P_")}
        self._process = await asyncio.create_subprocess_exec(
            str(DEP2PD),
            f"--data-dir={self._directory / 'data'}",
            f"--socket={self.socket}",
            "--listen=127.0.0.1",
            "--port=0",
            "--log-format=json",
            *self._flags,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=environment | {"XDG_CONFIG_HOME": str(self._directory)},
            start_new_session=True,
        )
        self._reader = asyncio.create_task(self._read_log())
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._ready.wait()
            if self._reader.done():
                raise DemoError(f"{self.role}: dep2pd ended before it was ready")
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stop()

    async def _read_log(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            self.log.append(line.decode(errors="replace").rstrip())
            with contextlib.suppress(ValueError):  # what fails early is told in plain words
                if json.loads(line).get("message") == "ready":
                    self._ready.set()
        self._ready.set()

    async def _stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await self._reader


class Watch:
    """What the relay's events tell, gathered from the start on and printed at the end."""

    def __init__(self) -> None:
        self._connected: list[str] = []
        self._circuits: list[tuple[str, str]] = []
        self._bytes: tuple[int, int] | None = None
        self.circuit_closed = asyncio.Event()

    async def run(self, node: dep2p.Node) -> None:
        """Follow the events until cancelled."""
        async for event in node.watch_events():
            match event.WhichOneof("event"):
                case "connection_opened":
                    self._connected.append(event.connection_opened.peer_id)
                case "circuit_opened":
                    self._circuits.append(
                        (event.circuit_opened.source, event.circuit_opened.target)
                    )
                case "circuit_closed":
                    circuit = event.circuit_closed
                    self._bytes = circuit.source_to_target_bytes, circuit.target_to_source_bytes
                    self.circuit_closed.set()

    def tell(self, say: Speaker, role_of: Callable[[str], str]) -> None:
        """Print it as the relay server does."""
        for peer_id in dict.fromkeys(self._connected):
            say("saw_connection", peer_id=peer_id, role=role_of(peer_id))
        for source, target in self._circuits:
            say("saw_circuit", source=source, target=target)
        if self._bytes is not None:
            say("saw_bytes", up=self._bytes[0], down=self._bytes[1])


async def talk(say: Speaker, relay: Daemon, listener: Daemon, dialler: Daemon) -> None:
    """The four steps, between three daemons that run."""
    async with (
        dep2p.connect(relay.socket) as relay_node,
        dep2p.connect(listener.socket) as listener_node,
        dep2p.connect(dialler.socket) as dialler_node,
        asyncio.TaskGroup() as group,
    ):
        watch = Watch()
        watching = group.create_task(watch.run(relay_node))

        say("step_relay")
        info = await relay_node.get_node()
        address = next(address for address in info.addresses if "/quic-v1/" in address)
        listening = "\n".join(f"  [{i}] {a}" for i, a in enumerate(info.listen_addresses, start=1))
        say("relay", peer_id=info.peer_id, listening=listening, address=address)

        say("step_listen")
        ready = asyncio.Event()
        listening_task = group.create_task(listen(listener_node, address, say, ready.set))
        await ready.wait()
        target = (await listener_node.get_node()).peer_id

        say("step_dial")
        await dial(dialler_node, address, target, say)
        await dialler_node.disconnect(target)

        say("step_watch")
        await watch.circuit_closed.wait()
        dialler_id = (await dialler_node.get_node()).peer_id
        roles = {target: say.text("listener"), dialler_id: say.text("dialler")}
        watch.tell(say, lambda peer_id: roles.get(peer_id, "?"))

        listening_task.cancel()
        watching.cancel()


async def run(say: Speaker) -> int:
    """Start the daemons, let them talk, end them; returns the exit code."""
    started = time.monotonic()
    failures: list[Exception] = []
    with tempfile.TemporaryDirectory(prefix="dep2p-demo-") as directory:
        relay = Daemon(say.text("relay_role"), Path(directory, "relay"), "--preset=relay")
        listener = Daemon(say.text("listener"), Path(directory, "listener"))
        dialler = Daemon(say.text("dialler"), Path(directory, "dialler"))
        try:
            async with asyncio.timeout(DEMO_SECONDS), contextlib.AsyncExitStack() as stack:
                # The three start side by side: each takes about a second.
                async with asyncio.TaskGroup() as group:
                    for daemon in (relay, listener, dialler):
                        group.create_task(stack.enter_async_context(daemon))
                await talk(say, relay, listener, dialler)
        except* (dep2p.Dep2pError, DemoError, RuntimeError, OSError) as errors:
            failures += leaves(errors)
        for failure in failures:
            say("failed", error=str(failure) or type(failure).__name__)
        if failures:
            for daemon in (relay, listener, dialler):
                say("log", name=daemon.role, log="\n".join(daemon.log))
            return 1
    say("done", seconds=time.monotonic() - started)
    return 0


def leaves(errors: BaseExceptionGroup[Exception]) -> list[Exception]:
    """The errors of a group of groups."""
    found: list[Exception] = []
    for error in errors.exceptions:
        found += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description="Two nodes talk through a relay, on this machine.")
    parser.add_argument("--lang", choices=LANGUAGES, default=default_language())
    return asyncio.run(run(Speaker(parser.parse_args().lang)))


if __name__ == "__main__":
    sys.exit(main())
