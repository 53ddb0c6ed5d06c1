"""The streams that peers open: caps, negotiation, handlers.

A handler that fails resets its stream; it never ends the connection.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from dep2p_daemon import multistream
from dep2p_daemon.errors import (
    ConnectionClosedError,
    Dep2pError,
    ProtocolNotSupportedError,
)
from dep2p_daemon.muxed import CloseCode

if TYPE_CHECKING:
    from dep2p_daemon.muxed import Connection, Stream
    from dep2p_daemon.swarm.registry import ProtocolRegistry
    from dep2p_daemon.swarm.settings import SwarmSettings

_log = structlog.get_logger(__name__)


class StreamServer:
    """Serves the inbound streams of all connections."""

    def __init__(self, registry: ProtocolRegistry, settings: SwarmSettings) -> None:
        self._registry = registry
        self._settings = settings
        self.running = 0
        """Handlers that run now, on all connections."""

    async def serve(self, connection: Connection) -> None:
        """Accept the streams of `connection` until it ends, then let the handlers finish.

        Cancelled, it cancels the handlers.
        """
        handlers: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    stream = await connection.accept_stream()
                except ConnectionClosedError:
                    break
                if (limit := self._limit_reached(len(handlers))) is not None:
                    _log.debug(
                        "stream refused",
                        peer=str(connection.remote_peer),
                        connection=connection.id,
                        reason="RESOURCE_LIMIT_EXCEEDED",
                        limit=limit,
                    )
                    stream.reset(CloseCode.RESOURCE_LIMIT_EXCEEDED)
                    continue
                handler = tasks.create_task(self._serve_stream(stream))
                del stream  # the handler's: it must not live until the next one comes
                handlers.add(handler)
                handler.add_done_callback(handlers.discard)
            if handlers:
                await asyncio.wait(handlers, timeout=self._settings.handler_grace)
            for handler in handlers:
                handler.cancel()

    def _limit_reached(self, on_connection: int) -> str | None:
        if on_connection >= self._settings.max_inbound_streams_per_connection:
            return "max_inbound_streams_per_connection"
        if self.running >= self._settings.max_inbound_streams:
            return "max_inbound_streams"
        return None

    async def _serve_stream(self, stream: Stream) -> None:
        peer = stream.connection.remote_peer
        self.running += 1
        try:
            protocol = await self._negotiate(stream)
            handler = self._registry.get(protocol) if protocol is not None else None
            if handler is None:
                stream.reset(CloseCode.PROTOCOL_NEGOTIATION_FAILED)
                return
            await handler(stream)
        except asyncio.CancelledError:
            stream.reset(CloseCode.SHUTDOWN)
            raise
        except Dep2pError as error:
            stream.reset(CloseCode.PROTOCOL_VIOLATION)
            _log.debug(
                "stream ended with an error",
                peer=str(peer),
                protocol=stream.protocol,
                reason=error.reason,
                error=error.message,
            )
        except TimeoutError:
            stream.reset(CloseCode.GARBAGE_COLLECTED)
            _log.debug("stream ended at its deadline", peer=str(peer), protocol=stream.protocol)
        except Exception:
            stream.reset()
            _log.exception("a stream's handler failed", peer=str(peer), protocol=stream.protocol)
        finally:
            self.running -= 1

    async def _negotiate(self, stream: Stream) -> str | None:
        try:
            async with asyncio.timeout(self._settings.negotiation_timeout):
                protocol = await multistream.handle(stream, self._registry.is_supported)
        except TimeoutError:
            reason, error = "NEGOTIATION_TIMEOUT", "no protocol was proposed in time"
        except ProtocolNotSupportedError as unsupported:
            reason, error = unsupported.reason, unsupported.message
        else:
            stream.protocol = protocol
            return protocol
        _log.debug(
            "stream refused",
            peer=str(stream.connection.remote_peer),
            reason=reason,
            error=error,
        )
        return None
