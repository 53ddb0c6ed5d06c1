"""A home router's side of PCP and NAT-PMP, written from the RFCs with none of the daemon's code.

`ScriptedGateway.answer` is the router without a socket; `serve` puts it on one. As a program it
runs inside a box of the laboratory and maps for real:

    python -m tests.scripted_gateway --listen 192.168.1.1 --external 45.8.2.101
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.natlab import rules
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

PORT: Final = 5351
UDP: Final = 17
TCP: Final = 6

Key = tuple[str, int, int]
"""The inside host, IANA's protocol number, the inside port."""


@dataclass
class Mapped:
    """What the router forwards."""

    external_port: int
    lifetime: int
    nonce: bytes = b""


@dataclass
class ScriptedGateway:
    """A router whose moods the test chooses."""

    external: str = "203.0.113.7"
    pcp: bool = True
    nat_pmp: bool = True
    silent: bool = False
    answers_lost: bool = False
    """Does what it is asked for, and nobody hears of it."""
    result: int = 0
    """Answer everything that way."""
    retry: int = 30
    """Seconds that a refusal of PCP tells to wait."""
    max_lifetime: int = 7200
    first_port: int = 0
    """Give out ports from here on; 0: those that are suggested."""
    clock: Callable[[], float] = time.monotonic
    mappings: dict[Key, Mapped] = field(default_factory=dict)
    requests: list[bytes] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    on_map: Callable[[Key, int], None] = lambda key, port: None
    on_unmap: Callable[[Key, int], None] = lambda key, port: None
    _booted: float = 0.0

    def __post_init__(self) -> None:
        self._booted = self.clock()

    def reboot(self) -> None:
        """Forget all, and count the seconds from 0 again."""
        self.mappings.clear()
        self._booted = self.clock()
        self.changed.set()

    def reboot_at(self, when: float) -> None:
        """Say when it was started, by its clock."""
        self._booted = when

    @property
    def _epoch(self) -> int:
        return int(self.clock() - self._booted)

    def answer(self, data: bytes, source: str) -> bytes | None:
        """Return the response to a datagram."""
        self.requests.append(data)
        self.changed.set()
        if self.silent or len(data) < 2:
            return None
        response = self._respond(data, source)
        return None if self.answers_lost else response

    def _respond(self, data: bytes, source: str) -> bytes | None:
        if data[0] == 2 and self.pcp:
            return self._answer_pcp(data, source)
        if data[0] == 2 and self.nat_pmp:  # RFC 6886, 3.5
            return struct.pack("!BBHI", 0, 0x80 | data[1], 1, self._epoch)
        if data[0] == 0 and self.nat_pmp:
            return self._answer_nat_pmp(data, source)
        return None

    def _answer_pcp(self, data: bytes, source: str) -> bytes:
        opcode, lifetime, client = struct.unpack("!xB2xI16s", data[:24])

        def header(result: int, seconds: int) -> bytes:
            return struct.pack("!BBBBII12x", 2, 0x80 | opcode, 0, result, seconds, self._epoch)

        if self.result:
            return header(self.result, self.retry) + data[24:]
        if opcode == 0:
            return header(0, 0)
        inside = ipaddress.ip_address(client)
        assert isinstance(inside, ipaddress.IPv6Address)
        if str(inside.ipv4_mapped or inside) != source:
            return header(12, self.retry) + data[24:]  # ADDRESS_MISMATCH
        nonce, protocol, internal, suggested = struct.unpack("!12sB3xHH", data[24:44])
        key = (source, protocol, internal)
        known = self.mappings.get(key)
        if known is not None and known.nonce != nonce:
            return header(2, self.retry) + data[24:]  # NOT_AUTHORIZED
        port, lifetime = self._map(key, suggested, lifetime, nonce)
        # IPv6 is not translated: what is opened is the firewall.
        external = ipaddress.ip_address(source if ":" in source else self.external)
        packed = external.packed.rjust(16, b"\0")
        if external.version == 4:
            packed = bytes(10) + b"\xff\xff" + external.packed
        body = struct.pack("!12sB3xHH16s", nonce, protocol, internal, port, packed)
        return header(0, lifetime) + body

    def _answer_nat_pmp(self, data: bytes, source: str) -> bytes:
        opcode = data[1]
        header = struct.pack("!BBHI", 0, 0x80 | opcode, self.result, self._epoch)
        if self.result:
            return header + data[4:6] + bytes(6) if opcode else header
        if opcode == 0:
            return header + ipaddress.ip_address(self.external).packed
        internal, suggested, lifetime = struct.unpack("!4xHHI", data)
        key = (source, UDP if opcode == 1 else TCP, internal)
        port, lifetime = self._map(key, suggested, lifetime, b"")
        return header + struct.pack("!HHI", internal, port if lifetime else 0, lifetime)

    def _map(self, key: Key, suggested: int, lifetime: int, nonce: bytes) -> tuple[int, int]:
        known = self.mappings.get(key)
        if lifetime == 0:
            if known is not None:
                del self.mappings[key]
                self.on_unmap(key, known.external_port)
            return 0, 0
        if known is None:
            port = suggested
            if self.first_port and ":" not in key[0]:
                port = self.first_port + len(self.mappings)
            known = self.mappings[key] = Mapped(port, 0, nonce)
            self.on_map(key, port)
        known.lifetime = min(lifetime, self.max_lifetime)
        return known.external_port, known.lifetime


class _Protocol(asyncio.DatagramProtocol):
    def __init__(self, gateway: ScriptedGateway) -> None:
        self._gateway = gateway

    @override
    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    @override
    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        response = self._gateway.answer(data, addr[0])
        if response is not None:
            self._transport.sendto(response, addr)


@contextlib.asynccontextmanager
async def serve(gateway: ScriptedGateway, host: str, port: int = 0) -> AsyncIterator[int]:
    """Answer on a UDP port; yields it."""
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: _Protocol(gateway), local_addr=(host, port)
    )
    try:
        yield int(transport.get_extra_info("sockname")[1])
    finally:
        transport.close()


def _nft(program: str) -> int:
    return subprocess.run(["nft", "-f", "-"], input=program, text=True, check=False).returncode


def _names(key: Key) -> tuple[str, tuple[str, int]]:
    host, protocol, port = key
    return ("udp" if protocol == UDP else "tcp"), (host, port)


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--external", required=True)
    parser.add_argument("--no-pcp", action="store_true")
    options = parser.parse_args()

    def on_map(key: Key, port: int) -> None:
        name, inside = _names(key)
        assert _nft(rules.map_port(name, port, inside)) == 0
        if ":" not in inside[0]:
            # Refused where the socket has sent already: that mapping stays.
            _nft(rules.leave_from(name, options.external, port, inside))

    def on_unmap(key: Key, port: int) -> None:
        name, inside = _names(key)
        assert _nft(rules.unmap_port(name, port, inside)) == 0

    gateway = ScriptedGateway(
        external=options.external,
        pcp=not options.no_pcp,
        first_port=40000,
        on_map=on_map,
        on_unmap=on_unmap,
    )
    async with serve(gateway, options.listen, PORT):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
