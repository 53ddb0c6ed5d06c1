"""The table of open connections: caps, which one to use, which of two twins to end.

sans-IO. Twins are what two simultaneous dials leave behind: two connections with one peer, of the
same kind (both direct or both relayed), dialled from opposite sides at about the same time. The
one whose client has the smaller peer id survives. Both sides stop using the other one; its
client, who alone knows whether a second connection was asked for, closes it.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dep2p_daemon.errors import ResourceLimitError
from dep2p_daemon.muxed import Direction

if TYPE_CHECKING:
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.muxed import Connection
    from dep2p_daemon.swarm.settings import SwarmSettings


class DialPolicy(enum.Enum):
    """Which paths may be used."""

    AUTO = "AUTO"
    DIRECT = "DIRECT"
    RELAYED = "RELAYED"

    def allows(self, *, relayed: bool) -> bool:
        """Whether a path of this kind may be used."""
        return self is DialPolicy.AUTO or relayed is (self is DialPolicy.RELAYED)


@dataclass(slots=True, eq=False)
class Entry:
    """What the swarm knows of an open connection."""

    connection: Connection
    number: int
    """Counts up; the most recent connection has the highest."""
    wanted: bool
    """Somebody asked for this very connection; it is not ended as a twin."""
    supplanted: bool = False
    """A twin has taken its place."""
    site: str | None = None
    """What an inbound direct connection is counted under, wherever its peer moves."""
    remote_protocols: frozenset[str] = field(default_factory=frozenset)
    """What identify listed on this connection; empty before."""

    @property
    def client(self) -> PeerId:
        """Who dialled."""
        outbound = self.connection.direction is Direction.OUTBOUND
        return self.connection.local_peer if outbound else self.connection.remote_peer

    def quality(self) -> tuple[bool, bool, bool, int]:
        """Sort key: the greater, the better."""
        connection = self.connection
        return (
            not connection.relayed,
            connection.limits is None,
            not self.supplanted,
            self.number,
        )


class ConnectionTable:
    """All open connections, by id and by peer."""

    def __init__(self, settings: SwarmSettings) -> None:
        self._settings = settings
        self._by_id: dict[str, Entry] = {}
        self._by_peer: dict[PeerId, list[Entry]] = {}
        self._inbound = 0
        self._inbound_by_site: Counter[str] = Counter()
        self._count = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def check_room(self, peer: PeerId, inbound: Connection | None = None) -> None:
        """Raise ResourceLimitError, naming the limit, when one more would be too many.

        Args:
            peer: whom the connection is with.
            inbound: the connection, when the peer made it.
        """
        settings = self._settings
        limits = [
            ("max_connections", len(self._by_id), settings.max_connections),
            (
                "max_connections_per_peer",
                len(self._by_peer.get(peer, ())),
                settings.max_connections_per_peer,
            ),
        ]
        if inbound is not None:
            limits.append(
                ("max_inbound_connections", self._inbound, settings.max_inbound_connections)
            )
            if (site := _site(inbound)) is not None:
                name = "max_inbound_connections_per_ip"
                limits.append(
                    (name, self._inbound_by_site[site], settings.max_inbound_connections_per_ip)
                )
        for name, used, allowed in limits:
            if used >= allowed:
                raise ResourceLimitError(
                    f"{used} connections are open, and {name} is {allowed}",
                    remedy=f"close connections that are not needed, or raise {name}",
                    limit=name,
                    allowed=allowed,
                    peer=peer,
                )

    def add(self, connection: Connection, *, wanted: bool = False) -> list[Entry]:
        """Take a connection in; return those of ours that are to be closed as lost twins."""
        self._count += 1
        entry = Entry(connection, self._count, wanted)
        siblings = self._by_peer.setdefault(connection.remote_peer, [])
        lost = [loser for other in siblings if (loser := self._loser(entry, other)) is not None]
        siblings.append(entry)
        self._by_id[connection.id] = entry
        self._inbound += connection.direction is Direction.INBOUND
        if (site := _site(connection)) is not None:
            self._inbound_by_site[site] += 1
            entry.site = site
        for loser in lost:
            loser.supplanted = True
        return [
            loser
            for loser in lost
            if loser.connection.direction is Direction.OUTBOUND and not loser.wanted
        ]

    def remove(self, connection: Connection) -> bool:
        """Forget a connection; False when it was not here."""
        entry = self._by_id.pop(connection.id, None)
        if entry is None:
            return False
        siblings = self._by_peer[connection.remote_peer]
        siblings.remove(entry)
        if not siblings:
            del self._by_peer[connection.remote_peer]
        self._inbound -= connection.direction is Direction.INBOUND
        if entry.site is not None:
            self._inbound_by_site[entry.site] -= 1
            if not self._inbound_by_site[entry.site]:
                del self._inbound_by_site[entry.site]
        return True

    def get(self, connection: Connection) -> Entry | None:
        """The entry of an open connection."""
        return self._by_id.get(connection.id)

    def all(self, peer: PeerId | None = None) -> tuple[Connection, ...]:
        """The connections with `peer`, or all, oldest first."""
        entries = self._by_id.values() if peer is None else self._by_peer.get(peer, ())
        return tuple(entry.connection for entry in entries)

    def peers(self) -> tuple[PeerId, ...]:
        """The peers that are connected."""
        return tuple(self._by_peer)

    def best(self, peer: PeerId, policy: DialPolicy = DialPolicy.AUTO) -> Connection | None:
        """Return the connection for new streams: direct, then unlimited, then most recent."""
        usable = [
            entry
            for entry in self._by_peer.get(peer, ())
            if not entry.connection.is_closed and policy.allows(relayed=entry.connection.relayed)
        ]
        return max(usable, key=Entry.quality).connection if usable else None

    def _loser(self, one: Entry, other: Entry) -> Entry | None:
        a, b = one.connection, other.connection
        if (
            a.relayed != b.relayed
            or a.direction is b.direction
            or b.is_closed
            or abs(a.opened_at - b.opened_at) > self._settings.simultaneous_window
        ):
            return None
        return max(one, other, key=lambda entry: entry.client)


def _site(connection: Connection) -> str | None:
    if connection.direction is Direction.OUTBOUND or connection.relayed:
        return None
    return connection.remote_address.site
