"""What can be set about QUIC."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from dep2p_daemon.errors import ConfigError
from dep2p_daemon.quic.path_mtu import BASE_SIZE, MAX_SIZE
from dep2p_daemon.udp.settings import UdpSettings

KIB: Final = 1024
MIB: Final = 1024 * KIB


@dataclass(frozen=True, kw_only=True, slots=True)
class QuicSettings:
    """Limits and sizes of the QUIC transport. Sizes are bytes, times are seconds."""

    max_datagram_size: int = MAX_SIZE
    """Largest UDP payload to send, 1200 to 65000. Handshakes use 1200; more is used once a probe
    got through (RFC 8899), so that this is a ceiling."""
    idle_timeout: float = 30.0
    """A connection that hears nothing for so long is gone."""
    keep_alive_interval: float = 15.0
    """The dialling side pings after so long a silence; NAT mappings often die at 30 s."""
    handshake_timeout: float = 10.0
    """An inbound handshake that takes longer is dropped."""
    fast_path: bool = True
    """Whether bulk stream data takes the short way through packets; off, all takes aioquic's."""

    prefer_chacha: bool = False
    """Whether ChaCha20-Poly1305 comes before AES-GCM; the listening side's order decides."""

    max_inbound_streams: int = 256
    """Streams that a peer may have open at a time on one connection."""
    initial_stream_window: int = 512 * KIB
    """Bytes a peer may send on a new stream before anything is read."""
    max_stream_window: int = 24 * MIB
    """What a stream's window may grow to while its reader consumes: enough for 1 Gbit/s over a
    round trip of 100 ms (12.5 MB) with the path's queues."""
    initial_connection_window: int = 1 * MIB
    """The same for all streams of a connection together."""
    max_connection_window: int = 36 * MIB
    """What a connection's window may grow to."""
    max_connection_unread: int = 48 * MIB
    """Unread bytes of a connection up to which stalled streams leave the others their credit: a
    stalled stream with the widest window beside one that runs."""
    receive_memory: int = 256 * MIB
    """Unread bytes of all connections. From half of it on no window grows; beyond it the
    connection with most unread bytes is closed."""
    send_buffer: int = 256 * KIB
    """Bytes of a stream that wait to be sent before `write` waits; it goes on at half of it."""

    max_connections: int = 4096
    """Connections of one transport, in both directions; more inbound ones are refused."""
    retry_threshold: int = 64
    """Inbound handshakes in progress on one socket before clients must first prove their address
    (Retry)."""
    max_half_open: int = 256
    """Handshakes in progress of clients that have; further ones are left to try again."""
    max_half_open_per_ip: int = 128
    """Either of them for one IPv4 address or IPv6 /64."""
    accept_backlog: int = 256
    """Authenticated inbound connections that may wait for `accept`; further ones are refused."""

    worker_id: int = 0
    """First byte of our connection ids: which worker a datagram is for (0-255)."""
    stateless_reset_key: bytes | None = field(default=None, repr=False)
    """32 secret bytes that outlive a restart; None derives them from the node key."""
    stateless_resets_per_second: float = 50.0
    """Upper bound of stateless resets and Version Negotiations sent by one socket."""

    udp: UdpSettings = field(default_factory=UdpSettings)

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises ConfigError."""
        _check("max_datagram_size", self.max_datagram_size, BASE_SIZE, MAX_SIZE)
        _check("worker_id", self.worker_id, 0, 255)
        _check("max_inbound_streams", self.max_inbound_streams, 1, 1 << 16)
        if self.stateless_reset_key is not None:
            _check("length of stateless_reset_key", len(self.stateless_reset_key), 32, 64)


def _check(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ConfigError(
            f"QUIC: {name} is {value}, and must be between {least} and {most}", key=name
        )
