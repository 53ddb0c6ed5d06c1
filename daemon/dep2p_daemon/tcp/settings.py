"""What can be set about TCP, and about Noise and Yamux on TCP or on a circuit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB


@dataclass(frozen=True, kw_only=True, slots=True)
class YamuxSettings:
    """Limits of one Yamux connection. Sizes are bytes, times are seconds."""

    max_inbound_streams: int = 512
    """Streams that a peer may have open at a time; further ones are reset at once. Each may
    hold 256 KiB, which the protocol gives away unasked."""
    accept_backlog: int = 256
    """Inbound streams that may wait for `accept_stream`; further ones are reset (go-yamux's)."""
    max_window: int = 16 * MIB
    """What a stream's receive window may grow to while its reader consumes (go-yamux's)."""
    max_window_growth: int = 32 * MIB
    """By how much all windows of a connection together may exceed their first 256 KiB each."""
    send_buffer: int = 512 * KIB
    """Bytes of all streams that wait to be sent, from which on `write` waits until its own
    bytes are on their way."""
    keepalive_interval: float = 30.0
    """Between two pings; they also measure the round trip (go-yamux's)."""
    keepalive_timeout: float = 30.0
    """A connection that hears nothing for so long after a ping is gone."""
    linger_timeout: float = 30.0
    """A stream that we closed, but whose peer does not end its half, is reset after this."""
    close_timeout: float = 1.0
    """Time that `close` gives to what is still to be sent, and to the peer's goodbye."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TcpSettings:
    """Limits of the TCP transport. Sizes are bytes, times are seconds."""

    yamux: YamuxSettings = field(default_factory=YamuxSettings)
    upgrade_timeout: float = 15.0
    """Time that an inbound connection has for negotiation, Noise and the muxer (go-libp2p's)."""
    max_half_open: int = 128
    """Inbound upgrades in progress on all listeners; further connections are dropped."""
    max_half_open_per_ip: int = 32
    """The same for one IPv4 address or IPv6 /64."""
    accept_backlog: int = 64
    """Upgraded inbound connections that may wait for `accept`; until then upgrades wait."""
    listen_backlog: int = 512
    """Connections that the kernel may hold for us to take."""
    receive_memory: int = 256 * MIB
    """Unread bytes of all connections. From half of it on no window grows; beyond it the
    stream that received is reset."""
