"""Yamux frames: https://github.com/libp2p/specs/blob/master/yamux/README.md.

Layout of a header, big-endian, 12 bytes:
    version u8 (0) | type u8 | flags u16 | stream id u32 | length u32
`length` is the payload's size (DATA), a delta (WINDOW_UPDATE), an opaque value (PING), or an
error code (GO_AWAY). Only DATA has a payload, and only it counts against the window.
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from dep2p_daemon.errors import ProtocolViolationError

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER: Final = struct.Struct(">BBHII")
HEADER_BYTES: Final = HEADER.size
VERSION: Final = 0
SESSION_ID: Final = 0
"""The stream id of frames about the session."""
INITIAL_WINDOW: Final = 256 * 1024
"""Bytes either side may send on a new stream."""
MAX_STREAM_ID: Final = 0xFFFFFFFF

DATA: Final = 0
WINDOW_UPDATE: Final = 1
PING: Final = 2
GO_AWAY: Final = 3

SYN: Final = 1
ACK: Final = 2
FIN: Final = 4
RST: Final = 8


class GoAwayCode(enum.IntEnum):
    """Why a session ends."""

    NORMAL = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


def encode(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    """Encode a header."""
    return HEADER.pack(VERSION, kind, flags, stream_id, length)


class Header(NamedTuple):
    """A received header."""

    kind: int
    flags: int
    stream_id: int
    length: int


class FrameParser:
    """Cuts received bytes into headers and pieces of payload; holds part of a header at most."""

    def __init__(self) -> None:
        self._partial = b""
        self.payload_left = 0
        """Bytes of the current frame's payload that are still to come."""

    def feed(self, data: bytes) -> Iterator[Header | bytes]:
        """Take bytes; give headers, and the pieces of payload that follow DATA headers.

        Raises:
            ProtocolViolationError: a version or type that is not Yamux.
        """
        offset, end = 0, len(data)
        while offset < end:
            if self.payload_left:
                stop = min(end, offset + self.payload_left)
                self.payload_left -= stop - offset
                yield data[offset:stop]
                offset = stop
            elif self._partial or end - offset < HEADER_BYTES:
                stop = min(end, offset + HEADER_BYTES - len(self._partial))
                self._partial += data[offset:stop]
                offset = stop
                if len(self._partial) == HEADER_BYTES:
                    whole, self._partial = self._partial, b""
                    yield self._header(whole, 0)
            else:
                offset += HEADER_BYTES
                yield self._header(data, offset - HEADER_BYTES)

    def _header(self, data: bytes, offset: int) -> Header:
        version, kind, flags, stream_id, length = HEADER.unpack_from(data, offset)
        if version != VERSION:
            raise violation(f"version {version}")
        if kind > GO_AWAY:
            raise violation(f"a frame of type {kind}")
        if kind == DATA:
            self.payload_left = length
        return Header(kind, flags, stream_id, length)


def violation(what: str) -> ProtocolViolationError:
    """What to raise when the peer does what Yamux does not allow."""
    return ProtocolViolationError(f"the peer broke Yamux: {what}", reason="YAMUX_VIOLATION")
