"""The settings of the swarm; the daemon fills them from its configuration."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class DialSettings:
    """How peers are dialled. Times in seconds."""

    timeout: float = 15.0
    """For one public address (go-libp2p's)."""
    local_timeout: float = 5.0
    """For one address on this machine or its networks (go-libp2p's)."""
    circuit_timeout: float = 25.0
    """For one circuit: the relay's own dial (`timeout`), its answer, and the inner handshake."""
    resolve_timeout: float = 5.0
    """For the name service's answer to one address."""
    public_stagger: float = 0.25
    """Between the starts of two attempts at public addresses (RFC 8305, section 5)."""
    local_stagger: float = 0.03
    """Between the starts of two attempts on this machine or its networks."""
    circuit_delay: float = 0.5
    """Head start of direct addresses over circuits."""
    max_concurrent: int = 8
    """Attempts at one peer at the same time (go-libp2p's)."""
    max_addresses: int = 128
    """Addresses of one peer that one dial considers; ours: more are never all useful."""
    backoff_base: float = 5.0
    """An address that failed n times in a row is left alone for base + n² seconds ..."""
    backoff_max: float = 300.0
    """... but never longer than this."""
    max_backoff_peers: int = 1024
    """Peers whose addresses' failures are remembered, `max_addresses` of each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SwarmSettings:
    """Limits and deadlines of the swarm. Times in seconds."""

    dial: DialSettings = field(default_factory=DialSettings)
    max_connections: int = 4096
    """Connections in total; ours: what 500 MB of memory hold."""
    max_inbound_connections: int = 3584
    """Inbound connections in total; the rest stays free for our own dials."""
    max_inbound_connections_per_ip: int = 512
    """Inbound direct connections from one IPv4 address or IPv6 /64: identities cost nothing."""
    max_connections_per_peer: int = 8
    """Connections with one peer, both directions together."""
    max_inbound_streams: int = 8192
    """Inbound streams whose handlers run, on all connections together."""
    max_inbound_streams_per_connection: int = 256
    """Inbound streams whose handlers run, on one connection (go-libp2p's)."""
    negotiation_timeout: float = 15.0
    """For a stream's multistream-select, either side (go-libp2p's)."""
    simultaneous_window: float = 10.0
    """Two connections in opposite directions, made within this time, are one too many."""
    supplanted_linger: float = 2.0
    """A connection that lost against its twin is closed once it was without streams this long."""
    handler_grace: float = 5.0
    """Time the handlers of a connection's streams have to notice its end."""
    shutdown_timeout: float = 5.0
    """Time the connections have to say goodbye at the end of the swarm."""
    address_interval: float = 5.0
    """Between two looks at the addresses of the machine's interfaces; one takes a tenth of a ms."""
