"""Why a connection ended, in words: from QUIC's codes to our errors."""

from __future__ import annotations

from typing import Final

from aioquic.quic.packet import QuicErrorCode
from aioquic.tls import AlertDescription

from dep2p_daemon.errors import (
    AuthenticationError,
    ConnectionClosedError,
    Dep2pError,
    UnreachableError,
)

IDLE_TIMEOUT_PHRASE: Final = "Idle timeout"
"""aioquic's reason phrase: its event has no better mark."""

_CRYPTO_ERRORS: Final = range(QuicErrorCode.CRYPTO_ERROR, QuicErrorCode.CRYPTO_ERROR + 256)


def explain_end(
    code: int, frame_type: int | None, phrase: str, *, remote: bool
) -> ConnectionClosedError:
    """Explain the end of an established connection.

    Args:
        code: the error code of the close.
        frame_type: None for a close by the application above the peer's QUIC.
        phrase: the reason phrase.
        remote: the close came from the peer, or from silence.
    """
    if phrase == IDLE_TIMEOUT_PHRASE and frame_type is not None:
        return ConnectionClosedError(
            "the peer has gone silent", reason="CONNECTION_TIMED_OUT", remote=True
        )
    tail = f": {phrase}" if phrase else ""
    if frame_type is None:
        return ConnectionClosedError(
            f"the peer closed the connection (code {code:#x}){tail}", code=code, remote=remote
        )
    who = "the peer reports" if remote else "the peer made"
    return ConnectionClosedError(
        f"{who} a QUIC error ({_name(code)}){tail}", reason="QUIC_ERROR", remote=remote
    )


def explain_failed_handshake(
    code: int, frame_type: int | None, phrase: str, *, remote: bool
) -> Dep2pError:
    """Explain why no connection came about; the arguments are those of `explain_end`."""
    tail = f": {phrase}" if phrase else ""
    if phrase == IDLE_TIMEOUT_PHRASE and frame_type is not None:
        return UnreachableError("nobody answered over QUIC", reason="NO_ANSWER")
    if frame_type is not None and code == QuicErrorCode.CONNECTION_REFUSED:
        return UnreachableError(
            "the peer refuses new connections",
            reason="CONNECTION_REFUSED",
            remedy="try again later",
        )
    if frame_type is not None and code in _CRYPTO_ERRORS:
        if code - QuicErrorCode.CRYPTO_ERROR == AlertDescription.no_application_protocol:
            return UnreachableError(
                "whoever answers there does not speak libp2p over QUIC", reason="NOT_LIBP2P"
            )
        side = "the peer refused our identity" if remote else "the TLS handshake failed"
        return AuthenticationError(
            f"{side} ({_name(code)}){tail}", reason="HANDSHAKE_FAILED" if not remote else "REFUSED"
        )
    return UnreachableError(
        f"the connection was closed during the handshake ({_name(code)}){tail}",
        reason="HANDSHAKE_FAILED",
    )


def _name(code: int) -> str:
    if code in _CRYPTO_ERRORS:
        try:
            return f"TLS alert {AlertDescription(code - QuicErrorCode.CRYPTO_ERROR).name}"
        except ValueError:
            return f"TLS alert {code - QuicErrorCode.CRYPTO_ERROR}"
    try:
        return QuicErrorCode(code).name
    except ValueError:
        return f"code {code:#x}"
