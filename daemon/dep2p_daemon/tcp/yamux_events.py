"""What a Yamux session tells its owner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer opened a stream; `accept` or `reset` it."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class DataReceived:
    """Bytes for a stream; `consume` them once they are read."""

    stream_id: int
    data: bytes


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The peer closed its half."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The peer reset the stream."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamAcknowledged:
    """The peer accepted, or ended, a stream of ours; room for another one."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamRefused:
    """An inbound stream was over a limit and has been reset."""

    limit: str


@dataclass(frozen=True, slots=True)
class GoAwayReceived:
    """The peer takes no more streams."""

    code: int


@dataclass(frozen=True, slots=True)
class RoundTripMeasured:
    """A ping came back."""

    seconds: float


Event: TypeAlias = (
    StreamOpened
    | DataReceived
    | StreamEnded
    | StreamReset
    | StreamAcknowledged
    | StreamRefused
    | GoAwayReceived
    | RoundTripMeasured
)
