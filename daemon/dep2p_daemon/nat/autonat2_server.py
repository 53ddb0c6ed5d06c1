"""AutoNAT v2, the server: https://github.com/libp2p/specs/blob/master/autonat/autonat-v2.md

Flow:
  1. A peer asks on `/libp2p/autonat/2/dial-request`. We choose the first of its addresses that we
     are willing to dial: a public one, of a transport and an address family of ours.
  2. If its IP is not the one that the peer comes from, the peer must send us 30 to 100 kB first:
     whoever wants packets sent to others shall pay more than they get.
  3. We dial from a fresh socket, open `/libp2p/autonat/2/dial-back` there, show the nonce and wait
     for the one byte that says it was taken.
  4. We answer with both statuses.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from random import SystemRandom
from typing import TYPE_CHECKING, Final

import structlog

from dep2p_daemon import multistream
from dep2p_daemon.errors import Dep2pError, PeerError
from dep2p_daemon.muxed import CloseCode, read_message, write_message
from dep2p_daemon.nat.autonat2_message import (
    DIAL_BACK_PROTOCOL,
    DIAL_REQUEST_PROTOCOL,
    MAX_DIAL_BACK_BYTES,
    MAX_MESSAGE_BYTES,
    DialDataRequest,
    DialDataResponse,
    DialRequest,
    DialResponse,
    DialStatus,
    ResponseStatus,
    decode,
    decode_dial_back_response,
    encode,
    encode_dial_back,
    malformed,
)
from dep2p_daemon.nat.candidates import is_public
from dep2p_daemon.nat.dial_back import DialBack
from dep2p_daemon.nat.request_limits import RequestLimiter, RequestLimits

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.muxed import Connection, Stream
    from dep2p_daemon.nat.fresh_dial import FreshDial
    from dep2p_daemon.swarm.swarm import Swarm

_log = structlog.get_logger(__name__)

MIN_DIAL_DATA: Final = 30_000
MAX_DIAL_DATA: Final = 100_000
"""Bytes demanded before a foreign address is dialled (the specification's)."""
MIN_DATA_IN_MESSAGE: Final = 100
"""A client that dribbles is refused (go-libp2p's)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AutonatServerSettings:
    """Times in seconds; the defaults are go-libp2p's where it has them."""

    limits: RequestLimits = field(default_factory=RequestLimits)
    request_timeout: float = 15.0
    """For the request, and again for the dial data."""
    dial_timeout: float = 4.0
    """Ours: with `foreign_source_timeout` and the stream it must stay below the 15 s that
    clients give the whole."""
    foreign_source_timeout: float = 3.0
    """For the first try, from another address of this machine."""
    dial_back_timeout: float = 5.0
    """For the stream on the connection that was made."""
    max_wait: float = 3.0
    """Wait at random up to this before a foreign address is dialled, so that nobody can have
    many servers dial it at one instant."""


class AutonatServer:
    """Dials peers back that ask for it. The swarm owns its tasks."""

    def __init__(
        self,
        swarm: Swarm,
        dial: FreshDial,
        settings: AutonatServerSettings | None = None,
        *,
        is_public: Callable[[Multiaddr], bool] = is_public,
        random: Random | None = None,
    ) -> None:
        """`is_public` is a parameter because tests run on one machine."""
        self._swarm = swarm
        self._settings = settings or AutonatServerSettings()
        self._limiter = RequestLimiter(self._settings.limits)
        self._random = random or SystemRandom()
        self._dial_back = DialBack(
            swarm,
            dial,
            is_public=is_public,
            foreign_source_timeout=self._settings.foreign_source_timeout,
            timeout=self._settings.dial_timeout,
        )

    def register(self) -> None:
        """Begin to answer."""
        self._swarm.set_handler(DIAL_REQUEST_PROTOCOL, self._handle)

    async def _handle(self, stream: Stream) -> None:
        connection = stream.connection
        peer = connection.remote_peer
        now = asyncio.get_running_loop().time()
        try:
            if connection.relayed or not self._limiter.admit(peer, now):
                response = DialResponse(ResponseStatus.E_REQUEST_REJECTED)
                await self._read_request(stream)
            else:
                try:
                    response = await self._serve(stream)
                finally:
                    self._limiter.finished(peer)
            _log.debug(
                "autonat: request answered",
                peer=str(peer),
                status=response.status,
                dial_status=response.dial_status,
            )
            async with asyncio.timeout(self._settings.request_timeout):
                await write_message(stream, encode(response))
                await stream.aclose()
        except (PeerError, TimeoutError) as error:
            _log.debug("autonat: request failed", peer=str(peer), error=str(error))
            stream.reset(CloseCode.PROTOCOL_VIOLATION)

    async def _read_request(self, stream: Stream) -> DialRequest:
        async with asyncio.timeout(self._settings.request_timeout):
            message = decode(await read_message(stream, MAX_MESSAGE_BYTES))
        if not isinstance(message, DialRequest):
            raise malformed("an AutoNAT stream began with something other than a dial request")
        return message

    async def _serve(self, stream: Stream) -> DialResponse:
        request = await self._read_request(stream)
        client = stream.connection
        chosen = next(
            (
                (index, address)
                for index, address in enumerate(request.addresses)
                if address is not None and self._dial_back.may_dial(address, client)
            ),
            None,
        )
        if chosen is None:
            return DialResponse(ResponseStatus.E_DIAL_REFUSED)
        index, address = chosen
        if address.ip != client.remote_address.ip:
            if not self._limiter.admit_data(asyncio.get_running_loop().time()):
                return DialResponse(ResponseStatus.E_REQUEST_REJECTED)
            await self._take_dial_data(stream, index)
            await asyncio.sleep(self._random.uniform(0.0, self._settings.max_wait))
        status = await self._dial(address, client, request.nonce)
        return DialResponse(ResponseStatus.OK, index, status)

    async def _take_dial_data(self, stream: Stream, index: int) -> None:
        """Have the client spend bytes on the dial that it asks for. Raises PeerError."""
        missing = self._random.randint(MIN_DIAL_DATA, MAX_DIAL_DATA)
        async with asyncio.timeout(self._settings.request_timeout):
            await write_message(stream, encode(DialDataRequest(index, missing)))
            while missing > 0:
                message = decode(await read_message(stream, MAX_MESSAGE_BYTES))
                if not isinstance(message, DialDataResponse):
                    raise malformed("something other than dial data where it was asked for")
                size = len(message.data)
                if size < min(MIN_DATA_IN_MESSAGE, missing):
                    raise malformed(f"dial data in a message of {size} bytes")
                missing -= size

    async def _dial(self, address: Multiaddr, client: Connection, nonce: int) -> DialStatus:
        reached = False
        try:
            async with self._dial_back.connection(address, client) as connection:
                reached = True
                async with asyncio.timeout(self._settings.dial_back_timeout):
                    taken = await _show_nonce(connection, nonce)
        except (Dep2pError, TimeoutError) as error:
            _log.debug("autonat: dial back failed", address=str(address), error=str(error))
            return DialStatus.E_DIAL_BACK_ERROR if reached else DialStatus.E_DIAL_ERROR
        return DialStatus.OK if taken else DialStatus.E_DIAL_BACK_ERROR


async def _show_nonce(connection: Connection, nonce: int) -> bool:
    """Hand the nonce over and wait until it was taken: closing earlier could lose it."""
    stream = await connection.open_stream()
    await multistream.select(stream, [DIAL_BACK_PROTOCOL])
    await write_message(stream, encode_dial_back(nonce))
    await stream.close_write()
    taken = decode_dial_back_response(await read_message(stream, MAX_DIAL_BACK_BYTES))
    await stream.aclose()
    return taken
