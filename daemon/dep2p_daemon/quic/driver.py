"""Puts an `Endpoint` on a UDP socket and the running loop: one reader, one timer, no tasks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from dep2p_daemon.quic.endpoint import Endpoint

if TYPE_CHECKING:
    from dep2p_daemon.quic.context import QuicContext
    from dep2p_daemon.udp.socket import UdpSocket


class EndpointDriver:
    """Owns an endpoint and its socket; closed by the transport."""

    def __init__(self, context: QuicContext, socket: UdpSocket) -> None:
        self._loop = asyncio.get_running_loop()
        self.socket = socket
        self.endpoint = Endpoint(
            context,
            socket,
            clock=self._loop.time,
            local_host=socket.host,
            local_port=socket.port,
            on_work=self._schedule_flush,
        )
        self._flush_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        socket.demultiplexer.set_quic_handler(self.endpoint.receive)
        socket.on_writable = self._schedule_flush
        socket.on_unreachable = self.endpoint.unreachable

    def close(self, code: int, message: str) -> None:
        """End all connections, then close the socket. Idempotent."""
        if self.socket.is_closed:
            return
        self.endpoint.on_idle = None
        self.endpoint.close(code, message)
        self.socket.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def flush(self) -> None:
        """Send now what is ready, instead of at the end of this turn of the loop."""
        self.endpoint.flush()
        self._arm_timer()

    def _schedule_flush(self) -> None:
        # At the end of the turn: readers that the same batch woke add theirs before.
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._on_flush)

    def _on_flush(self) -> None:
        self._flush_scheduled = False
        if not self.socket.is_closed:
            self.flush()

    def _on_timer(self) -> None:
        self._timer = None
        if not self.socket.is_closed:
            self.endpoint.handle_timers()
            self.flush()

    def _arm_timer(self) -> None:
        """See to it that the timer fires no later than the next deadline; earlier is harmless."""
        deadline = self.endpoint.next_deadline
        if deadline is None or self.socket.is_closed:
            return
        if self._timer is not None:
            if self._timer.when() <= deadline:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline, self._on_timer)
