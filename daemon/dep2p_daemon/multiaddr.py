"""Multiaddrs, text and binary: https://github.com/multiformats/multiaddr.

`parse_dial_target` and `parse_relay_address` are what a user's text goes through: their errors
name the component that is missing and show the right form.
"""

from __future__ import annotations

import base64
import ipaddress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from dep2p_daemon.errors import MultiaddrError, PeerIdError, ProtocolViolationError
from dep2p_daemon.identity.peer_id import PeerId
from dep2p_daemon.wire import varint

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_COMPONENTS: Final = 64
MAX_BYTES: Final = 4096
MAX_NAME_BYTES: Final = 255
"""A DNS name has at most 255 bytes (RFC 1035 2.3.4)."""

DIRECT_FORM: Final = "/ip4/203.0.113.10/udp/4001/quic-v1/p2p/<peer id>"
CIRCUIT_FORM: Final = (
    "/ip4/203.0.113.10/udp/4001/quic-v1/p2p/<relay id>/p2p-circuit/p2p/<target id>"
)

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def _ip4(text: str) -> bytes:
    return ipaddress.IPv4Address(text).packed


def _ip4_text(data: bytes) -> str:
    return str(ipaddress.IPv4Address(data))


def _ip6(text: str) -> bytes:
    if "%" in text:
        raise ValueError("a zone is a component of its own: /ip6zone/eth0/ip6/fe80::1")
    return ipaddress.IPv6Address(text).packed


def _ip6_text(data: bytes) -> str:
    return str(ipaddress.IPv6Address(data))


def _port(text: str) -> bytes:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise ValueError("a port is a number from 0 to 65535")
    return int(text).to_bytes(2, "big")


def _port_text(data: bytes) -> str:
    return str(int.from_bytes(data, "big"))


def _name(text: str) -> bytes:
    data = text.encode()
    if not data or len(data) > MAX_NAME_BYTES or any(c.isspace() or c == "/" for c in text):
        raise ValueError(f"a name has 1 to {MAX_NAME_BYTES} bytes, no space and no slash")
    return data


def _name_text(data: bytes) -> str:
    text = data.decode()
    _name(text)
    return text


def _path(text: str) -> bytes:
    data = text.encode()
    if not data or len(data) > MAX_BYTES:
        raise ValueError("a path is missing")
    return data


def _p2p(text: str) -> bytes:
    return PeerId.parse(text).to_bytes()


def _p2p_text(data: bytes) -> str:
    return str(PeerId.from_bytes(data))


def _certhash(text: str) -> bytes:
    if text[:1] != "u":
        raise ValueError("a certhash is a multihash in base64url, with a leading u")
    data = base64.urlsafe_b64decode(text[1:] + "=" * (-(len(text) - 1) % 4))
    if len(data) < 3:
        raise ValueError("a certhash is a multihash")
    return data


def _certhash_text(data: bytes) -> str:
    return "u" + base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass(frozen=True, slots=True)
class Protocol:
    """A row of multiaddr's protocol table."""

    code: int
    name: str
    size: int
    """Bytes of the value; 0: no value; -1: length-prefixed."""
    to_bytes: Callable[[str], bytes] = str.encode
    to_text: Callable[[bytes], str] = bytes.decode
    is_path: bool = False


_PROTOCOLS: Final = (
    Protocol(4, "ip4", 4, _ip4, _ip4_text),
    Protocol(6, "tcp", 2, _port, _port_text),
    Protocol(41, "ip6", 16, _ip6, _ip6_text),
    Protocol(42, "ip6zone", -1, _name, _name_text),
    Protocol(53, "dns", -1, _name, _name_text),
    Protocol(54, "dns4", -1, _name, _name_text),
    Protocol(55, "dns6", -1, _name, _name_text),
    Protocol(56, "dnsaddr", -1, _name, _name_text),
    Protocol(273, "udp", 2, _port, _port_text),
    Protocol(290, "p2p-circuit", 0),
    Protocol(400, "unix", -1, _path, bytes.decode, is_path=True),
    Protocol(421, "p2p", -1, _p2p, _p2p_text),
    Protocol(443, "https", 0),
    Protocol(448, "tls", 0),
    Protocol(449, "sni", -1, _name, _name_text),
    Protocol(454, "noise", 0),
    Protocol(460, "quic", 0),
    Protocol(461, "quic-v1", 0),
    Protocol(465, "webtransport", 0),
    Protocol(466, "certhash", -1, _certhash, _certhash_text),
    Protocol(477, "ws", 0),
    Protocol(478, "wss", 0),
    Protocol(480, "http", 0),
)
_BY_CODE: Final = {protocol.code: protocol for protocol in _PROTOCOLS}
_BY_NAME: Final = {protocol.name: protocol for protocol in _PROTOCOLS} | {
    "ipfs": next(protocol for protocol in _PROTOCOLS if protocol.name == "p2p")
}

