"""The port mapper of a swarm in front of a scripted gateway on a real UDP socket."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs
from tests.memory_nodes import swarms
from tests.scripted_gateway import ScriptedGateway, serve
from tests.waiting import until
from typing_extensions import override

from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.nat.port_mapping.channel import open_channel
from dep2p_daemon.nat.port_mapping.clients import CLIENTS
from dep2p_daemon.nat.port_mapping.gateway import Gateway
from dep2p_daemon.nat.port_mapping.keeper import KeeperSettings
from dep2p_daemon.nat.port_mapping.mapper import PortMapper, PortMapperSettings
from dep2p_daemon.nat.port_mapping.status import PortMappingChanged
from dep2p_daemon.nat.port_mapping.terms import Protocol
from dep2p_daemon.swarm.events import NetworkChange, NetworkChanged

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dep2p_daemon.events import Subscription
    from dep2p_daemon.nat.port_mapping.channel import Channel
    from dep2p_daemon.nat.port_mapping.status import GatewayStatus
    from dep2p_daemon.swarm.swarm import Swarm

LOCAL = "127.0.0.1"
GATEWAY = Gateway(ip_address(LOCAL), "lo", ip_address(LOCAL))
LISTENING = [
    Multiaddr.parse("/ip4/0.0.0.0/udp/4001/quic-v1"),
    Multiaddr.parse("/ip4/0.0.0.0/tcp/4001"),
    Multiaddr.parse("/ip4/192.0.2.77/udp/4009/quic-v1"),  # the gateway does not lead there
]
OUTSIDE = {
    Multiaddr.parse("/ip4/45.8.2.101/udp/40000/quic-v1"),
    Multiaddr.parse("/ip4/45.8.2.101/tcp/40001"),
}
SETTINGS = PortMapperSettings(
    keeper=KeeperSettings(look_interval=0.05), route_interval=0.02, retry=0.05
)


def router(**moods: object) -> ScriptedGateway:
    made = ScriptedGateway(external="45.8.2.101", first_port=40000)
    for name, value in moods.items():
        setattr(made, name, value)
    return made


class Way:
    """Where the machine's default route leads; tests change it."""

    def __init__(self, port: int, gateway: Gateway | None = GATEWAY) -> None:
        self.port = port
        self.gateway = gateway

    def find(self, version: int) -> Gateway | None:
        return self.gateway if version == 4 else None

    async def open(self, gateway: Gateway) -> Channel:
        return await open_channel(gateway, self.port)


@asynccontextmanager
async def mapper(way: Way) -> AsyncIterator[tuple[PortMapper, Swarm, Subscription]]:
    async with swarms(1) as (swarm,):
        await swarm.listen(LISTENING)
        with swarm.events.subscribe() as events:
            async with PortMapper(
                swarm,
                SETTINGS,
                find_gateway=way.find,
                open_channel=way.open,
                clients=CLIENTS[:2],  # UPnP: test_upnp.py
            ) as made:
                yield made, swarm, events


def status(made: PortMapper) -> GatewayStatus:
    return made.status[0]


@pytest.mark.parametrize("protocol", [Protocol.PCP, Protocol.NAT_PMP])
async def test_own_addresses_are_those_outside_and_the_mappings_end_with_the_node(
    protocol: Protocol,
) -> None:
    gateway = router(pcp=protocol is Protocol.PCP)
    async with serve(gateway, LOCAL) as port:
        async with mapper(Way(port)) as (made, swarm, events):
            await until(lambda: set(made.external_addresses) == OUTSIDE)
            assert set(swarm.own_addresses) >= OUTSIDE
            assert status(made).protocol is protocol
            assert made.protocol == {Protocol.PCP: "pcp", Protocol.NAT_PMP: "nat-pmp"}[protocol]
            assert status(made).gateway == GATEWAY.address
            assert status(made).error == ""
            while True:
                event = await events.next()
                if isinstance(event, PortMappingChanged) and event.status == made.status:
                    break
            assert {key[2] for key in gateway.mappings} == {4001}
            assert len(gateway.mappings) == 2
        assert gateway.mappings == {}


