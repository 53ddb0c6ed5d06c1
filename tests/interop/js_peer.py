"""A js-libp2p node in a process of its own, driven by JSON lines (`js/peer.mjs`)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.node_packages import node_with_packages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

JS_DIRECTORY = Path(__file__).parent / "js"
CALL_SECONDS = 40.0
"""More than the node's own deadlines, so that its error arrives rather than ours."""
STOP_SECONDS = 10.0
MAX_LINE_BYTES = 1024 * 1024
LOG_LINES = 2000
LISTEN = {"quic": "/ip4/{host}/udp/{port}/quic-v1", "tcp": "/ip4/{host}/tcp/{port}"}
RELAY_LIMITS = {"reservations": 64, "data_bytes": 1 << 30, "duration_ms": 3_600_000}
"""js-libp2p's own are 128 KiB and two minutes. It counts milliseconds, announces them as
seconds, and counts both directions into one volume."""

Json = dict[str, Any]


class JsError(Exception):
    """The js node answered with an error."""


class JsPeer:
    """One js-libp2p node; an async context manager starts it and ends it by its pid."""

    def __init__(
        self,
        *,
        transports: Sequence[str],
        reserve_at: str | None = None,
        relay_server: Json | None = None,
        listen: bool = True,
        host: str = "127.0.0.1",
        port: int = 0,
        announce: Sequence[str] | None = None,
        punch: bool = False,
        debug: str = "",
        prefix: Sequence[str] = (),
    ) -> None:
        """Prepare.

        js tells of a public address only when it is announced, which takes a fixed `port`.

        Args:
            transports: "quic", "tcp" or both.
            reserve_at: a relay's address.
            relay_server: `RELAY_LIMITS` makes it a relay.
            listen: whether it listens by its transports.
            host: where it listens.
            port: 0 for any.
            announce: addresses to tell of; None for where it listens, if the port is fixed.
            punch: whether it speaks DCUtR.
            debug: the components whose log `logged` waits for.
            prefix: what before its command puts it into a laboratory.
        """
        self._transports = tuple(transports)
        self._relay_server = relay_server
        self._punch = punch
        self._debug = debug or os.environ.get("DEBUG", "")
        self._prefix = tuple(prefix)
        self._listen = (
            [LISTEN[name].format(host=host, port=port) for name in transports] if listen else []
        )
        if announce is None:
            announce = self._listen if port else []
        self._announce = list(announce)
        if reserve_at is not None:
            self._listen.append(f"{reserve_at}/p2p-circuit")
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._events: list[Json] = []
        self._changed = asyncio.Condition()
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._process: asyncio.subprocess.Process
        self._readers: list[asyncio.Task[None]] = []
        self.peer_id = ""
        self.addresses: tuple[str, ...] = ()

    async def __aenter__(self) -> Self:
        node = node_with_packages(JS_DIRECTORY)
        self._process = await asyncio.create_subprocess_exec(
            *self._prefix,
            node,
            "peer.mjs",
            cwd=JS_DIRECTORY,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=MAX_LINE_BYTES,
            env={**os.environ, "NO_COLOR": "1", "DEBUG": self._debug},
        )
        self._readers = [asyncio.create_task(self._read()), asyncio.create_task(self._read_log())]
        try:
            started = await self.call(
                "start",
                transports=self._transports,
                listen=self._listen,
                announce=self._announce,
                punch=self._punch,
                relay_server=self._relay_server,
            )
        except BaseException:
            await self._end()
            raise
        self.peer_id = started["peer_id"]
        self.addresses = tuple(started["addresses"])
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._end()

    async def _end(self) -> None:
        """Close its stdin, which ends it in order; kill it by its pid if that takes too long."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await asyncio.gather(*self._readers)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            message: Json = json.loads(line)
            if "event" in message:
                async with self._changed:
                    self._events.append(message)
                    self._changed.notify_all()
                continue
            answer = self._answers.pop(message["id"], None)
            if answer is None or answer.done():
                continue
            if "error" in message:
                error = message["error"]
                answer.set_exception(JsError(f"{error['name']}: {error['message']}"))
            else:
                answer.set_result(message["result"])
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(JsError(f"the js node ended\n{self.log()}"))

    async def _read_log(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            async with self._changed:
                self._log.append(line.decode(errors="replace").rstrip())
                self._changed.notify_all()

    def log(self) -> str:
        """The tail of its stderr; run with DEBUG=libp2p:* in the environment to see more."""
        return "\n".join(self._log)[-4000:]

    async def logged(self, text: str) -> str:
        """Return the first line of its log that has `text`, waiting for it; see `debug`."""

        def found() -> str | None:
            return next((line for line in self._log if text in line), None)

        try:
            async with asyncio.timeout(CALL_SECONDS), self._changed:
                await self._changed.wait_for(lambda: found() is not None)
        except TimeoutError:
            raise AssertionError(f"js never logged {text!r}\n{self.log()}") from None
        line = found()
        assert line is not None
        return line

    async def call(self, command: str, **arguments: object) -> Any:
        """Send one command and return its result. Raises JsError."""
        number = next(self._ids)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        request = {"id": number, "command": command, **arguments}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        await self._process.stdin.drain()
        async with asyncio.timeout(CALL_SECONDS):
            return await answer

    async def send_all(self, stream: str, size: int) -> Any:
        """Send `size` random bytes on one of its streams and close its half."""
        sent = await self.call("send", stream=stream, size=size)
        await self.call("close_write", stream=stream)
        return sent

    async def event(
        self, name: str, matches: Callable[[Json], bool] = lambda _: True, *, take: bool = False
    ) -> Json:
        """Return the first event of that name that `matches`, past ones included.

        With `take` no later call sees it.
        """

        def found() -> Json | None:
            for event in self._events:
                if event["event"] == name and matches(event):
                    return event
            return None

        async with asyncio.timeout(CALL_SECONDS), self._changed:
            await self._changed.wait_for(lambda: found() is not None)
        event = found()
        assert event is not None
        if take:
            self._events.remove(event)
        return event

    async def identified(self, peer_id: str) -> Json:
        """What the identify that js ran by itself on a new connection told about `peer_id`."""
        return await self.event("peer:identify", lambda event: event["peer_id"] == peer_id)

    async def served(self, protocol: str) -> Json:
        """How the next stream that `protocol`'s behaviour served went."""
        return await self.event("served", lambda event: event["protocol"] == protocol, take=True)

    def address(self, transport: str) -> str:
        """Its own address over "quic" or "tcp", with /p2p; loopback unless it has a `host`."""
        part = {"quic": "/quic-v1/", "tcp": "/tcp/"}[transport]
        for address in self.addresses:
            if part in address and "p2p-circuit" not in address:
                return address
        raise AssertionError(f"no {transport} address among {self.addresses}")

    def circuit_address(self, transport: str) -> str:
        """The address under which peers reach it through the relay it reserved at."""
        part = {"quic": "/quic-v1/", "tcp": "/tcp/"}[transport]
        for address in self.addresses:
            if part in address and "/p2p-circuit" in address:
                return address
        raise AssertionError(f"no circuit address among {self.addresses}")
