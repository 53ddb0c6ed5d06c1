"""Perf, `/perf/1.0.0`: https://github.com/libp2p/specs/blob/master/perf/perf.md

Flow: the client sends a u64, big endian: the number of bytes it wants; then as many bytes as it
likes, and closes its half. The server reads them all, sends the number that was asked for, and
closes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from dep2p_daemon.errors import ProtocolViolationError
from dep2p_daemon.muxed import CloseCode, read_exactly

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.muxed import Stream
    from dep2p_daemon.swarm.swarm import Swarm

_log = structlog.get_logger(__name__)

PROTOCOL: Final = "/perf/1.0.0"
MAX_STREAMS_PER_PEER: Final = 8
"""Measurements served at once to one peer; ours: enough for parallel streams."""
REPORT_INTERVAL: Final = 1.0
"""Seconds between two reports of a measurement."""

_LENGTH_BYTES: Final = 8
_CHUNK: Final = memoryview(bytes(256 * 1024))
"""What is sent, over and over: one shared buffer of zeros."""
_READ_BYTES: Final = 256 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class PerfReport:
    """How far a measurement is. Times in seconds."""

    elapsed: float
    uploaded: int
    """Bytes that the transport has taken."""
    downloaded: int
    upload_time: float | None = None
    """From the start until the peer had all; None while it goes on."""
    download_time: float | None = None
    """From then until the last byte; None until the end."""
    final: bool = False


class PerfServer:
    """Serves measurements: off unless the configuration turns it on."""

    def __init__(self) -> None:
        self._streams: Counter[PeerId] = Counter()

    async def handle(self, stream: Stream) -> None:
        """Serve one inbound stream."""
        peer = stream.connection.remote_peer
        if self._streams[peer] >= MAX_STREAMS_PER_PEER:
            _log.info("perf stream refused", peer=str(peer), reason="RESOURCE_LIMIT_EXCEEDED")
            stream.reset(CloseCode.RESOURCE_LIMIT_EXCEEDED)
            return
        self._streams[peer] += 1
        try:
            wanted = int.from_bytes(await read_exactly(stream, _LENGTH_BYTES), "big")
            while await stream.read(_READ_BYTES):
                pass
            while wanted:
                size = min(wanted, len(_CHUNK))
                await stream.write(_CHUNK[:size])
                wanted -= size
            await stream.aclose()
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]


def register(swarm: Swarm) -> None:
    """Serve measurements on `swarm`; any connected peer may then move what it likes."""
    swarm.set_handler(PROTOCOL, PerfServer().handle)


async def measure(
    stream: Stream, *, upload_bytes: int, download_bytes: int
) -> AsyncGenerator[PerfReport, None]:
    """Move `upload_bytes` there and `download_bytes` back over a fresh perf stream.

    Reports about once a second while data moves, and at last with `final` set. The stream is
    ended in any case.

    Raises:
        ProtocolViolationError: the peer sent less, or more, than it was asked for.
        StreamResetError, ConnectionClosedError: it broke.
    """
    clock = asyncio.get_running_loop().time
    began = reported = clock()
    uploaded = downloaded = 0
    complete = False
    try:
        await stream.write(download_bytes.to_bytes(_LENGTH_BYTES, "big"))
        while uploaded < upload_bytes:
            size = min(upload_bytes - uploaded, len(_CHUNK))
            await stream.write(_CHUNK[:size])
            uploaded += size
            if clock() - reported >= REPORT_INTERVAL:
                reported = clock()
                yield PerfReport(elapsed=reported - began, uploaded=uploaded, downloaded=0)
        await stream.close_write()
        # The first byte, or the end, says that the peer has read everything.
        data = await stream.read(_READ_BYTES)
        turned = clock()
        while data:
            downloaded += len(data)
            if downloaded > download_bytes:
                break
            if clock() - reported >= REPORT_INTERVAL:
                reported = clock()
                yield PerfReport(
                    elapsed=reported - began,
                    uploaded=uploaded,
                    downloaded=downloaded,
                    upload_time=turned - began,
                )
            data = await stream.read(_READ_BYTES)
        if downloaded != download_bytes:
            raise ProtocolViolationError(
                f"the peer sent {downloaded} bytes or more, where {download_bytes} were asked for",
                reason="PERF_MISMATCH",
            )
        ended = clock()
        await stream.aclose()
        complete = True
        yield PerfReport(
            elapsed=ended - began,
            uploaded=uploaded,
            downloaded=downloaded,
            upload_time=turned - began,
            download_time=ended - turned,
            final=True,
        )
    finally:
        if not complete:
            stream.reset()