Component = tuple[Protocol, bytes]
_DNS: Final = frozenset({"dns", "dns4", "dns6", "dnsaddr"})


@dataclass(frozen=True)
class Multiaddr:
    """A network address as a sequence of components. Compared by its components."""

    components: tuple[Component, ...]

    @classmethod
    def parse(cls, text: str) -> Multiaddr:
        """Parse the text form.

        Raises:
            MultiaddrError: names the component that is wrong.
        """
        if not text.startswith("/"):
            raise MultiaddrError(
                f"{text[:80]!r} is no multiaddr: it does not start with /",
                remedy=f"a multiaddr looks like {DIRECT_FORM}",
            )
        if len(text) > 2 * MAX_BYTES:
            raise MultiaddrError("this multiaddr is too long", limit=MAX_BYTES)
        parts = text.rstrip("/").split("/")[1:]
        components: list[Component] = []
        while parts:
            name = parts.pop(0)
            protocol = _BY_NAME.get(name)
            if protocol is None:
                raise MultiaddrError(
                    f"unknown component /{name} in {text[:200]!r}",
                    remedy=f"a multiaddr looks like {DIRECT_FORM}",
                    component=name,
                )
            value = ""
            if protocol.is_path:
                value, parts = "/" + "/".join(parts), []
            elif protocol.size:
                if not parts:
                    raise MultiaddrError(
                        f"component /{name} has no value in {text[:200]!r}",
                        remedy=f"a multiaddr looks like {DIRECT_FORM}",
                        component=name,
                    )
                value = parts.pop(0)
            components.append((protocol, _to_bytes(protocol, value)))
        return cls._checked(components)

    @classmethod
    def from_bytes(cls, data: bytes) -> Multiaddr:
        """Parse the binary form.

        Raises:
            MultiaddrError: names the component that is wrong, or says where it is cut off.
        """
        if len(data) > MAX_BYTES:
            raise MultiaddrError(f"a multiaddr of {len(data)} bytes, where {MAX_BYTES} are allowed")
        components: list[Component] = []
        offset = 0
        try:
            while offset < len(data):
                code, offset = varint.decode(data, offset)
                protocol = _BY_CODE.get(code)
                if protocol is None:
                    raise MultiaddrError(f"unknown component code {code}", component=code)
                size = protocol.size
                if size < 0:
                    size, offset = varint.decode(data, offset)
                value = data[offset : offset + size]
                if len(value) != size:
                    raise MultiaddrError(f"component /{protocol.name} is cut off")
                offset += size
                _to_text(protocol, value)
                components.append((protocol, value))
        except ProtocolViolationError as error:
            raise MultiaddrError(error.message) from error
        return cls._checked(components)

    @classmethod
    def _checked(cls, components: list[Component]) -> Multiaddr:
        if not components:
            raise MultiaddrError(
                "an empty multiaddr", remedy=f"a multiaddr looks like {DIRECT_FORM}"
            )
        if len(components) > MAX_COMPONENTS:
            raise MultiaddrError(
                f"{len(components)} components, where {MAX_COMPONENTS} are allowed",
                limit=MAX_COMPONENTS,
            )
        return cls(tuple(components))

    @classmethod
    def for_udp(cls, host: str, port: int) -> Multiaddr:
        """`/ip4|ip6/<host>/udp/<port>/quic-v1`."""
        return cls.parse(f"{_ip_prefix(host)}/udp/{port}/quic-v1")

    @classmethod
    def for_tcp(cls, host: str, port: int) -> Multiaddr:
        """`/ip4|ip6/<host>/tcp/<port>`."""
        return cls.parse(f"{_ip_prefix(host)}/tcp/{port}")

    @cached_property
    def _text(self) -> str:
        parts: list[str] = []
        for protocol, value in self.components:
            parts.append(f"/{protocol.name}")
            if protocol.size:
                text = _to_text(protocol, value)
                parts.append(text if protocol.is_path else f"/{text}")
        return "".join(parts)

    @override
    def __str__(self) -> str:
        return self._text

    @override
    def __repr__(self) -> str:
        return f"Multiaddr({self._text})"

    def to_bytes(self) -> bytes:
        """The binary form."""
        out = bytearray()
        for protocol, value in self.components:
            out += varint.encode(protocol.code)
            if protocol.size < 0:
                out += varint.encode(len(value))
            out += value
        return bytes(out)

    def __bytes__(self) -> bytes:
        return self.to_bytes()

    def __truediv__(self, other: Multiaddr | str) -> Multiaddr:
        """Append components: `address / "/p2p-circuit"`."""
        tail = Multiaddr.parse(other) if isinstance(other, str) else other
        return Multiaddr._checked([*self.components, *tail.components])

    @property
    def protocols(self) -> tuple[str, ...]:
        """The components' names, in order."""
        return tuple(protocol.name for protocol, _ in self.components)

    def value(self, name: str) -> str | None:
        """The text value of the first component called `name`, None where there is none."""
        for protocol, value in self.components:
            if protocol.name == name:
                return _to_text(protocol, value)
        return None

    @cached_property
    def peer_id(self) -> PeerId | None:
        """The peer that the address ends in, None where it does not end in /p2p."""
        protocol, value = self.components[-1]
        return PeerId.from_bytes(value) if protocol.name == "p2p" else None

    def without_peer_id(self) -> Multiaddr:
        """The address without its trailing /p2p; unchanged where it is nothing else."""
        if self.peer_id is None or len(self.components) == 1:
            return self
        return Multiaddr(self.components[:-1])

    def with_peer_id(self, peer: PeerId) -> Multiaddr:
        """The address with `/p2p/<peer>` at its end, in place of another."""
        return self.without_peer_id() / f"/p2p/{peer}"

    @property
    def is_circuit(self) -> bool:
        """Whether it goes through a relay."""
        return "p2p-circuit" in self.protocols

    def split_circuit(self) -> tuple[Multiaddr, Multiaddr | None]:
        """The relay's address with its /p2p, and what follows the last /p2p-circuit.

        Raises:
            MultiaddrError: no /p2p-circuit, or no relay's peer id before it.
        """
        names = self.protocols
        if "p2p-circuit" not in names:
            raise MultiaddrError(
                f"{self} has no /p2p-circuit", remedy=f"a circuit's address is {CIRCUIT_FORM}"
            )
        at = len(names) - 1 - names[::-1].index("p2p-circuit")
        before, after = self.components[:at], self.components[at + 1 :]
        if not before or before[-1][0].name != "p2p":
            raise MultiaddrError(
                f"{self} names no relay: /p2p/<relay id> is missing before /p2p-circuit",
                remedy=f"a circuit's address is {CIRCUIT_FORM}",
                component="p2p",
            )
        return Multiaddr(before), Multiaddr(after) if after else None

    @cached_property
    def transport(self) -> str | None:
        """Which transport it is for: "quic-v1", "tcp", "circuit", or None for none of ours."""
        if self.is_circuit:
            return "circuit"
        names = self.protocols
        if names[0] == "ip6zone":
            names = names[1:]
        if names and names[0] in ("ip4", "ip6", "dns", "dns4", "dns6"):
            rest = names[1:-1] if names[-1] == "p2p" else names[1:]
            if rest == ("udp", "quic-v1"):
                return "quic-v1"
            if rest == ("tcp",):
                return "tcp"
        return None

    @property
    def host(self) -> str | None:
        """The IP address or name it starts with; None where it starts with neither."""
        for protocol, value in self.components[:2]:
            if protocol.name in ("ip4", "ip6") or protocol.name in _DNS:
                return _to_text(protocol, value)
        return None

    @property
    def port(self) -> int | None:
        """The first TCP or UDP port."""
        for protocol, value in self.components:
            if protocol.name in ("tcp", "udp"):
                return int.from_bytes(value, "big")
        return None

    @property
    def zone(self) -> str | None:
        """The IPv6 zone (an interface), None where there is none."""
        return self.value("ip6zone") if self.components[0][0].name == "ip6zone" else None

    @property
    def is_dns(self) -> bool:
        """Whether it starts with a name that must be resolved."""
        return self.components[0][0].name in _DNS

    @cached_property
    def ip(self) -> IpAddress | None:
        """The IP address it starts with."""
        host = self.host
        return None if host is None or self.is_dns else ipaddress.ip_address(host)

    @property
    def is_loopback(self) -> bool:
        """Whether its IP address is this machine's own."""
        return self.ip is not None and self.ip.is_loopback

    @property
    def is_unspecified(self) -> bool:
        """Whether its IP address is 0.0.0.0 or ::."""
        return self.ip is not None and self.ip.is_unspecified

    @property
    def is_private(self) -> bool:
        """Whether its IP address is not one of the public internet (loopback included)."""
        return self.ip is not None and not self.ip.is_global


