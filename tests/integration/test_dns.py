"""The resolver asks a real name server, on loopback."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from typing_extensions import override

from dep2p_daemon.discovery.dns import DnsSettings, Resolver
from dep2p_daemon.errors import UnreachableError
from dep2p_daemon.identity.peer_id import PeerId
from dep2p_daemon.multiaddr import Multiaddr

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ALICE = PeerId.parse("12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA")
BOB = PeerId.parse("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N")


@dataclass
class NameServer(asyncio.DatagramProtocol):
    """Answers over UDP from a table of (name, type) to values."""

    records: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    silent: bool = False
    refusing: bool = False
    garbage: bool = False

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    @override
    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        question = dns.message.from_wire(data)
        name = question.question[0].name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.question[0].rdtype)
        self.asked.append((name, kind))
        if self.silent:
            return
        if self.garbage:
            self.transport.sendto(data[:2] + b"\xff" * 20, address)
            return
        answer = dns.message.make_response(question)
        answer.flags |= dns.flags.RA
        values = self.records.get((name, kind))
        if self.refusing:
            answer.set_rcode(dns.rcode.REFUSED)
        elif values:
            answer.answer.append(dns.rrset.from_text(f"{name}.", 60, "IN", kind, *values))
        elif not any(known == name for known, _ in self.records):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        self.transport.sendto(answer.to_wire(), address)

    def dnsaddr(self, name: str, *addresses: str) -> None:
        values = [f'"dnsaddr={address}"' for address in addresses]
        self.records.setdefault((f"_dnsaddr.{name}", "TXT"), []).extend(values)


@asynccontextmanager
async def name_server(**settings: object) -> AsyncIterator[tuple[NameServer, Resolver]]:
    server = NameServer()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: server, local_addr=("127.0.0.1", 0))
    try:
        address = transport.get_extra_info("sockname")
        chosen = {"hosts_file": None, "nameserver": address, **settings}
        yield server, Resolver(DnsSettings(**chosen))
    finally:
        transport.close()


async def resolved(resolver: Resolver, text: str) -> list[str]:
    return [str(address) for address in await resolver.resolve(Multiaddr.parse(text))]


async def test_names_of_each_kind() -> None:
    async with name_server() as (server, resolver):
        server.records = {
            ("relay.example", "A"): ["203.0.113.1", "203.0.113.2"],
            ("relay.example", "AAAA"): ["2001:db8::1"],
        }
        v4 = ["/ip4/203.0.113.1/udp/4001/quic-v1", "/ip4/203.0.113.2/udp/4001/quic-v1"]
        v6 = ["/ip6/2001:db8::1/udp/4001/quic-v1"]
        rest = "relay.example/udp/4001/quic-v1"
        assert sorted(await resolved(resolver, f"/dns4/{rest}")) == v4
        assert await resolved(resolver, f"/dns6/{rest}") == v6
        assert sorted(await resolved(resolver, f"/dns/{rest}")) == v4 + v6


async def test_a_name_with_one_family_only_is_enough_for_dns() -> None:
    async with name_server() as (server, resolver):
        server.records = {("relay.example", "AAAA"): ["2001:db8::1"]}
        found = await resolved(resolver, f"/dns/relay.example/tcp/1/p2p/{ALICE}")
        assert found == [f"/ip6/2001:db8::1/tcp/1/p2p/{ALICE}"]


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/203.0.113.1/tcp/1",
        f"/p2p/{ALICE}",
        f"/dns4/relay.example/tcp/1/p2p/{ALICE}/p2p-circuit/p2p/{BOB}",
    ],
)
async def test_what_needs_no_name_or_is_resolved_by_somebody_else(text: str) -> None:
    async with name_server() as (server, resolver):
        assert await resolved(resolver, text) == [text]
        assert server.asked == []


async def test_an_answer_is_remembered_as_long_as_it_says() -> None:
    async with name_server() as (server, resolver):
        server.records = {("relay.example", "A"): ["203.0.113.1"]}
        for _ in range(3):
            await resolved(resolver, "/dns4/relay.example/tcp/1")
        assert server.asked == [("relay.example", "A")]


async def test_dnsaddr_leads_through_names_to_addresses() -> None:
    async with name_server() as (server, resolver):
        server.dnsaddr("example", "/dnsaddr/eu.example", f"/ip4/203.0.113.9/tcp/9/p2p/{BOB}")
        server.dnsaddr("eu.example", f"/dns4/relay.example/tcp/1/p2p/{ALICE}")
        server.records["relay.example", "A"] = ["203.0.113.1"]
        assert await resolved(resolver, "/dnsaddr/example") == [
            f"/ip4/203.0.113.9/tcp/9/p2p/{BOB}",
            f"/ip4/203.0.113.1/tcp/1/p2p/{ALICE}",
        ]


async def test_with_a_peer_id_only_that_peers_addresses_are_kept() -> None:
    async with name_server() as (server, resolver):
        wanted = f"/ip4/203.0.113.1/udp/1/quic-v1/p2p/{ALICE}"
        server.dnsaddr(
            "example",
            f"/dnsaddr/other.example/p2p/{BOB}",
            f"/ip4/203.0.113.2/tcp/1/p2p/{BOB}",
            "/ip4/203.0.113.3/tcp/1",
            wanted,
        )
        assert await resolved(resolver, f"/dnsaddr/example/p2p/{ALICE}") == [wanted]
        assert server.asked == [("_dnsaddr.example", "TXT")]


async def test_records_that_are_nothing_for_us_do_not_disturb() -> None:
    async with name_server() as (server, resolver):
        wanted = f"/ip4/203.0.113.1/tcp/1/p2p/{ALICE}"
        server.dnsaddr("example", "/ip4/nonsense", "/what/is/this", "", wanted)
        values = server.records["_dnsaddr.example", "TXT"]
        values += ['"v=spf1 -all"', '"\\255\\254"']
        # A long text comes in several strings.
        values.append(f'"dnsaddr=/ip4/203.0.113.2" "/tcp/2/p2p/{BOB}"')
        found = await resolved(resolver, "/dnsaddr/example")
        assert sorted(found) == [wanted, f"/ip4/203.0.113.2/tcp/2/p2p/{BOB}"]


async def test_dnsaddr_in_a_circle_ends() -> None:
    async with name_server() as (server, resolver):
        server.dnsaddr("a.example", "/dnsaddr/b.example")
        server.dnsaddr("b.example", "/dnsaddr/a.example")
        with pytest.raises(UnreachableError, match="more than 4 /dnsaddr in a row"):
            await resolved(resolver, "/dnsaddr/a.example")
        assert len(server.asked) <= 5


async def test_four_names_in_a_row_are_followed_and_no_fifth() -> None:
    async with name_server() as (server, resolver):
        for depth in range(5):
            server.dnsaddr(f"d{depth}.example", f"/dnsaddr/d{depth + 1}.example")
        server.dnsaddr("d5.example", "/ip4/203.0.113.1/tcp/1")
        assert await resolved(resolver, "/dnsaddr/d1.example") == ["/ip4/203.0.113.1/tcp/1"]
        with pytest.raises(UnreachableError):
            await resolved(resolver, "/dnsaddr/d0.example")


async def test_a_record_that_leads_everywhere_costs_a_bounded_number_of_questions() -> None:
    async with name_server(max_questions=20, max_results=10) as (server, resolver):
        for branch in range(10):
            server.dnsaddr("example", f"/dnsaddr/b{branch}.example")
            for leaf in range(10):
                server.dnsaddr(f"b{branch}.example", f"/dnsaddr/l{branch}{leaf}.example")
        with pytest.raises(UnreachableError):
            await resolved(resolver, "/dnsaddr/example")
        assert len(server.asked) <= 20


async def test_results_are_bounded() -> None:
    async with name_server(max_results=7) as (server, resolver):
        server.records["many.example", "A"] = [f"203.0.113.{n}" for n in range(20)]
        assert len(await resolved(resolver, "/dns4/many.example/tcp/1")) == 7
        server.dnsaddr("example", *[f"/ip4/203.0.113.1/tcp/{n}" for n in range(12)])
        assert len(await resolved(resolver, "/dnsaddr/example")) == 7


async def failure(resolver: Resolver, text: str) -> UnreachableError:
    with pytest.raises(UnreachableError) as caught:
        await resolver.resolve(Multiaddr.parse(text))
    assert caught.value.reason == "NAME_NOT_RESOLVED"
    return caught.value


async def test_no_such_name() -> None:
    async with name_server() as (_, resolver):
        error = await failure(resolver, "/dns4/typo.example/udp/4001/quic-v1")
        assert error.message == (
            "the name typo.example in /dns4/typo.example/udp/4001/quic-v1 stands for no address: "
            "A of typo.example: no such name"
        )
        assert "typo.example" in error.remedy
        assert error.metadata["host"] == "typo.example"


async def test_no_such_record() -> None:
    async with name_server() as (server, resolver):
        server.records["v4.example", "A"] = ["203.0.113.1"]
        error = await failure(resolver, "/dns6/v4.example/tcp/1")
        assert "AAAA of v4.example: no such record" in error.message


async def test_a_dnsaddr_without_records_says_which_record_to_make() -> None:
    async with name_server() as (server, resolver):
        error = await failure(resolver, "/dnsaddr/example")
        assert "dig TXT _dnsaddr.example" in error.remedy
        server.dnsaddr("other", f"/ip4/203.0.113.2/tcp/1/p2p/{BOB}")
        error = await failure(resolver, f"/dnsaddr/other/p2p/{ALICE}")
        assert f"ends in /p2p/{ALICE}" in error.remedy


async def test_a_name_server_that_does_not_answer() -> None:
    async with name_server(timeout=0.05, lifetime=0.2) as (server, resolver):
        server.silent = True
        error = await failure(resolver, "/dns4/relay.example/tcp/1")
        assert "A of relay.example: no answer within 0.2 s" in error.message
        assert len(server.asked) > 1


async def test_a_name_server_that_refuses() -> None:
    async with name_server(lifetime=0.3) as (server, resolver):
        server.refusing = True
        error = await failure(resolver, "/dns4/relay.example/tcp/1")
        assert "REFUSED" in error.message


async def test_a_name_server_that_answers_garbage() -> None:
    async with name_server(timeout=0.05, lifetime=0.2) as (server, resolver):
        server.garbage = True
        error = await failure(resolver, "/dns4/relay.example/tcp/1")
        assert "A of relay.example" in error.message


async def test_a_name_server_that_is_not_there() -> None:
    async with name_server() as (server, _):
        address = server.transport.get_extra_info("sockname")
    resolver = Resolver(DnsSettings(nameserver=address, hosts_file=None, lifetime=0.3))
    error = await failure(resolver, "/dns4/relay.example/tcp/1")
    assert "A of relay.example" in error.message


@pytest.mark.parametrize("label", ["a" * 64, "é" * 60, "x..y"])
async def test_a_name_that_cannot_be_asked_for(label: str) -> None:
    async with name_server() as (server, resolver):
        error = await failure(resolver, f"/dns4/{label}/tcp/1")
        assert label in error.message
        assert server.asked == []


async def test_names_outside_ascii() -> None:
    async with name_server() as (server, resolver):
        server.records["xn--bcher-kva.example", "A"] = ["203.0.113.1"]
        found = await resolved(resolver, "/dns4/bücher.example/tcp/1")
        assert found == ["/ip4/203.0.113.1/tcp/1"]


async def test_the_hosts_file_comes_first(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(
        "127.0.0.1 localhost  # this machine\n"
        "::1\tlocalhost ip6-localhost\n"
        "\n# 203.0.113.9 relay\nnonsense relay\n"
        "203.0.113.1 Relay.Example relay\n"
    )
    async with name_server(hosts_file=hosts) as (server, resolver):
        both = ["/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1"]
        assert await resolved(resolver, "/dns/localhost/tcp/1") == both
        assert await resolved(resolver, "/dns4/relay/tcp/1") == ["/ip4/203.0.113.1/tcp/1"]
        assert await resolved(resolver, "/dns4/relay.example./tcp/1") == ["/ip4/203.0.113.1/tcp/1"]
        assert server.asked == []
        server.records["other.example", "A"] = ["203.0.113.2"]
        assert await resolved(resolver, "/dns4/other.example/tcp/1") == ["/ip4/203.0.113.2/tcp/1"]


async def test_an_ip_address_in_place_of_a_name() -> None:
    async with name_server() as (server, resolver):
        assert await resolved(resolver, "/dns4/127.0.0.1/tcp/1") == ["/ip4/127.0.0.1/tcp/1"]
        assert server.asked == []


async def test_cancelling_leaves_nothing_behind() -> None:
    async with name_server() as (server, resolver):
        server.silent = True
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await resolver.resolve(Multiaddr.parse("/dns/relay.example/tcp/1"))
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_many_at_once() -> None:
    async with name_server() as (server, resolver):
        for number in range(50):
            server.records[f"n{number}.example", "A"] = [f"203.0.113.{number}"]
        found = await asyncio.gather(
            *(resolved(resolver, f"/dns4/n{number}.example/tcp/1") for number in range(50))
        )
        assert found == [[f"/ip4/203.0.113.{number}/tcp/1"] for number in range(50)]


def test_starting_does_not_load_the_dns_library() -> None:
    code = (
        "import sys; from dep2p_daemon.discovery.dns import Resolver; Resolver(); "
        "print('dns' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert out == "False\n"
