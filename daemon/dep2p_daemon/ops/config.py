"""The daemon's configuration: TOML file, then environment, then flags; validated as a whole.

`config_load.load_config` is what the programs call; tests may build `Config(node={...})`. The
rooms know nothing of this module: `daemon.py` turns a `Config` into their settings.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from typing_extensions import override

from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.ops.config_layers import sources_of
from dep2p_daemon.ops.config_values import (
    AbsolutePath,
    AnnouncedAddress,
    Bytes,
    ListenOn,
    PeerAddress,
    RelayAddress,
    Seconds,
    ServeAt,
    SocketPath,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dep2p_daemon.ops.config_layers import Layer

Preset = Literal["desktop", "server", "relay"]
LogFormat = Literal["console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


def default_data_dir(env: Mapping[str, str], uid: int) -> Path:
    """`/var/lib/dep2p` for root, else `$XDG_STATE_HOME/dep2p` (`~/.local/state/dep2p`)."""
    if uid == 0:
        return Path("/var/lib/dep2p")
    state = env.get("XDG_STATE_HOME") or f"{env.get('HOME', '')}/.local/state"
    return Path(state) / "dep2p"


def default_socket(env: Mapping[str, str], uid: int) -> Path:
    """`/run/dep2p/dep2pd.sock` for root, else `$XDG_RUNTIME_DIR/dep2p/dep2pd.sock`."""
    if uid == 0:
        return Path("/run/dep2p/dep2pd.sock")
    return Path(env.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}") / "dep2p" / "dep2pd.sock"


class Section(BaseModel):
    """A table of the file. Frozen; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class NodeSection(Section):
    """Who this node is and where it listens."""

    preset: Preset = Field(
        default="desktop",
        description="What the machine is: desktop (behind a NAT, any free port), server (a fixed "
        "port), relay (a fixed port, and relays for others).",
    )
    data_dir: AbsolutePath = Field(
        default_factory=lambda: default_data_dir(os.environ, os.getuid()),
        description="Directory of the node key and the state; made with mode 0700.",
    )
    port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="UDP and TCP port to listen on; 0: any free one.",
    )
    listen: tuple[ListenOn, ...] = Field(
        default=(),
        description="IP addresses (with UDP and TCP on `port`) or full multiaddrs to listen on, "
        "instead of all interfaces.",
    )
    announce: tuple[AnnouncedAddress, ...] = Field(
        default=(),
        description="Public addresses to tell peers, where the machine cannot know them (a cloud's "
        "1:1 NAT).",
    )
    bootstrap: tuple[PeerAddress, ...] = Field(
        default=(), description="Peers to connect to at start, with /p2p/PEER_ID or as /dnsaddr."
    )


class RelayServerSection(Section):
    """What this node does for others as a relay. Reaching a limit is told to both ends."""

    enabled: bool = Field(default=False, description="Relay for others.")
    max_reservations: int = Field(default=128, ge=0, description="Reservations held at once.")
    max_reservations_per_ip: int = Field(
        default=8, ge=0, description="Reservations held at once from one IP address."
    )
    reservation_ttl: Seconds = Field(
        default=3600.0, ge=60, description="Life of a reservation that is not refreshed."
    )
    max_circuits: int = Field(default=100, ge=0, description="Circuits open at once.")
    max_circuits_per_source: int = Field(
        default=5, ge=0, description="Circuits open at once from one dialling peer."
    )
    max_circuits_per_target: int = Field(
        default=50, ge=0, description="Circuits open at once to one dialled peer."
    )
    rate: Bytes = Field(
        default=10 * 1024 * 1024,
        ge=0,
        description="Bytes per second between one pair of peers, both directions and all their "
        "circuits together; more is slowed down. 0: no limit.",
    )
    total_rate: Bytes = Field(
        default=0,
        ge=0,
        description="Bytes per second of all circuits together, shared fairly. 0: no limit.",
    )
    circuit_duration: Seconds = Field(
        default=0.0, ge=0, description="Life of a circuit, after which it is reset. 0: no limit."
    )
    circuit_data: Bytes = Field(
        default=0,
        ge=0,
        description="Bytes of a circuit in each direction, after which it is reset. 0: no limit.",
    )


class RelayClientSection(Section):
    """The relays through which peers reach this node."""

    wanted: int = Field(
        default=2,
        ge=0,
        le=16,
        description="Reservations to hold. All of `relays` are held; connected peers that relay "
        "fill up to this number, the nearest first. 0: `relays` only.",
    )


class DiscoverySection(Section):
    """How peers are found."""

    mdns: bool = Field(
        default=True,
        description="Tell the local network of this node, and find its peers, by multicast DNS.",
    )


class LimitsSection(Section):
    """What peers may take of this machine, whoever they are."""

    max_connections: int = Field(default=4096, ge=1, description="Connections open at once.")
    max_inbound_connections: int = Field(
        default=3584, ge=0, description="Connections open at once that peers made."
    )
    max_inbound_connections_per_ip: int = Field(
        default=512,
        ge=1,
        description="The same from one IPv4 address or IPv6 /64, circuits not counted.",
    )
    max_connections_per_peer: int = Field(
        default=8, ge=1, description="Connections open at once with one peer."
    )
    max_inbound_streams: int = Field(
        default=8192, ge=1, description="Streams open at once that peers opened, in all."
    )
    max_inbound_streams_per_connection: int = Field(
        default=256, ge=1, description="The same on one connection."
    )
    receive_memory: Bytes = Field(
        default=256 * 1024 * 1024,
        ge=1024 * 1024,
        description="Bytes that arrived and that nobody has read yet, on all QUIC connections, and "
        "as much on all TCP ones; from half of it on no window grows, beyond it the worst is "
        "closed. One QUIC connection holds 48 MiB at most.",
    )


