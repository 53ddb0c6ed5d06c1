"""What is known of peers: addresses, protocols, software. In memory, and on disk behind it.

Memory is the truth; changed peers are written to the file in batches, off the event loop.
What peers tell is bounded per peer and in total: the peers that changed longest ago go first.

Flow:
  1. Opening loads the rows; a row is decoded when its peer is first asked for.
  2. A change marks its peer; the task of `async with` writes the marked ones every second.
  3. `close` writes what is left. A kill loses at most the last second.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from dep2p_daemon.errors import PeerIdError, ProtocolViolationError
from dep2p_daemon.identity.peer_id import PeerId
from dep2p_daemon.identity.peer_record import PeerRecord
from dep2p_daemon.swarm.known_peer import Entry, KnownAddress, PeerInfo, decode, encode
from dep2p_daemon.swarm.peerstore_file import PeerstoreFile, StoredPeer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from dep2p_daemon.multiaddr import Multiaddr

__all__ = ["KnownAddress", "PeerInfo", "Peerstore", "PeerstoreSettings"]

_log = structlog.get_logger(__name__)

RECORD_TTL: Final = 3600.0
"""Seconds that the addresses of a signed record hold (go-libp2p's TTL of addresses)."""

RECORD_SOURCE: Final = "record"
"""The source of addresses that came in a signed record."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerstoreSettings:
    """Bounds and intervals."""

    max_peers: int = 10_000
    max_addresses_per_peer: int = 100
    max_protocols_per_peer: int = 1024
    """go-libp2p's bound of what identify may list."""
    max_total_bytes: int = 64 * 1024 * 1024
    """Of memory for all peers' addresses and protocols: 10,000 usual peers fit; ours."""
    max_text_chars: int = 256
    """Of a protocol id or a version; longer protocols are left out, versions are cut."""
    peer_ttl: float = 30 * 86_400.0
    """Seconds after which a peer without addresses that was not seen again is forgotten."""
    flush_interval: float = 1.0
    """Seconds between writes of what changed."""
    flush_batch: int = 64
    """Peers written at once: encoding them holds the event loop for two or three milliseconds."""
    prune_interval: float = 600.0
    """Seconds between removals of what has expired."""


class Peerstore:
    """The store; `close` it, or use it as an async context manager, which also writes in time.

    All methods are for the event loop's thread and return at once.
    """

    def __init__(
        self,
        path: Path | None,
        settings: PeerstoreSettings | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open the file at `path`, or make it; with None nothing is kept on disk.

        `clock` gives Unix times: they must mean the same after a restart.

        Raises:
            ConfigError: the file can be neither opened nor made.
        """
        self._settings = settings or PeerstoreSettings()
        self._clock = clock
        self._file = PeerstoreFile(path) if path is not None else None
        # The peer that changed longest ago is first: the next to go.
        self._peers: dict[PeerId, Entry | StoredPeer] = {}
        self._sizes: dict[PeerId, int] = {}
        self._total_bytes = 0
        self._changed: set[PeerId] = set()
        """Peers whose rows the file does not have, or has no longer."""
        self._write_failed = False
        self._tasks: asyncio.TaskGroup | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._load()

    def add_addresses(
        self, peer: PeerId, addresses: Iterable[Multiaddr], *, ttl: float, source: str
    ) -> None:
        """Remember addresses for `ttl` seconds from now; those known already live on longer.

        A trailing `/p2p/<peer>` is taken off. Addresses that end in another peer's id, or that
        exceed the bounds, are left out: when there are too many, the first to expire go.
        """
        now = self._clock()
        bare = [
            address.without_peer_id() for address in addresses if address.peer_id in (None, peer)
        ]
        if ttl <= 0 or not bare:
            return
        entry = self._entry_to_change(peer, now)
        for address in bare:
            known = entry.addresses.pop(address, None)
            expires_at = max(now + ttl, known.expires_at if known is not None else 0.0)
            entry.addresses[address] = KnownAddress(address, source, now, expires_at)
        self._trim_addresses(entry)
        self._mark(peer, entry)

    def addresses(self, peer: PeerId) -> tuple[Multiaddr, ...]:
        """Return the addresses that have not expired, without `/p2p`, the last learnt first."""
        entry = self._entry(peer)
        if entry is None:
            return ()
        return tuple(known.address for known in entry.live(self._clock()))

    def set_protocols(self, peer: PeerId, protocols: Iterable[str]) -> None:
        """Replace the list of protocols that the peer serves."""
        entry = self._entry_to_change(peer, self._clock())
        fitting = sorted(p for p in set(protocols) if len(p) <= self._settings.max_text_chars)
        entry.protocols = frozenset(fitting[: self._settings.max_protocols_per_peer])
        self._mark(peer, entry)

    def protocols(self, peer: PeerId) -> frozenset[str]:
        """Return the protocols that the peer serves; empty when it has not told."""
        entry = self._entry(peer)
        return entry.protocols if entry is not None else frozenset()

    def set_agent(self, peer: PeerId, agent_version: str, protocol_version: str) -> None:
        """Remember what software the peer says it is."""
        entry = self._entry_to_change(peer, self._clock())
        entry.agent_version = agent_version[: self._settings.max_text_chars]
        entry.protocol_version = protocol_version[: self._settings.max_text_chars]
        self._mark(peer, entry)

    def consume_record(
        self,
        envelope: bytes,
        *,
        ttl: float = RECORD_TTL,
        accept: Callable[[Multiaddr], bool] = lambda _: True,
    ) -> PeerRecord:
        """Check a sealed peer record; take its addresses instead of the last record's.

        Those that `accept` refuses are left out: signed is not the same as useful here.

        Only a record with a greater `seq` than the last one's says anything new; the last one
        itself, told again, prolongs the life of its addresses.

        Raises:
            ProtocolViolationError: malformed, or older than the last (PEER_RECORD_OUTDATED).
            AuthenticationError: a bad signature, or somebody else's.
        """
        record = PeerRecord.open(envelope)
        peer = record.peer_id
        entry = self._entry(peer)
        last = entry.record_seq if entry is not None else None
        if last is not None and record.seq < last:
            raise ProtocolViolationError(
                f"a peer record of {peer} has the number {record.seq}, where {last} is known",
                reason="PEER_RECORD_OUTDATED",
                peer_id=peer,
            )
        addresses = [address for address in record.addresses if accept(address)]
        if last == record.seq:
            known = set(self.addresses(peer))
            addresses = [a for a in addresses if a.without_peer_id() in known]
        else:
            entry = self._entry_to_change(peer, self._clock())
            entry.record_seq = record.seq
            entry.addresses = {
                address: known
                for address, known in entry.addresses.items()
                if known.source != RECORD_SOURCE
            }
            self._mark(peer, entry)
        self.add_addresses(peer, addresses, ttl=ttl, source=RECORD_SOURCE)
        return record

    def seen(self, peer: PeerId) -> None:
        """Note that a connection to the peer has just begun or ended."""
        now = self._clock()
        entry = self._entry_to_change(peer, now)
        entry.last_seen = now
        self._mark(peer, entry)

    def get(self, peer: PeerId) -> PeerInfo | None:
        """Return all that is known of a peer; None when that is nothing."""
        entry = self._entry(peer)
        if entry is None:
            return None
        return PeerInfo(
            peer=peer,
            addresses=tuple(entry.live(self._clock())),
            protocols=entry.protocols,
            agent_version=entry.agent_version,
            protocol_version=entry.protocol_version,
            last_seen=entry.last_seen or None,
        )

    def peers(self) -> tuple[PeerId, ...]:
        """Return the peers of which anything is known, the last changed first."""
        return tuple(reversed(self._peers))

    def prune(self, now: float | None = None) -> None:
        """Forget expired addresses, and peers that nothing useful is known of any more."""
        now = self._clock() if now is None else now
        for peer, stored in list(self._peers.items()):
            if stored.expires_at <= now and stored.last_seen + self._settings.peer_ttl <= now:
                self._forget(peer)
            elif isinstance(stored, Entry):
                live = {a: known for a, known in stored.addresses.items() if known.expires_at > now}
                if len(live) < len(stored.addresses):
                    stored.addresses = live
                    self._changed.add(peer)
                    self._resize(peer, stored)

    def flush(self) -> None:
        """Write all changes to the file now, on this thread."""
        while self._file is not None and (batch := self._take_changed()):
            try:
                self._file.write(*self._rows_of(batch))
            except OSError as error:
                self._changed |= batch
                self._report_write(error)
                return
            self._report_write(None)

    def close(self) -> None:
        """Write all changes and close the file. Idempotent."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    async def __aenter__(self) -> Peerstore:
        self._tasks = await asyncio.TaskGroup().__aenter__()
        self._keeper = self._tasks.create_task(self._keep(), name="peerstore")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._tasks is not None
        assert self._keeper is not None
        self._keeper.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)
        finally:
            self.close()

    async def _keep(self) -> None:
        """Write changes and remove what has expired, until cancelled."""
        next_prune = self._clock() + self._settings.prune_interval
        while True:
            await asyncio.sleep(self._settings.flush_interval)
            if self._clock() >= next_prune:
                next_prune = self._clock() + self._settings.prune_interval
                self.prune()
            await self._flush_off_loop()

    async def _flush_off_loop(self) -> None:
        while self._file is not None and (batch := self._take_changed()):
            try:
                await asyncio.to_thread(self._file.write, *self._rows_of(batch))
            except OSError as error:
                self._changed |= batch
                self._report_write(error)
                return
            except BaseException:
                # Whether it was written is not known; writing it twice does no harm.
                self._changed |= batch
                raise
            self._report_write(None)

    def _report_write(self, error: OSError | None) -> None:
        """Log when writing begins to fail and when it works again, not each second."""
        if error is not None and not self._write_failed:
            _log.warning(
                "the peerstore cannot be written; it is kept in memory",
                reason="PEERSTORE_WRITE",
                error=str(error),
            )
        elif error is None and self._write_failed:
            _log.info("the peerstore can be written again")
        self._write_failed = error is not None

    def _take_changed(self) -> set[PeerId]:
        size = min(len(self._changed), self._settings.flush_batch)
        return {self._changed.pop() for _ in range(size)}

    def _rows_of(self, batch: set[PeerId]) -> tuple[list[StoredPeer], list[bytes]]:
        rows: list[StoredPeer] = []
        for peer in batch & self._peers.keys():
            entry = self._peers[peer]
            rows.append(entry if isinstance(entry, StoredPeer) else encode(peer, entry))
        return rows, [bytes(peer) for peer in batch - self._peers.keys()]

    def _load(self) -> None:
        damaged = 0
        for row in self._file.take_rows() if self._file is not None else ():
            try:
                peer = PeerId.from_bytes(row.peer_id)
            except PeerIdError:
                damaged += 1
                continue
            self._peers[peer] = row
            self._resize(peer, row)
        if damaged:
            _log.warning("peerstore rows left out", reason="PEERSTORE_ROW", rows=damaged)
        self._evict()
        self.prune()

    def _entry(self, peer: PeerId) -> Entry | None:
        stored = self._peers.get(peer)
        if isinstance(stored, StoredPeer):
            stored = self._peers[peer] = decode(stored)
        return stored

    def _entry_to_change(self, peer: PeerId, now: float) -> Entry:
        entry = self._entry(peer)
        if entry is None:
            return Entry(now)
        entry.changed_at = now
        return entry

    def _mark(self, peer: PeerId, entry: Entry) -> None:
        """Keep a changed entry: it is the last to go, and to be written."""
        self._peers.pop(peer, None)
        self._peers[peer] = entry
        if self._file is not None:
            self._changed.add(peer)
        self._resize(peer, entry)
        self._evict()

    def _resize(self, peer: PeerId, entry: Entry | StoredPeer) -> None:
        size = entry.size
        self._total_bytes += size - self._sizes.get(peer, 0)
        self._sizes[peer] = size

    def _evict(self) -> None:
        limit = self._settings
        while len(self._peers) > limit.max_peers or self._total_bytes > limit.max_total_bytes:
            self._forget(next(iter(self._peers)))

    def _forget(self, peer: PeerId) -> None:
        del self._peers[peer]
        self._total_bytes -= self._sizes.pop(peer)
        if self._file is not None:
            self._changed.add(peer)

    def _trim_addresses(self, entry: Entry) -> None:
        excess = len(entry.addresses) - self._settings.max_addresses_per_peer
        if excess > 0:
            by_expiry = sorted(entry.addresses.values(), key=lambda known: known.expires_at)
            for known in by_expiry[:excess]:
                del entry.addresses[known.address]
