"""Real daemons in a NAT laboratory: a relay on the internet, alice and bob behind NATs.

    async with lab_daemons("symmetric", "port-restricted") as net:
        done = await net.alice.ctl("dial", net.bob.peer_id)
        net.lab.flush_nat("alice")

`dep2pctl` runs outside: the API's sockets are files, which all network namespaces share. More
nodes, or other flags, by `net.start` and `net.prepare`.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tests.e2e.processes import Daemon, Daemons, daemons
from tests.natlab.impairment import Impairment
from tests.natlab.lab import Lab
from tests.natlab.topology import is_ipv6

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from tests.e2e.processes import Done

RELAY_PORT: Final = 4001
LINK: Final = Impairment(delay_ms=20)
RESERVED_SECONDS: Final = 30
ECHO: Final = "/dep2p/echo/1.0.0"


@dataclass
class LabNet:
    """A laboratory and the daemons in it, by the name of the node each runs in."""

    lab: Lab
    daemons: Daemons
    nodes: dict[str, Daemon] = field(default_factory=dict)

    @property
    def relay(self) -> Daemon:
        """On the internet, with the addresses of the node "relay"."""
        return self.nodes["relay"]

    @property
    def alice(self) -> Daemon:
        """Behind the first NAT."""
        return self.nodes["alice"]

    @property
    def bob(self) -> Daemon:
        """Behind the second."""
        return self.nodes["bob"]

    def prepare(self, node: str, *flags: str) -> Daemon:
        """Return a daemon for a node of the laboratory, listening on all interfaces there."""
        daemon = self.daemons.prepare(node, *flags)
        daemon.prefix = self.lab.command(node)
        daemon.listen = ""
        self.nodes[node] = daemon
        return daemon

    async def start(self, node: str, *flags: str) -> Daemon:
        """Start a daemon in a node and wait until it is ready."""
        daemon = self.prepare(node, *flags)
        await daemon.start()
        return daemon

    async def start_relay(self, node: str = "relay", *flags: str) -> Daemon:
        """Start a relay in a public node, on a port that outlives it."""
        return await self.start(node, "--preset=relay", f"--port={RELAY_PORT}", *flags)

    def relay_addresses(self, client: str, relay: str = "relay") -> list[str]:
        """A relay's addresses, QUIC and TCP, of the families of IP that a node has."""
        peer_id = self.nodes[relay].peer_id
        families = {is_ipv6(address) for address in self.lab.addresses(client)}
        found = []
        for ipv6 in sorted(families):
            host = f"/ip6/{self.lab.address6(relay)}" if ipv6 else f"/ip4/{self.lab.address(relay)}"
            found += [
                f"{host}/{transport}/p2p/{peer_id}"
                for transport in (f"udp/{RELAY_PORT}/quic-v1", f"tcp/{RELAY_PORT}")
            ]
        return found

    async def start_client(
        self, node: str, *flags: str, relays: Iterable[str] = ("relay",)
    ) -> Daemon:
        """Start a daemon that uses these relays, and wait until it holds a reservation."""
        addresses = [address for relay in relays for address in self.relay_addresses(node, relay)]
        daemon = await self.start(node, *(f"--relay={address}" for address in addresses), *flags)
        done = await daemon.ctl("wait", "relay", f"--timeout={RESERVED_SECONDS}s")
        assert done.code == 0, f"{node} has no reservation: {done.stderr}\n{daemon.log_tail()}"
        return daemon

    def circuit(self, client: str, target: str, relay: str = "relay") -> str:
        """The address at which a node dials another through a relay."""
        return (
            f"{self.relay_addresses(client, relay)[0]}/p2p-circuit/p2p/{self.nodes[target].peer_id}"
        )

    async def echo(self, client: str, target: str, text: bytes = b"Hello via Relay!") -> Done:
        """Have a target, a peer id or an address, echo a text to a node; it must."""
        done = await self.nodes[client].ctl("stream", target, ECHO, stdin=text)
        assert (done.code, done.stdout) == (0, text), done.stderr
        return done

    async def connections(self, node: str, peer: str = "") -> list[dict[str, Any]]:
        """What `dep2pctl connections` says in a node, of all peers or one."""
        listed = await self.nodes[node].ctl_json("connections", *([peer] if peer else []))
        connections: list[dict[str, Any]] = listed["connections"]
        return connections


@contextlib.asynccontextmanager
async def laboratory(
    a: str | None,
    b: str | None,
    *,
    link: Impairment = LINK,
    links: Mapping[str, Impairment] | None = None,
    **options: Any,
) -> AsyncIterator[LabNet]:
    """A laboratory without daemons yet; `options` are those of `Lab`. All ends with the block."""
    lab = Lab(a, b, link=link, links=links, **options)
    await asyncio.to_thread(lab.up)
    try:
        async with daemons() as start:
            net = LabNet(lab, start)
            try:
                yield net
            finally:  # not in order: the laboratory's tests are about the network
                await asyncio.gather(*(each.kill() for each in start.all if each.started))
    finally:
        await asyncio.to_thread(lab.down)


@contextlib.asynccontextmanager
async def lab_daemons(a: str, b: str, **options: Any) -> AsyncIterator[LabNet]:
    """The same with a relay, and alice and bob who hold reservations at it."""
    async with laboratory(a, b, **options) as net:
        await net.start_relay()
        await asyncio.gather(net.start_client("alice"), net.start_client("bob"))
        yield net