class NatSection(Section):
    """Getting from relayed to direct connections."""

    hole_punching: bool = Field(
        default=True,
        description="Turn relayed connections into direct ones (DCUtR), where the NATs let it.",
    )
    relayed_grace: Seconds = Field(
        default=3600.0,
        ge=0,
        description="How long streams may go on through a relay after there is a direct "
        "connection; new ones take the direct one at once. Then they are cut. 0: no limit.",
    )
    autonat: bool = Field(
        default=True,
        description="Ask connected peers to dial this node back, to know which of its addresses "
        "are public (AutoNAT), and dial peers back that ask.",
    )
    port_mapping: bool = Field(
        default=True,
        description="Have the default gateway forward the listening ports (PCP, else NAT-PMP, "
        "else UPnP-IGD) while the node runs.",
    )


class QuicSection(Section):
    """The QUIC transport."""

    fast_path: bool = Field(
        default=True,
        description="Send and receive bulk data with code of our own; off, all packets take the "
        "QUIC library's, which costs three times as much.",
    )
    max_datagram_size: int = Field(
        default=65000,
        ge=1200,
        le=65000,
        description="Bytes of the largest UDP payload to send. What a path carries is found by "
        "probing; this is a ceiling.",
    )
    prefer_chacha: bool = Field(
        default=False,
        description="Prefer ChaCha20-Poly1305 to AES-GCM: faster where the processor has no "
        "instructions for AES. The listening side chooses.",
    )


class PerfSection(Section):
    """libp2p's throughput measurement, /perf/1.0.0."""

    enabled: bool = Field(
        default=False,
        description="Serve it: any connected peer may then move as much data as it likes. "
        "Measuring needs it at the other end only.",
    )


class MetricsSection(Section):
    """Counters and gauges for a Prometheus server."""

    listen: ServeAt = Field(
        default=None,
        description="IP address and port to serve http://.../metrics on, such as 127.0.0.1:9464; "
        "empty: nowhere.",
    )


class LogSection(Section):
    """Log lines, on standard error."""

    format: LogFormat = Field(
        default="console", description="console for people, json for collectors."
    )
    level: LogLevel = Field(default="info", description="debug shows each step of a dial.")


class Config(BaseSettings):
    """All settings. Frozen.

    Keyword arguments are the highest source; the preset's values stand under them. The file, the
    environment and the flags come in through `config_load.load_config` only.
    """

    model_config = SettingsConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    socket: SocketPath = Field(
        default_factory=lambda: default_socket(os.environ, os.getuid()),
        description="Unix socket of the API; made with mode 0600.",
    )
    relays: tuple[RelayAddress, ...] = Field(
        default=(),
        description="Relays to hold a reservation at: multiaddrs with /p2p/PEER_ID, /dnsaddr/NAME, "
        "or HOST:PORT.",
    )
    node: NodeSection = Field(default_factory=lambda: NodeSection())
    relay_server: RelayServerSection = RelayServerSection()
    nat: NatSection = NatSection()
    relay_client: RelayClientSection = RelayClientSection()
    discovery: DiscoverySection = DiscoverySection()
    limits: LimitsSection = LimitsSection()
    quic: QuicSection = QuicSection()
    perf: PerfSection = PerfSection()
    metrics: MetricsSection = MetricsSection()
    log: LogSection = LogSection()

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    @override
    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return sources_of(settings_cls, init_settings)

    @classmethod
    def from_layers(cls, layers: Sequence[Layer]) -> Config:
        """Validate layers, the first of which wins, over the preset's values.

        Raises:
            ValidationError: with everything that is wrong.
        """
        values: dict[str, Any] = {"layers": layers}
        return cls(**values)

    def set_sources(self, sources: Mapping[str, str]) -> None:
        """Remember where each value came from; called once, by whoever read them."""
        self._sources.update(sources)

    def source(self, key: str) -> str:
        """Where the value of a dotted key comes from: a file, a variable, a flag, a preset."""
        return self._sources.get(key, "default")

    @property
    def key_path(self) -> Path:
        """File of the node key."""
        return self.node.data_dir / "node.key"

    @property
    def relay_pins_path(self) -> Path:
        """File of the relays that were named by host and port: who was found there."""
        return self.node.data_dir / "relay-pins.json"

    @property
    def peerstore_path(self) -> Path:
        """SQLite file of the peerstore."""
        return self.node.data_dir / "peerstore.sqlite"

    @property
    def listen_addresses(self) -> tuple[Multiaddr, ...]:
        """What must be listened on; of a host, UDP first, so that TCP can take the same port."""
        if not self.node.listen:
            return _both_transports("0.0.0.0", self.node.port)
        return tuple(
            address
            for entry in self.node.listen
            for address in (
                (entry,)
                if isinstance(entry, Multiaddr)
                else _both_transports(str(entry), self.node.port)
            )
        )

    @property
    def optional_listen_addresses(self) -> tuple[Multiaddr, ...]:
        """What is listened on where the machine has it: IPv6, unless `node.listen` is set."""
        return () if self.node.listen else _both_transports("::", self.node.port)


def _both_transports(host: str, port: int) -> tuple[Multiaddr, ...]:
    return (Multiaddr.for_udp(host, port), Multiaddr.for_tcp(host, port))
