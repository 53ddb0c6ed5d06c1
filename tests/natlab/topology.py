"""From options to a plan: which nodes there are, their addresses, routes and cables. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import IPv6Address, IPv6Network
from typing import Final

from tests.natlab import rules
from tests.natlab.impairment import MTU, Impairment
from tests.natlab.kinds import IPV6_FIREWALL, Place
from tests.natlab.namespaces import NatlabError
from tests.natlab.plan import MAC_NODE, MAC_ROUTER, Node, Plan, Wire

SERVER: Final = "server"
"""The place of relay and carol."""
LAN: Final = "lan"
"""The bridge in a home's NAT."""
IPV6_MIN_MTU: Final = 1280
_RESERVED: Final = ("inet", "lan", "wan", "lo", "hp0", "hp1")
_MAX_HOSTS: Final = 99
_ROUTER_SYSCTLS: Final = {
    "net.ipv4.ip_forward": 1,
    "net.ipv4.conf.all.send_redirects": 0,
    "net.ipv4.conf.default.send_redirects": 0,
    "net.ipv4.conf.all.rp_filter": 0,
    "net.ipv4.conf.default.rp_filter": 0,
}
_IPV6_SYSCTLS: Final = {  # addresses are usable at once, and nothing configures itself
    "net.ipv6.conf.default.accept_dad": 0,
    "net.ipv6.conf.default.accept_ra": 0,
    "net.ipv6.conf.default.router_solicitations": 0,
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a laboratory can be asked for."""

    places: dict[str, str]
    """By host, in the order of their numbers; SERVER for relay and carol."""
    link: Impairment = field(default_factory=Impairment)
    """Of every host but relay and carol."""
    links: dict[str, Impairment] = field(default_factory=dict)
    """The same by host; what it leaves open is as in `link`."""
    nat_timeout: int = 120
    """Seconds after which an idle UDP mapping is forgotten."""
    hairpin: bool | frozenset[str] = False
    """Whether NATs hairpin, or the names of those that do."""
    preserve_ports: bool = False
    """Cone NATs keep the port number where they can."""
    overlap: bool = False
    """All LANs are 192.168.1.0/24."""
    public_nets: tuple[str, str] = ("45.8.1.0/24", "45.8.2.0/24")
    public_net6: str = "2a0e:aaaa::/32"
    seed: int | None = None
    """Of loss, jitter and reordering."""


@dataclass
class _Home:
    """A LAN behind a box."""

    box: str
    lan: str = ""
    lan6: str = ""
    carrier: str = ""
    link: str = ""
    hosts: int = 0


@dataclass
class _Carrier:
    """The network between a carrier NAT and the homes behind it."""

    inner: str
    homes: int = 0


def is_ipv6(address: str) -> bool:
    """Whether an address, or a network, is of IPv6."""
    return ":" in address


class _Topology:
    def __init__(self, name: str, options: Options) -> None:
        self.options = options
        self.plan = Plan(name=name, places=dict(options.places), seed=options.seed)
        self.net1, self.net2 = (net.rpartition(".")[0] for net in options.public_nets)
        self.homes: dict[str, _Home] = {}
        """By host in it."""
        self.carriers: dict[str, _Carrier] = {}
        self.gateways = [f"{self.net1}.1", self.ipv6(0, 1)]

    def ipv6(self, network: int, host: int) -> str:
        """Decimal digits, as in the IPv4 address: network 2, host 101 is PREFIX:2::101."""
        base = int(IPv6Network(self.options.public_net6).network_address)
        return str(IPv6Address(base | int(str(network), 16) << 80 | int(str(host), 16)))

    # -- parts

    def add(self, name: str, role: str, *, ipv6: bool, kind: str = "") -> Node:
        node = Node(namespace=f"natlab-{self.plan.name}-{name}", role=role, kind=kind)
        node.ip.append("link set lo up")
        if ipv6:
            node.sysctls |= _IPV6_SYSCTLS
        else:
            node.sysctls["?net.ipv6.conf.default.disable_ipv6"] = 1
        if role != "host":
            node.sysctls |= _ROUTER_SYSCTLS
            if ipv6:
                node.sysctls["net.ipv6.conf.all.forwarding"] = 1
        if role == "nat":
            # Absent where br_netfilter is not there.
            node.sysctls["?net.bridge.bridge-nf-call-iptables"] = 0
            for key in ("udp_timeout", "udp_timeout_stream"):
                node.sysctls[f"net.netfilter.nf_conntrack_{key}"] = self.options.nat_timeout
        self.plan.nodes[name] = node
        return node

    def impairment(self, host: str) -> Impairment:
        general = Impairment() if self.plan.places[host] == SERVER else self.options.link
        return self.options.links.get(host, Impairment()).over(general)

    def wire(
        self,
        router: str,
        gateways: list[str],
        name: str,
        device: str,
        addresses: dict[str, bool],
        *,
        link: str = "",
    ) -> None:
        """A cable to `name`, which owns those of `addresses` that are True."""
        impairment = self.impairment(link) if link else Impairment()
        mtu = impairment.mtu or MTU
        cable = Wire(
            router=router,
            router_device=name,
            node=name,
            device=device,
            link=link,
            emulated=impairment.emulated,
            mtu=mtu,
        )
        self.plan.wires.append(cable)
        if link:
            self.plan.links[link] = impairment
        near, far = self.plan.nodes[name].ip, self.plan.nodes[router].ip
        queue = " txqueuelen 10000" if cable.emulated else ""
        near.append(f"link set {device} mtu {mtu}{queue} up")
        far.append(f"link set {name} mtu {mtu}{queue} up")
        for address, own in addresses.items():
            if own:
                near.append(f"addr add {_host_route(address)} dev {device}{_no_detection(address)}")
            if not cable.emulated:  # fixed neighbours: nothing is resolved on the wire
                far.append(f"neigh replace {address} lladdr {MAC_NODE} dev {name} nud permanent")
        for gateway in gateways:
            family = [a for a in addresses if is_ipv6(a) == is_ipv6(gateway)]
            if not family:
                continue
            if not cable.emulated:
                near.append(
                    f"neigh replace {gateway} lladdr {MAC_ROUTER} dev {device} nud permanent"
                )
            source = f" src {family[0]}" if addresses[family[0]] else ""
            everything = "::/0" if is_ipv6(gateway) else "0.0.0.0/0"
            near.append(f"route add {everything} via {gateway} dev {device} onlink{source}")
            far += [f"route add {_host_route(a)} dev {name} src {gateway}" for a in family]

    # -- hosts

    def public_host(self, host: str, addresses: list[str]) -> None:
        if (self.impairment(host).mtu or MTU) < IPV6_MIN_MTU:
            addresses = [address for address in addresses if not is_ipv6(address)]
        node = self.add(host, "host", ipv6=True)
        node.addresses, node.public, node.link = addresses, addresses[:], host
        self.wire("inet", self.gateways, host, "eth0", dict.fromkeys(addresses, True), link=host)

    def box(
        self,
        name: str,
        kind: str,
        external: list[str],
        *,
        router: str = "inet",
        gateways: list[str] | None = None,
        link: str = "",
    ) -> None:
        """A NAT if `external` has an IPv4 address, an IPv6 firewall if it has one of IPv6."""
        options = self.options
        ipv6 = any(map(is_ipv6, external))
        node = self.add(name, "nat", ipv6=ipv6, kind=kind)
        node.addresses = external
        own = {address: is_ipv6(address) or kind == "masquerade" for address in external}
        self.wire(router, gateways or self.gateways, name, "wan", own, link=link)
        if ipv6:
            node.nft += rules.IPV6_FIREWALL
        if kind == IPV6_FIREWALL:
            return
        address = external[0]
        node.nft += rules.nat(
            kind, address, options.nat_timeout, preserve_ports=options.preserve_ports
        )
        if kind == "masquerade":
            return
        hairpin = options.hairpin if isinstance(options.hairpin, bool) else name in options.hairpin
        if hairpin:
            # Packets to our own external address go round a veth loop, so that the kernel
            # translates them twice: once as the sender, once as the receiver.
            node.ip += [
                f"link add hp0 address {MAC_NODE} type veth peer name hp1 address {MAC_ROUTER}",
                "link set hp0 up",
                "link set hp1 up",
                f"route add {address}/32 dev hp0",
                f"neigh replace {address} lladdr {MAC_ROUTER} dev hp0 nud permanent",
            ]
        else:
            node.ip.append(f"route add blackhole {address}/32")

    def home(self, host: str, number: int, place: Place) -> _Home:
        """The host's own LAN, and the boxes between it and the internet."""
        short = {"alice": "a", "bob": "b"}.get(host, host)
        public, public6 = f"{self.net2}.{100 + number}", self.ipv6(2, 100 + number)
        home = _Home(f"nat-{short}", link=host)
        if place.other:
            home.carrier = self._carrier_of(host, place.other)
        elif len(place.nats) == 2:
            home.carrier = f"cgn-{short}"
            self.box(home.carrier, place.nats[1], [public])
            inner = f"100.64.{number}"
            self.carriers[home.carrier] = _Carrier(inner)
            self.plan.nodes[home.carrier].ip.append(f"addr add {inner}.1/32 dev lo")
        if home.carrier:
            carrier = self.carriers[home.carrier]
            carrier.homes += 1
            self.box(
                home.box,
                place.nats[0],
                [f"{carrier.inner}.{9 + carrier.homes}"],
                router=home.carrier,
                gateways=[f"{carrier.inner}.1"],
                link=host,
            )
        else:
            external = [*([public] if place.nats else []), *([public6] if place.ipv6 else [])]
            kind = place.nats[0] if place.nats else IPV6_FIREWALL
            self.box(home.box, kind, external, link=host)
        node = self.plan.nodes[home.box]
        node.ip += [f"link add {LAN} type bridge mcast_snooping 0", f"link set {LAN} up"]
        if place.nats:
            home.lan = "192.168.1" if self.options.overlap else f"192.168.{number}"
            node.ip.append(f"addr add {home.lan}.1/24 dev {LAN}")
        if place.ipv6:
            if (self.impairment(host).mtu or MTU) < IPV6_MIN_MTU:
                raise NatlabError(f"host {host}: IPv6 needs an mtu of {IPV6_MIN_MTU} or more")
            network = 1000 + number
            home.lan6 = self.ipv6(network, 0)
            node.ip.append(f"addr add {self.ipv6(network, 1)}/64 dev {LAN} nodad")
            self.plan.nodes["inet"].ip.append(
                f"route add {home.lan6}/64 via {public6} dev {home.box}"
            )
        return home

    def _carrier_of(self, host: str, other: str) -> str:
        home = self.homes.get(other)
        if home is None or not home.carrier:
            raise NatlabError(f"host {host}: {other} has no carrier NAT")
        return home.carrier

    def lan_host(self, host: str, home: _Home) -> None:
        """A host on that LAN."""
        self.homes[host] = home
        home.hosts += 1
        last = 9 + home.hosts
        node = self.add(host, "host", ipv6=bool(home.lan6))
        node.boxes = [home.box, *([home.carrier] if home.carrier else [])]
        node.link = home.link
        self.plan.wires.append(
            Wire(router=home.box, router_device=host, node=host, device="eth0", lan=True)
        )
        self.plan.nodes[home.box].ip.append(f"link set {host} master {LAN} up")
        node.ip.append("link set eth0 up")
        if home.lan:
            node.addresses.append(f"{home.lan}.{last}")
            node.public.append(self.plan.nodes[node.boxes[-1]].addresses[0])
            node.ip += [
                f"addr add {home.lan}.{last}/24 dev eth0",
                f"route add default via {home.lan}.1",
            ]
        if home.lan6:
            address = f"{home.lan6}{last}"
            node.addresses.append(address)
            node.public.append(address)
            node.ip += [
                f"addr add {address}/64 dev eth0 nodad",
                f"route add ::/0 via {home.lan6}1 dev eth0",
            ]

    def host(self, host: str, number: int, text: str) -> None:
        if text == SERVER:
            networks = ((self.net1, 1), (self.net2, 2)) if host == "relay" else ((self.net1, 1),)
            last = 10 if host == "relay" else 20
            ipv4 = [f"{net}.{last}" for net, _ in networks]
            self.public_host(host, [*ipv4, *(self.ipv6(net, last) for _, net in networks)])
            return
        place = Place.parse(text)
        if place.other and place.other not in self.plan.nodes:
            raise NatlabError(f"host {host}: {text!r} names no earlier host")
        if place.nats or place.ipv6:
            self.lan_host(host, self.home(host, number, place))
        elif place.other is None:
            self.public_host(host, [f"{self.net2}.{100 + number}", self.ipv6(2, 100 + number)])
        elif place.other not in self.homes:
            raise NatlabError(f"host {host}: {place.other} is not behind a NAT, so it has no LAN")
        elif host in self.options.links:
            raise NatlabError(f"host {host} shares the access link of {place.other}; set it there")
        else:
            self.lan_host(host, self.homes[place.other])


def _no_detection(address: str) -> str:
    """Of duplicates: the address is usable at once."""
    return " nodad" if is_ipv6(address) else ""


def _host_route(address: str) -> str:
    return f"{address}/128" if is_ipv6(address) else f"{address}/32"


def make_plan(name: str, options: Options) -> Plan:
    """Turn options into a plan.

    Raises:
        NatlabError: what is wrong with the options.
    """
    for net in options.public_nets:
        if not re.fullmatch(r"(\d{1,3}\.){3}0/24", net):
            raise NatlabError(f"{net!r} is no network like 45.8.1.0/24")
    if not re.fullmatch(r"[0-9a-f]{1,4}:[0-9a-f]{1,4}::/32", options.public_net6):
        raise NatlabError(f"{options.public_net6!r} is no network like 2a0e:aaaa::/32")
    if not re.fullmatch(r"[a-z0-9_]{1,40}", name):
        raise NatlabError(f"bad lab name {name!r}: up to 40 of a-z 0-9 _")
    if options.nat_timeout < 1:
        raise NatlabError("nat_timeout must be 1 second or more")
    if len(options.places) > _MAX_HOSTS:
        raise NatlabError(f"too many hosts ({_MAX_HOSTS} at most)")
    for host in options.links:
        if host not in options.places:
            raise NatlabError(f"link option for unknown host {host!r}")
    topology = _Topology(name, options)
    inet = topology.add("inet", "router", ipv6=True)
    inet.addresses = topology.gateways
    inet.ip += [
        f"addr add {_host_route(address)} dev lo{_no_detection(address)}"
        for address in topology.gateways
    ]
    for number, (host, text) in enumerate(options.places.items(), 1):
        if not re.fullmatch(r"[a-z][a-z0-9]{0,9}", host) or host in _RESERVED:
            raise NatlabError(
                f"bad host name {host!r}: up to 10 of a-z 0-9, and not a reserved word"
            )
        topology.host(host, number, text)
    if not isinstance(options.hairpin, bool):
        for box in options.hairpin:
            if topology.plan.nodes.get(box, inet).role != "nat":
                raise NatlabError(f"hairpin: {box!r} is not a NAT of this lab")
    return topology.plan
