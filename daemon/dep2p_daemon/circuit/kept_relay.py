"""One relay that we want to hold a reservation at, and all that its keeper knows."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from dep2p_daemon.circuit.events import RelayState
from dep2p_daemon.errors import Dep2pError, UnreachableError

if TYPE_CHECKING:
    from dep2p_daemon.circuit.events import RelaySource
    from dep2p_daemon.circuit.hop import Granted
    from dep2p_daemon.circuit.keeper import Keeper
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.muxed import Connection

LOG_INTERVAL: Final = 300.0
"""Seconds between two log lines about a failure that is always the same."""


@dataclass(slots=True, eq=False)
class KeptRelay:
    """A relay that we want, and all that its keeper knows."""

    peer: PeerId
    addresses: list[Multiaddr]
    """Where to dial it, the last one given first; without `/p2p`."""
    keeper: Keeper
    kept: bool
    """Held through failures; a relay that never worked is dropped when `connect` fails."""
    source: RelaySource
    task: asyncio.Task[None] | None = None
    connection: Connection | None = None
    granted: Granted | None = None
    error: Dep2pError | None = None
    logged: tuple[str, RelayState] | None = None
    """The failure that the log told of last."""
    logged_at: float = 0.0
    to_unix: float = 0.0
    """Unix time less the loop's, when the keeper's times were set."""
    nudge: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when something happened that the keeper should not sleep through."""
    waiters: list[asyncio.Future[None]] = field(default_factory=list)

    @property
    def reserved(self) -> Granted | None:
        """The grant, while it holds."""
        return self.granted if self.keeper.state is RelayState.RESERVED else None

    @property
    def silent(self) -> bool:
        """Whether the last attempt failed because nobody was there; a refusal is an answer."""
        return isinstance(self.error, UnreachableError)

    def take_waiters(self) -> list[asyncio.Future[None]]:
        """Return those who still wait for the attempt, which has ended; they wait no more."""
        waiting = [waiter for waiter in self.waiters if not waiter.done()]
        self.waiters.clear()
        self.nudge.clear()
        return waiting

    def fail_waiters(self, error: Dep2pError) -> None:
        """Tell those who wait that nothing comes of it."""
        for waiter in self.take_waiters():
            waiter.set_exception(error)

    def is_news(self, error: Dep2pError, now: float) -> bool:
        """Whether the log should tell of a failure: the relay may be away for weeks."""
        news = (error.reason, self.keeper.state)
        if self.logged == news and now - self.logged_at < LOG_INTERVAL:
            return False
        self.logged, self.logged_at = news, now
        return True
