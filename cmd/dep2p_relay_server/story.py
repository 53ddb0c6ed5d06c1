"""What happens at a relay, as lines for people. No I/O: events and the time in, lines out.

A connection is told with the role of its peer, which shows only after it was made: one that
reserves is a listening node, one that opens a circuit a dialling node. So its line waits for
the role, `ROLE_SECONDS` at most.
"""

from __future__ import annotations

import time
import unicodedata
from typing import TYPE_CHECKING, Final

from dep2p_daemon.circuit.events import (
    CircuitClosed,
    CircuitOpened,
    ReservationChange,
    ReservationChanged,
)
from dep2p_daemon.swarm.events import ConnectionClosed, ConnectionOpened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dep2p_daemon.circuit.events import CircuitStatus
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_relay_server.texts import Texts

ROLE_SECONDS: Final = 1.0
"""How long a connection's line waits for its peer's role."""

TITLE: Final = "DeP2P Relay Server"
BANNER_WIDTH: Final = 50


def greeting(
    texts: Texts, peer: PeerId, listening: Sequence[Multiaddr], addresses: Sequence[Multiaddr]
) -> list[str]:
    """The lines at the start: who the relay is and how clients reach it.

    Args:
        texts: the language.
        peer: the relay.
        listening: what its sockets are bound to.
        addresses: all its addresses, with /p2p.
    """
    heading, reachable = _reachable(texts, addresses)
    return [
        *_banner(),
        "",
        texts.started,
        "",
        texts.node_id.format(peer=peer),
        "",
        texts.listening,
        *(f"  [{number}] {address}" for number, address in enumerate(listening, 1)),
        "",
        heading,
        *(f"  {address}" for address in reachable),
        "",
        texts.ready,
        "",
    ]


class Story:
    """Turns the daemon's events into lines."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._untold: dict[PeerId, float] = {}
        """Connected peers whose role may still show, with the time their line is due."""
        self._open: dict[PeerId, int] = {}
        self._told_traffic: tuple[int, int] = (0, 0)

    def feed(self, event: object, now: float) -> list[str]:
        """Return the lines of one event; `now` in seconds of any clock."""
        match event:
            case ConnectionOpened(connection):
                return self._connected(connection.remote_peer, now)
            case ConnectionClosed(connection):
                return self._disconnected(connection.remote_peer)
            case ReservationChanged(reservation, ReservationChange.CREATED):
                until = time.strftime("%H:%M:%S", time.localtime(reservation.expires_at))
                line = self._texts.reserved.format(peer=reservation.peer_id, time=until)
                return [*self._tell(reservation.peer_id, self._texts.listener), line]
            case ReservationChanged(reservation, ReservationChange.ENDED):
                return [self._texts.reservation_ended.format(peer=reservation.peer_id)]
            case CircuitOpened(circuit):
                return [
                    *self._tell(circuit.source, self._texts.dialler),
                    *self._tell(circuit.target, self._texts.listener),
                    self._circuit_line(self._texts.circuit_opened, circuit),
                ]
            case CircuitClosed(circuit):
                return [
                    self._circuit_line(self._texts.circuit_closed, circuit),
                    *self._traffic(circuit.source_to_target_bytes, circuit.target_to_source_bytes),
                ]
        return []

    def due(self, now: float) -> list[str]:
        """Return the lines of connections whose peers have shown no role in time."""
        late = [peer for peer, deadline in self._untold.items() if deadline <= now]
        return [line for peer in late for line in self._tell(peer, "")]

    def traffic(self, circuits: Sequence[CircuitStatus]) -> list[str]:
        """Return what the open circuits carried, if that has changed since the last call."""
        up = sum(circuit.source_to_target_bytes for circuit in circuits)
        down = sum(circuit.target_to_source_bytes for circuit in circuits)
        if not circuits or (up, down) in ((0, 0), self._told_traffic):
            return []
        self._told_traffic = (up, down)
        return [self._texts.relaying.format(count=len(circuits)), *self._traffic(up, down)]

    def _connected(self, peer: PeerId, now: float) -> list[str]:
        self._open[peer] = self._open.get(peer, 0) + 1
        if self._open[peer] == 1:
            self._untold[peer] = now + ROLE_SECONDS
        return []

    def _disconnected(self, peer: PeerId) -> list[str]:
        count = self._open.pop(peer, 0)
        if count > 1:
            self._open[peer] = count - 1
            return []
        if count == 0:
            return []
        return [*self._tell(peer, ""), self._texts.disconnected.format(peer=peer)]

    def _tell(self, peer: PeerId, role: str) -> list[str]:
        if self._untold.pop(peer, None) is None:
            return []
        return [self._texts.connected.format(peer=peer, role=role)]

    def _circuit_line(self, text: str, circuit: CircuitStatus) -> str:
        reason = circuit.close_reason.value if circuit.close_reason is not None else ""
        return text.format(source=circuit.source, target=circuit.target, reason=reason)

    def _traffic(self, up: int, down: int) -> list[str]:
        return [
            self._texts.up.format(size=byte_count(up)),
            self._texts.down.format(size=byte_count(down)),
        ]


def byte_count(size: float) -> str:
    """Bytes for people, as the seed writes them: 1.2 KB."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _banner() -> list[str]:
    width = sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in TITLE)
    left = (BANNER_WIDTH - width) // 2
    middle = " " * left + TITLE + " " * (BANNER_WIDTH - width - left)
    return [f"╔{'═' * BANNER_WIDTH}╗", f"║{middle}║", f"╚{'═' * BANNER_WIDTH}╝"]


def _reachable(texts: Texts, addresses: Sequence[Multiaddr]) -> tuple[str, list[Multiaddr]]:
    """The most public kind of address there is, under its heading; QUIC first."""
    inside = [a for a in addresses if not a.is_loopback]
    public = [a for a in inside if a.is_dns or not a.is_private]
    heading, chosen = (
        (texts.public, public)
        if public
        else (texts.private, inside)
        if inside
        else (texts.loopback, list(addresses))
    )
    return heading, sorted(chosen, key=lambda address: address.transport != "quic-v1")
