"""Multiaddrs, in text and in binary.

https://github.com/multiformats/multiaddr

Binary: each component is the varint of its protocol's code and its value, which is of fixed
size or follows its varint length.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from typing_extensions import override

from dep2p_daemon.errors import MultiaddrError
from dep2p_daemon.identity.peer_id import PeerId
from dep2p_daemon.multiaddr import codes
from dep2p_daemon.multiaddr.component import Component, decode_component

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_COMPONENTS: Final = 64
"""Ours: a circuit over WebTransport has about a dozen."""

MAX_BYTES: Final = 4096
"""Ours: as long as the longest message that carries one."""

MAX_TEXT_CHARS: Final = 2 * MAX_BYTES

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
TransportName: TypeAlias = Literal["quic-v1", "tcp", "circuit"]

IPV6_SITE_BITS: Final = 64
"""One subscriber has a /64, and as many addresses in it as it likes."""

_IPS: Final = frozenset({"ip4", "ip6"})
_DNS: Final = frozenset({"dns", "dns4", "dns6", "dnsaddr"})
_HOSTS: Final = _IPS | _DNS
_TRANSPORTS: Final[dict[tuple[str, ...], TransportName]] = {
    ("udp", "quic-v1"): "quic-v1",
    ("tcp",): "tcp",
}
"""What follows the host of an address that can be dialled directly."""

_PRIVATE: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
)
_HOST_AND_PORT: Final = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[\w.-]{1,253}):(?P<port>\d{1,5})")
_FORM: Final = "write it like /ip4/203.0.113.10/udp/4001/quic-v1"


@dataclass(frozen=True, slots=True, repr=False, order=True)
class Multiaddr:
    """An address as a path of protocols. Immutable; equal when the binary forms are equal.

    An address may be empty (its text is "/"): that is what is left of `/p2p/X` without its
    peer id. Texts and bytes that come from outside are never empty.
    """

    _data: bytes = b""
    _components: tuple[Component, ...] = field(default=(), compare=False)

    @classmethod
    def parse(cls, text: str) -> Multiaddr:
        """Parse the text form.

        Raises:
            MultiaddrError: names the component that is wrong and shows its right form.
        """
        if len(text) > MAX_TEXT_CHARS:
            raise _too_long(f"{len(text)} characters", MAX_TEXT_CHARS)
        if not text.startswith("/"):
            raise _no_slash(text)
        parts = text[1:].removesuffix("/").split("/")
        components: list[Component] = []
        index = 0
        while index < len(parts):
            name = parts[index]
            protocol = codes.BY_NAME.get(name)
            if protocol is None:
                raise _unknown_name(text, name)
            index += 1
            data = b""
            if protocol.codec is not None:
                if index == len(parts):
                    raise _bad_value(text, protocol, "", "has no value")
                value = "/" + "/".join(parts[index:]) if protocol.is_path else parts[index]
                try:
                    data = protocol.codec.to_bytes(value)
                except ValueError as error:
                    raise _bad_value(text, protocol, value, str(error)) from error
                index = len(parts) if protocol.is_path else index + 1
            components.append(Component(protocol, data))
            if len(components) > MAX_COMPONENTS:
                raise _too_many()
        return cls._of(components)

    @classmethod
    def from_bytes(cls, data: bytes) -> Multiaddr:
        """Parse the binary form.

        Raises:
            MultiaddrError: cut off, too long, of an unknown protocol or with a bad value.
        """
        data = bytes(data)
        if not data:
            raise MultiaddrError("the multiaddr is empty", remedy=_FORM)
        if len(data) > MAX_BYTES:
            raise _too_long(f"{len(data)} bytes", MAX_BYTES)
        components: list[Component] = []
        offset = 0
        while offset < len(data):
            if len(components) == MAX_COMPONENTS:
                raise _too_many()
            component, offset = decode_component(data, offset)
            components.append(component)
            if component.protocol.is_path and offset < len(data):
                raise MultiaddrError(
                    f"/{component.protocol.name} is not the last component of a multiaddr",
                    component=component.protocol.name,
                )
        return cls._of(components)

    @classmethod
    def for_udp(cls, host: str | IpAddress, port: int) -> Multiaddr:
        """Return `/ip4|ip6/<host>/udp/<port>/quic-v1`. Raises MultiaddrError.

        An IPv4 address in IPv6 form becomes IPv4; `fe80::1%eth0` gets its `/ip6zone`.
        """
        return cls.parse(f"{_ip_text(host)}/udp/{port}/quic-v1")

    @classmethod
    def for_tcp(cls, host: str | IpAddress, port: int) -> Multiaddr:
        """Return `/ip4|ip6/<host>/tcp/<port>`, as `for_udp` does. Raises MultiaddrError."""
        return cls.parse(f"{_ip_text(host)}/tcp/{port}")

    @classmethod
    def _of(cls, components: Iterable[Component]) -> Multiaddr:
        components = tuple(components)
        return cls(b"".join(component.encode() for component in components), components)

    def to_bytes(self) -> bytes:
        """Return the binary form."""
        return self._data

    def __bytes__(self) -> bytes:
        return self._data

    @override
    def __str__(self) -> str:
        return "".join(map(str, self._components)) or "/"

    @override
    def __repr__(self) -> str:
        return f"Multiaddr({self})"

    def __truediv__(self, other: Multiaddr | str) -> Multiaddr:
        """Append `other`. Raises MultiaddrError when its text does not parse."""
        if isinstance(other, str):
            other = Multiaddr.parse(other)
        if len(self._components) + len(other._components) > MAX_COMPONENTS:
            raise _too_many()
        return self._of(self._components + other._components)

    @property
    def components(self) -> tuple[Component, ...]:
        """The components in order."""
        return self._components

    @property
    def protocols(self) -> tuple[str, ...]:
        """The protocols' names in order."""
        return tuple(component.protocol.name for component in self._components)

    def value(self, name: str) -> str | None:
        """Return the value, in text, of the first component of that name."""
        for component in self._components:
            if component.protocol.name == name:
                return component.text
        return None

    @property
    def peer_id(self) -> PeerId | None:
        """The peer that the address ends in (`.../p2p/<id>`), else None."""
        if self._components and self._components[-1].protocol.name == "p2p":
            return PeerId.from_bytes(self._components[-1].data)
        return None

    def without_peer_id(self) -> Multiaddr:
        """Return the address without the `/p2p` that it ends in, if it does."""
        return self if self.peer_id is None else self._of(self._components[:-1])

    def with_peer_id(self, peer: PeerId) -> Multiaddr:
        """Return the address ending in `/p2p/<peer>`, in place of another one it ended in."""
        if self.peer_id == peer:
            return self
        last = Component(codes.BY_NAME["p2p"], bytes(peer))
        return self._of((*self.without_peer_id()._components, last))

    @property
    def is_circuit(self) -> bool:
        """Whether the address goes through a relay."""
        return "p2p-circuit" in self.protocols

    def split_circuit(self) -> tuple[Multiaddr, Multiaddr]:
        """Return what is before `/p2p-circuit`, ending in the relay's `/p2p`, and after it.

        Raises:
            MultiaddrError: no circuit, more than one, or the relay's peer id is missing.
        """
        count = self.protocols.count("p2p-circuit")
        if count != 1:
            raise MultiaddrError(
                f"{self} has {count} components /p2p-circuit, where one is needed",
                reason="CIRCUIT_INVALID",
                remedy="write /<relay's address>/p2p/<relay's id>/p2p-circuit/p2p/<target's id>",
                address=self,
            )
        at = self.protocols.index("p2p-circuit")
        relay = self._of(self._components[:at])
        if relay.peer_id is None:
            raise MultiaddrError(
                f"{self} is missing the relay's peer id before /p2p-circuit",
                reason="RELAY_ID_MISSING",
                remedy=f"write {relay if relay._components else ''}/p2p/<relay's id>"
                f"{self._of(self._components[at:])}",
                address=self,
            )
        return relay, self._of(self._components[at + 1 :])

    @property
    def transport(self) -> TransportName | None:
        """What dials it: "quic-v1", "tcp" or "circuit"; None when nothing of ours can.

        None is also the answer for `/dnsaddr`, whose transport is not known yet.
        """
        if self.is_circuit:
            return "circuit"
        at = self._host_index
        if at is None:
            return None
        protocols = self.without_peer_id().protocols
        return _TRANSPORTS.get(protocols[at + 1 :])

    @property
    def host(self) -> str | None:
        """The IP address, with its zone after "%", or the name; of a circuit, the relay's."""
        at = self._host_index
        if at is None:
            return None
        text = self._components[at].text
        return f"{text}%{self._components[0].text}" if at else text

    @property
    def port(self) -> int | None:
        """The UDP or TCP port behind the host; of a circuit, the relay's."""
        at = self._host_index
        if at is None or at + 1 == len(self._components):
            return None
        following = self._components[at + 1]
        return int(following.text) if following.protocol.name in ("udp", "tcp") else None

    @property
    def is_dns(self) -> bool:
        """Whether the host is a name that must be resolved; of a circuit, the relay's."""
        return bool(self._components) and self._components[0].protocol.name in _DNS

    @property
    def ip(self) -> IpAddress | None:
        """The host when it is an IP address; of a circuit, the relay's."""
        host = self.host
        return None if host is None or self.is_dns else ipaddress.ip_address(host)

    @property
    def site(self) -> str | None:
        """What one subscriber is likely to have: the IPv4 address, or the IPv6 /64."""
        ip = self.ip
        return None if ip is None else site_of(ip)

    @property
    def is_loopback(self) -> bool:
        """Whether the host is this machine itself (127.0.0.0/8, ::1)."""
        ip = self._plain_ip
        return ip is not None and ip.is_loopback

    @property
    def is_private(self) -> bool:
        """Whether the host's IP address means nothing on the Internet.

        Private, unique local, link-local, carrier-grade NAT and loopback networks. The networks
        for documentation (203.0.113.0/24 and others) count as public, unlike in `ipaddress`.
        """
        ip = self._plain_ip
        return ip is not None and any(ip in network for network in _PRIVATE)

    @property
    def is_unspecified(self) -> bool:
        """Whether the host is 0.0.0.0 or ::, which is good for listening only."""
        ip = self._plain_ip
        return ip is not None and ip.is_unspecified

    @property
    def _host_index(self) -> int | None:
        names = self.protocols[:2]
        if names and names[0] in _HOSTS:
            return 0
        return 1 if names == ("ip6zone", "ip6") else None

    @property
    def _plain_ip(self) -> IpAddress | None:
        ip = self.ip
        return ip if ip is None else _unmapped(ip)


