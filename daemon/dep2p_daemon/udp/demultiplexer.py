"""Which room a datagram is for: told by its first byte, for every segment of a batch by itself.

One UDP socket carries QUIC, STUN and datagrams of our own (docs/architecture.md, "One socket").
RFC 9443 is the model; our own datagrams take the range that it leaves to ZRTP and DTLS:

    0x00-0x03  STUN
    0x04-0x3f  ours: a registered handler, else dropped without an answer
    0x40-0xff  QUIC (0x80-0xbf too: Version Negotiation may clear the fixed bit)

Hole punching makes peers send random bytes to this socket, so that every value turns up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeAlias

import structlog

STUN_END: Final = 0x04
QUIC_START: Final = 0x40

FAILURE_LOG_INTERVAL: Final = 10.0
"""Seconds between two log lines about handlers that fail: what one datagram sets off, many may."""

SocketAddress: TypeAlias = tuple[str, int] | tuple[str, int, int, int]
"""A socket address as the `socket` module has it: of AF_INET or of AF_INET6."""

DatagramHandler: TypeAlias = Callable[[list[bytes], SocketAddress, bytes | None], None]
"""Takes datagrams of one sender, the sender, and the packed local IP that they came to.

The local IP is None on a socket that is bound to one: there it is no news.
"""

_log = structlog.get_logger(__name__)


class Demultiplexer:
    """Hands each segment of a received batch to the handler of its first byte."""

    def __init__(self) -> None:
        self._handlers: list[DatagramHandler | None] = [None] * 256
        self.dropped = 0
        """Datagrams that nobody was registered for."""
        self.failed = 0
        """Datagrams that a handler failed on."""
        self._may_log_at = 0.0

    def set_quic_handler(self, handler: DatagramHandler | None) -> None:
        """Give all of QUIC's range to `handler`."""
        self._handlers[QUIC_START:] = [handler] * (256 - QUIC_START)

    def set_stun_handler(self, handler: DatagramHandler | None) -> None:
        """Give all of STUN's range to `handler`."""
        self._handlers[:STUN_END] = [handler] * STUN_END

    def set_handler(self, first_byte: int, handler: DatagramHandler | None) -> None:
        """Give one first byte of our own range to `handler`; None takes it back."""
        if not STUN_END <= first_byte < QUIC_START:
            raise ValueError(f"first byte 0x{first_byte:02x} is not in our range 0x04-0x3f")
        self._handlers[first_byte] = handler

    def dispatch(
        self, batch: memoryview, segment_size: int, sender: SocketAddress, local: bytes | None
    ) -> int:
        """Split `batch` into segments and hand them out in order; returns their number.

        Neighbours for one handler go in one call. `batch` is not kept.
        """
        size = len(batch)
        if not size:
            return 1  # an empty datagram has no first byte and no reader
        handlers = self._handlers
        if size <= segment_size:
            self._hand_over(handlers[batch[0]], [bytes(batch)], sender, local)
            return 1
        segments = [
            bytes(batch[start : start + segment_size]) for start in range(0, size, segment_size)
        ]
        first = handlers[segments[0][0]]
        run_start = 0
        for index, segment in enumerate(segments):
            handler = handlers[segment[0]]
            if handler is not first:
                self._hand_over(first, segments[run_start:index], sender, local)
                first, run_start = handler, index
        self._hand_over(first, segments[run_start:] if run_start else segments, sender, local)
        return len(segments)

    def _hand_over(
        self,
        handler: DatagramHandler | None,
        datagrams: list[bytes],
        sender: SocketAddress,
        local: bytes | None,
    ) -> None:
        if handler is None:
            self.dropped += len(datagrams)
            return
        try:
            handler(datagrams, sender, local)
        except Exception:
            # The boundary of the socket: whatever one sender's datagrams set off must not
            # stop the others'. The handlers have their own, narrower boundaries.
            self.failed += len(datagrams)
            now = time.monotonic()
            if now >= self._may_log_at:
                self._may_log_at = now + FAILURE_LOG_INTERVAL
                _log.exception(
                    "a handler of datagrams failed", sender=sender[0], failed=self.failed
                )
