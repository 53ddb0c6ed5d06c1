"""What the swarm publishes on the event bus, and whom it tells first."""

from __future__ import annotations

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
