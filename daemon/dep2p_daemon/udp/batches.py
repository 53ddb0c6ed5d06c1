"""Which datagrams one batched send can carry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_BATCH_BYTES: Final = 65_000
"""A batch is one UDP/IP packet to the kernel until it is cut: 64 KiB less headers."""
MAX_BATCH_SEGMENTS: Final = 64
"""UDP_MAX_SEGMENTS of kernels before 6.9; more is EINVAL there."""


def split_batches(datagrams: Sequence[bytes]) -> list[Sequence[bytes]]:
    """Cut `datagrams` into runs that one UDP_SEGMENT send can carry.

    All datagrams of a run have the length of its first; only the last may be shorter.
    """
    sizes = list(map(len, datagrams))
    size = sizes[0] if sizes else 0
    if size and sizes.count(size) + (sizes[-1] < size) == len(sizes):  # bulk data, mostly
        count = min(MAX_BATCH_SEGMENTS, max(1, MAX_BATCH_BYTES // size))
        return [datagrams[start : start + count] for start in range(0, len(sizes), count)]
    return _split_any(datagrams)


def _split_any(datagrams: Sequence[bytes]) -> list[Sequence[bytes]]:
    batches: list[Sequence[bytes]] = []
    start = 0
    size = total = 0
    for index, datagram in enumerate(datagrams):
        length = len(datagram)
        if index > start and (
            length > size
            or index - start >= MAX_BATCH_SEGMENTS
            or total + length > MAX_BATCH_BYTES
            or len(datagrams[index - 1]) != size
        ):
            batches.append(datagrams[start:index])
            start = index
        if index == start:
            size = length
            total = 0
        total += length
    if start < len(datagrams):
        batches.append(datagrams[start:] if start else datagrams)
    return batches
