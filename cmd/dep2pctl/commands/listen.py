"""`listen`: serve a protocol from a shell."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import sys
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import click

import dep2p
from dep2pctl.app import ApiCommand
from dep2pctl.as_json import as_json
from dep2pctl.output import byte_count, printable, write_json
from dep2pctl.pipes import CHUNK, StandardInput, StandardOutput, carry
from dep2pctl.session import Session, pass_session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

Serve: TypeAlias = "Callable[[dep2p.Stream, Traffic], Awaitable[None]]"

MAX_STREAMS: Final = 16
"""Streams served at once; the daemon keeps further ones waiting for ten seconds."""


@click.command(
    cls=ApiCommand,
    examples="""
    dep2pctl listen /my-app/1.0.0                               # stdin/stdout of one stream
    dep2pctl listen /echo/1.0.0 --echo
    dep2pctl listen /time/1.0.0 --exec date --allow-any
    dep2pctl listen /backup/1.0.0 --exec 'tar cz /srv' --allow 12D3KooW...
    """,
)
@click.argument("protocol")
@click.option("--echo", is_flag=True, help="Send back what comes, on every stream, until Ctrl-C.")
@click.option(
    "--exec",
    "command",
    metavar="CMD",
    help="Run CMD for every stream, its stdin and stdout being the stream, until Ctrl-C. No "
    "shell; DEP2PCTL_PEER, DEP2PCTL_PROTOCOL and DEP2PCTL_PATH tell about the stream.",
)
@click.option(
    "--allow", "allowed", multiple=True, metavar="PEER", help="Only this peer; may be repeated."
)
@click.option("--allow-any", is_flag=True, help="Any peer, said on purpose; --exec needs it.")
@click.option(
    "--max-streams",
    type=click.IntRange(min=1),
    default=MAX_STREAMS,
    help=f"Streams served at once with --echo and --exec. [{MAX_STREAMS}]",
)
@pass_session
def listen(
    session: Session,
    protocol: str,
    echo: bool,
    command: str | None,
    allowed: tuple[str, ...],
    allow_any: bool,
    max_streams: int,
) -> None:
    """Serve a protocol for peers.

    Without --echo and --exec, standard input and output are the first stream, and the command
    ends with it. --exec gives peers a program of yours: it wants --allow or --allow-any.
    """
    if echo and command is not None:
        raise click.UsageError("--echo and --exec exclude each other")
    if allowed and allow_any:
        raise click.UsageError("--allow and --allow-any exclude each other")
    if command is not None and not allowed and not allow_any:
        raise click.UsageError(
            "--exec lets peers run a program of yours: say who may, with --allow PEER, "
            "or --allow-any"
        )
    program = None if command is None else Program(_words(command))
    notices = Notices(session, err=not echo and command is None)

    async def work(node: dep2p.Node) -> None:
        async with node.listen(protocol, allowed_peers=allowed) as listener:
            notices.listening(protocol)
            if echo:
                await serve_all(listener, echo_back, notices, max_streams)
            elif program is not None:
                await serve_all(listener, program, notices, max_streams)
            else:
                first = await anext(listener, None)
        if echo or program is not None or first is None:
            raise dep2p.DaemonStoppingError(
                "the daemon stopped serving the protocol", remedy="look at the daemon's log"
            )
        notices.opened(first)
        async with first:
            await carry(first, StandardInput(), StandardOutput(), leave_at_end=sys.stdin.isatty())

    session.run(work)


def _words(command: str) -> list[str]:
    """Split a command as a shell would."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise click.UsageError(f"--exec {command!r}: {error}") from None
    if not words:
        raise click.UsageError("--exec is empty")
    if shutil.which(words[0]) is None:
        # Said now, and not to the first peer that comes.
        raise click.UsageError(
            f"--exec: there is no program {words[0]!r} that can be run; name it with its path"
        )
    return words


class Traffic:
    """What one stream carried."""

    def __init__(self) -> None:
        self.received = 0
        self.sent = 0


