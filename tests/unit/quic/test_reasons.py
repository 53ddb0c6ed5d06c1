"""From QUIC's codes to errors that people can read."""

from __future__ import annotations

import pytest
from aioquic.quic.connection import QuicConnection as StockConnection
from aioquic.quic.packet import QuicErrorCode

from dep2p_daemon.errors import AuthenticationError, Dep2pError, UnreachableError
from dep2p_daemon.quic.reasons import IDLE_TIMEOUT_PHRASE, explain_end, explain_failed_handshake


def test_the_phrase_by_which_a_timeout_is_known_is_aioquics() -> None:
    constants = StockConnection.handle_timer.__code__.co_consts
    assert IDLE_TIMEOUT_PHRASE in constants


def test_an_application_close_keeps_its_code() -> None:
    error = explain_end(0x1005, None, "for a better one", remote=True)
    assert (error.code, error.remote) == (0x1005, True)
    assert "for a better one" in error.message
    # The peer's text does not pass for our timeout.
    assert explain_end(1, None, IDLE_TIMEOUT_PHRASE, remote=True).code == 1


@pytest.mark.parametrize(
    ("code", "frame_type", "phrase", "remote", "reason"),
    [
        (1, 0, IDLE_TIMEOUT_PHRASE, True, "CONNECTION_TIMED_OUT"),
        (QuicErrorCode.FLOW_CONTROL_ERROR, 8, "", False, "QUIC_ERROR"),
        (0x7777, 0, "", True, "QUIC_ERROR"),
    ],
)
def test_ends(code: int, frame_type: int, phrase: str, remote: bool, reason: str) -> None:
    error = explain_end(code, frame_type, phrase, remote=remote)
    assert (error.reason, error.code, error.remote) == (reason, None, remote)


@pytest.mark.parametrize(
    ("code", "frame_type", "phrase", "remote", "kind", "reason"),
    [
        (1, 0, IDLE_TIMEOUT_PHRASE, True, UnreachableError, "NO_ANSWER"),
        (QuicErrorCode.CONNECTION_REFUSED, 0, "", True, UnreachableError, "CONNECTION_REFUSED"),
        (0x100 + 120, 6, "", True, UnreachableError, "NOT_LIBP2P"),
        (0x100 + 42, 6, "x", True, AuthenticationError, "REFUSED"),
        (0x100 + 51, 6, "", False, AuthenticationError, "HANDSHAKE_FAILED"),
        (0x1FF, 6, "", False, AuthenticationError, "HANDSHAKE_FAILED"),
        (0x1007, None, "closing", True, UnreachableError, "HANDSHAKE_FAILED"),
        (QuicErrorCode.PROTOCOL_VIOLATION, 0, "", True, UnreachableError, "HANDSHAKE_FAILED"),
    ],
)
def test_failed_handshakes(
    code: int,
    frame_type: int | None,
    phrase: str,
    remote: bool,
    kind: type[Dep2pError],
    reason: str,
) -> None:
    error = explain_failed_handshake(code, frame_type, phrase, remote=remote)
    assert type(error) is kind
    assert error.reason == reason
    assert error.message
