"""A scripted gateway without a socket, and a keeper in front of it, on virtual time."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final, TypeVar

from tests.scripted_gateway import ScriptedGateway

from dep2p_daemon.errors import ProtocolViolationError, UnreachableError
from dep2p_daemon.nat.port_mapping.gateway import Gateway
from dep2p_daemon.nat.port_mapping.keeper import GatewayKeeper, KeeperSettings
from dep2p_daemon.nat.port_mapping.terms import Port, Transport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

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
class Kept:
    """A keeper that runs."""

    router: ScriptedGateway
    channel: MemoryChannel
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
) -> AsyncIterator[Kept]:
    """Run a keeper; ended with the block, without a goodbye."""
    channel = MemoryChannel(made, forge=forge)
    keeper = GatewayKeeper(
        GATEWAY, channel, settings or KeeperSettings(), lambda: None, random.Random(1)
    )
    keeper.set_ports(ports)
    running = asyncio.create_task(keeper.run())
    try:
        yield Kept(made, channel, keeper, running)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
