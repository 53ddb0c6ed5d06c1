"""Yamux frames: https://github.com/libp2p/specs/blob/master/yamux/README.md.

Layout of a header, big-endian, 12 bytes:
    version u8 (0) | type u8 | flags u16 | stream id u32 | length u32
`length` is the payload's size (DATA), a delta (WINDOW_UPDATE), an opaque value (PING), or an
error code (GO_AWAY). Only DATA has a payload, and only it counts against the window.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

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
