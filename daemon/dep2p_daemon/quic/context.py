"""What all endpoints and sessions of one transport share."""

from __future__ import annotations

import dataclasses
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from aioquic.quic.configuration import QuicConfiguration
from aioquic.tls import CipherSuite

from dep2p_daemon.muxed import ReceiveMemory
from dep2p_daemon.quic.certificate import TlsCertificate, make_certificate
from dep2p_daemon.quic.congestion import ALGORITHM
from dep2p_daemon.quic.connection_ids import ConnectionIds, derive_reset_key
from dep2p_daemon.quic.libp2p_tls import ALPN
from dep2p_daemon.quic.packet_counters import PacketCounters
from dep2p_daemon.quic.packets import MIN_INITIAL_DATAGRAM, VERSION_1

if TYPE_CHECKING:
    from dep2p_daemon.identity.keys import PrivateKey
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.quic.session import Session
    from dep2p_daemon.quic.settings import QuicSettings

_AES_FIRST: Final = (
    CipherSuite.AES_128_GCM_SHA256,
    CipherSuite.CHACHA20_POLY1305_SHA256,
    CipherSuite.AES_256_GCM_SHA384,
)
_CHACHA20_FIRST: Final = (
    CipherSuite.CHACHA20_POLY1305_SHA256,
    CipherSuite.AES_128_GCM_SHA256,
    CipherSuite.AES_256_GCM_SHA384,
)


@dataclass(slots=True)
class QuicContext:
    """Identity, settings and the resources that are bounded for the transport as a whole."""

    local_peer: PeerId
    settings: QuicSettings
    certificate: TlsCertificate
    connection_ids: ConnectionIds
    memory: ReceiveMemory
    sessions: set[Session] = field(default_factory=set)
    """Every connection and handshake of the transport."""
    packets_of_closed: PacketCounters = field(default_factory=PacketCounters)
    """Of the connections that have ended."""

    @classmethod
    def create(
        cls, key: PrivateKey, settings: QuicSettings, memory: ReceiveMemory | None = None
    ) -> QuicContext:
        """Make the certificate and the keys that one process uses for all connections."""
        reset_key = settings.stateless_reset_key
        if reset_key is None:
            reset_key = derive_reset_key(key.to_protobuf())
        return cls(
            local_peer=key.peer_id,
            settings=settings,
            certificate=make_certificate(key),
            connection_ids=ConnectionIds(reset_key, settings.worker_id),
            memory=memory or ReceiveMemory(settings.receive_memory),
        )

    def configuration(self, *, is_client: bool) -> QuicConfiguration:
        """Return a new aioquic configuration: it changes its own, so each has one to itself."""
        settings = self.settings
        return QuicConfiguration(
            is_client=is_client,
            alpn_protocols=[ALPN],
            certificate=self.certificate.certificate,
            private_key=self.certificate.private_key,
            # Who the peer is, is checked in libp2p_tls.py: there are no authorities.
            verify_mode=ssl.CERT_NONE,
            cipher_suites=[*(_CHACHA20_FIRST if settings.prefer_chacha else _AES_FIRST)],
            congestion_control_algorithm=ALGORITHM,
            idle_timeout=settings.idle_timeout,
            max_datagram_size=MIN_INITIAL_DATAGRAM,
            max_stream_data=settings.initial_stream_window,
            server_name=None,
            supported_versions=[VERSION_1],
        )

    def forget(self, session: Session) -> None:
        """A connection has ended: keep its counts. Idempotent."""
        if session in self.sessions:
            self.sessions.discard(session)
            self.packets_of_closed.add(session.quic.counters)

    def packets(self) -> PacketCounters:
        """Return how many packets of all connections, past and present, took which way."""
        total = dataclasses.replace(self.packets_of_closed)
        for session in self.sessions:
            total.add(session.quic.counters)
        return total

    def relieve_memory(self) -> None:
        """Close the connections with most unread bytes until the bound holds again.

        Where the memory is shared, what remains is another transport's to give back.
        """
        by_size = sorted(self.sessions, key=lambda session: session.unread_bytes, reverse=True)
        for session in by_size:
            if not self.memory.exceeded or not session.unread_bytes:
                return
            session.evict()
