"""The protocols that a multiaddr is made of, and how each one's value is written.

https://github.com/multiformats/multiaddr/blob/master/protocols.csv

A codec turns a value's text into bytes and back. It raises ValueError with the end of a
sentence that begins with the component.
"""

from __future__ import annotations

import ipaddress
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final

from typing_extensions import override

from dep2p_daemon.errors import PeerIdError, ProtocolViolationError
from dep2p_daemon.identity.peer_id import PeerId
from dep2p_daemon.wire import multibase, varint

VARIABLE: Final = -1
"""The size of a value that is preceded by its length."""

MAX_VALUE_BYTES: Final = 1024
"""Ours, of a value of variable size; the longest real ones are unix paths and DNS names."""

MAX_NAME_BYTES: Final = 253
"""RFC 1035, 2.3.4: of a domain name as text, without the final dot."""

MAX_ZONE_BYTES: Final = 32
"""Ours: an interface's name on Linux has at most 15 bytes."""

MAX_PATH_BYTES: Final = 512
"""Ours: a unix socket's path has at most 107 bytes."""

MAX_PORT: Final = 65535


class ValueCodec(ABC):
    """Text and bytes of one kind of value."""

    size: int
    """In bytes, or `VARIABLE`."""

    @abstractmethod
    def to_bytes(self, text: str) -> bytes:
        """Parse the text. Raises ValueError."""

    @abstractmethod
    def to_text(self, data: bytes) -> str:
        """Return the text of valid bytes. Raises ValueError for others."""


class _Ip4(ValueCodec):
    size = 4

    @override
    def to_bytes(self, text: str) -> bytes:
        try:
            return ipaddress.IPv4Address(text).packed
        except ValueError as error:
            raise ValueError("is not an IPv4 address") from error

    @override
    def to_text(self, data: bytes) -> str:
        return str(ipaddress.IPv4Address(data))


class _Ip6(ValueCodec):
    size = 16

    @override
    def to_bytes(self, text: str) -> bytes:
        if "%" in text:
            raise ValueError("has a zone, which is a component of its own: /ip6zone/eth0/ip6/...")
        try:
            return ipaddress.IPv6Address(text).packed
        except ValueError as error:
            raise ValueError("is not an IPv6 address") from error

    @override
    def to_text(self, data: bytes) -> str:
        return str(ipaddress.IPv6Address(data))


class _Port(ValueCodec):
    size = 2

    @override
    def to_bytes(self, text: str) -> bytes:
        if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= MAX_PORT):
            raise ValueError(f"is not a port number from 0 to {MAX_PORT}")
        return int(text).to_bytes(2, "big")

    @override
    def to_text(self, data: bytes) -> str:
        return str(int.from_bytes(data, "big"))


class _Name(ValueCodec):
    """A name in UTF-8 that cannot be mistaken for something else in a text or a log line."""

    size = VARIABLE

    def __init__(self, what: str, max_bytes: int) -> None:
        self._what = what
        self._max_bytes = max_bytes

    @override
    def to_bytes(self, text: str) -> bytes:
        if not text.isprintable() or any(character in "/ %" for character in text):
            raise ValueError(f"is not {self._what}")
        data = text.encode("utf-8")
        if not 1 <= len(data) <= self._max_bytes:
            raise ValueError(f"is not {self._what} of 1 to {self._max_bytes} bytes")
        return data

    @override
    def to_text(self, data: bytes) -> str:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"is not {self._what}") from error
        self.to_bytes(text)
        return text


class _Path(ValueCodec):
    """A path of the file system: it takes the rest of the text, slashes included."""

    size = VARIABLE

    @override
    def to_bytes(self, text: str) -> bytes:
        if text.isprintable() and text.startswith("/"):
            data = text.encode("utf-8")
            if 2 <= len(data) <= MAX_PATH_BYTES:
                return data
        raise ValueError(f"is not an absolute path of at most {MAX_PATH_BYTES} bytes")

    @override
    def to_text(self, data: bytes) -> str:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError("is not a path in UTF-8") from error
        self.to_bytes(text)
        return text


