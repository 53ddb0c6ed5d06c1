"""One UDP socket that is connected to the gateway: the kernel lets in nobody else's answers."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import structlog
from typing_extensions import override

from dep2p_daemon.errors import ProtocolViolationError, UnreachableError
from dep2p_daemon.nat.port_mapping.gateway import Gateway, socket_address
from dep2p_daemon.nat.port_mapping.nat_pmp import GATEWAY_PORT
from dep2p_daemon.nat.port_mapping.terms import SILENT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_log = structlog.get_logger(__name__)

T = TypeVar("T")
MAX_DATAGRAM: Final = 1100
"""Bytes: PCP's largest message; NAT-PMP's are shorter."""


class Channel(Protocol):
    """Requests and responses with a gateway."""

    async def request(
        self, data: bytes, accept: Callable[[bytes], T | None], waits: Iterable[float]
    ) -> T:
        """Send `data` until `accept` returns something for what comes, and return that.

        Args:
            data: one datagram.
            accept: None for a datagram that is no answer to this; ProtocolViolationError likewise.
            waits: seconds to wait after each sending.

        Raises:
            UnreachableError: all waits are over, or nobody listens at the gateway.
        """
        ...

    def close(self) -> None:
        """End it. Idempotent."""
        ...


class GatewayChannel(asyncio.DatagramProtocol):
    """A `Channel` over UDP. Made by `open_channel`; whoever did closes it."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._transport: asyncio.DatagramTransport | None = None
        self._waiting: dict[asyncio.Future[Any], Callable[[bytes], Any]] = {}

    @override
    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    @override
    def datagram_received(self, data: bytes, addr: object) -> None:
        if len(data) > MAX_DATAGRAM:
            return
        for answer, accept in tuple(self._waiting.items()):
            try:
                result = accept(data)
            except ProtocolViolationError as error:
                _log.debug("a gateway's answer was ignored", reason=error.reason, error=str(error))
                continue
            if result is not None and not answer.done():
                answer.set_result(result)

    @override
    def error_received(self, exc: Exception) -> None:
        for answer in self._waiting:
            if not answer.done():
                answer.set_exception(self._unreachable(f"{exc}"))

    async def request(
        self, data: bytes, accept: Callable[[bytes], T | None], waits: Iterable[float]
    ) -> T:
        """See `Channel`."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting[answer] = accept
        try:
            for wait in waits:
                if self._transport is None or self._transport.is_closing():
                    break
                self._transport.sendto(data)
                await asyncio.wait({answer}, timeout=wait)
                if answer.done():
                    return answer.result()
            raise self._unreachable("no answer")
        finally:
            del self._waiting[answer]
            if not answer.cancel() and not answer.cancelled():
                answer.exception()  # seen, even if we were cancelled just before

    def close(self) -> None:
        """See `Channel`."""
        if self._transport is not None:
            self._transport.close()

    def _unreachable(self, why: str) -> UnreachableError:
        return UnreachableError(
            f"the gateway {self._gateway.address} does not answer: {why}",
            reason=SILENT,
            gateway=self._gateway.address,
        )


async def open_channel(gateway: Gateway, port: int = GATEWAY_PORT) -> GatewayChannel:
    """Connect a socket to the gateway. `port` is a parameter because tests need no root.

    Raises:
        OSError: the network is gone.
    """
    family = socket.AF_INET if gateway.address.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.bind((str(gateway.local), 0))
        sock.connect(socket_address(gateway, port))
        _, channel = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: GatewayChannel(gateway), sock=sock
        )
    except BaseException:
        sock.close()
        raise
    return channel
