"""The types of configuration values: parsed once, rejected with what to write instead."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

from pydantic_core import PydanticCustomError, core_schema
from typing_extensions import override

from dep2p_daemon.circuit.relay_host import RelayHost
from dep2p_daemon.errors import Dep2pError, MultiaddrError
from dep2p_daemon.multiaddr import Multiaddr, parse_relay_address
from dep2p_daemon.ops.config_units import parse_duration, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import GetCoreSchemaHandler

MAX_SOCKET_PATH_BYTES: Final = 107
"""`sun_path` of Linux is 108 bytes with its NUL."""

_LISTEN_FORM: Final = (
    "write an IP address such as 127.0.0.1, or /ip4/0.0.0.0/udp/4001/quic-v1, /ip6/::/tcp/4001 "
    "and the like"
)
_ANNOUNCE_FORM: Final = (
    "write this machine's public address, such as /ip4/203.0.113.10/udp/4001/quic-v1"
)
_PEER_ID: Final = "/p2p/<peer id>; `dep2pctl id` on that machine prints its peer id"

_ENDPOINT_FORM: Final = "write 127.0.0.1:9464 or [::1]:9464"

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


class Rejected(ValueError):
    """A value is wrong; `remedy` says what to write."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


class _Parsed:
    """Annotation: the value is what `parse` makes of it; pydantic collects its complaints."""

    def __init__(self, parse: Callable[[object], object]) -> None:
        self._parse = parse

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        if source in (int, float):
            # Bounds of the field are checked after it.
            return core_schema.no_info_before_validator_function(self._validate, handler(source))
        # Of our own types pydantic need not understand anything.
        return core_schema.no_info_plain_validator_function(self._validate)

    def _validate(self, value: object) -> object:
        try:
            return self._parse(value)
        except Rejected as error:
            raise _collected(str(error), error.remedy) from error
        except Dep2pError as error:
            raise _collected(error.message, error.remedy) from error


def _collected(message: str, remedy: str) -> PydanticCustomError:
    return PydanticCustomError("rejected", "{message}", {"message": message, "remedy": remedy})


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Rejected("is not a text", 'write it in double quotes: "..."')
    return value


def _multiaddr(value: object) -> Multiaddr:
    return value if isinstance(value, Multiaddr) else Multiaddr.parse(_text(value))


def _listen_on(value: object) -> Multiaddr | IpAddress:
    if isinstance(value, str) and not value.startswith("/"):
        try:
            return ipaddress.ip_address(value)
        except ValueError as error:
            raise Rejected("is neither an IP address nor a multiaddr", _LISTEN_FORM) from error
    address = _multiaddr(value)
    if address.transport not in ("quic-v1", "tcp") or address.ip is None:
        raise Rejected("is no address that can be listened on", _LISTEN_FORM)
    if address.peer_id is not None:
        raise Rejected("ends in /p2p, which is no part of a listen address", _LISTEN_FORM)
    return address


def _announced_address(value: object) -> Multiaddr:
    address = _multiaddr(value)
    if address.is_circuit or address.peer_id is not None:
        raise Rejected("has /p2p or /p2p-circuit, which the daemon appends itself", _ANNOUNCE_FORM)
    if address.is_unspecified:
        raise Rejected("is not an address that anybody can dial", _ANNOUNCE_FORM)
    return address


def _relay_address(value: object) -> Multiaddr | RelayHost:
    if isinstance(value, Multiaddr | RelayHost):
        return value
    text = _text(value)
    return RelayHost.parse(text) if RelayHost.looks_like_one(text) else parse_relay_address(text)


def _peer_address(value: object) -> Multiaddr:
    try:
        address = _multiaddr(value)
    except MultiaddrError as error:
        if str(value).startswith("/"):
            raise
        # A host and port: what to write instead has to name the peer too.
        raise Rejected(error.message, f"{error.remedy}{_PEER_ID}") from error
    if address.peer_id is None and "dnsaddr" not in address.protocols:
        raise Rejected("names no peer", f"write {address}{_PEER_ID}")
    return address


@dataclass(frozen=True, slots=True)
class IpEndpoint:
    """An IP address and a port to listen on, as `127.0.0.1:9464` or `[::1]:9464`."""

    host: IpAddress
    port: int

    @override
    def __str__(self) -> str:
        return (
            f"[{self.host}]:{self.port}" if self.host.version == 6 else f"{self.host}:{self.port}"
        )


def _ip_endpoint(value: object) -> IpEndpoint | None:
    if value is None or isinstance(value, IpEndpoint):
        return value
    text = _text(value)
    if not text:
        return None
    host, _, port = text.rpartition(":")
    try:
        endpoint = IpEndpoint(ipaddress.ip_address(host.strip("[]")), int(port))
    except ValueError as error:
        raise Rejected("is no IP address with a port", _ENDPOINT_FORM) from error
    if not 0 <= endpoint.port <= 65535:
        raise Rejected("has a port beyond 65535", _ENDPOINT_FORM)
    return endpoint


def _path(value: object) -> Path:
    path = (value if isinstance(value, Path) else Path(_text(value))).expanduser()
    if not path.is_absolute():
        raise Rejected("is a relative path", f"write {Path.cwd() / path}")
    return path


def _socket_path(value: object) -> Path:
    path = _path(value)
    if (length := len(os.fsencode(path))) > MAX_SOCKET_PATH_BYTES:
        raise Rejected(
            f"is {length} bytes long, and a unix socket's path has at most {MAX_SOCKET_PATH_BYTES}",
            "use a shorter path, such as /tmp/dep2pd.sock",
        )
    return path


def _duration(value: object) -> float:
    try:
        return parse_duration(value)
    except ValueError as error:
        raise Rejected("is not a duration", str(error)) from error


def _size(value: object) -> int:
    try:
        return parse_size(value)
    except ValueError as error:
        raise Rejected("is not a byte count", str(error)) from error


ListenOn = Annotated[Multiaddr | IpAddress, _Parsed(_listen_on)]
AnnouncedAddress = Annotated[Multiaddr, _Parsed(_announced_address)]
RelayAddress = Annotated[Multiaddr | RelayHost, _Parsed(_relay_address)]
PeerAddress = Annotated[Multiaddr, _Parsed(_peer_address)]
ServeAt = Annotated[IpEndpoint | None, _Parsed(_ip_endpoint)]
AbsolutePath = Annotated[Path, _Parsed(_path)]
SocketPath = Annotated[Path, _Parsed(_socket_path)]
Seconds = Annotated[float, _Parsed(_duration)]
Bytes = Annotated[int, _Parsed(_size)]
