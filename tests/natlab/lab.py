"""`Lab`: a NAT laboratory for tests.

    with Lab(a="port-restricted", b="symmetric", link=Impairment(delay_ms=20)) as lab:
        lab.popen("alice", ["mydaemon", "--relay", lab.address("relay")])

README.md beside this file has the kinds, the addresses and the traps.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import struct
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final, Self

from tests.natlab import keeper, kinds, lifecycle, namespaces, rules
from tests.natlab.impairment import Impairment
from tests.natlab.namespaces import NatlabError
from tests.natlab.plan import Process, load
from tests.natlab.topology import LAN, SERVER, Options, is_ipv6, make_plan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from tests.natlab.keeper import Keeper
    from tests.natlab.plan import Plan

_NETLINK_NETFILTER: Final = 12


class Lab:
    """A laboratory. A context manager, or call `up` and `down`.

    a, b: the places of alice and bob (see `Place`); None leaves the host out.
    carol: add carol, a second public host.
    hosts: more of them: {"dave": "symmetric", "erin": "@dave"}.
    link, links: the access links, of every host but relay and carol, and by host.
    The other options are those of `topology.Options`.
    """

    def __init__(
        self,
        a: str | None = "port-restricted",
        b: str | None = "port-restricted",
        *,
        carol: bool = False,
        hosts: Mapping[str, str] | None = None,
        link: Impairment | None = None,
        links: Mapping[str, Impairment] | None = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        places = {host: place for host, place in (("alice", a), ("bob", b)) if place is not None}
        if hosts and hosts.keys() & (places.keys() | {"relay", "carol"}):
            raise NatlabError("alice, bob, relay and carol have their own options")
        places |= dict(hosts or {}) | {"relay": SERVER} | ({"carol": SERVER} if carol else {})
        asked = Options(
            places=places, link=link or Impairment(), links=dict(links or {}), **options
        )
        self._adopt(make_plan(name or f"p{os.getpid()}x{os.urandom(3).hex()}", asked))

    def _adopt(self, plan: Plan) -> None:
        self.plan = plan
        self._keeper: Keeper | None = None
        self._up = False
        self._pid = os.getpid()
        self._processes: list[subprocess.Popen[Any]] = []
        self._sockets: list[socket.socket] = []

    @classmethod
    def attach(cls, name: str) -> Self:
        """The laboratory of that name, which another process made."""
        self = cls.__new__(cls)
        self._adopt(load(name))
        return self

    @property
    def name(self) -> str:
        """What `attach` finds it by."""
        return self.plan.name

    # -- life

    def up(self, *, owned: bool = True) -> Self:
        """Build it; when `owned`, it goes with this process, even if that is killed.

        Raises:
            NatlabError: it cannot be built, and why.
        """
        namespaces.require()
        lifecycle.collect_stale()
        self._keeper = lifecycle.build(self.plan, Process.of(os.getpid()) if owned else None)
        self._up = True
        if owned:
            atexit.register(self._at_exit)
        return self

    def down(self) -> None:
        """Take it down and end every process in it. Idempotent."""
        if not self._up:
            return
        self._up = False
        atexit.unregister(self._at_exit)
        for each in self._sockets:
            each.close()
        for process in self._processes:  # our children are reaped here, or would stay zombies
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + lifecycle.GRACE_SECONDS
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        lifecycle.destroy(self.name, self._keeper)
        self._keeper = None

    def _at_exit(self) -> None:
        if os.getpid() == self._pid:  # not in a forked child
            self.down()

    def __enter__(self) -> Self:
        return self.up()

    def __exit__(self, *exc_info: object) -> None:
        self.down()

    # -- what is where

    def namespace(self, node: str) -> str:
        """The network namespace of a node."""
        return self.plan.node(node).namespace

    def command(self, node: str) -> tuple[str, ...]:
        """Put before a command to run it in that node; the pid is then the command's own."""
        return ("ip", "netns", "exec", self.namespace(node))

    def addresses(self, node: str) -> list[str]:
        """A node's own addresses, IPv4 first; relay has two of each."""
        return list(self.plan.node(node).addresses)

    def address(self, node: str) -> str:
        """Its first: IPv4 unless it has none, private if it is behind a NAT."""
        return self.plan.node(node).addresses[0]

    def address6(self, node: str) -> str:
        """Its first IPv6 address."""
        for address in self.plan.node(node).addresses:
            if is_ipv6(address):
                return address
        raise NatlabError(f"{node} has no IPv6 address")

    def public_address(self, node: str) -> str:
        """The address the internet sees for this node."""
        return (self.plan.node(node).public or self.plan.node(node).addresses)[0]

    # -- doing things inside

    def popen(self, node: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """`subprocess.Popen` in a node; it ends with the laboratory."""
        process: subprocess.Popen[Any] = subprocess.Popen([*self.command(node), *argv], **options)
        self._processes.append(process)
        return process

    def run(self, node: str, argv: Sequence[str], **options: Any) -> Any:
        """`subprocess.run` in a node."""
        return subprocess.run([*self.command(node), *argv], check=False, **options)

    def inside(self, node: str) -> AbstractContextManager[None]:
        """Have the calling thread, and no other, in a node during the block."""
        return namespaces.inside(self.namespace(node))

    def socket(
        self,
        node: str,
        kind: socket.SocketKind = socket.SOCK_DGRAM,
        *,
        bind: tuple[str, int] | None = None,
    ) -> socket.socket:
        """A socket of the node, of the family of its first address, used from this process.

        Closed with the laboratory.
        """
        address = bind[0] if bind and bind[0] else self.address(node)
        family = socket.AF_INET6 if is_ipv6(address) else socket.AF_INET
        with self.inside(node):
            made = socket.socket(family, kind)
        self._sockets.append(made)
        if kind == socket.SOCK_STREAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if bind is not None:
            made.bind(bind)
        return made

    # -- changing things while it runs

    def set_link(self, host: str, change: Impairment) -> None:
        """Change the access link of a host now: Impairment(loss_pct=100) cuts it.

        The link must have been made with some impairment; delay_ms=0 will do.
        """
        if change.mtu is not None:
            raise NatlabError("mtu cannot change while the lab is up")
        link = self.plan.node(host).link
        if link not in self.plan.links:
            raise NatlabError(f"{host!r} has no access link; use a host")
        if not self.plan.links[link].emulated:
            raise NatlabError(
                f"the link of {host!r} is a plain wire; bring the lab up with a link option for "
                "it (delay 0 will do) to change it later"
            )
        self.plan.links[link] = change.over(self.plan.links[link])
        keeper.ask(self.plan, link=link, impairment=self.plan.links[link].given())
        self.plan.save()

    def link_counters(self) -> dict[str, Any]:
        """Packets of each emulated link, up and down: sent, lost, overflowed, queued."""
        if not any(wire.emulated for wire in self.plan.wires):
            return {}
        counters: dict[str, Any] = keeper.ask(self.plan)
        return counters

    def move(self, host: str, beside: str) -> None:
        """Plug a host behind an IPv4 NAT into another one's LAN, as a laptop changes its Wi-Fi.

        It gets an address there, and the default route; connections do not notice by themselves.
        """
        node, neighbour = self.plan.node(host), self.plan.node(beside)
        wires = [wire for wire in self.plan.wires if wire.node == host and wire.lan]
        if not wires or not neighbour.boxes or any(map(is_ipv6, neighbour.addresses)):
            raise NatlabError(f"{host} cannot move to {beside}: both need an IPv4 NAT")
        old, new = self.plan.node(wires[0].router), self.plan.node(neighbour.boxes[0])
        network = neighbour.addresses[0].rpartition(".")[0]
        address = f"{network}.{100 + list(self.plan.places).index(host)}"
        namespaces.ip_batch(old.namespace, [f"link set {host} netns {new.namespace}"])
        namespaces.ip_batch(new.namespace, [f"link set {host} master {LAN} up"])
        namespaces.ip_batch(
            node.namespace,
            [
                "addr flush dev eth0",
                f"addr add {address}/24 dev eth0",
                f"route add default via {network}.1",
            ],
        )
        wires[0].router = neighbour.boxes[0]
        node.boxes, node.link, node.addresses = neighbour.boxes[:], neighbour.link, [address]
        node.public = neighbour.public[:1]
        self.plan.save()

    def flush_nat(self, host: str) -> None:
        """Have every NAT and firewall on the way out forget everything, like a reboot."""
        for box in self.plan.boxes_of(host):
            node = self.plan.node(box)
            if program := rules.forget(node.kind):
                namespaces.run(["nft", "-f", "-"], stdin=program, namespace=node.namespace)
            with self.inside(box):
                _flush_conntrack()

    def map_port(self, host: str, protocol: str, port: int, inside_port: int) -> None:
        """Have the home's box send on what comes at its external port, as UPnP would.

        For IPv6 it is a pinhole, and `port` means nothing. A flush ends it, as does `unmap_port`.
        """
        box, inside = self._home(host, inside_port)
        node = self.plan.node(box)
        command, space = ["nft", "-f", "-"], node.namespace
        namespaces.run(command, stdin=rules.map_port(protocol, port, inside), namespace=space)
        if kinds.KINDS[node.kind].mapping is kinds.Mapping.ENDPOINT_INDEPENDENT:
            # Refused where the socket has sent before: its packets go on leaving as they did.
            program = rules.leave_from(protocol, node.addresses[0], port, inside)
            namespaces.attempt(command, stdin=program, namespace=space)

    def unmap_port(self, host: str, protocol: str, port: int, inside_port: int) -> None:
        """End what `map_port` began; what has been let in stays until it is idle."""
        box, inside = self._home(host, inside_port)
        node = self.plan.node(box)
        program = rules.unmap_port(protocol, port, inside)
        namespaces.run(["nft", "-f", "-"], stdin=program, namespace=node.namespace)

    def _home(self, host: str, port: int) -> tuple[str, tuple[str, int]]:
        boxes = self.plan.boxes_of(host)
        if not boxes or self.plan.node(boxes[0]).kind == "masquerade":
            raise NatlabError(f"{host} is behind no box that maps ports")
        return boxes[0], (self.address(host), port)

    def nat_table(self, host: str) -> dict[str, list[str]]:
        """The conntrack entries of every NAT and firewall on the way out, by box."""
        tables = {}
        for box in self.plan.boxes_of(host):
            with self.inside(box), open("/proc/thread-self/net/nf_conntrack") as file:
                tables[box] = file.read().splitlines()
        return tables


def _flush_conntrack() -> None:
    with contextlib.closing(
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    ) as netlink:
        # nlmsghdr with CTNETLINK and CT_DELETE, no attributes: all of it; then nfgenmsg.
        header = struct.pack("=IHHII", 20, (1 << 8) | 2, 1 | 4, 1, 0)
        netlink.send(header + struct.pack("=BBH", socket.AF_UNSPEC, 0, 0))
        code = struct.unpack_from("=i", netlink.recv(4096), 16)[0]
    if code:
        raise NatlabError(f"conntrack flush failed: {os.strerror(-code)}")
