"""AutoNAT v1, both sides: https://github.com/libp2p/specs/blob/master/autonat/autonat-v1.md

For peers that are older than v2. A server's word cannot be checked here, so that it takes more
than three servers that agree (`reachability.Outcome.CLAIM`). As a server we dial addresses with
the IP address that the peer comes from, and no other; relayed connections must not ask.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from dep2p_daemon.errors import Dep2pError, PeerError
from dep2p_daemon.muxed import CloseCode, read_message, write_message
from dep2p_daemon.nat.autonat1_message import (
    MAX_MESSAGE_BYTES,
    PROTOCOL,
    Dial,
    DialResponse,
    Status,
    decode,
    encode,
)
from dep2p_daemon.nat.autonat2_message import malformed
from dep2p_daemon.nat.candidates import is_public
from dep2p_daemon.nat.dial_back import DialBack
from dep2p_daemon.nat.reachability import Outcome
from dep2p_daemon.nat.request_limits import RequestLimiter, RequestLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.muxed import Connection, Stream
    from dep2p_daemon.nat.fresh_dial import FreshDial
    from dep2p_daemon.swarm.swarm import Swarm

_log = structlog.get_logger(__name__)

MAX_DIALLED: Final = 4
"""Addresses of one request that are dialled, one after the other; ours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Autonat1Settings:
    """Times in seconds; the defaults are go-libp2p's."""

    limits: RequestLimits = field(
        default_factory=lambda: RequestLimits(per_minute=30, per_peer=3, concurrent_per_peer=1)
    )
    request_timeout: float = 15.0
    """For the request."""
    dial_timeout: float = 4.0
    foreign_source_timeout: float = 2.0
    """For one address, as for v2."""
    total_timeout: float = 15.0
    """For all dials of a request."""
    answer_timeout: float = 30.0
    """For a server's answer to us."""


class Autonat1Server:
    """Dials peers back that ask for it. The swarm owns its tasks."""

    def __init__(
        self,
        swarm: Swarm,
        dial: FreshDial,
        settings: Autonat1Settings | None = None,
        *,
        is_public: Callable[[Multiaddr], bool] = is_public,
    ) -> None:
        self._swarm = swarm
        self._settings = settings or Autonat1Settings()
        self._limiter = RequestLimiter(self._settings.limits)
        self._dial_back = DialBack(
            swarm,
            dial,
            is_public=is_public,
            foreign_source_timeout=self._settings.foreign_source_timeout,
            timeout=self._settings.dial_timeout,
        )

    def register(self) -> None:
        """Begin to answer."""
        self._swarm.set_handler(PROTOCOL, self._handle)

    async def _handle(self, stream: Stream) -> None:
        client = stream.connection
        peer = client.remote_peer
        try:
            async with asyncio.timeout(self._settings.request_timeout):
                request = decode(await read_message(stream, MAX_MESSAGE_BYTES))
            if not isinstance(request, Dial):
                raise malformed("an AutoNAT v1 stream began with something other than DIAL")
            now = asyncio.get_running_loop().time()
            if request.peer != peer:
                response = DialResponse(Status.E_BAD_REQUEST, "that is another peer's id")
            elif client.relayed:
                response = DialResponse(Status.E_DIAL_REFUSED, "asked over a relay")
            elif not self._limiter.admit(peer, now):
                response = DialResponse(Status.E_DIAL_REFUSED, "too many dials")
            else:
                try:
                    response = await self._dial_any(request.addresses, client)
                finally:
                    self._limiter.finished(peer)
            _log.debug("autonat v1: request answered", peer=str(peer), status=response.status)
            async with asyncio.timeout(self._settings.request_timeout):
                await write_message(stream, encode(response))
                await stream.aclose()
        except (PeerError, TimeoutError) as error:
            _log.debug("autonat v1: request failed", peer=str(peer), error=str(error))
            stream.reset(CloseCode.PROTOCOL_VIOLATION)

    async def _dial_any(self, addresses: Sequence[Multiaddr], client: Connection) -> DialResponse:
        chosen = [
            address
            for address in addresses
            if address.ip == client.remote_address.ip and self._dial_back.may_dial(address, client)
        ][:MAX_DIALLED]
        if not chosen:
            return DialResponse(Status.E_DIAL_REFUSED, "no address with the IP that you come from")
        try:
            async with asyncio.timeout(self._settings.total_timeout):
                for address in chosen:
                    try:
                        async with self._dial_back.connection(address, client):
                            return DialResponse(Status.OK, address=address)
                    except Dep2pError as error:
                        _log.debug(
                            "autonat v1: dial failed", address=str(address), error=str(error)
                        )
        except TimeoutError:
            pass  # the rest is not tried
        return DialResponse(Status.E_DIAL_ERROR, "dial failed")


class Autonat1Client:
    """Asks servers."""

    def __init__(self, swarm: Swarm, settings: Autonat1Settings | None = None) -> None:
        self._swarm = swarm
        self._settings = settings or Autonat1Settings()

    async def ask(self, server: Connection, address: Multiaddr) -> Outcome:
        """Have the peer on `server` dial `address`; what it says, for what that is worth.

        Never raises Dep2pError: a server that fails tells nothing.
        """
        try:
            async with asyncio.timeout(self._settings.answer_timeout):
                response = await self._exchange(server, address)
        except (Dep2pError, TimeoutError) as error:
            _log.debug("autonat v1: no answer", server=str(server.remote_peer), error=str(error))
            return Outcome.NOTHING
        if response.status == Status.OK and response.address in (None, address):
            return Outcome.CLAIM
        return Outcome.FAILURE if response.status == Status.E_DIAL_ERROR else Outcome.NOTHING

    async def _exchange(self, server: Connection, address: Multiaddr) -> DialResponse:
        stream = await self._swarm.open_stream(server.remote_peer, [PROTOCOL], connection=server)
        try:
            await write_message(stream, encode(Dial(self._swarm.local_peer, (address,))))
            message = decode(await read_message(stream, MAX_MESSAGE_BYTES))
            if not isinstance(message, DialResponse):
                raise malformed("an AutoNAT v1 server answered with something else")
        except BaseException:
            stream.reset()
            raise
        await stream.aclose()
        return message