async def test_a_restart_of_the_gateway_is_noticed() -> None:
    gateway = router()
    gateway.reboot_at(gateway.clock() - 1000)
    async with serve(gateway, LOCAL) as port, mapper(Way(port)) as (made, swarm, _):
        await until(lambda: set(made.external_addresses) == OUTSIDE)
        gateway.first_port = 50000
        gateway.reboot()
        moved = {
            Multiaddr.parse("/ip4/45.8.2.101/udp/50000/quic-v1"),
            Multiaddr.parse("/ip4/45.8.2.101/tcp/50001"),
        }
        await until(lambda: {a.port for a in made.external_addresses} == {50000, 50001})
        assert {address.ip for address in made.external_addresses} == {
            address.ip for address in moved
        }
        assert not set(swarm.own_addresses) & OUTSIDE


async def test_nobody_but_the_gateway_is_believed() -> None:
    class Reached(asyncio.DatagramProtocol):
        client: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()

        @override
        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            if not self.client.done():
                self.client.set_result(addr)

    transport, reached = await asyncio.get_running_loop().create_datagram_endpoint(
        Reached, local_addr=(LOCAL, 0)
    )
    port = transport.get_extra_info("sockname")[1]
    async with mapper(Way(port)) as (made, _, _):
        client = await reached.client
        refusal = struct.pack("!BBHI", 0, 0x81, 1, 5)  # "I speak NAT-PMP only"
        address = struct.pack("!BBHI4s", 0, 0x80, 0, 5, bytes((198, 51, 100, 6)))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind((LOCAL, 0))
            for data in (refusal, address):
                stranger.sendto(data, client)
        # What is sent by the gateway itself afterwards is taken, so the others were there before.
        transport.sendto(b"\xff" * 2000, client)
        transport.sendto(b"\x01", client)
        # It speaks PCP alone: had the stranger's refusal counted, that search would have failed.
        gateway = router(nat_pmp=False)
        clients = set()

        class Answering(asyncio.DatagramProtocol):
            @override
            def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
                clients.add(addr)
                response = gateway.answer(data, addr[0])
                if response is not None:
                    transport.sendto(response, addr)

        transport.set_protocol(Answering())
        await until(lambda: set(made.external_addresses) == OUTSIDE)
        assert status(made).protocol is Protocol.PCP
        assert clients == {client}
    transport.close()


async def test_a_closed_port_at_the_gateway_says_no_at_once() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind((LOCAL, 0))
        port = taken.getsockname()[1]
    gateway = router()
    async with mapper(Way(port)) as (made, swarm, _):
        await until(lambda: status(made).error == "GATEWAY_SILENT")
        assert made.protocol == "none"
        assert "does not answer" in status(made).detail
        assert made.external_addresses == ()
        async with serve(gateway, LOCAL, port):  # port mapping is turned on there
            await until(lambda: set(swarm.own_addresses) >= OUTSIDE)
            assert status(made).error == ""


async def test_another_network_another_gateway() -> None:
    here, there = router(), router(external="45.8.2.102")
    async with serve(here, LOCAL) as port, serve(there, LOCAL) as other:
        way = Way(port)
        async with mapper(way) as (made, swarm, _):
            await until(lambda: set(made.external_addresses) == OUTSIDE)
            way.gateway = None
            await until(lambda: status(made).error == "NO_GATEWAY")
            assert not set(swarm.own_addresses) & OUTSIDE
            way.port, way.gateway = other, GATEWAY
            await until(lambda: len(made.external_addresses) == 2)
            assert {str(a.ip) for a in made.external_addresses} == {"45.8.2.102"}
        assert there.mappings == {}


