"""Our connection ids and their stateless reset tokens (RFC 9000 sections 5.1 and 10.3).

An id is 8 bytes: the worker that owns it, then 7 random ones. Its reset token is a keyed hash
of it, so that a restarted daemon can still tell old peers that their connection is gone.
"""

from __future__ import annotations

import hmac
import os
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

CONNECTION_ID_LENGTH: Final = 8
RESET_TOKEN_LENGTH: Final = 16
MIN_RESET_LENGTH: Final = 21
"""38 unpredictable bits, rounded up, and a token (RFC 9000 section 10.3)."""
MAX_RESET_LENGTH: Final = 42
MIN_RESET_TRIGGER: Final = 41
"""Datagrams shorter than this are never answered, so that two endpoints cannot loop."""


def derive_reset_key(secret: bytes) -> bytes:
    """Derive the persistent key of reset tokens from the node's secret key."""
    return HKDF(
        algorithm=hashes.SHA256(), length=32, salt=None, info=b"dep2p quic stateless reset"
    ).derive(secret)


class ConnectionIds:
    """Makes connection ids and knows their reset tokens."""

    def __init__(self, reset_key: bytes, worker_id: int = 0) -> None:
        if not 0 <= worker_id <= 255:
            raise ValueError(f"worker id {worker_id} is not one byte")
        self._key = reset_key
        self._worker = bytes((worker_id,))

    def new(self) -> bytes:
        """Return a fresh connection id."""
        return self._worker + os.urandom(CONNECTION_ID_LENGTH - 1)

    def is_ours(self, connection_id: bytes) -> bool:
        """Whether this worker may have issued `connection_id`, now or before a restart."""
        return len(connection_id) == CONNECTION_ID_LENGTH and connection_id[:1] == self._worker

    def reset_token(self, connection_id: bytes) -> bytes:
        """Return the token whose arrival ends a connection that uses `connection_id`."""
        return hmac.digest(self._key, connection_id, "sha256")[:RESET_TOKEN_LENGTH]

    def stateless_reset(self, trigger: bytes) -> bytes | None:
        """Return the answer to a short-header datagram of a connection nobody knows.

        None when it must not be answered: too short, or not for an id of this worker.
        """
        connection_id = trigger[1 : 1 + CONNECTION_ID_LENGTH]
        if len(trigger) < MIN_RESET_TRIGGER or not self.is_ours(connection_id):
            return None
        length = min(len(trigger) - 1, MAX_RESET_LENGTH)
        noise = os.urandom(length - RESET_TOKEN_LENGTH)
        first = noise[0] & 0x3F | 0x40
        return bytes((first,)) + noise[1:] + self.reset_token(connection_id)
