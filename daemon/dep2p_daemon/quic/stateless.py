"""What an endpoint answers without keeping state: Retry, refusals, resets, Version Negotiation.

None of them is larger than the datagram that set it off, so that nobody can make this socket
multiply traffic towards a forged sender.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog
from aioquic.quic.packet import encode_quic_retry
from aioquic.quic.retry import QuicRetryTokenHandler

from dep2p_daemon.quic.admission import RateLimiter, Verdict
from dep2p_daemon.quic.packets import (
    MIN_INITIAL_DATAGRAM,
    VERSION_1,
    LongHeader,
    connection_refused,
    version_negotiation,
)

if TYPE_CHECKING:
    from dep2p_daemon.quic.connection_ids import ConnectionIds
    from dep2p_daemon.udp.demultiplexer import SocketAddress

REFUSAL_LOG_INTERVAL: Final = 10.0
"""Seconds between two log lines about refused handshakes."""

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class EndpointCounters:
    """What an endpoint refused or dropped, in datagrams unless it says otherwise."""

    dropped: int = 0
    """Of no connection, and no beginning of one."""
    retries_sent: int = 0
    refused: int = 0
    """Initials answered with CONNECTION_REFUSED, or dropped at a cap."""
    version_negotiations_sent: int = 0
    resets_sent: int = 0
    resets_received: int = 0
    handshakes_failed: int = 0
    """Inbound handshakes."""


class StatelessAnswers:
    """Makes the answers and counts them; None stands for silence."""

    def __init__(
        self, connection_ids: ConnectionIds, counters: EndpointCounters, per_second: float
    ) -> None:
        """Allow `per_second` resets and Version Negotiations together."""
        self._connection_ids = connection_ids
        self._counters = counters
        self._limiter = RateLimiter(per_second)
        self._retry_tokens = QuicRetryTokenHandler()
        self._refusal_log = RateLimiter(1 / REFUSAL_LOG_INTERVAL)

    def version_negotiation(self, header: LongHeader, datagram: bytes, now: float) -> bytes | None:
        """Answer a datagram of a version that is not spoken here."""
        if len(datagram) < MIN_INITIAL_DATAGRAM or not self._limiter.allow(now):
            self._counters.dropped += 1
            return None
        self._counters.version_negotiations_sent += 1
        return version_negotiation(header)

    def reset(self, datagram: bytes, now: float) -> bytes | None:
        """Answer a short-header datagram of a connection that nobody knows."""
        answer = None
        if datagram[0] & 0x40:
            answer = self._connection_ids.stateless_reset(datagram)
        if answer is None or not self._limiter.allow(now):
            self._counters.dropped += 1
            return None
        self._counters.resets_sent += 1
        return answer

    def proven_original_id(
        self, header: LongHeader, sender: SocketAddress, now: float
    ) -> bytes | None:
        """The id of the first Initial of a client that brings a valid Retry token back.

        None without a token, and with one that is too old or somebody else's: then the client
        has proven nothing (RFC 9000 section 8.1.3).
        """
        if not header.token:
            return None
        try:
            return self._retry_tokens.validate_token(
                address=_address_of(sender),
                destination_cid=header.destination,
                token=header.token,
                now=now,
            )
        except ValueError:
            return None

    def turn_away(
        self, verdict: Verdict, header: LongHeader, sender: SocketAddress, now: float
    ) -> bytes | None:
        """Answer an Initial that was not admitted."""
        if verdict is Verdict.RETRY:
            self._counters.retries_sent += 1
            return self._retry(header, sender, now)
        self._counters.refused += 1
        if self._refusal_log.allow(now):
            _log.warning(
                "handshakes refused",
                reason="MAX_CONNECTIONS" if verdict is Verdict.REFUSE else "MAX_HALF_OPEN",
                address=sender[0],
                refused=self._counters.refused,
            )
        return connection_refused(header) if verdict is Verdict.REFUSE else None

    def _retry(self, header: LongHeader, sender: SocketAddress, now: float) -> bytes:
        source_id = self._connection_ids.new()
        token = self._retry_tokens.create_token(
            address=_address_of(sender),
            original_destination_connection_id=header.destination,
            retry_source_connection_id=source_id,
            now=now,
        )
        return encode_quic_retry(
            version=VERSION_1,
            source_cid=source_id,
            destination_cid=header.source,
            original_destination_cid=header.destination,
            retry_token=token,
        )


def _address_of(address: SocketAddress) -> tuple[str, int]:
    """Host and port, for tokens; a scope is of no use to the other side of a link."""
    return (address[0].partition("%")[0], address[1])
