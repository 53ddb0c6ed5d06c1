"""StreamService: opens streams to peers, offers theirs, and carries the bytes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc
from typing_extensions import override

from dep2p.v1 import stream_service_pb2, stream_service_pb2_grpc
from dep2p_daemon.errors import (
    DialTimeoutError,
    InvalidArgumentError,
    PreconditionError,
    ResourceLimitError,
    UnreachableError,
)
from dep2p_daemon.identity.peer_id import PeerId
from dep2p_daemon.multiaddr import parse_dial_target
from dep2p_daemon.muxed import CloseCode
from dep2p_daemon.rpc.carry import Carrier
from dep2p_daemon.rpc.conversion import stream_info
from dep2p_daemon.rpc.deadlines import DIAL_SECONDS, MAX_DIAL_SECONDS
from dep2p_daemon.rpc.offers import Offers
from dep2p_daemon.swarm.dialing import DialPolicy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dep2p_daemon.daemon import Daemon
    from dep2p_daemon.muxed import Stream
    from dep2p_daemon.rpc.interceptors import Context

MAX_STREAMS: Final = 4096
"""Calls that carry streams, or are about to; each holds up to 0.5 MiB when it is stuck."""
MAX_PROTOCOLS: Final = 16
"""Protocol ids that one opening may propose; ours."""
MAX_ALLOWED_PEERS: Final = 1024
"""Peers that one listener may name; ours."""
FIRST_REQUEST_SECONDS: Final = 10.0

Message = TypeVar("Message")


class StreamService(stream_service_pb2_grpc.StreamServiceServicer):
    """Serves `dep2p.v1.StreamService`."""

    def __init__(self, daemon: Daemon) -> None:
        self._swarm = daemon.swarm
        self.offers = Offers(daemon.swarm)
        self._streams = 0

    # Of gRPC's two styles only the one without a generator can be left by errors of the other
    # direction; the generated base class knows the generator's type alone.

    @override
    async def OpenStream(  # type: ignore[override]
        self, request_iterator: object, context: Context
    ) -> None:
        with _Slot(self):
            request: stream_service_pb2.OpenStreamRequest = await _first_request(context, "open")
            stream = await self._open(request.open)
            await _carry(stream, context, stream_service_pb2.OpenStreamResponse, "opened")

    @override
    async def AcceptStream(  # type: ignore[override]
        self, request_iterator: object, context: Context
    ) -> None:
        with _Slot(self):
            request: stream_service_pb2.AcceptStreamRequest = await _first_request(
                context, "accept"
            )
            offer = self.offers.take(request.accept.offer_id)
            try:
                await _carry(
                    offer.stream, context, stream_service_pb2.AcceptStreamResponse, "accepted"
                )
            finally:
                offer.finish()

    @override
    async def Listen(
        self, request: stream_service_pb2.ListenRequest, context: Context
    ) -> AsyncIterator[stream_service_pb2.ListenResponse]:
        if len(request.allowed_peers) > MAX_ALLOWED_PEERS:
            raise InvalidArgumentError(
                f"{len(request.allowed_peers)} allowed peers, where {MAX_ALLOWED_PEERS} can be "
                "named",
                remedy="allow all, and check the peer of each stream yourself",
            )
        allowed = [PeerId.parse(text) for text in request.allowed_peers]
        response = stream_service_pb2.ListenResponse
        with self.offers.listen(request.protocol, allowed) as listener:
            yield response(listening=response.Listening(protocol=request.protocol))
            while True:
                offer = await listener.next()
                yield response(
                    offer=response.Offer(offer_id=offer.offer_id, stream=stream_info(offer.stream))
                )

    async def _open(self, request: stream_service_pb2.OpenStreamRequest.Open) -> Stream:
        target = parse_dial_target(request.peer)
        protocols = list(request.protocols)
        if not 0 < len(protocols) <= MAX_PROTOCOLS:
            raise InvalidArgumentError(
                f"{len(protocols)} protocols to propose",
                reason="PROTOCOLS_INVALID",
                remedy=f"name 1 to {MAX_PROTOCOLS} protocol ids, best first",
            )
        seconds = DIAL_SECONDS
        if request.HasField("timeout"):
            seconds = min(request.timeout.ToNanoseconds() / 1e9, MAX_DIAL_SECONDS)
        policy = DialPolicy.DIRECT if request.direct_only else DialPolicy.AUTO
        try:
            async with asyncio.timeout(seconds) as deadline:
                # Dialled first: a dial that fails then says what it tried.
                await self._swarm.dial(
                    target.peer, target.addresses, policy=policy, timeout=_before(deadline)
                )
                return await self._swarm.open_stream(
                    target.peer, protocols, addresses=target.addresses, policy=policy
                )
        except TimeoutError:
            raise DialTimeoutError(
                f"{target.peer} did not answer to {', '.join(protocols)} within {seconds:g} s",
                reason="OPEN_TIMEOUT",
                remedy="try again, or with a longer timeout; dep2pctl ping shows whether the "
                "peer answers at all",
                peer=target.peer,
                waited_seconds=f"{seconds:g}",
            ) from None
        except UnreachableError as error:
            relayed = self._swarm.best_connection(target.peer)
            if not request.direct_only or relayed is None or isinstance(error, DialTimeoutError):
                raise
            raise PreconditionError(
                f"{target.peer} is connected through a relay only: {error.message}",
                reason="NO_DIRECT_PATH",
                remedy="leave direct_only out to use the relay",
                **error.metadata,
            ) from error

    def take_slot(self) -> None:
        """Count one more stream. Raises ResourceLimitError."""
        if self._streams >= MAX_STREAMS:
            raise ResourceLimitError(
                f"programs have {MAX_STREAMS} streams open, which is the most",
                remedy="close streams that are not needed",
                limit="max_streams",
                allowed=MAX_STREAMS,
            )
        self._streams += 1

    def give_slot_back(self) -> None:
        """One stream has ended."""
        self._streams -= 1


class _Slot:
    """A stream's place under the limit, for the time of a `with` block."""

    def __init__(self, service: StreamService) -> None:
        self._service = service

    def __enter__(self) -> None:
        self._service.take_slot()

    def __exit__(self, *exc_info: object) -> None:
        self._service.give_slot_back()


def _before(deadline: asyncio.Timeout) -> float:
    """Return the seconds to `deadline`, less what it takes to tell of them having passed."""
    when = deadline.when()
    assert when is not None
    left = when - asyncio.get_running_loop().time()
    return left - min(0.25, 0.1 * left)


async def _first_request(context: Context, expected: str) -> Any:  # noqa: ANN401
    """Return the first request, which must be of the `expected` kind."""
    try:
        async with asyncio.timeout(FIRST_REQUEST_SECONDS):
            request: Any = await context.read()
    except TimeoutError:
        request = grpc.aio.EOF
    if request is grpc.aio.EOF or request.WhichOneof("message") != expected:
        raise InvalidArgumentError(
            f"the first request must be {expected}, within {FIRST_REQUEST_SECONDS:g} seconds",
            reason="FIRST_REQUEST",
            remedy=f"send {expected} first, then data",
        )
    return request


async def _carry(stream: Stream, context: Context, response: Any, opened: str) -> None:  # noqa: ANN401
    """Tell that the stream is there, then carry it to its end."""
    try:
        await context.write(response(**{opened: stream_info(stream)}))
    except BaseException:
        stream.reset(CloseCode.NONE)
        raise
    await Carrier(stream, context, response).run()
