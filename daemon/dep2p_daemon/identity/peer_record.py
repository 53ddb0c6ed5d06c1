"""Peer records: https://github.com/libp2p/specs/blob/master/RFC/0003-routing-records.md.

The RFC's domain and payload type are out of date; every implementation uses the ones below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from dep2p_daemon.errors import (
    AuthenticationError,
    MultiaddrError,
    PeerIdError,
    ProtocolViolationError,
)
from dep2p_daemon.identity.envelope import open_envelope, seal
from dep2p_daemon.identity.peer_id import PeerId
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.wire.libp2p import record_pb2

if TYPE_CHECKING:
    from dep2p_daemon.identity.keys import PrivateKey

DOMAIN: Final = "libp2p-peer-record"
PAYLOAD_TYPE: Final = b"\x03\x01"
MAX_ADDRESSES: Final = 500


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """The addresses that a peer itself has signed."""

    peer_id: PeerId
    seq: int
    """Grows with every record of the peer; its value means nothing else."""
    addresses: tuple[Multiaddr, ...]

    def seal(self, key: PrivateKey) -> bytes:
        """Sign it; `key` must be the peer's own."""
        payload = record_pb2.PeerRecord(
            peer_id=self.peer_id.to_bytes(),
            seq=self.seq,
            addresses=[record_pb2.AddressInfo(multiaddr=bytes(a)) for a in self.addresses],
        ).SerializeToString(deterministic=True)
        return seal(key, domain=DOMAIN, payload_type=PAYLOAD_TYPE, payload=payload)

    @classmethod
    def open(cls, data: bytes) -> PeerRecord:
        """Verify and parse a sealed record. Addresses that do not parse are left out.

        Raises:
            ProtocolViolationError: malformed.
            AuthenticationError: the signature does not hold, or is not the peer's.
        """
        envelope = open_envelope(data, domain=DOMAIN, payload_type=PAYLOAD_TYPE)
        try:
            message = record_pb2.PeerRecord.FromString(envelope.payload)
            peer_id = PeerId.from_bytes(message.peer_id)
        except (DecodeError, PeerIdError) as error:
            raise ProtocolViolationError(
                "a malformed peer record", reason="PEER_RECORD_INVALID"
            ) from error
        if peer_id != PeerId.from_public_key(envelope.public_key):
            raise AuthenticationError(
                f"the peer record of {peer_id} is signed by somebody else",
                reason="PEER_RECORD_INVALID",
            )
        return cls(peer_id, message.seq, tuple(_addresses(message)))


def _addresses(message: record_pb2.PeerRecord) -> list[Multiaddr]:
    addresses: list[Multiaddr] = []
    for info in message.addresses[:MAX_ADDRESSES]:
        try:
            addresses.append(Multiaddr.from_bytes(info.multiaddr))
        except MultiaddrError:
            # A transport that we do not know is no reason to lose the others.
            continue
    return addresses
