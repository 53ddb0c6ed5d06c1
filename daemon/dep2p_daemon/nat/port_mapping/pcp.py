"""PCP's MAP and ANNOUNCE, its back-off and epoch, sans-IO: https://www.rfc-editor.org/rfc/rfc6887"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final

from dep2p_daemon.errors import ProtocolViolationError
from dep2p_daemon.nat.port_mapping.terms import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dep2p_daemon.nat.port_mapping.terms import IPAddress, Port

VERSION: Final = 2
NONCE_BYTES: Final = 12
MAX_MESSAGE: Final = 1100
"""Bytes (section 7)."""
INITIAL_RETRANSMISSION: Final = 3.0
"""Seconds: IRT (8.1.1)."""
MAX_RETRANSMISSION: Final = 1024.0
"""Seconds: MRT (8.1.1)."""

_RESPONSE: Final = 0x80
_REQUEST: Final = struct.Struct("!BBHI16s")  # version, opcode, reserved, lifetime, client
_HEADER: Final = struct.Struct("!BBBBII12x")  # version, opcode, reserved, result, lifetime, epoch
_MAP: Final = struct.Struct("!12sB3xHH16s")  # nonce, protocol, internal, external, address


class Opcode(enum.IntEnum):
    """Section 19.2; PEER is of no use to a listener."""

    ANNOUNCE = 0
    MAP = 1


class Result(enum.IntEnum):
    """Result codes (7.4)."""

    SUCCESS = 0
    UNSUPP_VERSION = 1
    NOT_AUTHORIZED = 2
    MALFORMED_REQUEST = 3
    UNSUPP_OPCODE = 4
    UNSUPP_OPTION = 5
    MALFORMED_OPTION = 6
    NETWORK_FAILURE = 7
    NO_RESOURCES = 8
    UNSUPP_PROTOCOL = 9
    USER_EX_QUOTA = 10
    CANNOT_PROVIDE_EXTERNAL = 11
    ADDRESS_MISMATCH = 12
    EXCESSIVE_REMOTE_PEERS = 13


@dataclass(frozen=True, slots=True)
class OtherVersion:
    """The gateway does not speak PCP of this version (9, and appendix A for NAT-PMP)."""

    version: int


@dataclass(frozen=True, slots=True)
class AnnounceResponse:
    """Tells the epoch (14.1)."""

    result: int
    lifetime: int
    epoch: int


@dataclass(frozen=True, slots=True)
class MapResponse:
    """What became of a mapping (11.1)."""

    result: int
    lifetime: int
    """Seconds of the mapping; of a refusal, in which to not ask again."""
    epoch: int
    nonce: bytes
    protocol: int
    internal_port: int
    external: Endpoint
    """In a refusal, what we suggested."""

    def answers(self, nonce: bytes, port: Port) -> bool:
        """Whether this is about the mapping of `port` that was asked for with `nonce`."""
        return (self.nonce, self.protocol, self.internal_port) == (
            nonce,
            port.transport,
            port.number,
        )


def encode_announce_request(client: IPAddress) -> bytes:
    """Ask for the epoch."""
    return _REQUEST.pack(VERSION, Opcode.ANNOUNCE, 0, 0, _ip_bytes(client))


def encode_map_request(
    client: IPAddress, nonce: bytes, port: Port, *, suggested: Endpoint, lifetime: int
) -> bytes:
    """Ask for a mapping of `client`'s port; with `lifetime` 0, for its end (15.1).

    The suggestion's address may be unspecified, of the family that is wanted.
    """
    if len(nonce) != NONCE_BYTES:
        raise ValueError("a nonce has 12 bytes")
    return _REQUEST.pack(VERSION, Opcode.MAP, 0, lifetime, _ip_bytes(client)) + _MAP.pack(
        nonce, port.transport, port.number, suggested.port, _ip_bytes(suggested.ip)
    )


def decode_response(data: bytes) -> AnnounceResponse | MapResponse | OtherVersion:
    """Decode what came from the gateway; options behind the opcode's data are ignored.

    Raises:
        ProtocolViolationError: it is no response to anything that we ask.
    """
    if len(data) < 4 or not data[1] & _RESPONSE:
        raise _violation("not a response", data)
    # In NAT-PMP the result is two bytes long, and ends at the same place.
    if data[0] != VERSION and data[3] == Result.UNSUPP_VERSION:
        return OtherVersion(data[0])
    if data[0] != VERSION or not _HEADER.size <= len(data) <= MAX_MESSAGE or len(data) % 4:
        raise _violation("another version or a wrong length", data)
    _, opcode, _, result, lifetime, epoch = _HEADER.unpack_from(data)
    opcode &= ~_RESPONSE
    if opcode == Opcode.ANNOUNCE:
        return AnnounceResponse(result, lifetime, epoch)
    if opcode != Opcode.MAP or len(data) < _HEADER.size + _MAP.size:
        raise _violation("an unknown opcode, or cut off", data)
    nonce, protocol, internal, external, address = _MAP.unpack_from(data, _HEADER.size)
    endpoint = Endpoint(_ip(address), external)
    return MapResponse(result, lifetime, epoch, nonce, protocol, internal, endpoint)


def result_name(result: int) -> str:
    """The RFC's name of a result code."""
    return next((one.name for one in Result if one == result), f"RESULT_{result}")


def retransmissions(random: Callable[[], float]) -> Iterator[float]:
    """Seconds to wait after each packet (8.1.1), without end; `random` is within 0 and 1."""
    wait = INITIAL_RETRANSMISSION
    while True:
        wait *= 0.9 + 0.2 * random()
        yield wait
        wait = min(2 * wait, MAX_RETRANSMISSION)


class Epoch:
    """Notices that the gateway has lost its mappings (8.5)."""

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None

    def restarted(self, epoch: int, now: float) -> bool:
        """Take the epoch of a response; True: the gateway's clock began anew, or leaps."""
        last, self._last = self._last, (epoch, now)
        if last is None:
            return False
        server, client = epoch - last[0], now - last[1]
        return server < -1 or client + 2 < server - server / 16 or server + 2 < client - client / 16


def _ip_bytes(ip: IPAddress) -> bytes:
    """IPv4 addresses travel as ::ffff:0:0/96 (section 5)."""
    return ip.packed if isinstance(ip, IPv6Address) else b"\0" * 10 + b"\xff\xff" + ip.packed


def _ip(data: bytes) -> IPv4Address | IPv6Address:
    ip = IPv6Address(data)
    return ip.ipv4_mapped or ip


def _violation(what: str, data: bytes) -> ProtocolViolationError:
    return ProtocolViolationError(
        f"the gateway sent a PCP message that cannot be used: {what}",
        reason="PCP_MALFORMED",
        length=len(data),
    )
