"""Ping: https://github.com/libp2p/specs/blob/master/ping/ping.md

Flow: the dialer sends 32 random bytes, the listener sends them back; again on the same stream.
A dialer uses one stream, a listener serves two per peer. go-libp2p's listener ends every ping
stream after 30 s, so a long series reopens.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from typing import TYPE_CHECKING, Final

import structlog

from dep2p_daemon.errors import (
    ConnectionClosedError,
    DialTimeoutError,
    ProtocolViolationError,
    StreamResetError,
)
from dep2p_daemon.muxed import CloseCode, Connection, read_exactly

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.muxed import Stream
    from dep2p_daemon.swarm.swarm import Swarm

_log = structlog.get_logger(__name__)

PROTOCOL: Final = "/ipfs/ping/1.0.0"
PING_BYTES: Final = 32
MAX_STREAMS_PER_PEER: Final = 2
IDLE_TIMEOUT: Final = 60.0
"""Seconds a served stream may be silent; ours: twice go-libp2p's whole stream."""
PING_TIMEOUT: Final = 10.0
"""Seconds one answer may take (go-libp2p's)."""
STREAM_LIFETIME: Final = 25.0
"""Seconds after which our stream is replaced, before go-libp2p's 30 s end it."""

_NEW_SAMPLE_WEIGHT: Final = 0.125
"""Of a measurement in the smoothed round trip (RFC 6298, section 2.3)."""


class PingServer:
    """Answers pings."""

    def __init__(self) -> None:
        self._streams: Counter[PeerId] = Counter()

    async def handle(self, stream: Stream) -> None:
        """Serve one inbound stream."""
        peer = stream.connection.remote_peer
        if self._streams[peer] >= MAX_STREAMS_PER_PEER:
            _log.debug("ping stream refused", peer=str(peer), reason="RESOURCE_LIMIT_EXCEEDED")
            stream.reset(CloseCode.RESOURCE_LIMIT_EXCEEDED)
            return
        self._streams[peer] += 1
        try:
            await _answer(stream)
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]


async def _answer(stream: Stream) -> None:
    while True:
        try:
            async with asyncio.timeout(IDLE_TIMEOUT):
                start = await stream.read(PING_BYTES)
                if not start:
                    await stream.aclose()
                    return
                rest = await read_exactly(stream, PING_BYTES - len(start))
                await stream.write(start + rest)
        except TimeoutError:
            stream.reset(CloseCode.GARBAGE_COLLECTED)
            return


def register(swarm: Swarm) -> None:
    """Answer pings on `swarm`."""
    swarm.set_handler(PROTOCOL, PingServer().handle)


async def ping(
    swarm: Swarm, target: PeerId | Connection, *, addresses: Sequence[Multiaddr] = ()
) -> AsyncGenerator[float, None]:
    """Measure round trips, in seconds, one for each step of the iteration, without end.

    A peer is dialled (at `addresses`) where needed; a connection is pinged itself. Each
    measurement updates the connection's `rtt`. Leave it with `aclose` (`contextlib.aclosing`).

    Raises:
        DialTimeoutError: no answer in 10 s.
        PeerError: what `Swarm.open_stream` raises, or a wrong answer.
    """
    connection = target if isinstance(target, Connection) else None
    peer = connection.remote_peer if connection is not None else target
    assert not isinstance(peer, Connection)
    clock = asyncio.get_running_loop().time
    stream: Stream | None = None
    opened = 0.0
    try:
        while True:
            rtt: float | None = None
            if stream is not None and clock() - opened > STREAM_LIFETIME:
                await stream.aclose()
                stream = None
            if stream is not None:
                try:
                    rtt = await _measure(stream)
                except (StreamResetError, ConnectionClosedError):
                    stream = None  # it had worked, so the peer tired of it: a new one will do
            if stream is None:
                stream = await swarm.open_stream(
                    peer, [PROTOCOL], addresses=addresses, connection=connection
                )
                opened = clock()
                rtt = await _measure(stream)
            assert rtt is not None
            yield rtt
    finally:
        if stream is not None:
            stream.reset()


async def _measure(stream: Stream) -> float:
    loop = asyncio.get_running_loop()
    payload = secrets.token_bytes(PING_BYTES)
    connection = stream.connection
    try:
        async with asyncio.timeout(PING_TIMEOUT):
            began = loop.time()
            await stream.write(payload)
            answer = bytearray()
            while len(answer) < PING_BYTES:
                data = await stream.read(PING_BYTES - len(answer))
                if not data:
                    raise StreamResetError("the peer ended the ping stream", remote=True)
                answer += data
            rtt = loop.time() - began
    except TimeoutError:
        raise DialTimeoutError(
            f"no answer to a ping within {PING_TIMEOUT:g} s",
            reason="PING_TIMEOUT",
            remedy="the connection may be broken: disconnect, and try again",
            peer=connection.remote_peer,
        ) from None
    if answer != payload:
        raise ProtocolViolationError(
            "the peer answered a ping with other bytes", reason="PING_MISMATCH"
        )
    smoothed = connection.rtt
    connection.rtt = rtt if smoothed is None else smoothed + _NEW_SAMPLE_WEIGHT * (rtt - smoothed)
    return rtt
