"""AutoNAT v2, the client: https://github.com/libp2p/specs/blob/master/autonat/autonat-v2.md

One request asks one server about one address. The server's OK alone counts for nothing: our own
nonce must have come to us, over a connection of the transport and address family that was asked
about. From where it came decides what it proves (`reachability`).
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from dep2p_daemon.errors import Dep2pError
from dep2p_daemon.muxed import CloseCode, read_message, write_message
from dep2p_daemon.nat.autonat2_message import (
    DIAL_BACK_PROTOCOL,
    DIAL_REQUEST_PROTOCOL,
    MAX_DATA_BYTES,
    MAX_DIAL_BACK_BYTES,
    MAX_MESSAGE_BYTES,
    DialDataRequest,
    DialDataResponse,
    DialRequest,
    DialResponse,
    DialStatus,
    ResponseStatus,
    decode,
    decode_dial_back,
    encode,
    encode_dial_back_response,
    malformed,
)
from dep2p_daemon.nat.autonat2_server import MAX_DIAL_DATA
from dep2p_daemon.nat.reachability import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.muxed import Connection, Stream
    from dep2p_daemon.swarm.swarm import Swarm

_log = structlog.get_logger(__name__)

MAX_PENDING: Final = 64
"""Requests under way; ours."""
_ZEROS: Final = bytes(MAX_DATA_BYTES)


@dataclass(frozen=True, kw_only=True, slots=True)
class AutonatClientSettings:
    """Times in seconds."""

    request_timeout: float = 25.0
    """For a server's answer: its dial, its wait of 3 s before it, and our dial data."""
    nonce_timeout: float = 5.0
    """For our nonce, after a server said that it dialled."""
    dial_back_timeout: float = 5.0
    """For the message on a dial-back stream."""


@dataclass(frozen=True, slots=True)
class DialBackSeen:
    """Our nonce came to us."""

    local: Multiaddr
    """Our end of the connection that brought it."""
    remote: Multiaddr
    stranger: bool
    """Our sockets of that transport had sent nothing to the IP address it came from."""


@dataclass(slots=True)
class _Pending:
    address: Multiaddr
    seen: asyncio.Future[DialBackSeen]


class AutonatClient:
    """Asks servers, and takes the nonces that come back."""

    def __init__(
        self,
        swarm: Swarm,
        settings: AutonatClientSettings | None = None,
        *,
        is_stranger: Callable[[Connection], bool],
    ) -> None:
        """`is_stranger` tells whether a dial-back comes from an IP that we never sent to."""
        self._swarm = swarm
        self._settings = settings or AutonatClientSettings()
        self._is_stranger = is_stranger
        self._pending: dict[int, _Pending] = {}

    def register(self) -> None:
        """Begin to take dial-backs."""
        self._swarm.set_handler(DIAL_BACK_PROTOCOL, self._take_nonce)

    async def ask(
        self, server: Connection, address: Multiaddr
    ) -> tuple[Outcome, DialBackSeen | None]:
        """Have the peer on `server` dial `address`; return what it tells and what came of it.

        PROOF here means that the nonce came from a stranger, HINT that it came from a contact.
        Never raises Dep2pError: a server that fails tells nothing.
        """
        if len(self._pending) >= MAX_PENDING:
            return Outcome.NOTHING, None
        nonce = secrets.randbits(64)
        pending = _Pending(address, asyncio.get_running_loop().create_future())
        self._pending[nonce] = pending
        try:
            async with asyncio.timeout(self._settings.request_timeout):
                response = await self._exchange(server, address, nonce)
            return await self._judge(response, pending)
        except (Dep2pError, TimeoutError) as error:
            _log.debug("autonat: no answer", server=str(server.remote_peer), error=str(error))
            # It may have come all the same.
            return _outcome(pending)
        finally:
            del self._pending[nonce]

    async def _exchange(self, server: Connection, address: Multiaddr, nonce: int) -> DialResponse:
        stream = await self._swarm.open_stream(
            server.remote_peer, [DIAL_REQUEST_PROTOCOL], connection=server
        )
        try:
            await write_message(stream, encode(DialRequest((address,), nonce)))
            message = decode(await read_message(stream, MAX_MESSAGE_BYTES))
            if isinstance(message, DialDataRequest):
                await _send_dial_data(stream, message)
                message = decode(await read_message(stream, MAX_MESSAGE_BYTES))
            if not isinstance(message, DialResponse):
                raise malformed("something other than a dial response where it was due")
        except BaseException:
            stream.reset()
            raise
        await stream.aclose()
        return message

    async def _judge(
        self, response: DialResponse, pending: _Pending
    ) -> tuple[Outcome, DialBackSeen | None]:
        if response.status != ResponseStatus.OK or response.index != 0:
            return _outcome(pending)
        if response.dial_status == DialStatus.E_DIAL_ERROR and not pending.seen.done():
            return Outcome.FAILURE, None
        if response.dial_status == DialStatus.OK:
            await asyncio.wait((pending.seen,), timeout=self._settings.nonce_timeout)
        return _outcome(pending)

    async def _take_nonce(self, stream: Stream) -> None:
        connection = stream.connection
        async with asyncio.timeout(self._settings.dial_back_timeout):
            nonce = decode_dial_back(await read_message(stream, MAX_DIAL_BACK_BYTES))
            pending = self._pending.get(nonce)
            if pending is None or not _matches(connection, pending.address):
                _log.debug("autonat: dial back refused", reason="NONCE_UNKNOWN")
                stream.reset(CloseCode.PROTOCOL_VIOLATION)
                return
            if not pending.seen.done():
                seen = DialBackSeen(
                    connection.local_address,
                    connection.remote_address,
                    self._is_stranger(connection),
                )
                pending.seen.set_result(seen)
            await write_message(stream, encode_dial_back_response())
            await stream.aclose()


async def _send_dial_data(stream: Stream, asked: DialDataRequest) -> None:
    if asked.index != 0 or asked.size > MAX_DIAL_DATA:
        raise malformed(f"a server wants {asked.size} bytes for address {asked.index}")
    missing = asked.size
    while missing > 0:
        # A last message of less than the servers' minimum would be refused: pay a little more.
        await write_message(stream, encode(DialDataResponse(_ZEROS)))
        missing -= len(_ZEROS)


def _outcome(pending: _Pending) -> tuple[Outcome, DialBackSeen | None]:
    if not pending.seen.done():
        return Outcome.NOTHING, None
    seen = pending.seen.result()
    return (Outcome.PROOF if seen.stranger else Outcome.HINT), seen


def _matches(connection: Connection, asked: Multiaddr) -> bool:
    """Whether the connection can be a dial of `asked`; a NAT changes the IP and the port."""
    local = connection.local_address
    return (
        not connection.relayed
        and local.transport == asked.transport
        and local.ip is not None
        and asked.ip is not None
        and local.ip.version == asked.ip.version
    )
