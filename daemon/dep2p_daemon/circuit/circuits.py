"""The circuits that our relay carries: their pipes, their rates, their snapshots."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from dep2p_daemon.circuit.events import CircuitClosed, CircuitOpened, CircuitStatus, CloseReason
from dep2p_daemon.circuit.limits import FairQueue, PairRates
from dep2p_daemon.circuit.pacing import Pacer, TotalRate
from dep2p_daemon.circuit.pipe import CHUNK, Pipe
from dep2p_daemon.errors import NotFoundError
from dep2p_daemon.muxed import CloseCode

if TYPE_CHECKING:
    from dep2p_daemon.circuit.admission import CircuitPlace
    from dep2p_daemon.events import EventBus
    from dep2p_daemon.muxed import CircuitLimits, Stream

log = structlog.get_logger(__name__)

MIN_CHUNK: Final = 4096
"""Bytes taken at once at least, however low the rate is."""

CHUNKS_PER_SECOND: Final = 20
"""A limited rate is dealt out in at least so many chunks a second, so that it flows evenly."""

STALL_TIMEOUT: Final = 120.0
"""Seconds without progress after which a circuit ends one of whose peers has already gone.

The other one is not reading, and bytes for it wait; it may be slow, but not for ever."""


@dataclass(slots=True)
class _Circuit:
    circuit_id: str
    place: CircuitPlace
    pipe: Pipe
    streams: tuple[Stream, Stream]
    opened_at: float
    progress: int
    progress_at: float


class Circuits:
    """Runs pipes, publishes their begin and end. Needs a running loop."""

    def __init__(
        self,
        events: EventBus,
        *,
        limits: CircuitLimits | None,
        pair_rate: float | None,
        total_rate: float | None,
    ) -> None:
        self._events = events
        self._limits = limits
        self._pairs = PairRates(pair_rate)
        self._total: TotalRate | None = None
        if total_rate is not None:
            now = asyncio.get_running_loop().time()
            self._total = TotalRate(FairQueue(total_rate, now))
        rate = min((r for r in (pair_rate, total_rate) if r is not None), default=None)
        self._chunk = CHUNK
        if rate is not None:
            self._chunk = max(MIN_CHUNK, min(CHUNK, int(rate / CHUNKS_PER_SECOND)))
        self._open: dict[str, _Circuit] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def snapshots(self) -> tuple[CircuitStatus, ...]:
        """The open circuits with their counts so far, oldest first."""
        return tuple(self._status(circuit) for circuit in self._open.values())

    async def carry(self, place: CircuitPlace, source: Stream, target: Stream) -> None:
        """Join the two streams until the circuit ends; both are ended then."""
        loop = asyncio.get_running_loop()
        pair = frozenset((place.source, place.target))
        pacer = Pacer(place.number, self._pairs.join(pair, loop.time()), self._total)
        pipe = Pipe(source, target, pacer=pacer, limits=self._limits, chunk=self._chunk)
        circuit = _Circuit(
            f"r{place.number}", place, pipe, (source, target), time.time(), 0, loop.time()
        )
        self._open[circuit.circuit_id] = circuit
        self._empty.clear()
        self._events.publish(CircuitOpened(self._status(circuit)))
        log.info(
            "circuit opened",
            circuit=circuit.circuit_id,
            source=str(place.source),
            target=str(place.target),
        )
        # What holds if this task is cancelled from outside: by the swarm, some time after the
        # source's connection ended, or at the end of everything.
        reason = CloseReason.SHUTDOWN
        try:
            reason = await pipe.run()
        except asyncio.CancelledError:
            if source.connection.is_closed:
                reason = CloseReason.SOURCE_DISCONNECTED
            raise
        finally:
            del self._open[circuit.circuit_id]
            if not self._open:
                self._empty.set()
            self._pairs.leave(pair)
            if self._total is not None:
                self._total.forget(place.number)
            status = self._status(circuit, reason)
            self._events.publish(CircuitClosed(status))
            log.info(
                "circuit closed",
                circuit=status.circuit_id,
                reason=reason.value,
                source_to_target_bytes=status.source_to_target_bytes,
                target_to_source_bytes=status.target_to_source_bytes,
            )

    def close(self, circuit_id: str) -> None:
        """End one circuit by request.

        Raises:
            NotFoundError: there is no such circuit.
        """
        circuit = self._open.get(circuit_id)
        if circuit is None:
            raise NotFoundError(f"no circuit {circuit_id} is open", circuit_id=circuit_id)
        circuit.pipe.stop(CloseReason.CLOSED_BY_OPERATOR, CloseCode.GATED)

    async def close_all(self) -> None:
        """End all circuits because the relay ends, and wait until they have."""
        for circuit in tuple(self._open.values()):
            circuit.pipe.stop(CloseReason.SHUTDOWN, CloseCode.SHUTDOWN)
        if self._total is not None:
            self._total.close()
        await self._empty.wait()

    def sweep(self, now: float) -> None:
        """End the circuits that have stalled after one of their peers left."""
        for circuit in tuple(self._open.values()):
            progress = circuit.pipe.source_to_target + circuit.pipe.target_to_source
            if progress != circuit.progress:
                circuit.progress, circuit.progress_at = progress, now
            elif now - circuit.progress_at >= STALL_TIMEOUT:
                source, target = circuit.streams
                if source.closed:
                    circuit.pipe.stop(CloseReason.RESET_BY_SOURCE, CloseCode.GARBAGE_COLLECTED)
                elif target.closed:
                    circuit.pipe.stop(CloseReason.RESET_BY_TARGET, CloseCode.GARBAGE_COLLECTED)

    def _status(self, circuit: _Circuit, reason: CloseReason | None = None) -> CircuitStatus:
        return CircuitStatus(
            circuit_id=circuit.circuit_id,
            source=circuit.place.source,
            target=circuit.place.target,
            source_to_target_bytes=circuit.pipe.source_to_target,
            target_to_source_bytes=circuit.pipe.target_to_source,
            opened_at=circuit.opened_at,
            limits=self._limits,
            close_reason=reason,
        )
