"""A scripted gateway without a socket, and a keeper in front of it, on virtual time."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final, TypeVar

from tests.scripted_gateway import ScriptedGateway
from tests.scripted_igd import ScriptedIgd

from dep2p_daemon.errors import ProtocolViolationError, UnreachableError
from dep2p_daemon.nat.port_mapping import http_exchange, ssdp
from dep2p_daemon.nat.port_mapping.clients import CLIENTS, ClientKind
from dep2p_daemon.nat.port_mapping.gateway import Gateway
from dep2p_daemon.nat.port_mapping.keeper import GatewayKeeper, KeeperSettings
from dep2p_daemon.nat.port_mapping.lan import SEARCH_TIMEOUT, Lan
from dep2p_daemon.nat.port_mapping.terms import Port, Protocol, Transport
from dep2p_daemon.nat.port_mapping.upnp import UpnpClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from dep2p_daemon.nat.port_mapping.igd import Url

T = TypeVar("T")
GATEWAY: Final = Gateway(IPv4Address("192.168.1.1"), "eth0", IPv4Address("192.168.1.10"))
UDP: Final = Port(Transport.UDP, 4001)
TCP: Final = Port(Transport.TCP, 4001)
INSIDE: Final = "192.168.1.10"


@dataclass
class MemoryChannel:
    """Answers at once, or is silent for as long as it is waited."""

    gateway: ScriptedGateway
    sent: list[tuple[float, bytes]] = field(default_factory=list)
    closed: bool = False
    forge: Callable[[bytes], list[bytes]] = lambda data: []
    """What else arrives, before the answer."""

    async def request(
        self, data: bytes, accept: Callable[[bytes], T | None], waits: Iterable[float]
    ) -> T:
        for wait in waits:
            self.sent.append((asyncio.get_running_loop().time(), data))
            await asyncio.sleep(0)
            response = self.gateway.answer(data, INSIDE)
            for arrived in [*self.forge(data), response]:
                try:
                    result = None if arrived is None else accept(arrived)
                except ProtocolViolationError:
                    continue
                if result is not None:
                    return result
            await asyncio.sleep(wait)
        raise UnreachableError("silence", reason="GATEWAY_SILENT")

    def close(self) -> None:
        self.closed = True


@dataclass
class MemoryLan:
    """A router's UPnP without a network."""

    igd: ScriptedIgd
    requested: list[tuple[float, Url]] = field(default_factory=list)

    async def search(self) -> tuple[bytes, ...]:
        responses = [self.igd.answer_search(ssdp.encode_search(one)) for one in ssdp.TARGETS]
        found = tuple(one for one in responses if one is not None)
        await asyncio.sleep(0 if found else SEARCH_TIMEOUT)
        return found

    async def request(
        self, url: Url, *, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> http_exchange.Response:
        self.requested.append((asyncio.get_running_loop().time(), url))
        if self.igd.dead or url.port != self.igd.http_port:
            raise UnreachableError("refused", reason="GATEWAY_SILENT")
        data = http_exchange.encode_request(
            "POST" if body else "GET", self.igd.host, url.path, headers=headers, body=body
        )
        reader = asyncio.StreamReader(limit=http_exchange.MAX_HEAD)
        reader.feed_data(self.igd.answer_request(data, INSIDE))
        reader.feed_eof()
        return await http_exchange.read_response(reader)


def clients_with(lan: Callable[[Gateway], Lan]) -> tuple[ClientKind, ...]:
    """The protocols, with UPnP over that."""
    upnp = ClientKind(
        Protocol.UPNP,
        (4,),
        lambda channel, gateway, now, random: UpnpClient(
            channel, gateway, now, random, lan(gateway)
        ),
    )
    return (*CLIENTS[:2], upnp)


@dataclass
class Kept:
    """A keeper that runs."""

    router: ScriptedGateway
    channel: MemoryChannel
    lan: MemoryLan
    keeper: GatewayKeeper
    running: asyncio.Task[None]

    async def until(self, when: float) -> None:
        """Let virtual time pass."""
        await asyncio.sleep(when - asyncio.get_running_loop().time())


def router() -> ScriptedGateway:
    """A router whose clock is the loop's and that has run for a while."""
    clock = asyncio.get_running_loop().time
    made = ScriptedGateway(clock=clock)
    made.reboot_at(clock() - 5000)
    return made


@asynccontextmanager
async def kept(
    made: ScriptedGateway,
    *,
    ports: tuple[Port, ...] = (UDP, TCP),
    settings: KeeperSettings | None = None,
    forge: Callable[[bytes], list[bytes]] = lambda data: [],
    igd: ScriptedIgd | None = None,
) -> AsyncIterator[Kept]:
    """Run a keeper; ended with the block, without a goodbye. No `igd`: there is no UPnP."""
    channel = MemoryChannel(made, forge=forge)
    lan = MemoryLan(igd or ScriptedIgd(silent=True))
    keeper = GatewayKeeper(
        GATEWAY,
        channel,
        settings or KeeperSettings(),
        lambda: None,
        random.Random(1),
        clients=clients_with(lambda gateway: lan),
    )
    keeper.set_ports(ports)
    running = asyncio.create_task(keeper.run())
    try:
        yield Kept(made, channel, lan, keeper, running)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
