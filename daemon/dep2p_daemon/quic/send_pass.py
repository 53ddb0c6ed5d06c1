"""One send pass of a connection: what goes the short way (`bulk_send.py`), and what does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aioquic import tls
from aioquic.quic.connection import QuicConnectionState

from dep2p_daemon.quic.bulk_send import send_bulk

if TYPE_CHECKING:
    from dep2p_daemon.quic.aioquic_connection import AioquicConnection


def _may_send_bulk(connection: AioquicConnection) -> bool:
    return (
        connection._state is QuicConnectionState.CONNECTED
        and not connection._close_pending
        and not connection._probe_pending
        and connection._network_paths[0].is_validated
    )


def send_pass(connection: AioquicConnection, now: float) -> list[tuple[bytes, Any]]:
    """Build stream data the short way, and what else there is the long way.

    Returns datagrams and their destinations. The handshake must be confirmed.
    """
    if not _may_send_bulk(connection):
        return connection.transmit_stock(now)
    datagrams: list[tuple[bytes, Any]] = []
    connection._pacing_at = None
    if has_control_frames(connection, now):
        # In one packet, which stream data fills up; were there more, the next pass has it.
        connection._streams_queue.sort(
            key=lambda stream: not (stream.receiver.stop_pending or stream.sender.reset_pending)
        )
        connection._burst_pacer.begin_pass(1)
        datagrams = connection.transmit_stock(now)
        connection._burst_pacer.begin_pass(connection._burst_pacer.pass_packets - 1)
    bulk, is_held = send_bulk(connection, now)
    connection.counters.sent_fast += len(bulk)
    address = connection._network_paths[0].addr
    datagrams += [(datagram, address) for datagram in bulk]
    if is_held:
        connection._pacing_at = connection._burst_pacer.next_send_time(now)
    elif connection._pacing_at is not None or _has_stream_frames(connection):
        # What is no full packet, and control frames that did not fit the first.
        datagrams += connection.transmit_stock(now)
    return datagrams


def has_control_frames(connection: AioquicConnection, now: float) -> bool:
    """Whether anything but stream data is to be sent. Frames of streams count as well."""
    space = connection._spaces[tls.Epoch.ONE_RTT]
    crypto = connection._crypto_streams[tls.Epoch.ONE_RTT]
    data, streams = connection._local_max_data, connection._local_max_streams_bidi
    return (
        (space.ack_at is not None and space.ack_at <= now)
        or data.sent != data.value
        # As aioquic judges it: MAX_STREAMS is for who has few left.
        or streams.sent - streams.used < streams.value - streams.sent
        or bool(connection._ping_pending)
        or bool(connection._datagrams_pending)
        or connection._handshake_done_pending
        or connection._streams_blocked_pending
        or bool(connection._retire_connection_ids)
        or bool(connection._network_paths[0].remote_challenges)
        or len(connection._network_paths) > 1
        or len(crypto.sender._pending) > 0
        or not all(ours.was_sent for ours in connection._host_cids)
        or any(
            stream.max_stream_data_local_sent != stream.max_stream_data_local
            or stream.receiver.stop_pending
            or stream.sender.reset_pending
            or stream.is_finished
            for stream in connection._streams_queue
        )
    )


def _has_stream_frames(connection: AioquicConnection) -> bool:
    return any(
        not (stream.sender.buffer_is_empty or stream.is_blocked)
        for stream in connection._streams_queue
    )
