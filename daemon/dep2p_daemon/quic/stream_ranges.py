"""Which pieces of a stream arrived or were acknowledged, whatever a hostile peer makes of them.

aioquic looks through all pieces for each new one, and keeps as many as there are: a peer that sends
every other byte makes a kilobyte of credit cost a hundred, and the next packet seconds; one that
acknowledges every other packet costs as much time (RFC 9000 sections 21.4, 21.6).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from aioquic.quic.connection import QuicConnectionError
from aioquic.quic.packet import QuicErrorCode, QuicFrameType
from aioquic.quic.rangeset import RangeSet
from typing_extensions import override

if TYPE_CHECKING:
    from aioquic.quic.stream import QuicStream

FREE_FRAGMENTS: Final = 128
"""Ranges that a stream may always have: small messages, of which many are lost, leave some."""
BYTES_PER_FRAGMENT: Final = 128
"""Further ones are allowed as the bytes that they span, gaps included, are so many for each: about
what a range takes. Lost packets leave far fewer."""

_start, _stop = attrgetter("start"), attrgetter("stop")


class SortedRanges(RangeSet):
    """A range set that finds where a range belongs by halves."""

    @override
    def add(self, start: int, stop: int | None = None) -> None:
        private: Any = self
        ranges: list[range] = private._RangeSet__ranges
        stop = start + 1 if stop is None else stop
        first, last = bisect_left(ranges, start, key=_stop), bisect_right(ranges, stop, key=_start)
        if first < last:  # they touch
            start, stop = min(start, ranges[first].start), max(stop, ranges[last - 1].stop)
        ranges[first:last] = [range(start, stop)]


class Fragments(SortedRanges):
    """What arrived of one stream and waits for what comes before it."""

    @override
    def add(self, start: int, stop: int | None = None) -> None:
        """Note that `start` to `stop` arrived.

        Raises:
            QuicConnectionError: the pieces are too many and too small.
        """
        super().add(start, stop)
        if len(self) > FREE_FRAGMENTS:
            spanned = self[-1].stop - self[0].start
            if len(self) > FREE_FRAGMENTS + spanned // BYTES_PER_FRAGMENT:
                raise QuicConnectionError(
                    error_code=QuicErrorCode.INTERNAL_ERROR,
                    frame_type=QuicFrameType.PADDING,
                    reason_phrase="a stream arrives in too many pieces",
                )


def bound_ranges(stream: QuicStream) -> None:
    """Bound what the pieces of a new stream cost."""
    stream.receiver._ranges = Fragments()
    stream.sender._acked, stream.sender._pending = SortedRanges(), SortedRanges()
