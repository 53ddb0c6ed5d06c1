"""UPnP on real sockets: a scripted router on loopback, and hosts beside it that mean no good."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

import pytest
from tests.gateway_nodes import clients_with
from tests.memory_nodes import swarms
from tests.scripted_igd import Entry, ScriptedIgd, serve_igd
from tests.waiting import until

from dep2p_daemon.errors import ProtocolViolationError, UnreachableError
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.nat.port_mapping import lan as lan_module
from dep2p_daemon.nat.port_mapping.channel import open_channel
from dep2p_daemon.nat.port_mapping.gateway import Gateway
from dep2p_daemon.nat.port_mapping.igd import Url
from dep2p_daemon.nat.port_mapping.keeper import KeeperSettings
from dep2p_daemon.nat.port_mapping.lan import GatewayLan
from dep2p_daemon.nat.port_mapping.mapper import PortMapper, PortMapperSettings
from dep2p_daemon.nat.port_mapping.terms import Protocol
from dep2p_daemon.nat.reachability import AddressReachability, Verdict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from dep2p_daemon.nat.port_mapping.channel import Channel
    from dep2p_daemon.swarm.swarm import Swarm

LOCAL: Final = "127.0.0.1"
STRANGER: Final = "127.0.0.2"
GATEWAY: Final = Gateway(ip_address(LOCAL), "lo", ip_address(LOCAL))
LISTENING: Final = [
    Multiaddr.parse("/ip4/0.0.0.0/udp/4001/quic-v1"),
    Multiaddr.parse("/ip4/0.0.0.0/tcp/4001"),
]
OUTSIDE: Final = {
    Multiaddr.parse("/ip4/45.8.2.101/udp/4001/quic-v1"),
    Multiaddr.parse("/ip4/45.8.2.101/tcp/4001"),
}
SETTINGS: Final = PortMapperSettings(
    keeper=KeeperSettings(look_interval=0.05), route_interval=0.02, retry=0.05, refuted_for=0.2
)


def router(**moods: Any) -> ScriptedIgd:
    return ScriptedIgd(**{"host": LOCAL, "external": "45.8.2.101", **moods})


@asynccontextmanager
async def mapper(
    search_port: int, verdicts: Callable[[], Iterable[AddressReachability]] = tuple
) -> AsyncIterator[tuple[PortMapper, Swarm]]:
    """Where the gateway speaks no PCP and no NAT-PMP, and says so at once."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind((LOCAL, 0))
        closed = taken.getsockname()[1]

    async def channel(gateway: Gateway) -> Channel:
        return await open_channel(gateway, closed)

    async with swarms(1) as (swarm,):
        await swarm.listen(LISTENING)
        async with PortMapper(
            swarm,
            SETTINGS,
            find_gateway=lambda version: GATEWAY if version == 4 else None,
            open_channel=channel,
            clients=clients_with(lambda gateway: GatewayLan(gateway, search_port)),
            verdicts=verdicts,
        ) as made:
            yield made, swarm


@pytest.fixture(autouse=True)
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lan_module, "SEARCH_TIMEOUT", 0.3)
    monkeypatch.setattr(lan_module, "AFTER_FIRST", 0.0)


@pytest.mark.parametrize("version", [1, 2])
async def test_own_addresses_are_those_outside_and_the_mappings_end_with_the_node(
    version: int,
) -> None:
    igd = router(version=version)
    async with serve_igd(igd) as port:
        async with mapper(port) as (made, swarm):
            await until(lambda: set(made.external_addresses) == OUTSIDE)
            assert set(swarm.own_addresses) >= OUTSIDE
            assert made.status[0].protocol is Protocol.UPNP
            assert made.protocol == "upnp"
            assert set(igd.mappings) == {("UDP", 4001), ("TCP", 4001)}
        assert igd.mappings == {}


async def test_a_restart_of_the_gateway_is_noticed() -> None:
    igd = router()
    async with serve_igd(igd) as port, mapper(port) as (made, _):
        await until(lambda: set(made.external_addresses) == OUTSIDE)
        igd.mappings.clear()
        await until(lambda: set(igd.mappings) == {("UDP", 4001), ("TCP", 4001)})


async def test_a_gateway_behind_another_nat_says_so_and_gives_no_address_to_tell() -> None:
    async with serve_igd(router(external="192.168.7.2")) as port, mapper(port) as (made, swarm):
        await until(lambda: made.status[0].error == "GATEWAY_BEHIND_NAT")
        await until(lambda: len(made.status[0].mappings) == 2)
        assert made.external_addresses == ()
        assert not any("192.168.7.2" in str(address) for address in swarm.own_addresses)


