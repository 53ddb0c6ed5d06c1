"""The way to the gateway's UPnP: a search by UDP, requests by TCP, with nobody else.

Searches go to the gateway and, as some routers hear only that, to SSDP's multicast group; whatever
comes from another address than the gateway's is dropped. Connections are made to the gateway only.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import structlog
from typing_extensions import override

from dep2p_daemon.errors import UnreachableError
from dep2p_daemon.nat.port_mapping import http_exchange, ssdp
from dep2p_daemon.nat.port_mapping.terms import SILENT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dep2p_daemon.nat.port_mapping.gateway import Gateway
    from dep2p_daemon.nat.port_mapping.igd import Url

_log = structlog.get_logger(__name__)

SEARCHES: Final = (0.0, 0.5, 1.0)
"""Seconds at which all is asked for; datagrams get lost."""
SEARCH_TIMEOUT: Final = 3.0
"""Seconds in all, then there is no UPnP here."""
AFTER_FIRST: Final = 0.2
"""Seconds to collect further responses after the first."""
MAX_RESPONSES: Final = 16
"""Of one search that are looked at; a router sends one for each target."""
REQUEST_TIMEOUT: Final = 5.0
"""Seconds for one request, from connecting to the last byte of its response."""
_MULTICAST_HOPS: Final = 2
"""UDA 1.1, 1.3.2."""


class Lan(Protocol):
    """What `UpnpClient` needs of the network."""

    async def search(self) -> tuple[bytes, ...]:
        """Return the gateway's responses to a search; none if there are none."""
        ...

    async def request(
        self, url: Url, *, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> http_exchange.Response:
        """Ask the gateway for something: GET without a body, POST with one.

        Raises:
            UnreachableError: it cannot be reached, or took too long.
            ProtocolViolationError: what came is no HTTP, or too much.
        """
        ...


@dataclass(frozen=True, slots=True)
class GatewayLan:
    """A `Lan` in front of a default gateway. Holds nothing open between calls."""

    gateway: Gateway
    port: int = ssdp.PORT
    """A parameter because tests need no root."""

    async def search(self) -> tuple[bytes, ...]:
        """See `Lan`."""
        responses = _Responses(str(self.gateway.address))
        try:
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: responses, sock=self._socket()
            )
        except OSError as error:
            _log.debug("no search for UPnP", error=str(error))
            return ()
        try:
            await self._search(transport, responses)
        finally:
            transport.close()
        return tuple(dict.fromkeys(responses.received))

    async def _search(self, transport: asyncio.DatagramTransport, responses: _Responses) -> None:
        now = asyncio.get_running_loop().time
        start = now()
        for at in SEARCHES:
            await responses.wait(start + at - now())
            if responses.received:
                break
            for target in ssdp.TARGETS:
                data = ssdp.encode_search(target)
                for host in (str(self.gateway.address), ssdp.GROUP):
                    transport.sendto(data, (host, self.port))
        await responses.wait(start + SEARCH_TIMEOUT - now())
        if responses.received:
            await asyncio.sleep(AFTER_FIRST)

    async def request(
        self, url: Url, *, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> http_exchange.Response:
        """See `Lan`."""
        gateway = self.gateway
        data = http_exchange.encode_request(
            "POST" if body else "GET",
            f"{gateway.address}:{url.port}",
            url.path,
            headers=headers,
            body=body,
        )
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                reader, writer = await asyncio.open_connection(
                    str(gateway.address),
                    url.port,
                    limit=http_exchange.MAX_HEAD,
                    local_addr=(str(gateway.local), 0),
                )
                try:
                    writer.write(data)
                    return await http_exchange.read_response(reader)
                finally:
                    # At once, with whatever it still wants to say.
                    writer.transport.abort()
        except (OSError, TimeoutError) as error:
            raise UnreachableError(
                f"the gateway {gateway.address} does not answer UPnP's requests: "
                f"{str(error) or 'it took too long'}",
                reason=SILENT,
                gateway=gateway.address,
            ) from error

    def _socket(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.bind((str(self.gateway.local), 0))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, _MULTICAST_HOPS)
            # The group's packets leave where the gateway is, whatever the routes say.
            interface = socket.inet_aton(str(self.gateway.local))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)
        except BaseException:
            sock.close()
            raise
        return sock


class _Responses(asyncio.DatagramProtocol):
    """Collects what one host sends."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._some = asyncio.Event()
        self.received: list[bytes] = []

    @override
    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if addr[0] == self._host and len(self.received) < MAX_RESPONSES:
            self.received.append(data[: ssdp.MAX_RESPONSE + 1])
            self._some.set()

    async def wait(self, seconds: float) -> None:
        """Until something was received, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._some.wait()
