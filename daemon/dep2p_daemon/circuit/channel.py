"""The stream of a circuit as the byte channel under Noise: its errors say what happened.

A circuit can break in the relay, behind it or on the way to it, and for a limit that was
announced. Passed on as "stream reset" that would reach a user as a riddle.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from dep2p_daemon.errors import ConnectionClosedError, StreamResetError
from dep2p_daemon.muxed import READ_CHUNK, Buffer, CloseCode

if TYPE_CHECKING:
    from dep2p_daemon.muxed import CircuitLimits, Stream

NEAR_LIMIT: Final = 0.9
"""A reset without a code (yamux has none) after this part of a limit is put down to it. Bytes
that the relay had still under way are not counted here."""


class CircuitChannel:
    """A `ByteChannel` over the stream that a relay has joined with the other end's."""

    def __init__(self, stream: Stream, limits: CircuitLimits | None) -> None:
        self._stream = stream
        self._limits = limits
        self._clock = asyncio.get_running_loop().time
        self._opened_at = self._clock()
        self._received = 0
        self._sent = 0

    async def read(self, max_bytes: int = READ_CHUNK) -> bytes:
        """Return up to `max_bytes`, b"" at the end. Raises ConnectionClosedError."""
        try:
            data = await self._stream.read(max_bytes)
        except (StreamResetError, ConnectionClosedError) as error:
            raise self._explained(error) from error
        self._received += len(data)
        return data

    async def write(self, data: Buffer) -> None:
        """Write all of `data`. Raises ConnectionClosedError."""
        try:
            await self._stream.write(data)
        except (StreamResetError, ConnectionClosedError) as error:
            raise self._explained(error) from error
        self._sent += len(data)

    async def close_write(self) -> None:
        """Send the end of our half. Raises ConnectionClosedError."""
        try:
            await self._stream.close_write()
        except (StreamResetError, ConnectionClosedError) as error:
            raise self._explained(error) from error

    def abort(self) -> None:
        """Reset the stream."""
        self._stream.reset()

    def _explained(self, error: StreamResetError | ConnectionClosedError) -> ConnectionClosedError:
        relay = self._stream.connection.remote_peer
        remedy = "dial again"
        if isinstance(error, ConnectionClosedError):
            reason = "RELAY_LOST"
            message = f"the connection to the relay {relay} ended: {error.message}"
        elif (limit := self._limit_reached(error)) is not None:
            reason = "CIRCUIT_LIMIT_REACHED"
            message = f"the relay {relay} ended the circuit: {limit}"
            remedy = "dial again for another one, or use a relay that limits less"
        elif error.code == CloseCode.SHUTDOWN:
            reason = "CIRCUIT_SHUTDOWN"
            message = f"the relay {relay}, or the node behind it, is stopping"
        elif error.code == CloseCode.GATED:
            reason = "CIRCUIT_GATED"
            message = f"the circuit was closed by the operator of the relay {relay}"
            remedy = "ask the relay's operator"
        else:
            reason = "CIRCUIT_RESET"
            message = f"the circuit through the relay {relay} was reset by it or by the other end"
        return ConnectionClosedError(
            message,
            code=error.code,
            remote=error.remote,
            reason=reason,
            remedy=remedy,
            relay=relay,
        )

    def _limit_reached(self, error: StreamResetError) -> str | None:
        limits = self._limits
        told = error.code == CloseCode.RESOURCE_LIMIT_EXCEEDED
        if limits is not None and error.remote:
            most = max(self._received, self._sent)
            if limits.data is not None and most >= limits.data * NEAR_LIMIT:
                return f"it forwards at most {limits.data} bytes in each direction"
            elapsed = self._clock() - self._opened_at
            if limits.duration is not None and elapsed >= limits.duration * NEAR_LIMIT:
                return f"it keeps a circuit for at most {limits.duration:g} s"
        return "one of its limits was reached" if told else None