class _Peer(ValueCodec):
    size = VARIABLE

    @override
    def to_bytes(self, text: str) -> bytes:
        try:
            return bytes(PeerId.parse(text))
        except PeerIdError as error:
            raise ValueError(f"cannot be used: {error.message}") from error

    @override
    def to_text(self, data: bytes) -> str:
        try:
            return str(PeerId.from_bytes(data))
        except PeerIdError as error:
            raise ValueError("is not a peer id") from error


class _CertificateHash(ValueCodec):
    """A multihash, written in multibase."""

    size = VARIABLE

    @override
    def to_bytes(self, text: str) -> bytes:
        try:
            data = multibase.decode(text)
        except ValueError as error:
            raise ValueError(f"is not in multibase: {error}") from error
        self._check(data)
        return data

    @override
    def to_text(self, data: bytes) -> str:
        self._check(data)
        return multibase.encode_base64url(data)

    def _check(self, data: bytes) -> None:
        try:
            _, offset = varint.decode(data)
            digest, end = varint.decode_prefixed(data, offset, max_bytes=MAX_VALUE_BYTES)
        except ProtocolViolationError as error:
            raise ValueError("is not a multihash") from error
        if not digest or end != len(data):
            raise ValueError("is not a multihash")


@dataclass(frozen=True, slots=True)
class Protocol:
    """One row of the table."""

    code: int
    name: str
    codec: ValueCodec | None = None
    """None when the protocol has no value."""
    example: str = ""
    """The right form, for error messages."""
    is_path: bool = False
    """The value takes the rest of the text, so that nothing can follow."""


_NAME: Final = _Name("a domain name", MAX_NAME_BYTES)

PROTOCOLS: Final = (
    Protocol(4, "ip4", _Ip4(), "/ip4/203.0.113.10"),
    Protocol(6, "tcp", _Port(), "/tcp/4001"),
    Protocol(41, "ip6", _Ip6(), "/ip6/2001:db8::1"),
    Protocol(
        42, "ip6zone", _Name("an interface name", MAX_ZONE_BYTES), "/ip6zone/eth0/ip6/fe80::1"
    ),
    Protocol(53, "dns", _NAME, "/dns/relay.example.com"),
    Protocol(54, "dns4", _NAME, "/dns4/relay.example.com"),
    Protocol(55, "dns6", _NAME, "/dns6/relay.example.com"),
    Protocol(56, "dnsaddr", _NAME, "/dnsaddr/example.com"),
    Protocol(273, "udp", _Port(), "/udp/4001"),
    Protocol(280, "webrtc-direct"),
    Protocol(281, "webrtc"),
    Protocol(290, "p2p-circuit"),
    Protocol(400, "unix", _Path(), "/unix/run/some.sock", is_path=True),
    Protocol(421, "p2p", _Peer(), "/p2p/12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA"),
    Protocol(443, "https"),
    Protocol(448, "tls"),
    Protocol(449, "sni", _NAME, "/sni/example.com"),
    Protocol(454, "noise"),
    Protocol(460, "quic"),
    Protocol(461, "quic-v1"),
    Protocol(465, "webtransport"),
    Protocol(
        466,
        "certhash",
        _CertificateHash(),
        "/certhash/uEiAkH5a4DPGKUuOBjYw0CgwjvcJCJMD2K_1aluKR_tpevQ",
    ),
    Protocol(477, "ws"),
    Protocol(478, "wss"),
    Protocol(480, "http"),
)

BY_CODE: Final = {protocol.code: protocol for protocol in PROTOCOLS}

BY_NAME: Final = {protocol.name: protocol for protocol in PROTOCOLS} | {"ipfs": BY_CODE[421]}
"""By their names in text; `/ipfs/` is the old name of `/p2p/`."""
