"""One peer of the peerstore: what is known of it, in memory and as a row of the file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from dep2p_daemon.errors import MultiaddrError
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.swarm.peerstore_file import StoredPeer

if TYPE_CHECKING:
    from dep2p_daemon.identity.peer_id import PeerId

_log = structlog.get_logger(__name__)

ADDRESS_OVERHEAD: Final = 512
"""Measured bytes of an address in memory beside its binary form."""

PROTOCOL_OVERHEAD: Final = 112
"""Measured bytes of a protocol id in memory beside its characters."""


@dataclass(frozen=True, slots=True)
class KnownAddress:
    """An address of a peer, and what is known of it."""

    address: Multiaddr
    """Without `/p2p`."""
    source: str
    """Who told: "record", "identify", ..."""
    learnt_at: float
    """Unix time in seconds, of the last time it was told."""
    expires_at: float
    """Unix time in seconds."""


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """All that is known of a peer."""

    peer: PeerId
    addresses: tuple[KnownAddress, ...]
    """Those that have not expired, the last learnt first."""
    protocols: frozenset[str]
    agent_version: str
    """Empty when the peer has not told."""
    protocol_version: str
    last_seen: float | None
    """Unix time in seconds of the last connection's beginning or end; None: never connected."""


@dataclass(slots=True)
class Entry:
    """What the peerstore keeps of a peer, decoded. `changed_at` orders who goes first."""

    changed_at: float
    last_seen: float = 0.0
    agent_version: str = ""
    protocol_version: str = ""
    record_seq: int | None = None
    protocols: frozenset[str] = frozenset()
    addresses: dict[Multiaddr, KnownAddress] = field(default_factory=dict)

    @property
    def expires_at(self) -> float:
        """When the last of the addresses expires; 0 without addresses."""
        return max((known.expires_at for known in self.addresses.values()), default=0.0)

    @property
    def size(self) -> int:
        """Bytes of memory that the addresses and protocols take, roughly."""
        addresses = sum(ADDRESS_OVERHEAD + len(bytes(address)) for address in self.addresses)
        return addresses + sum(PROTOCOL_OVERHEAD + len(protocol) for protocol in self.protocols)

    def live(self, now: float) -> list[KnownAddress]:
        """Return the addresses that have not expired, the last learnt first."""
        known = [address for address in self.addresses.values() if address.expires_at > now]
        return sorted(known, key=lambda address: -address.learnt_at)


def encode(peer: PeerId, entry: Entry) -> StoredPeer:
    """Return the row of a peer."""
    addresses = [
        [str(known.address), known.learnt_at, known.expires_at, known.source]
        for known in entry.addresses.values()
    ]
    return StoredPeer(
        peer_id=bytes(peer),
        changed_at=entry.changed_at,
        last_seen=entry.last_seen,
        agent_version=entry.agent_version,
        protocol_version=entry.protocol_version,
        record_seq="" if entry.record_seq is None else str(entry.record_seq),
        protocols=json.dumps(sorted(entry.protocols)),
        addresses=json.dumps(addresses),
        expires_at=entry.expires_at,
        size=entry.size,
    )


def decode(row: StoredPeer) -> Entry:
    """Decode a row; what is damaged in it is left out, as it can be learnt again."""
    entry = Entry(row.changed_at, row.last_seen, row.agent_version, row.protocol_version)
    try:
        entry.record_seq = int(row.record_seq) if row.record_seq else None
        entry.protocols = frozenset(map(str, json.loads(row.protocols)))
        for text, learnt_at, expires_at, source in json.loads(row.addresses):
            address = Multiaddr.parse(str(text))
            entry.addresses[address] = KnownAddress(
                address, str(source), float(learnt_at), float(expires_at)
            )
    except (ValueError, TypeError, MultiaddrError) as error:
        _log.warning("a peerstore row is damaged", reason="PEERSTORE_ROW", error=str(error))
    return entry