async def test_an_address_that_several_servers_refute_is_taken_back_and_judged_again() -> None:
    """A gateway that names somebody else's address would have our peers dial it."""
    votes = {one: AddressReachability(one, Verdict.PRIVATE, 2) for one in OUTSIDE}
    async with (
        serve_igd(router()) as port,
        mapper(port, lambda: tuple(votes.values())) as (made, swarm),
    ):
        await until(lambda: set(swarm.own_addresses) >= OUTSIDE)
        assert made.status[0].error == ""
        for one in OUTSIDE:
            votes[one] = AddressReachability(one, Verdict.PRIVATE, 3)
        await until(lambda: not set(swarm.own_addresses) & OUTSIDE)
        assert made.status[0].error == "EXTERNAL_ADDRESS_REFUTED"
        assert len(made.status[0].mappings) == 2
        votes.clear()  # nobody judges what is not told
        await until(lambda: set(swarm.own_addresses) >= OUTSIDE)
        assert made.status[0].error == ""


async def test_nobody_but_the_gateway_is_believed() -> None:
    """Other hosts of the LAN hear the search too, and answer first."""
    evil = router(host=STRANGER, external="198.51.100.66")
    async with serve_igd(evil), serve_igd(router()) as port:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind((STRANGER, 0))
            stranger.setblocking(False)
            lan = GatewayLan(GATEWAY, port)
            own = _udp_ports_of_this_process()
            receive = asyncio.create_task(lan.search())
            forged = evil.answer_search(b"urn:schemas-upnp-org:device:InternetGatewayDevice:1")
            assert forged is not None
            while not (new := _udp_ports_of_this_process() - own):  # noqa: ASYNC110
                await asyncio.sleep(0)
            for open_port in new:
                stranger.sendto(forged, (LOCAL, open_port))
            responses = await receive
        assert responses != ()
        assert all(STRANGER.encode() not in one for one in responses)
        async with mapper(port) as (made, _):
            await until(lambda: set(made.external_addresses) == OUTSIDE)
    assert evil.requests == []


def _udp_ports_of_this_process() -> set[int]:
    with open("/proc/self/net/udp", encoding="ascii") as table:
        return {int(line.split()[1].split(":")[1], 16) for line in table.readlines()[1:]}


@pytest.mark.parametrize(
    ("moods", "reason"),
    [
        ({"location": f"http://{STRANGER}:{{port}}/root.xml"}, "UPNP_FOREIGN_URL"),
        ({"control": f"http://{STRANGER}:{{port}}/ctl/IPConn"}, "UPNP_FOREIGN_URL"),
        ({"base": f"http://{STRANGER}:{{port}}/"}, "UPNP_FOREIGN_URL"),
        (
            {"raw": f"HTTP/1.1 301 x\r\nLocation: http://{STRANGER}:{{port}}/\r\n\r\n"},
            "UPNP_MALFORMED",
        ),
    ],
)
async def test_no_third_party_is_asked(moods: dict[str, str], reason: str) -> None:
    """Whatever the gateway's UPnP names: it must not make us its proxy."""
    victim = router(host=STRANGER)
    async with serve_igd(victim):
        moods = {name: value.format(port=victim.http_port) for name, value in moods.items()}
        igd = router(**moods)
        if "raw" in moods:
            igd.raw = moods["raw"].encode()
        async with serve_igd(igd) as port, mapper(port) as (made, _):
            await until(lambda: made.status[0].error == reason)
            assert made.protocol == "none"
        assert victim.requests == []


async def test_a_mapping_of_another_host_is_not_taken_away() -> None:
    others = Entry("192.168.1.66", 4001, 0)
    igd = router(mappings={("UDP", 4001): others})
    async with serve_igd(igd) as port, mapper(port) as (made, _):
        await until(lambda: len(made.external_addresses) == 2)
        assert igd.mappings[("UDP", 4001)] == others
    assert igd.mappings == {("UDP", 4001): others}


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 10_000_000, ProtocolViolationError),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10_000_000, ProtocolViolationError),
        (b"\r\n", ProtocolViolationError),
    ],
    ids=["body", "header", "no line"],
)
async def test_what_is_too_much_is_not_read(raw: bytes, what: type[Exception]) -> None:
    igd = router(raw=raw)
    async with serve_igd(igd):
        with pytest.raises(what):
            await GatewayLan(GATEWAY).request(Url(igd.http_port, "/"))


async def test_a_gateway_that_never_answers_is_left_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lan_module, "REQUEST_TIMEOUT", 0.1)
    igd = router(dead=True)
    async with serve_igd(igd):
        with pytest.raises(UnreachableError) as caught:
            await GatewayLan(GATEWAY).request(Url(igd.http_port, "/"))
    assert caught.value.reason == "GATEWAY_SILENT"


async def test_a_flood_of_answers_is_cut() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
        flood.bind((LOCAL, 0))
        flood.setblocking(False)
        lan = GatewayLan(GATEWAY, flood.getsockname()[1])
        searching = asyncio.create_task(lan.search())
        _, client = await asyncio.get_running_loop().sock_recvfrom(flood, 2000)
        for number in range(200):
            flood.sendto(b"%d" % number + b"x" * 20_000, client)
        responses = await searching
    assert 1 <= len(responses) <= lan_module.MAX_RESPONSES
    assert max(map(len, responses)) <= 2049
