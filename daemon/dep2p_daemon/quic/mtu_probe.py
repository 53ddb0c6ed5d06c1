"""The packets of path MTU discovery (RFC 8899 section 4.1): a PING, filled up with PADDING."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic.connection import QuicConnectionState
from aioquic.quic.packet import (
    QuicFrameType,
    QuicPacketType,
    pull_quic_transport_parameters,
)
from aioquic.quic.packet_builder import QuicPacketBuilder

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioquic.quic.packet_builder import QuicDeliveryState

    from dep2p_daemon.quic.aioquic_connection import AioquicConnection
    from dep2p_daemon.quic.path_mtu import PathMtu

MAX_UDP_PAYLOAD: Final = 65_527
"""What a peer takes that does not tell (RFC 9000 section 18.2)."""


def build_mtu_probe(
    connection: AioquicConnection,
    search: PathMtu,
    now: float,
    on_delivery: Callable[[QuicDeliveryState, int, int], None],
) -> QuicPacketBuilder | None:
    """Build the probe of `search` that is due; None if there is none, or no way to.

    `on_delivery` gets its fate, its packet number and its size.
    """
    window = connection._recovery.congestion_window
    connected = connection._state is QuicConnectionState.CONNECTED
    if search.due(now, window) is None or not connected or connection._close_pending:
        return None
    if not connection._network_paths[0].is_validated:
        return None
    search.limit(peer_max_datagram(connection))
    size = search.due(now, window)
    if size is None:
        return None
    search.probe_sent(size)
    number = connection._packet_number
    builder = QuicPacketBuilder(
        host_cid=connection.host_cid,
        is_client=connection._is_client,
        max_datagram_size=size,
        packet_number=number,
        peer_cid=connection._peer_cid.cid,
        version=connection._version or 0,
    )
    builder.start_packet(QuicPacketType.ONE_RTT, connection._cryptos[tls.Epoch.ONE_RTT])
    builder.start_frame(QuicFrameType.PING, handler=on_delivery, handler_args=(number, size))
    padding = builder.start_frame(QuicFrameType.PADDING)
    padding.push_bytes(bytes(builder.remaining_buffer_space))
    connection._recovery.mtu_probes |= {number}
    return builder


def peer_max_datagram(connection: AioquicConnection) -> int:
    """The largest UDP payload that the peer says it takes."""
    for kind, value in connection.tls.received_extensions or ():
        if kind == tls.ExtensionType.QUIC_TRANSPORT_PARAMETERS:
            parameters = pull_quic_transport_parameters(Buffer(data=value))
            return parameters.max_udp_payload_size or MAX_UDP_PAYLOAD
    return MAX_UDP_PAYLOAD
