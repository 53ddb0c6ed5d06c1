"""NAT-PMP's messages, back-off and epoch, sans-IO: https://www.rfc-editor.org/rfc/rfc6886"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from dep2p_daemon.errors import ProtocolViolationError
from dep2p_daemon.nat.port_mapping.terms import Transport

GATEWAY_PORT: Final = 5351
VERSION: Final = 0
RETRANSMISSIONS: Final = tuple(0.25 * 2**n for n in range(9))
"""Seconds to wait after each packet (3.1): nine packets, then there is no NAT-PMP here."""

_RESPONSE: Final = 0x80
_HEADER: Final = struct.Struct("!BBHI")  # version, opcode, result, seconds since epoch
_MAP_REQUEST: Final = struct.Struct("!BBHHHI")
_MAP_BODY: Final = struct.Struct("!HHI")  # internal port, external port, lifetime
_OPCODES: Final = {Transport.UDP: 1, Transport.TCP: 2}
_TRANSPORTS: Final = {opcode: transport for transport, opcode in _OPCODES.items()}


class Result(enum.IntEnum):
    """Result codes (3.5)."""

    SUCCESS = 0
    UNSUPPORTED_VERSION = 1
    NOT_AUTHORIZED = 2
    NETWORK_FAILURE = 3
    OUT_OF_RESOURCES = 4
    UNSUPPORTED_OPCODE = 5


@dataclass(frozen=True, slots=True)
class AddressResponse:
    """The gateway's outer address; None with any other result than `SUCCESS`."""

    result: int
    epoch: int
    address: IPv4Address | None


@dataclass(frozen=True, slots=True)
class MapResponse:
    """What became of a mapping. A refusal may leave the ports out: they are None then."""

    result: int
    epoch: int
    transport: Transport
    internal_port: int | None = None
    external_port: int | None = None
    lifetime: int | None = None
    """Seconds; 0: the mapping is gone."""


def encode_address_request() -> bytes:
    """Ask for the outer address (3.2)."""
    return bytes((VERSION, 0))


def encode_map_request(
    transport: Transport, internal_port: int, *, external_port: int, lifetime: int
) -> bytes:
    """Ask for a mapping (3.3); with `external_port` and `lifetime` 0, for its end (3.4)."""
    return _MAP_REQUEST.pack(
        VERSION, _OPCODES[transport], 0, internal_port, external_port, lifetime
    )


def decode_response(data: bytes) -> AddressResponse | MapResponse:
    """Decode what came from the gateway.

    Raises:
        ProtocolViolationError: it is no NAT-PMP response.
    """
    if len(data) < _HEADER.size:
        raise _violation("too short", data)
    version, opcode, result, epoch = _HEADER.unpack_from(data)
    if version != VERSION or not opcode & _RESPONSE:
        raise _violation("not a response of version 0", data)
    opcode &= ~_RESPONSE
    body = data[_HEADER.size :]
    if opcode == 0:
        if result != Result.SUCCESS:
            return AddressResponse(result, epoch, None)
        if len(body) != 4:
            raise _violation("an address of the wrong length", data)
        return AddressResponse(result, epoch, IPv4Address(body))
    transport = _TRANSPORTS.get(opcode)
    if transport is None:
        raise _violation("an unknown opcode", data)
    if len(body) == _MAP_BODY.size:
        return MapResponse(result, epoch, transport, *_MAP_BODY.unpack(body))
    if result == Result.SUCCESS:
        raise _violation("a mapping of the wrong length", data)
    return MapResponse(result, epoch, transport)


def result_name(result: int) -> str:
    """The RFC's name of a result code."""
    return next((one.name for one in Result if one == result), f"RESULT_{result}")


class Epoch:
    """Notices that the gateway has lost its mappings (3.6)."""

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None

    def restarted(self, epoch: int, now: float) -> bool:
        """Take the epoch of a response; True: the gateway's clock began anew."""
        last, self._last = self._last, (epoch, now)
        # The gateway's clock may be slower than ours by one eighth, and rounds.
        return last is not None and epoch < last[0] + (now - last[1]) * 7 / 8 - 2


def _violation(what: str, data: bytes) -> ProtocolViolationError:
    return ProtocolViolationError(
        f"the gateway sent a NAT-PMP message that cannot be used: {what}",
        reason="NAT_PMP_MALFORMED",
        length=len(data),
    )
