"""One QUIC connection as the rooms above see it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from typing_extensions import override

from dep2p_daemon.muxed import CloseCode, Connection, Direction
from dep2p_daemon.quic.libp2p_tls import SECURITY

if TYPE_CHECKING:
    from dep2p_daemon.errors import ConnectionClosedError
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.quic.libp2p_tls import ProvenPeer
    from dep2p_daemon.quic.session import Session
    from dep2p_daemon.quic.stream import QuicStream
    from dep2p_daemon.quic.stream_set import StreamSet


class QuicConnection(Connection):
    """A QUIC connection whose peer is proven. `Session` does the work below it."""

    def __init__(
        self,
        session: Session,
        streams: StreamSet,
        *,
        local_peer: PeerId,
        proven: ProvenPeer,
        direction: Direction,
        local_address: Multiaddr,
        remote_address: Multiaddr,
    ) -> None:
        super().__init__(
            local_peer=local_peer,
            remote_peer=proven.peer_id,
            remote_key=proven.public_key,
            direction=direction,
            local_address=local_address,
            remote_address=remote_address,
            security=SECURITY,
            muxer="quic",
        )
        self._session = session
        self._streams = streams
        # Lists: a deque takes 760 bytes even where nobody ever waits.
        self._inbound: list[QuicStream] = []
        self._accept_waiters: list[asyncio.Future[None]] = []
        self._open_waiters: list[asyncio.Future[None]] = []
        self._error: ConnectionClosedError | None = None
        self._end_waiters: list[asyncio.Future[None]] = []

    @property
    @override
    def datagram_size(self) -> int:
        return self._session.quic.max_datagram_size

    @property
    @override
    def streams(self) -> tuple[QuicStream, ...]:
        return self._streams.open

    @property
    @override
    def is_closed(self) -> bool:
        return self._error is not None

    @override
    async def open_stream(self) -> QuicStream:
        while True:
            if self._error is not None:
                raise self._error
            stream = self._streams.open_stream()
            if stream is not None:
                return stream
            await self._wait_in(self._open_waiters)

    @override
    async def accept_stream(self) -> QuicStream:
        while True:
            if self._error is not None:
                raise self._error
            if self._inbound:
                return self._inbound.pop(0)
            await self._wait_in(self._accept_waiters)

    @override
    async def close(self, code: int = CloseCode.NONE, message: str = "") -> None:
        self._session.close(code, message)

    @override
    async def wait_closed(self) -> ConnectionClosedError:
        while self._error is None:
            await self._wait_in(self._end_waiters)
        return self._error

    # For the session

    @property
    def wants_streams(self) -> bool:
        """Whether somebody waits to open a stream."""
        return bool(self._open_waiters)

    def on_stream(self, stream: QuicStream) -> None:
        """The peer opened a stream."""
        self._inbound.append(stream)
        _wake(self._accept_waiters, 1)

    def on_openable(self, count: int) -> None:
        """The peer allows `count` more streams."""
        _wake(self._open_waiters, count)

    def on_closed(self, error: ConnectionClosedError) -> None:
        """The connection has ended."""
        if self._error is None:
            self._error = error
            self._inbound.clear()
            _wake(self._accept_waiters, len(self._accept_waiters))
            _wake(self._open_waiters, len(self._open_waiters))
            _wake(self._end_waiters, len(self._end_waiters))

    async def _wait_in(self, waiters: list[asyncio.Future[None]]) -> None:
        waiter = asyncio.get_running_loop().create_future()
        waiters.append(waiter)
        try:
            await waiter
        except BaseException:
            if waiter in waiters:
                waiters.remove(waiter)
            elif not waiter.cancelled():
                _wake(waiters, 1)  # the turn was ours: pass it on
            raise


def _wake(waiters: list[asyncio.Future[None]], count: int) -> None:
    while waiters and count > 0:
        waiter = waiters.pop(0)
        if not waiter.done():
            waiter.set_result(None)
            count -= 1
