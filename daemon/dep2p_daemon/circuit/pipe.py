"""The two-way copy of a stream circuit: the hop stream and the stop stream made one.

Bytes are never looked at. What the pipe keeps are the edges: an end of one half is passed on
as an end, a reset as a reset with its code, and a limit that bites as a reset too, because an
end there would look like a complete transfer.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dep2p_daemon.circuit.events import CloseReason
from dep2p_daemon.errors import ConnectionClosedError, StreamResetError
from dep2p_daemon.muxed import CloseCode

if TYPE_CHECKING:
    from dep2p_daemon.circuit.pacing import Pacer
    from dep2p_daemon.muxed import CircuitLimits, Stream

CHUNK: Final = 256 * 1024
"""Bytes taken at once at most: one chunk in each direction is what a circuit holds here."""


@dataclass(slots=True)
class _Half:
    """One direction, and what its two ends are to blame for."""

    reader: Stream
    writer: Stream
    reader_reset: CloseReason
    reader_gone: CloseReason
    writer_reset: CloseReason
    writer_gone: CloseReason
    forwarded: int = 0


class Pipe:
    """Joins two streams until both directions have ended; owns both streams from then on."""

    def __init__(
        self,
        source: Stream,
        target: Stream,
        *,
        pacer: Pacer,
        limits: CircuitLimits | None = None,
        chunk: int = CHUNK,
    ) -> None:
        self._streams = (source, target)
        self._pacer = pacer
        self._data = limits.data if limits is not None else None
        self._duration = limits.duration if limits is not None else None
        self._chunk = chunk
        self._reason: CloseReason | None = None
        self._tasks: list[asyncio.Task[None]] = []
        by_source = (CloseReason.RESET_BY_SOURCE, CloseReason.SOURCE_DISCONNECTED)
        by_target = (CloseReason.RESET_BY_TARGET, CloseReason.TARGET_DISCONNECTED)
        self._forth = _Half(source, target, *by_source, *by_target)
        self._back = _Half(target, source, *by_target, *by_source)

    @property
    def source_to_target(self) -> int:
        """Bytes forwarded to the target."""
        return self._forth.forwarded

    @property
    def target_to_source(self) -> int:
        """Bytes forwarded to the source."""
        return self._back.forwarded

    async def run(self) -> CloseReason:
        """Forward until both directions have ended and return why. Cancelled, it resets both."""
        timer: asyncio.TimerHandle | None = None
        if self._duration is not None:
            timer = asyncio.get_running_loop().call_later(
                self._duration,
                self.stop,
                CloseReason.DURATION_LIMIT,
                CloseCode.RESOURCE_LIMIT_EXCEEDED,
            )
        try:
            async with asyncio.TaskGroup() as group:
                if self._reason is None:
                    self._tasks = [
                        group.create_task(self._copy(half)) for half in (self._forth, self._back)
                    ]
        except BaseException:
            self._reset(CloseCode.NONE)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        return self._reason or CloseReason.COMPLETED

    def stop(self, reason: CloseReason, code: int) -> None:
        """End the circuit now: reset both streams with `code`. The first reason stands."""
        if self._reason is None:
            self._reason = reason
        self._reset(code)
        for task in self._tasks:
            task.cancel()

    async def _copy(self, half: _Half) -> None:
        reader, writer, pacer = half.reader, half.writer, self._pacer
        unlimited = pacer.unlimited
        while True:
            if not unlimited:
                await pacer.before_read()
            try:
                data = await reader.read(self._chunk)
            except StreamResetError as error:
                return self.stop(half.reader_reset, error.code)
            except ConnectionClosedError:
                return self.stop(half.reader_gone, CloseCode.NONE)
            if self._data is not None and half.forwarded + len(data) > self._data:
                return self.stop(CloseReason.DATA_LIMIT, CloseCode.RESOURCE_LIMIT_EXCEEDED)
            if data and not unlimited:
                await pacer.before_write(len(data))
            try:
                if not data:
                    return await writer.close_write()
                await writer.write(data)
            except StreamResetError as error:
                # Nobody reads this direction any more; what comes the other way still counts.
                self._reason = self._reason or half.writer_reset
                return reader.stop_reading(error.code)
            except ConnectionClosedError:
                return self.stop(half.writer_gone, CloseCode.NONE)
            half.forwarded += len(data)

    def _reset(self, code: int) -> None:
        for stream in self._streams:
            stream.reset(code)
