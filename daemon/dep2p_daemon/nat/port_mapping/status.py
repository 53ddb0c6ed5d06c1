"""What the gateways map for us now, as netcheck shows it; frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dep2p_daemon.nat.port_mapping.terms import Endpoint, IPAddress, Port, Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class PortMapping:
    """A port of ours and what became of it."""

    port: Port
    external: Endpoint | None
    """None: not mapped."""
    expires_at: float
    """Unix time in seconds; 0 when not mapped."""
    error: str = ""
    """UPPER_SNAKE: why it is not mapped, or was not renewed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GatewayStatus:
    """The default gateway of one IP version."""

    version: int
    """4 or 6."""
    gateway: IPAddress | None = None
    protocol: Protocol | None = None
    """None: no protocol works (yet)."""
    mappings: tuple[PortMapping, ...] = ()
    error: str = ""
    """UPPER_SNAKE: why nothing is mapped here; empty where something is, or is being tried."""
    detail: str = ""
    """The same for people."""


@dataclass(frozen=True, slots=True)
class PortMappingChanged:
    """A mapping was made, renewed, moved, lost or refused. Published on the event bus."""

    status: tuple[GatewayStatus, ...]
