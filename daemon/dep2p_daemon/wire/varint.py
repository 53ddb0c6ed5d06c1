"""Unsigned varints of multiformats.

https://github.com/multiformats/unsigned-varint

Seven bits a byte, least significant group first, in as few bytes as the value needs, at most
nine bytes (63 bits).
"""

from __future__ import annotations

from typing import Final

from dep2p_daemon.errors import ProtocolViolationError

MAX_BYTES: Final = 9
"""The specification's bound of a varint's length."""

MAX_VALUE: Final = (1 << 63) - 1
"""The largest value that fits into `MAX_BYTES`."""


def encode(value: int) -> bytes:
    """Return the varint of `value`. Raises ValueError outside 0 ... `MAX_VALUE`."""
    if not 0 <= value <= MAX_VALUE:
        raise ValueError(f"{value} does not fit into an unsigned varint")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode(data: bytes | bytearray | memoryview, offset: int = 0) -> tuple[int, int]:
    """Return the varint at `offset` of `data`, and the offset behind it.

    Raises:
        ProtocolViolationError: reason VARINT_TRUNCATED when `data` ends inside it, else
            VARINT_MALFORMED: longer than `MAX_BYTES`, or than its value needs.
    """
    value = shift = 0
    for index in range(MAX_BYTES):
        if offset + index >= len(data):
            raise ProtocolViolationError("a varint is cut off", reason="VARINT_TRUNCATED")
        byte = data[offset + index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and index:
                raise ProtocolViolationError(
                    "a varint is longer than its value needs", reason="VARINT_MALFORMED"
                )
            return value, offset + index + 1
        shift += 7
    raise ProtocolViolationError(
        f"a varint is longer than {MAX_BYTES} bytes", reason="VARINT_MALFORMED"
    )


def encode_prefixed(data: bytes) -> bytes:
    """Return `data` behind its length."""
    return encode(len(data)) + data


def decode_prefixed(data: bytes, offset: int, *, max_bytes: int) -> tuple[bytes, int]:
    """Return the bytes behind the length at `offset` of `data`, and the offset behind them.

    Raises:
        ProtocolViolationError: a bad length, longer than `max_bytes`, or `data` ends early.
    """
    length, start = decode(data, offset)
    if length > max_bytes:
        raise ProtocolViolationError(
            f"a length of {length} bytes, where {max_bytes} are allowed",
            reason="LENGTH_TOO_LARGE",
        )
    if length > len(data) - start:
        raise ProtocolViolationError(
            f"a length of {length} bytes, where {len(data) - start} follow",
            reason="LENGTH_TRUNCATED",
        )
    return data[start : start + length], start + length
