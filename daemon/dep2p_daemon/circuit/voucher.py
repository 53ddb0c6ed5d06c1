"""Reservation vouchers: a relay's signed word that it relays for a peer.

https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#reservation-vouchers

A voucher is advisory: nothing in the protocol asks for it to be shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from dep2p_daemon.errors import AuthenticationError, PeerIdError, ProtocolViolationError
from dep2p_daemon.identity.envelope import open_envelope, seal
from dep2p_daemon.identity.peer_id import PeerId
from dep2p_daemon.wire.libp2p import circuit_pb2 as pb

if TYPE_CHECKING:
    from dep2p_daemon.identity.keys import PrivateKey

DOMAIN: Final = "libp2p-relay-rsvp"
PAYLOAD_TYPE: Final = b"\x03\x02"
"""The two literal bytes of multicodec 0x0302, not a varint."""


@dataclass(frozen=True, slots=True)
class Voucher:
    """What a voucher says."""

    relay: PeerId
    peer: PeerId
    expires_at: int
    """Unix time in seconds."""

    def seal(self, key: PrivateKey) -> bytes:
        """Return the voucher in an envelope signed by `key`, which is the relay's."""
        payload = pb.ReservationVoucher(
            relay=bytes(self.relay), peer=bytes(self.peer), expiration=self.expires_at
        )
        return seal(
            key,
            domain=DOMAIN,
            payload_type=PAYLOAD_TYPE,
            payload=payload.SerializeToString(deterministic=True),
        )

    @classmethod
    def open(cls, data: bytes, *, relay: PeerId, peer: PeerId, now: float) -> Voucher:
        """Parse a sealed voucher and check that `relay` gave it to `peer` and it still holds.

        Raises:
            AuthenticationError: a bad signature, or signed by, about or for somebody else.
            ProtocolViolationError: malformed, or expired at `now` (Unix time in seconds).
        """
        envelope = open_envelope(data, domain=DOMAIN, payload_type=PAYLOAD_TYPE)
        payload = pb.ReservationVoucher()
        try:
            payload.ParseFromString(envelope.payload)
            voucher = cls(
                relay=PeerId.from_bytes(payload.relay),
                peer=PeerId.from_bytes(payload.peer),
                expires_at=payload.expiration,
            )
        except (DecodeError, PeerIdError) as error:
            raise ProtocolViolationError(
                "a reservation voucher does not parse", reason="VOUCHER_MALFORMED", relay=relay
            ) from error
        signer = PeerId.from_public_key(envelope.public_key)
        if signer != relay or voucher.relay != relay:
            raise AuthenticationError(
                f"the voucher of the relay {relay} is signed by {signer} for {voucher.relay}",
                reason="VOUCHER_RELAY_MISMATCH",
                relay=relay,
                signer=signer,
            )
        if voucher.peer != peer:
            raise AuthenticationError(
                f"the voucher of the relay {relay} is made out to {voucher.peer}",
                reason="VOUCHER_PEER_MISMATCH",
                relay=relay,
                peer=voucher.peer,
            )
        if voucher.expires_at <= now:
            raise ProtocolViolationError(
                f"the voucher of the relay {relay} expired {now - voucher.expires_at:.0f} s ago",
                reason="VOUCHER_EXPIRED",
                remedy="check the clocks of both machines",
                relay=relay,
            )
        return voucher
