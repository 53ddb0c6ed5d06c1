"""Peer records: addresses that a peer has signed itself.

https://github.com/libp2p/specs/blob/master/RFC/0003-routing-records.md

The RFC's domain and payload type are out of date: every implementation uses those below.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from dep2p_daemon.errors import (
    AuthenticationError,
    InvalidArgumentError,
    MultiaddrError,
    PeerIdError,
    ProtocolViolationError,
)
from dep2p_daemon.identity.envelope import open_envelope, seal
from dep2p_daemon.identity.peer_id import PeerId
from dep2p_daemon.multiaddr.address import Multiaddr
from dep2p_daemon.wire.libp2p import record_pb2 as pb

if TYPE_CHECKING:
    from dep2p_daemon.identity.keys import PrivateKey

DOMAIN: Final = "libp2p-peer-record"
PAYLOAD_TYPE: Final = b"\x03\x01"
"""The two literal bytes of multicodec 0x0301, not a varint."""

MAX_ADDRESSES: Final = 500
"""go-libp2p's bound of a peer's addresses; what follows is left out."""

_REMEMBERED: Final = 16
"""Records that need not be verified again: whoever got one shows it to others here at once."""


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """What a record says. Of two records of a peer the one with the greater `seq` holds."""

    peer_id: PeerId
    seq: int
    """Grows with every record of that peer and means nothing else; 64 bits, unsigned."""
    addresses: tuple[Multiaddr, ...]

    def seal(self, key: PrivateKey) -> bytes:
        """Return the record in an envelope. Raises InvalidArgumentError for another's key."""
        if key.peer_id != self.peer_id:
            raise InvalidArgumentError(
                f"{key.peer_id} cannot sign a peer record of {self.peer_id}",
                reason="PEER_RECORD_SIGNER",
            )
        payload = pb.PeerRecord(
            peer_id=bytes(self.peer_id),
            seq=self.seq,
            addresses=[pb.AddressInfo(multiaddr=bytes(address)) for address in self.addresses],
        )
        return seal(
            key,
            domain=DOMAIN,
            payload_type=PAYLOAD_TYPE,
            payload=payload.SerializeToString(deterministic=True),
        )

    @classmethod
    def open(cls, data: bytes) -> PeerRecord:
        """Check and parse a sealed record.

        Addresses that do not parse are left out: a transport that is unknown here is no reason
        to lose the others.

        Raises:
            ProtocolViolationError: malformed.
            AuthenticationError: a bad signature, or somebody else's.
        """
        return _open(bytes(data))


@functools.lru_cache(maxsize=_REMEMBERED)
def _open(data: bytes) -> PeerRecord:
    envelope = open_envelope(data, domain=DOMAIN, payload_type=PAYLOAD_TYPE)
    message = pb.PeerRecord()
    try:
        message.ParseFromString(envelope.payload)
        peer_id = PeerId.from_bytes(message.peer_id)
    except (DecodeError, PeerIdError) as error:
        raise ProtocolViolationError(
            "a peer record does not parse", reason="PEER_RECORD_MALFORMED"
        ) from error
    signer = PeerId.from_public_key(envelope.public_key)
    if signer != peer_id:
        raise AuthenticationError(
            f"a peer record of {peer_id} is signed by {signer}",
            reason="PEER_RECORD_SIGNER",
            peer_id=peer_id,
            signer=signer,
        )
    return PeerRecord(peer_id, message.seq, tuple(_addresses(message)))


def _addresses(message: pb.PeerRecord) -> list[Multiaddr]:
    addresses: list[Multiaddr] = []
    for info in message.addresses[:MAX_ADDRESSES]:
        try:
            addresses.append(Multiaddr.from_bytes(info.multiaddr))
        except MultiaddrError:
            continue
    return addresses
