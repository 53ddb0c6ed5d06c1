"""The keys of 1-RTT packets over the life of a connection (RFC 9001 sections 5, 6).

What aioquic's pair lacks: both sides' packets of the previous key phase can still be opened
after an update, so that one in mid-transfer costs nothing; packets are counted against the
limits of section 6.6; a forged key phase does not cost a key derivation each time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aioquic._crypto import CryptoError
from aioquic.quic.crypto import CryptoContext, CryptoPair, next_key_phase
from aioquic.quic.packet import decode_packet_number, is_long_header
from aioquic.tls import CipherSuite
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aioquic._crypto import HeaderProtection

UPDATE_AFTER: Final = 1 << 22
"""Packets sealed in one key phase before an update is begun: half of what AES-GCM allows."""
MAX_SEALED: Final = 1 << 23
"""What AES-GCM allows; ChaCha20-Poly1305 allows more than there are packet numbers."""
MAX_FORGED: Final = {CipherSuite.CHACHA20_POLY1305_SHA256: 1 << 36}
"""Packets that failed to authenticate, in all key phases, before the connection must end."""
MAX_FORGED_AES: Final = 1 << 52

SAMPLE_OFFSET: Final = 4
"""Where the sample for header protection begins, from the packet number on."""
SAMPLE_SIZE: Final = 16
_CHACHA_MASK: Final = bytes(5)


def header_masks(protection: HeaderProtection, samples: Sequence[bytes]) -> tuple[bytes, int]:
    """The masks of `samples`, and how many bytes lie between them: AES does all in one call."""
    encryptor = protection._encryptor
    if not protection._is_chacha20:
        return encryptor.update(b"".join(samples)), SAMPLE_SIZE
    masks = []
    for sample in samples:
        encryptor.reset_nonce(sample)
        masks.append(encryptor.update(_CHACHA_MASK))
    return b"".join(masks), len(_CHACHA_MASK)


class OneRttKeys(CryptoPair):
    """The two directions' keys. Made before the handshake, which installs the secrets."""

    def __init__(self) -> None:
        super().__init__()
        self.sealed = 0
        """Packets sealed in this key phase."""
        self.first_sealed: int | None = None
        """Packet number of the first of them."""
        self.first_opened: int | None = None
        """Packet number of the first packet opened in this key phase; none before the peer
        followed an update of ours."""
        self.forged = 0
        """Packets that failed to authenticate."""
        self.previous: CryptoContext | None = None
        """What opens packets of the previous key phase."""
        self._expires_at: float | None = None
        self._next: CryptoContext | None = None

    @property
    def limit_reached(self) -> bool:
        """Whether a packet more could break what the AEAD promises."""
        suite = self.recv.cipher_suite
        if suite is None:
            return False
        if self.forged >= MAX_FORGED.get(suite, MAX_FORGED_AES):
            return True
        return suite not in MAX_FORGED and self.sealed >= MAX_SEALED

    def wants_update(self, largest_acknowledged: int) -> bool:
        """Whether an update is due, and allowed: the peer acknowledged a packet of this phase."""
        return (
            self.sealed >= UPDATE_AFTER
            and not self._update_key_requested
            and self.first_sealed is not None
            and largest_acknowledged >= self.first_sealed
        )

    def apply_update(self) -> None:
        """Do an update that was asked for; the next packet is sealed with the new keys."""
        if self._update_key_requested:
            self._update_key("local_update")

    def expire_previous(self, now: float, lifetime: float) -> None:
        """Forget the previous phase's keys when they are old and the peer has followed.

        Their `lifetime` in seconds begins with the first call after an update.
        """
        if self.previous is None:
            return
        if self._expires_at is None:
            self._expires_at = now + lifetime
        elif now >= self._expires_at and self.first_opened is not None:
            self.previous = self._expires_at = None

    def count_sealed(self, packet_number: int, count: int) -> None:
        """Count packets sealed from `packet_number` on."""
        if self.first_sealed is None:
            self.first_sealed = packet_number
        self.sealed += count

    @override
    def encrypt_packet(
        self, plain_header: bytes, plain_payload: bytes, packet_number: int
    ) -> bytes:
        self.apply_update()
        self.count_sealed(packet_number, 1)
        return super().encrypt_packet(plain_header, plain_payload, packet_number)

    @override
    def decrypt_packet(
        self, packet: bytes, encrypted_offset: int, expected_packet_number: int
    ) -> tuple[bytes, bytes, int]:
        recv = self.recv
        if recv.aead is None or recv.hp is None:
            return super().decrypt_packet(packet, encrypted_offset, expected_packet_number)
        header, truncated = recv.hp.remove(packet, encrypted_offset)
        length = (header[0] & 0x03) + 1
        number = decode_packet_number(truncated, length * 8, expected_packet_number)
        phase = (header[0] >> 2) & 1
        keys = recv if is_long_header(header[0]) or phase == recv.key_phase else self._other(number)
        assert keys.aead is not None
        try:
            payload = keys.aead.decrypt(packet[len(header) :], header, number)
        except CryptoError:
            self.forged += 1
            raise
        if keys is self._next:
            self._update_key("remote_update")
            keys = self.recv
        if keys is self.recv and self.first_opened is None:
            self.first_opened = number
        return header, payload, number

    def _other(self, packet_number: int) -> CryptoContext:
        """The keys of a packet of the other key phase: the previous one, or the next one."""
        if self.previous is not None and (
            self.first_opened is None or packet_number < self.first_opened
        ):
            return self.previous
        if self._next is None:
            self._next = next_key_phase(self.recv)
        return self._next

    @override
    def _update_key(self, trigger: str) -> None:
        previous = CryptoContext(key_phase=self.recv.key_phase)
        previous.aead = self.recv.aead
        super()._update_key(trigger)
        self.previous, self._expires_at = previous, None
        self._next = None
        self.sealed = 0
        self.first_sealed = self.first_opened = None
