"""A home router's side of UPnP-IGD, written from the standard with none of the daemon's code.

`ScriptedIgd` is the router without a socket; `serve_igd` puts it on some.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SSDP_TYPE: Final = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
HTTP_PORT: Final = 5000

Key = tuple[str, int]
"""TCP or UDP, the external port."""


@dataclass
class Entry:
    """What the router forwards."""

    client: str
    port: int
    lease: int


@dataclass
class ScriptedIgd:
    """A router whose moods the test chooses."""

    host: str = "192.168.1.1"
    http_port: int = HTTP_PORT
    external: str = "203.0.113.7"
    online: bool = True
    version: int = 1
    service: str = "WANIPConnection"
    silent: bool = False
    """Answers no search."""
    dead: bool = False
    """Answers no request."""
    only_permanent: bool = False
    lease_error: int = 725
    same_ports: bool = False
    knows_entries: bool = True
    tells_names: bool = False
    chunked: bool = False
    fault: int = 0
    """Refuse every mapping with that."""
    location: str = ""
    """Instead of the right one."""
    control: str = "/ctl/IPConn"
    base: str = ""
    raw: bytes = b""
    """Answer every request with that."""
    raw_description: bytes = b""
    mappings: dict[Key, Entry] = field(default_factory=dict)
    actions: list[str] = field(default_factory=list)
    searches: list[bytes] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)

    @property
    def type(self) -> str:
        return f"urn:schemas-upnp-org:service:{self.service}:{self.version}"

    def reboot(self) -> None:
        """Forget all; the web server comes up at another port."""
        self.mappings.clear()
        self.http_port += 1

    def answer_search(self, data: bytes) -> bytes | None:
        """Return the response to a datagram."""
        self.searches.append(data)
        if self.silent or SSDP_TYPE.encode() not in data:
            return None
        location = self.location or f"http://{self.host}:{self.http_port}/root.xml"
        return (
            "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\n"
            f"ST: {SSDP_TYPE}\r\nLocation: {location}\r\nEXT:\r\n\r\n"
        ).encode()

    def answer_request(self, data: bytes, source: str) -> bytes:
        """Return the response to a whole HTTP request."""
        self.requests.append(data)
        if self.raw:
            return self.raw
        head, _, body = data.partition(b"\r\n\r\n")
        method, path = head.split(b" ")[:2]
        if method == b"GET":
            if path != b"/root.xml":
                return self._http(404, b"")
            return self._http(200, self.raw_description or self.description().encode())
        action = re.search(rb"SOAPAction: \"([^#]*)#(\w+)\"", head)
        assert action is not None
        if path.decode() != self.control or action[1].decode() != self.type:
            return self._http(404, b"")
        arguments = {
            name.decode(): value.decode()
            for name, value in re.findall(rb"<(New\w+)>([^<]*)</New", body)
        }
        self.actions.append(action[2].decode())
        answer = self._act(action[2].decode(), arguments, source)
        return self._fault(answer) if isinstance(answer, int) else self._done(action[2], answer)

    def description(self) -> str:
        """The XML at the location."""
        base = f"<URLBase>{self.base}</URLBase>" if self.base else ""
        return (
            '<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0">'
            f"{base}<device><serviceList><service><serviceType>"
            "urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType>"
            "<controlURL>/ctl/L3F</controlURL></service></serviceList><deviceList><device>"
            f"<serviceList><service><serviceType>{self.type}</serviceType>"
            f"<controlURL>{self.control}</controlURL><SCPDURL>/scpd.xml</SCPDURL></service>"
            "</serviceList></device></deviceList></device></root>"
        )

    def _act(self, action: str, given: dict[str, str], source: str) -> dict[str, str] | int:
        if action == "GetExternalIPAddress":
            return {"NewExternalIPAddress": self.external} if self.online else 501
        key = (given["NewProtocol"], int(given["NewExternalPort"]))
        if action == "DeletePortMapping":
            return {} if self.mappings.pop(key, None) is not None else 714
        if action == "GetSpecificPortMappingEntry" and self.knows_entries:
            entry = self.mappings.get(key)
            if entry is None:
                return 714
            return {"NewInternalClient": "laptop" if self.tells_names else entry.client}
        if action == "AddPortMapping" or (action == "AddAnyPortMapping" and self.version == 2):
            return self._add(action, key, given, source)
        return 401

    def _add(
        self, action: str, key: Key, given: dict[str, str], source: str
    ) -> dict[str, str] | int:
        inside, lease = int(given["NewInternalPort"]), int(given["NewLeaseDuration"])
        if self.fault:
            return self.fault
        if given["NewInternalClient"] != source:
            return 606
        if self.only_permanent and lease:
            return self.lease_error
        if self.same_ports and inside != key[1]:
            return 724
        known = self.mappings.get(key)
        if known is not None and known.client != source:
            if action == "AddPortMapping":
                return 718
            key = (key[0], key[1] + 1000)
        self.mappings[key] = Entry(source, inside, lease)
        return {"NewReservedPort": str(key[1])} if action == "AddAnyPortMapping" else {}

    def _done(self, action: bytes, results: dict[str, str]) -> bytes:
        name = action.decode()
        inner = "".join(f"<{key}>{value}</{key}>" for key, value in results.items())
        return self._http(
            200,
            self._envelope(f'<u:{name}Response xmlns:u="{self.type}">{inner}</u:{name}Response>'),
        )

    def _fault(self, code: int) -> bytes:
        detail = f"<UPnPError><errorCode>{code}</errorCode></UPnPError>"
        return self._http(500, self._envelope(f"<s:Fault><detail>{detail}</detail></s:Fault>"))

    def _envelope(self, body: str) -> bytes:
        return (
            '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/">'
            f"<s:Body>{body}</s:Body></s:Envelope>"
        ).encode()

    def _http(self, status: int, body: bytes) -> bytes:
        head = f"HTTP/1.1 {status} Something\r\nContent-Type: text/xml\r\n"
        if not self.chunked:
            return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        half = len(body) // 2
        chunks = b"".join(
            b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:]) if part
        )
        return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks + b"0\r\n\r\n"


class _Search(asyncio.DatagramProtocol):
    def __init__(self, router: ScriptedIgd) -> None:
        self._router = router

    @override
    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    @override
    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        response = self._router.answer_search(data)
        if response is not None:
            self._transport.sendto(response, addr)


@contextlib.asynccontextmanager
async def serve_igd(router: ScriptedIgd) -> AsyncIterator[int]:
    """Answer searches on a UDP port and requests on a TCP port; yields the former."""
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"Content-Length: (\d+)", head)
            body = await reader.readexactly(int(length[1])) if length is not None else b""
            if router.dead:
                await reader.read()
            else:
                writer.write(
                    router.answer_request(head + body, writer.get_extra_info("peername")[0])
                )
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # whoever asked has heard enough
        finally:
            writer.close()
            connections.discard(task)

    server = await asyncio.start_server(serve, router.host, 0)
    router.http_port = server.sockets[0].getsockname()[1]
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: _Search(router), local_addr=(router.host, 0)
    )
    try:
        yield int(transport.get_extra_info("sockname")[1])
    finally:
        transport.close()
        server.close()
        for task in tuple(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
