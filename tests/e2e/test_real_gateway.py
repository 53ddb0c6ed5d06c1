"""miniupnpd, which many home routers run, maps our ports: each protocol against the real thing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

import pytest
from tests.e2e.real_gateway import RealGateway, real_gateway
from tests.natlab.lab import Lab
from tests.requires import require_natlab

from dep2p_daemon.nat.port_mapping.channel import open_channel
from dep2p_daemon.nat.port_mapping.clients import CLIENTS
from dep2p_daemon.nat.port_mapping.gateway import default_gateway
from dep2p_daemon.nat.port_mapping.keeper import GatewayKeeper, KeeperSettings
from dep2p_daemon.nat.port_mapping.terms import Port, Protocol, Transport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

SECONDS: Final = 30
SHORT: Final = 8
"""Seconds of a mapping; it is renewed after half of them."""
LONG: Final = 7200
PORTS: Final = {
    (Protocol.PCP, LONG): 4001,
    (Protocol.NAT_PMP, LONG): 4002,
    (Protocol.UPNP, LONG): 4003,
    (Protocol.PCP, SHORT): 4011,
    (Protocol.NAT_PMP, SHORT): 4012,
    (Protocol.UPNP, SHORT): 4013,
}


@pytest.fixture(autouse=True)
def machine() -> None:
    require_natlab()


@contextlib.asynccontextmanager
async def kept(protocol: Protocol, lifetime: int) -> AsyncIterator[GatewayKeeper]:
    """A keeper that speaks one protocol from where this thread is, and says goodbye."""
    gateway = default_gateway(4)
    assert gateway is not None
    channel = await open_channel(gateway)
    keeper = GatewayKeeper(
        gateway,
        channel,
        KeeperSettings(lifetime=lifetime, look_interval=1.0),
        lambda: None,
        clients=tuple(one for one in CLIENTS if one.protocol is protocol),
    )
    number = PORTS[protocol, lifetime]
    keeper.set_ports((Port(Transport.UDP, number), Port(Transport.TCP, number)))
    running = asyncio.create_task(keeper.run())
    try:
        yield keeper
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await keeper.remove_all()
        channel.close()


def forwarded(router: RealGateway) -> set[int]:
    """The ports for which the router has both a rule for UDP and one for TCP."""
    rules = router.forwarded()
    return {port for port in PORTS.values() if rules.count(f" {port} dnat ip to ") == 2}


def ends(keepers: Sequence[GatewayKeeper]) -> list[float]:
    """When each keeper's mappings end that ends first."""
    return [min(one.expires_at for one in keeper.mappings) for keeper in keepers]


async def until_mapped(keepers: Sequence[GatewayKeeper], router: RealGateway) -> None:
    """Both must say so: the keepers, and the router's rules."""
    async with asyncio.timeout(SECONDS):
        wanted = set(PORTS.values())
        while not (all(ends(keepers)) and forwarded(router) == wanted):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def stranger_gets_in(lab: Lab, router: RealGateway, port: int) -> bool:
    """Whether what comes in at a port is from somebody whom alice has never sent to."""
    with (
        lab.socket("alice", socket.SOCK_DGRAM, bind=("0.0.0.0", port)) as inside,
        lab.socket("relay", socket.SOCK_DGRAM) as stranger,
    ):
        inside.settimeout(2)
        stranger.sendto(b"hello", (router.external, port))
        try:
            return inside.recv(100) == b"hello"
        except TimeoutError:
            return False


async def test_each_protocol_maps_renews_survives_a_restart_and_says_goodbye() -> None:
    with Lab("port-restricted", "symmetric") as lab:
        async with real_gateway(lab) as router:
            await router.start()
            with lab.inside("alice"):
                async with AsyncExitStack() as stack:
                    keepers = [await stack.enter_async_context(kept(*one)) for one in PORTS]
                    await until_mapped(keepers, router)
                    assert all(stranger_gets_in(lab, router, port) for port in PORTS.values())

                    before = ends(keepers)
                    await asyncio.sleep(SHORT + 1)  # the router drops what is not renewed
                    await until_mapped(keepers, router)
                    after = ends(keepers)
                    assert after[:3] == before[:3], "nothing was to be done about these"
                    assert all(end > time.time() for end in after[3:])

                    router.stop()
                    await router.start()
                    assert forwarded(router) == set()
                    await until_mapped(keepers, router)
                assert forwarded(router) == set()
            assert not stranger_gets_in(lab, router, 4001)