def _unmapped(ip: IpAddress) -> IpAddress:
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return mapped or ip


def _ip_text(host: str | IpAddress) -> str:
    try:
        ip = _unmapped(ipaddress.ip_address(host))
    except ValueError as error:
        raise MultiaddrError(
            f'"{host}" is not an IP address', remedy="write it like 203.0.113.10", host=host
        ) from error
    if isinstance(ip, ipaddress.IPv4Address):
        return f"/ip4/{ip}"
    address, _, zone = str(ip).partition("%")
    return f"/ip6zone/{zone}/ip6/{address}" if zone else f"/ip6/{address}"


def _shown(text: str) -> str:
    return text if len(text) <= 300 else text[:300] + "..."


def _too_long(size: str, limit: int) -> MultiaddrError:
    return MultiaddrError(f"a multiaddr of {size}, where {limit} are allowed")


def _too_many() -> MultiaddrError:
    return MultiaddrError(f"a multiaddr has more than {MAX_COMPONENTS} components")


def _no_slash(text: str) -> MultiaddrError:
    remedy = _FORM
    if match := _HOST_AND_PORT.fullmatch(text):
        host, port = match["host"].strip("[]"), match["port"]
        try:
            remedy = f"write {_ip_text(host)}/udp/{port}/quic-v1"
        except MultiaddrError:
            remedy = f"write /dns/{host}/udp/{port}/quic-v1"
    what = f'"{_shown(text)}" is no multiaddr: it does not begin with "/"'
    return MultiaddrError(what if text else "the multiaddr is empty", remedy=remedy)


def _unknown_name(text: str, name: str) -> MultiaddrError:
    what = f'has the unknown component "/{_shown(name)}"' if name else "has an empty component"
    return MultiaddrError(
        f'the multiaddr "{_shown(text)}" {what}',
        reason="MULTIADDR_UNKNOWN_PROTOCOL",
        remedy=_FORM,
        component=_shown(name),
    )


def _bad_value(text: str, protocol: codes.Protocol, value: str, why: str) -> MultiaddrError:
    named = f'"{_shown(value)}" ' if value else ""
    return MultiaddrError(
        f'in the multiaddr "{_shown(text)}" the value {named}of /{protocol.name} {why}',
        remedy=f"write it like {protocol.example}",
        component=protocol.name,
    )


def site_of(ip: IpAddress | str) -> str:
    """What limits per IP count an address under: the IPv4 address, or the IPv6 /64.

    Text may have a zone; an IPv4 address within IPv6 counts as itself.
    """
    plain = _unmapped(ipaddress.ip_address(ip.partition("%")[0]) if isinstance(ip, str) else ip)
    if isinstance(plain, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((plain, IPV6_SITE_BITS), strict=False))
    return str(plain)