def _ip_prefix(host: str) -> str:
    address = ipaddress.ip_address(host)
    return f"/ip{address.version}/{address}"


def _to_bytes(protocol: Protocol, text: str) -> bytes:
    if not protocol.size:
        return b""
    try:
        return protocol.to_bytes(text)
    except PeerIdError as error:
        raise MultiaddrError(
            f"component /{protocol.name}/{text[:100]}: {error.message}",
            remedy=error.remedy,
            component=protocol.name,
        ) from error
    except ValueError as error:
        raise MultiaddrError(
            f"component /{protocol.name}/{text[:100]}: {error}", component=protocol.name
        ) from error


def _to_text(protocol: Protocol, value: bytes) -> str:
    try:
        return protocol.to_text(value)
    except (ValueError, PeerIdError) as error:
        raise MultiaddrError(
            f"component /{protocol.name} has a value that is none: {error}",
            component=protocol.name,
        ) from error


@dataclass(frozen=True, slots=True)
class DialTarget:
    """Whom to dial, and where; no addresses: wherever the peer is known to be."""

    peer: PeerId
    addresses: tuple[Multiaddr, ...]
    """Without the trailing /p2p/<peer>."""


def parse_dial_target(text: str) -> DialTarget:
    """Parse a bare peer id, or a multiaddr that ends in /p2p/<peer id>.

    Raises:
        MultiaddrError, PeerIdError: says what is missing and shows the right form.
    """
    text = text.strip()
    if not text.startswith("/"):
        try:
            return DialTarget(PeerId.parse(text), ())
        except PeerIdError as error:
            raise MultiaddrError(
                f"{text[:100]!r} is neither a peer id nor a multiaddr",
                remedy=f"write a peer id (12D3KooW...) or a multiaddr such as {DIRECT_FORM}",
            ) from error
    address = Multiaddr.parse(text)
    if address.peer_id is None:
        form = CIRCUIT_FORM if address.is_circuit else f"{address}/p2p/<peer id>"
        raise MultiaddrError(
            f"the peer id is missing at the end of {address}",
            reason="MULTIADDR_PEER_ID_MISSING",
            remedy=f"append it: {form}",
            component="p2p",
        )
    if len(address.components) == 1:
        return DialTarget(address.peer_id, ())
    _refuse_missing_circuit(address)
    if address.is_circuit:
        address.split_circuit()
    return DialTarget(address.peer_id, (address.without_peer_id(),))


