"""Standard input and output beside an event loop, and a stream between them.

Blocking calls run in daemon threads: they work with terminals, pipes and files alike, leave the
modes of a shared terminal alone, and a read that never returns does not keep the process.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    import dep2p

CHUNK: Final = 256 * 1024
"""Bytes of one read; what the client sends in one message."""

T = TypeVar("T")


class Source(Protocol):
    """Where bytes come from."""

    async def read(self) -> bytes:
        """Return some bytes, b"" at the end."""
        ...


class Sink(Protocol):
    """Where bytes go."""

    async def write(self, data: bytes) -> None:
        """Take all of `data`, however long that lasts."""
        ...

    async def end(self) -> None:
        """No more will come."""
        ...


class BlockingCalls:
    """Runs blocking calls, one after the other, in a thread that does not keep the process."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]]] = (
            queue.SimpleQueue()
        )
        threading.Thread(target=self._work, name=name, daemon=True).start()

    async def call(self, function: Callable[[], T]) -> T:
        """Run `function` and return what it returns. A cancelled call runs to its end unheard."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._calls.put((future, function))
        return await future

    def _work(self) -> None:
        while True:
            future, function = self._calls.get()
            result, error = None, None
            try:
                result = function()
            except Exception as raised:
                error = raised
            try:
                future.get_loop().call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:
                return  # the loop is closed: the program is about to end


def _settle(future: asyncio.Future[Any], result: object, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


class StandardInput:
    """Standard input of the process."""

    def __init__(self) -> None:
        self._calls = BlockingCalls("stdin")

    async def read(self) -> bytes:
        """Return some bytes, b"" at the end; a closed standard input is at its end."""
        return await self._calls.call(_read_input)


class StandardOutput:
    """Standard output of the process."""

    def __init__(self) -> None:
        self._calls = BlockingCalls("stdout")

    async def write(self, data: bytes) -> None:
        """Write all of `data`. Raises BrokenPipeError when nobody reads it any more."""
        await self._calls.call(lambda: _write_output(data))

    async def end(self) -> None:
        """Let whoever reads our output see its end, while our input may go on."""
        await self._calls.call(_end_output)


def _read_input() -> bytes:
    try:
        return os.read(0, CHUNK)
    except OSError:
        return b""


def _write_output(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def _end_output() -> None:
    # Not closed: the next file that this process opens would become its standard output.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


async def carry(stream: dep2p.Stream, source: Source, sink: Sink, *, leave_at_end: bool) -> None:
    """Copy both ways until both halves are closed.

    Args:
        stream: the stream; closing it stays the caller's job.
        source: what to send; its end closes our half.
        sink: where what the peer sends goes.
        leave_at_end: give the source up once the peer has closed its half (a terminal, whose
            end nobody would think of sending).
    """
    async with asyncio.TaskGroup() as group:
        sending = group.create_task(_send(stream, source))
        while data := await stream.read():
            await sink.write(data)
        await sink.end()
        if leave_at_end:
            sending.cancel()


async def _send(stream: dep2p.Stream, source: Source) -> None:
    while data := await source.read():
        await stream.write(data)
    await stream.close_write()
