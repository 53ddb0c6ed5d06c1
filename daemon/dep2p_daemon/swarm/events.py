"""What the swarm publishes on the event bus, and whom it tells first."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from dep2p_daemon.errors import ConnectionClosedError
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.muxed import Connection


@dataclass(frozen=True, slots=True)
class ConnectionOpened:
    """A connection was made and is in use."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class ConnectionClosed:
    """A connection ended."""

    connection: Connection
    error: ConnectionClosedError
    """Why; its `reason`, `code` and `remote` say whose doing it was."""


@dataclass(frozen=True, slots=True)
class PeerIdentified:
    """A peer told, or corrected, what it is; the peerstore has it."""

    peer_id: PeerId
    connection: Connection
    observed_address: Multiaddr | None = None
    """What the peer sees as our address on this connection; one observer's claim."""


@dataclass(frozen=True, slots=True)
class AddressesChanged:
    """The addresses to tell peers changed."""

    addresses: tuple[Multiaddr, ...]
    """All of them, without `/p2p`."""


class NetworkChange(enum.Enum):
    """What happened to this machine's way to the Internet."""

    MOVED = "MOVED"
    """Another interface, gateway or source address."""
    LOST = "LOST"
    """There is none any more."""
    INTERRUPTED = "INTERRUPTED"
    """It was gone for a moment and looks as before: it may be another network all the same."""
    SLEPT = "SLEPT"
    """The machine slept: nobody knows what became of the network meanwhile."""


@dataclass(frozen=True, slots=True)
class NetworkChanged:
    """What was learnt of the network before, from outside, does not hold any more."""

    change: NetworkChange
    sources: tuple[str, ...]
    """Our addresses on the ways out, one for each IP version at most."""
    gateways: tuple[str, ...]
    """The routers on them, as far as known."""

    @property
    def online(self) -> bool:
        """Whether there is a way out now."""
        return bool(self.sources)


class SwarmObserver(Protocol):
    """Who must not miss anything, as a watcher of the event bus may (identify)."""

    async def connection_opened(self, connection: Connection) -> None:
        """Run in the connection's own tasks, cancelled at its end; may fail, may take long."""
        ...

    def connection_closed(self, connection: Connection) -> None:
        """The connection is gone. Must not block."""
        ...

    def node_changed(self) -> None:
        """The protocols served here, or our addresses, changed. Must not block."""
        ...