def parse_relay_address(text: str) -> Multiaddr:
    """Parse a relay's address: a multiaddr that ends in /p2p/<relay id>.

    Raises:
        MultiaddrError: says what is missing and shows the right form.
    """
    address = Multiaddr.parse(text.strip())
    if address.is_circuit:
        raise MultiaddrError(
            f"{address} is the address of a peer behind a relay, not of a relay",
            remedy=f"write the part before /p2p-circuit: {address.split_circuit()[0]}",
            component="p2p-circuit",
        )
    _refuse_missing_circuit(address)
    if address.peer_id is None:
        raise MultiaddrError(
            f"the relay's peer id is missing at the end of {address}",
            reason="MULTIADDR_PEER_ID_MISSING",
            remedy=f"append it: {address}/p2p/<relay id>",
            component="p2p",
        )
    return address


def _refuse_missing_circuit(address: Multiaddr) -> None:
    names = address.protocols
    if names.count("p2p") < 2 or "p2p-circuit" in names:
        return
    at = names.index("p2p") + 1
    relay, target = Multiaddr(address.components[:at]), Multiaddr(address.components[at:])
    raise MultiaddrError(
        f"/p2p-circuit is missing between the relay's and the target's peer id in {address}",
        reason="MULTIADDR_CIRCUIT_MISSING",
        remedy=f"write {relay}/p2p-circuit{target}",
        component="p2p-circuit",
    )
