"""Serving a protocol: the streams that peers open, offered to this program."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Self

from dep2p.calls import Reader, too_late
from dep2p.errors import NotFoundError
from dep2p.stream import Stream, call_ended, open_stream
from dep2p.v1 import stream_service_pb2

if TYPE_CHECKING:
    from pathlib import Path

    from dep2p.v1.stream_service_pb2_grpc import StreamServiceStub


class Offer:
    """A stream that a peer opened and that waits, 10 seconds at most, to be accepted."""

    def __init__(self, listener: Listener, offer: stream_service_pb2.ListenResponse.Offer) -> None:
        self._listener = listener
        self.offer_id = offer.offer_id
        self.info = offer.stream

    @property
    def peer_id(self) -> str:
        """Who opened it."""
        return self.info.connection.peer_id

    async def accept(self) -> Stream:
        """Take it. Raises NotFoundError when it expired or the peer gave it up."""
        return await self._listener.accept(self.offer_id)


class Listener:
    """Serves a protocol: `async with node.listen(...) as listener: async for stream in listener`.

    Leaving it ends the serving; streams already accepted live on. Each stream is the caller's:
    serve it in a task of its own so that the next one does not wait.
    """

    def __init__(
        self,
        stub: StreamServiceStub,
        request: stream_service_pb2.ListenRequest,
        *,
        timeout: float,
        socket: Path,
    ) -> None:
        self._stub = stub
        self._listen_request = request
        self._timeout = timeout
        self._socket = socket

    async def __aenter__(self) -> Self:
        self._call = self._stub.Listen(self._listen_request)
        self._reader: Reader[stream_service_pb2.ListenResponse] = Reader(self._call, self._socket)
        try:
            async with asyncio.timeout(self._timeout):
                if await self._reader.next() is None:
                    raise call_ended()
        except TimeoutError:
            await self._end()
            raise too_late("starting to listen", self._timeout) from None
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._end()

    async def _end(self) -> None:
        self._call.cancel()
        await self._reader.aclose()

    async def next_offer(self) -> Offer | None:
        """Wait for the next offer; None once the listening has ended. Cancel-safe."""
        response = await self._reader.next()
        return None if response is None else Offer(self, response.offer)

    async def accept(self, offer_id: str) -> Stream:
        """Take an offer by its id. Raises NotFoundError when it expired or was taken."""
        request = stream_service_pb2.AcceptStreamRequest(
            accept=stream_service_pb2.AcceptStreamRequest.Accept(offer_id=offer_id)
        )
        return await open_stream(
            self._stub.AcceptStream(), request, timeout=self._timeout, socket=self._socket
        )

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Stream:
        """Accept the next stream; offers that expired meanwhile are passed over."""
        while (offer := await self.next_offer()) is not None:
            with contextlib.suppress(NotFoundError):
                return await offer.accept()
        raise StopAsyncIteration
