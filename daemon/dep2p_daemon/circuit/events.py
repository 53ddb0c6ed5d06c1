"""What the circuit room publishes on the event bus, and the snapshots it hands out.

All times named `*_at` are Unix times in seconds.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.muxed import CircuitLimits


class CloseReason(enum.Enum):
    """Why a circuit at our relay ended."""

    COMPLETED = "COMPLETED"
    """Both peers closed their half."""
    RESET_BY_SOURCE = "RESET_BY_SOURCE"
    RESET_BY_TARGET = "RESET_BY_TARGET"
    SOURCE_DISCONNECTED = "SOURCE_DISCONNECTED"
    TARGET_DISCONNECTED = "TARGET_DISCONNECTED"
    DATA_LIMIT = "DATA_LIMIT"
    DURATION_LIMIT = "DURATION_LIMIT"
    CLOSED_BY_OPERATOR = "CLOSED_BY_OPERATOR"
    SHUTDOWN = "SHUTDOWN"


class ReservationChange(enum.Enum):
    """What happened to a reservation at our relay; named as in the public API."""

    CREATED = "CREATED"
    REFRESHED = "REFRESHED"
    ENDED = "ENDED"


class RelayState(enum.Enum):
    """Where we are with a relay that we use; named as in the public API."""

    CONNECTING = "CONNECTING"
    """Dialling the relay or asking for a reservation."""
    RESERVED = "RESERVED"
    """Holding a reservation: peers can reach us through it."""
    BACKOFF = "BACKOFF"
    """Waiting until `next_try_at` after a failure."""
    DISCONNECTED = "DISCONNECTED"
    """Given up by request; the last status of a relay."""


class RelaySource(enum.Enum):
    """Whose wish it is to use a relay; named as in the public API. The first ones count more."""

    CONFIGURED = "CONFIGURED"
    """The configuration's: held whatever happens."""
    REQUESTED = "REQUESTED"
    """Somebody called ConnectRelay: held until DisconnectRelay."""
    DISCOVERED = "DISCOVERED"
    """A connected peer that relays; held while there are fewer relays than wanted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReservationStatus:
    """A reservation at our relay."""

    peer_id: PeerId
    """The holder."""
    address: Multiaddr
    """Where the holder is connected from."""
    created_at: float
    expires_at: float
    """When it ends unless it is refreshed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CircuitStatus:
    """A circuit through our relay."""

    circuit_id: str
    """Names it within this run of the daemon."""
    source: PeerId
    """The dialler."""
    target: PeerId
    """The dialled, who holds the reservation."""
    source_to_target_bytes: int
    target_to_source_bytes: int
    opened_at: float
    limits: CircuitLimits | None
    """What both ends were told; None when nothing is limited."""
    close_reason: CloseReason | None = None
    """None while it is open."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RelayStatus:
    """A relay at which we hold, or try to hold, a reservation."""

    peer_id: PeerId
    address: Multiaddr
    """The address by which it is reached, without `/p2p`."""
    state: RelayState
    expires_at: float | None = None
    """When the reservation ends unless it is refreshed; None when there is none."""
    circuit_addresses: tuple[Multiaddr, ...] = ()
    """Full addresses (`…/p2p/R/p2p-circuit/p2p/<us>`) under which peers reach us there."""
    limits: CircuitLimits | None = None
    """What the relay announced for circuits; None when it announced none."""
    last_error: str = ""
    """Why the last attempt failed, with the remedy; empty after a success."""
    last_error_reason: str = ""
    next_try_at: float | None = None
    """When the next refresh or attempt is due."""
    rtt: float | None = None
    """Round trip to the relay in seconds, where one was measured."""
    source: RelaySource = RelaySource.CONFIGURED
    """How the relay came to be used."""
    remote_address: Multiaddr | None = None
    """Where the connection that holds the reservation leads; None when there is none."""


@dataclass(frozen=True, slots=True)
class ReservationChanged:
    """A reservation at our relay was made, refreshed or ended."""

    reservation: ReservationStatus
    change: ReservationChange


@dataclass(frozen=True, slots=True)
class CircuitOpened:
    """Our relay connected two peers."""

    circuit: CircuitStatus


@dataclass(frozen=True, slots=True)
class CircuitClosed:
    """A circuit through our relay ended; `circuit.close_reason` says why."""

    circuit: CircuitStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class RelayHostStatus:
    """A configured relay of which we do not know yet who it is."""

    host: str
    """As it was configured: `host:port` or `/dnsaddr/name`."""
    state: RelayState
    """CONNECTING or BACKOFF; DISCONNECTED once it is found, and a relay like the others."""
    last_error: str = ""
    last_error_reason: str = ""
    next_try_at: float | None = None


@dataclass(frozen=True, slots=True)
class RelayHostChanged:
    """The search for a relay that is named by host and port began, failed or ended."""

    status: RelayHostStatus


@dataclass(frozen=True, slots=True)
class RelayChanged:
    """A relay that we use changed its state."""

    status: RelayStatus
