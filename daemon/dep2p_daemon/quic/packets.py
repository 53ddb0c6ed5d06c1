"""What can be known of a QUIC datagram without keys (RFC 8999), and answers that need none."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicPacketType,
    encode_quic_version_negotiation,
)
from aioquic.quic.packet_builder import QuicPacketBuilder

VERSION_1: Final = 1
MIN_INITIAL_DATAGRAM: Final = 1200
"""RFC 9000 section 14.1: shorter datagrams cannot open a connection."""
MIN_CLIENT_CHOSEN_ID: Final = 8
MAX_CONNECTION_ID: Final = 20


@dataclass(frozen=True, slots=True)
class LongHeader:
    """The version-independent fields of a long header, and version 1's packet type and token."""

    version: int
    destination: bytes
    source: bytes
    is_initial: bool
    token: bytes


def parse_long_header(datagram: bytes) -> LongHeader | None:
    """Parse the first packet's long header; None where there is none."""
    if len(datagram) < 7 or not datagram[0] & 0x80:
        return None
    version = int.from_bytes(datagram[1:5], "big")
    destination_end = 6 + datagram[5]
    if len(datagram) <= destination_end:
        return None
    source_end = destination_end + 1 + datagram[destination_end]
    if len(datagram) < source_end:
        return None
    destination = datagram[6:destination_end]
    source = datagram[destination_end + 1 : source_end]
    is_initial = version == VERSION_1 and datagram[0] & 0x70 == 0x40
    token = b""
    if is_initial:
        found = _parse_token(datagram, source_end)
        if found is None:
            return None
        token = found
    return LongHeader(version, destination, source, is_initial, token)


def _parse_token(datagram: bytes, start: int) -> bytes | None:
    if start >= len(datagram):
        return None
    size = 1 << (datagram[start] >> 6)
    length = int.from_bytes(datagram[start : start + size], "big") & (1 << (8 * size - 2)) - 1
    end = start + size + length
    return datagram[start + size : end] if end <= len(datagram) else None


def version_negotiation(header: LongHeader) -> bytes:
    """Tell the sender of an unknown version that version 1 is spoken here."""
    return encode_quic_version_negotiation(
        source_cid=header.destination,
        destination_cid=header.source,
        supported_versions=[VERSION_1],
    )


def connection_refused(header: LongHeader) -> bytes:
    """Refuse the connection that an Initial wants to open, without keeping state."""
    crypto = CryptoPair()
    crypto.setup_initial(cid=header.destination, is_client=False, version=VERSION_1)
    builder = QuicPacketBuilder(
        host_cid=os.urandom(8),
        is_client=False,
        max_datagram_size=MIN_INITIAL_DATAGRAM,
        peer_cid=header.source,
        version=VERSION_1,
    )
    builder.start_packet(QuicPacketType.INITIAL, crypto)
    frame = builder.start_frame(QuicFrameType.TRANSPORT_CLOSE, capacity=32)
    frame.push_uint_var(QuicErrorCode.CONNECTION_REFUSED)
    frame.push_uint_var(QuicFrameType.PADDING)
    frame.push_uint_var(0)
    datagrams, _ = builder.flush()
    return datagrams[0]