class Notices:
    """Tells what happens, beside the data."""

    def __init__(self, session: Session, *, err: bool) -> None:
        self._json = session.json
        self._err = err

    def listening(self, protocol: str) -> None:
        """The protocol is served from now on."""
        self._say({"event": "listening", "protocol": protocol}, f"listening: {protocol}")

    def opened(self, stream: dep2p.Stream) -> None:
        """A peer's stream was accepted."""
        path = "relayed" if stream.relayed else "direct"
        self._say(
            {"event": "stream_opened", "stream": as_json(stream.info)},
            f"stream from {stream.peer_id} ({path})",
        )

    def closed(
        self, stream: dep2p.Stream, traffic: Traffic, error: dep2p.Dep2pError | OSError | None
    ) -> None:
        """A stream was served to its end, good or bad."""
        message = (
            None
            if error is None
            else (error.message if isinstance(error, dep2p.Dep2pError) else str(error))
        )
        how = "done" if message is None else f"failed: {message}"
        self._say(
            {
                "event": "stream_closed",
                "peer_id": stream.peer_id,
                "received_bytes": traffic.received,
                "sent_bytes": traffic.sent,
                "error": message,
            },
            f"stream from {stream.peer_id} {how}: received {byte_count(traffic.received)}, "
            f"sent {byte_count(traffic.sent)}",
        )

    def _say(self, value: dict[str, Any], text: str) -> None:
        if self._json:
            write_json(value, one_line=True, err=self._err)
        else:
            click.echo(printable(text), err=self._err)


async def serve_all(
    listener: dep2p.Listener, serve: Serve, notices: Notices, max_streams: int
) -> None:
    """Serve every stream in a task of its own, until the listening ends."""
    places = asyncio.Semaphore(max_streams)

    async def one(stream: dep2p.Stream) -> None:
        traffic = Traffic()
        notices.opened(stream)
        try:
            async with stream:
                await serve(stream, traffic)
        except (dep2p.Dep2pError, OSError) as error:
            # One stream's failure is nobody else's.
            notices.closed(stream, traffic, error)
        else:
            notices.closed(stream, traffic, None)
        finally:
            places.release()

    async with asyncio.TaskGroup() as group:
        while True:
            await places.acquire()
            stream = await anext(listener, None)
            if stream is None:
                return
            group.create_task(one(stream))


async def echo_back(stream: dep2p.Stream, traffic: Traffic) -> None:
    """Send back what comes, and the end after it."""
    async for data in stream:
        traffic.received += len(data)
        await stream.write(data)
        traffic.sent += len(data)
    await stream.close_write()


class Program:
    """Serves a stream with a program: its exit code decides between a close and a reset."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command

    async def __call__(self, stream: dep2p.Stream, traffic: Traffic) -> None:
        """Run the program to its end, or until the stream breaks."""
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=os.environ
            | {
                "DEP2PCTL_PEER": stream.peer_id,
                "DEP2PCTL_PROTOCOL": stream.protocol,
                "DEP2PCTL_PATH": "relayed" if stream.relayed else "direct",
            },
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.TaskGroup() as group:
                feeding = group.create_task(_feed(stream, process.stdin, traffic))
                while data := await process.stdout.read(CHUNK):
                    await stream.write(data)
                    traffic.sent += len(data)
                code = await process.wait()
                feeding.cancel()
        except BaseExceptionGroup as group_error:
            raise group_error.exceptions[0] from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if code == 0:
            await stream.close_write()
        else:
            await stream.reset(code & 0xFF)
            raise OSError(f"{self._command[0]} ended with {code}")


async def _feed(stream: dep2p.Stream, stdin: asyncio.StreamWriter, traffic: Traffic) -> None:
    """Hand the peer's bytes to the program; a program that has enough may close its end."""
    try:
        async for data in stream:
            traffic.received += len(data)
            stdin.write(data)
            await stdin.drain()
    except (BrokenPipeError, ConnectionResetError):
        return
    finally:
        stdin.close()