async def test_a_gateway_that_is_lost_again_is_logged_again() -> None:
    """And maps again what it has not forgotten: the nonces are the same."""
    async with serve(router(), LOCAL) as port:
        way = Way(port)
        async with mapper(way) as (made, _, _):
            with capture_logs() as lines:
                for _ in range(2):
                    way.gateway = GATEWAY
                    await until(lambda: set(made.external_addresses) == OUTSIDE)
                    way.gateway = None
                    await until(lambda: status(made).error == "NO_GATEWAY")
    told = [line["reason"] for line in lines if line.get("ip_version") == 4]
    assert told == ["NO_GATEWAY"] * 2


async def test_after_a_change_of_network_the_same_gateway_may_be_another() -> None:
    gateway = router()
    patient = PortMapperSettings(route_interval=3600)
    async with serve(gateway, LOCAL) as port, swarms(1) as (swarm,):
        way = Way(port)
        await swarm.listen(LISTENING)
        async with PortMapper(
            swarm,
            patient,
            find_gateway=way.find,
            open_channel=way.open,
            clients=CLIENTS[:2],
        ) as made:
            await until(lambda: set(made.external_addresses) == OUTSIDE)
            # Another box of the same make and address: it has mapped nothing yet.
            gateway.mappings.clear()
            swarm.events.publish(NetworkChanged(NetworkChange.INTERRUPTED, (LOCAL,), (LOCAL,)))
            await until(lambda: len(gateway.mappings) == 2)


async def test_a_gateway_behind_another_nat_gives_no_address_to_tell() -> None:
    async with (
        serve(router(external="100.64.1.2"), LOCAL) as port,
        mapper(Way(port)) as (made, swarm, _),
    ):
        await until(lambda: status(made).error == "GATEWAY_BEHIND_NAT")
        await until(lambda: len(status(made).mappings) == 2)
        assert made.external_addresses == ()
        assert not any("100.64" in str(address) for address in swarm.own_addresses)


async def test_a_refusal_is_shown_with_its_reason_and_remedy() -> None:
    async with serve(router(result=2), LOCAL) as port, mapper(Way(port)) as (made, _, _):
        await until(lambda: status(made).error == "NOT_AUTHORIZED")
        assert "refuses to map ports" in status(made).detail


async def test_a_machine_with_a_public_address_asks_nobody() -> None:
    gateway = router()
    public = Gateway(ip_address(LOCAL), "lo", ip_address("45.8.2.50"))
    async with serve(gateway, LOCAL) as port, mapper(Way(port, public)) as (made, _, _):
        await until(lambda: status(made).error == "NOT_NEEDED")
        assert made.status[1].error == "NO_GATEWAY"
    assert gateway.requests == []


async def test_a_gateway_that_speaks_another_protocol_now_is_asked_again_soon() -> None:
    """And by what worked last time first."""
    gateway = router()
    hourly = PortMapperSettings(route_interval=0.02, retry=3600)
    async with serve(gateway, LOCAL) as port, swarms(1) as (swarm,):
        way = Way(port)
        await swarm.listen(LISTENING)
        async with PortMapper(
            swarm, hourly, find_gateway=way.find, open_channel=way.open, clients=CLIENTS[:2]
        ) as made:
            await until(lambda: set(made.external_addresses) == OUTSIDE)
            gateway.pcp = False
            gateway.mappings.clear()
            swarm.events.publish(NetworkChanged(NetworkChange.INTERRUPTED, (LOCAL,), (LOCAL,)))
            await until(lambda: status(made).protocol is Protocol.NAT_PMP)
            way.gateway = None
            await until(lambda: status(made).error == "NO_GATEWAY")
            gateway.pcp = True
            before = len(gateway.requests)
            way.gateway = GATEWAY
            await until(lambda: len(made.external_addresses) == 2)
            assert status(made).protocol is Protocol.NAT_PMP
            assert {data[0] for data in gateway.requests[before:]} == {0}
