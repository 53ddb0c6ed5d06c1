"""Every private touch of aioquic: here, and in the modules named below.

aioquic (https://www.rfc-editor.org/rfc/rfc9000 and its companions, sans-IO) is driven by
`session.py` through this subclass. What it changes, and why:

- the server asks for a client certificate (libp2p TLS needs one);
- what only the handshake needs is freed after it (`after_handshake.py`);
- credit is released as the application consumes, not as data arrives, and what a stream costs is
  bounded (`streams_connection.py`, `stream_ranges.py`);
- connection ids and reset tokens are ours, so that resets survive a restart;
- incoming stateless resets end the connection;
- bulk stream data takes a short way, in batches (`send_pass.py`, `bulk_send.py`,
  `bulk_receive.py`, `recovery.py`; the setting `fast_path` turns it off);
- keys are updated in time, and the AEADs' limits are kept (`one_rtt_keys.py`);
- pacing suits asyncio's timers, and a send pass is bounded;
- an acknowledgement can go out at the end of a batch instead of a millisecond later;
- datagrams grow beyond 1200 bytes only after a probe of that size got through (RFC 8899);
- who acknowledges what was never sent is found out.

`tests/unit/quic/test_aioquic_connection.py` fails when a release of aioquic breaks one of them.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from aioquic import tls
from aioquic.quic.connection import (
    QuicConnectionError,
    QuicConnectionId,
    QuicConnectionState,
)
from aioquic.quic.events import ConnectionTerminated
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
)
from aioquic.quic.packet_builder import QuicDeliveryState
from typing_extensions import override

from dep2p_daemon.quic.after_handshake import discard_handshake, share_handlers
from dep2p_daemon.quic.bulk_receive import receive_bulk
from dep2p_daemon.quic.bulk_send import MAX_STOCK_DATAGRAM
from dep2p_daemon.quic.mtu_probe import build_mtu_probe
from dep2p_daemon.quic.one_rtt_keys import OneRttKeys
from dep2p_daemon.quic.pacer import BurstPacer
from dep2p_daemon.quic.packet_counters import PacketCounters
from dep2p_daemon.quic.path_mtu import BASE_SIZE, PathMtu
from dep2p_daemon.quic.recovery import BulkRecovery
from dep2p_daemon.quic.send_pass import send_pass
from dep2p_daemon.quic.stream_ranges import bound_ranges
from dep2p_daemon.quic.streams_connection import StreamsConnection

if TYPE_CHECKING:
    from aioquic._buffer import Buffer
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.connection import QuicReceiveContext
    from cryptography import x509

    from dep2p_daemon.quic.connection_ids import ConnectionIds
    from dep2p_daemon.udp.demultiplexer import SocketAddress

BLACK_HOLE_TIMEOUTS: Final = 2
"""Probe timeouts in a row after which large datagrams are suspected."""

_ENDED: Final = frozenset({QuicConnectionState.DRAINING, QuicConnectionState.TERMINATED})

# What it says about a connection reaches our log as that connection's close reason; its own
# lines would let a peer fill the log.
logging.getLogger("quic").setLevel(logging.CRITICAL)


class AioquicConnection(StreamsConnection):
    """aioquic's connection, driven by `session.Session`."""

    def __init__(
        self,
        *,
        configuration: QuicConfiguration,
        connection_ids: ConnectionIds,
        max_inbound_streams: int,
        max_datagram_size: int,
        connection_window: int,
        fast_path: bool = True,
        original_destination_connection_id: bytes | None = None,
        retry_source_connection_id: bytes | None = None,
    ) -> None:
        """Prepare a connection; `configuration` must be this connection's own."""
        self.counters = PacketCounters()
        self.one_rtt_keys = OneRttKeys()
        self._fast_path = fast_path
        self._connection_ids = connection_ids
        self._mtu = PathMtu(max_datagram_size)
        configuration.max_data = connection_window
        super().__init__(
            configuration=configuration,
            original_destination_connection_id=original_destination_connection_id,
            retry_source_connection_id=retry_source_connection_id,
        )
        share_handlers(self)
        first = self._host_cids[0]
        first.cid = connection_ids.new()
        if not self._is_client:
            first.stateless_reset_token = connection_ids.reset_token(first.cid)
        self.host_cid = self._local_initial_source_connection_id = first.cid
        for limit, value in (
            (self._local_max_streams_bidi, max_inbound_streams),
            (self._local_max_streams_uni, 0),  # libp2p has none
        ):
            limit.value = limit.sent = value
        self._loss = self._recovery = BulkRecovery(
            congestion_control_algorithm=configuration.congestion_control_algorithm,
            initial_rtt=configuration.initial_rtt,
            max_datagram_size=self._max_datagram_size,
            peer_completed_address_validation=not self._is_client,
            send_probe=self._send_probe,
        )
        self._recovery.path_mtu = self._mtu
        self._burst_pacer = BurstPacer(max_datagram_size=configuration.max_datagram_size)
        self._loss._pacer = self._burst_pacer

    # Handshake

    @override
    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self._cryptos[tls.Epoch.ONE_RTT] = self.one_rtt_keys = OneRttKeys()
        self.tls._request_client_certificate = not self._is_client
        # P-384 and X448 shares cost as much as the rest of the handshake and nobody needs them.
        self.tls._supported_groups = [tls.Group.X25519, tls.Group.SECP256R1]
        for stream in self._crypto_streams.values():
            bound_ranges(stream)

    @property
    def peer_certificates(self) -> list[x509.Certificate]:
        """The chain that the peer sent; empty if it sent none."""
        first = self.tls._peer_certificate
        return [] if first is None else [first, *self.tls._peer_certificate_chain]

    @property
    def has_begun(self) -> bool:
        """Whether a packet of the peer could be decrypted."""
        return self._remote_initial_source_connection_id is not None

    @property
    def handshake_confirmed(self) -> bool:
        """Whether both sides know that the handshake is complete (RFC 9001 section 4.1.2)."""
        return self._handshake_confirmed

    def forget_handshake(self) -> None:
        """Free what only the handshake needs; it must be confirmed."""
        discard_handshake(self)

    # Connection ids and stateless resets

    @override
    def _replenish_connection_ids(self) -> None:
        while len(self._host_cids) < min(4, self._remote_active_connection_id_limit):
            cid = self._connection_ids.new()
            self._host_cids.append(
                QuicConnectionId(
                    cid=cid,
                    sequence_number=self._host_cid_seq,
                    stateless_reset_token=self._connection_ids.reset_token(cid),
                )
            )
            self._host_cid_seq += 1

    @property
    def peer_reset_token(self) -> bytes | None:
        """The token with which the peer would reset this connection, once it told us."""
        return self._peer_cid.stateless_reset_token or None

    def is_peer_address(self, address: SocketAddress) -> bool:
        """Whether `address` is one of the paths of this connection."""
        return any(path.addr == address for path in self._network_paths)

    def end_by_stateless_reset(self) -> None:
        """Enter the terminated state without sending anything more (RFC 9000 section 10.3.1)."""
        self._close_event = ConnectionTerminated(
            error_code=QuicErrorCode.NO_ERROR,
            frame_type=QuicFrameType.PADDING,
            reason_phrase="stateless reset",
        )
        self._close_end()

    # The end

    @property
    def termination(self) -> ConnectionTerminated | None:
        """Why the connection has ended, as soon as the peer's close arrived or a timer fired."""
        return self._close_event if self._state in _ENDED else None

    @property
    def close_pending(self) -> ConnectionTerminated | None:
        """Our own close that has not been sent: ours, or a violation that aioquic found."""
        return self._close_event if self._close_pending else None

    @property
    def closing_period(self) -> float:
        """How long after a close packets of the connection may still come, in seconds."""
        return 3 * self._loss.get_probe_timeout()

    # Packets

    @property
    def idle_since(self) -> float | None:
        """When the idle timer was last restarted: a packet came, or the first one since went."""
        return None if self._close_at is None else self._close_at - self._idle_timeout()

    @property
    def idle_timeout(self) -> float:
        """Seconds of silence that end the connection: the smaller of both sides' wishes."""
        return self._idle_timeout()

    @property
    def validated_peer_address(self) -> SocketAddress | None:
        """Where packets go, once the peer has proven that it gets them there."""
        if not self._network_paths or not self._network_paths[0].is_validated:
            return None
        address: SocketAddress = self._network_paths[0].addr
        return address

    @property
    def rtt(self) -> float | None:
        """Smoothed round trip in seconds, after the first sample."""
        return self._loss._rtt_smoothed if self._loss._rtt_initialized else None

    @property
    def max_datagram_size(self) -> int:
        """Size of the datagrams that are being sent."""
        return self._mtu.size

    def receive_batch(self, datagrams: list[bytes], address: SocketAddress, now: float) -> None:
        """Take datagrams of one sender in."""
        if self._fast_path and self._handshake_confirmed:
            receive_bulk(self, datagrams, address, now)
        else:
            for datagram in datagrams:
                self.receive_datagram(datagram, address, now)
            self.counters.received_stock += len(datagrams)
        if self.one_rtt_keys.limit_reached:
            self._end_at_aead_limit()

    @override
    def _handle_ack_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        super()._handle_ack_frame(context, frame_type, buf)
        if self._spaces[context.epoch].largest_acked_packet >= self._packet_number:
            raise QuicConnectionError(  # RFC 9000 section 13.1
                error_code=QuicErrorCode.PROTOCOL_VIOLATION,
                frame_type=frame_type,
                reason_phrase="a packet is acknowledged that was never sent",
            )

    def transmit(self, now: float, *, acknowledge: bool) -> list[tuple[bytes, Any]]:
        """Build what may be sent now, at most one pass of it.

        Args:
            now: the time.
            acknowledge: send a waiting acknowledgement at once. aioquic waits a millisecond.
        """
        if acknowledge and self._spaces:
            space = self._spaces[tls.Epoch.ONE_RTT]
            if space.ack_at is not None and space.ack_at > now:
                space.ack_at = now
        self._burst_pacer.begin_pass()
        self._recovery.control.begin_pass(now)
        if self._mtu.is_black_hole:
            self._begin_search()
        if self._handshake_confirmed:
            self._look_after_keys(now)
        if self._fast_path and self._handshake_confirmed:
            datagrams = send_pass(self, now)
        else:
            datagrams = self.transmit_stock(now)
        if self._handshake_confirmed and not self._loss._pto_count:
            datagrams += self._mtu_probe(now)
        return datagrams

    def transmit_stock(self, now: float) -> list[tuple[bytes, Any]]:
        """Build what aioquic would send now; for `transmit`."""
        self._max_datagram_size = self._stock_datagram_size()
        datagrams = self.datagrams_to_send(now)
        self._burst_pacer.settle(sum(len(datagram) for datagram, _ in datagrams))
        self.counters.sent_stock += len(datagrams)
        return datagrams

    def _stock_datagram_size(self) -> int:
        # aioquic fills datagrams that validate a path up to its size; 1200 bytes are asked for
        # (RFC 9000 section 8.2.1), and who is not validated is owed few.
        if any(path.remote_challenges or not path.is_validated for path in self._network_paths):
            return BASE_SIZE
        return min(self._mtu.size, MAX_STOCK_DATAGRAM)

    def _look_after_keys(self, now: float) -> None:
        """Update the keys in time, forget old ones, stop where an AEAD's limit is reached."""
        keys = self.one_rtt_keys
        if keys.wants_update(self._spaces[tls.Epoch.ONE_RTT].largest_acked_packet):
            self.request_key_update()
        if keys.limit_reached:
            self._end_at_aead_limit()
        keys.expire_previous(now, 3 * self._loss.get_probe_timeout())

    def _end_at_aead_limit(self) -> None:
        self.close(
            error_code=QuicErrorCode.AEAD_LIMIT_REACHED,
            frame_type=QuicFrameType.PADDING,
            reason_phrase="too many packets for one key",
        )

    def timer_fired(self, now: float) -> None:
        """Handle a deadline that `get_timer` gave."""
        if self._close_at is None:
            return
        self.handle_timer(now)
        if self._loss._pto_count >= BLACK_HOLE_TIMEOUTS and self._mtu.size > BASE_SIZE:
            # Perhaps the path changed and large datagrams vanish.
            self._begin_search()

    def begin_path(self, now: float) -> None:
        """Begin as on a new path, of which nobody knows anything (RFC 9000 section 9.4)."""
        self._begin_search()
        self._recovery.begin_path(now)

    def datagram_refused(self, now: float) -> None:
        """Handle that our own interface is too narrow for a datagram of the pass of `now`.

        No network lost it: congestion control hears nothing of it.
        """
        space, probes = self._spaces[tls.Epoch.ONE_RTT], self._recovery.mtu_probes
        sent = []
        for packet in reversed(space.sent_packets.values()):
            if packet.sent_time != now:
                break
            sent.append(packet)
        refused = [packet for packet in sent if packet.packet_number in probes]
        if refused:
            self._mtu.refused(refused[0].sent_bytes)
        else:
            refused = [packet for packet in sent if packet.sent_bytes > BASE_SIZE]
            self._begin_search()
        self._recovery.expire(refused, now, space)

    def _begin_search(self) -> None:
        self._mtu.restart()
        self._use_datagram_size(BASE_SIZE)

    def _mtu_probe(self, now: float) -> list[tuple[bytes, Any]]:
        builder = build_mtu_probe(self, self._mtu, now, self._on_mtu_probe_delivery)
        if builder is None:
            return []
        return self._flush_builder(
            builder=builder,
            network_path=self._network_paths[0],
            peer_cid=self._peer_cid.cid,
            now=now,
        )

    def _on_mtu_probe_delivery(
        self, delivery: QuicDeliveryState, packet_number: int, size: int
    ) -> None:
        self._recovery.mtu_probes -= {packet_number}
        if delivery is not QuicDeliveryState.ACKED:
            self._mtu.probe_lost(size)
        elif self._mtu.probe_acknowledged(size):
            self._use_datagram_size(size)

    def _use_datagram_size(self, size: int) -> None:
        self._burst_pacer.set_max_datagram_size(size)
        self._recovery.control.set_max_datagram_size(size)
