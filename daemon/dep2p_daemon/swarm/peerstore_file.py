"""The peerstore's SQLite file: one row a peer, written in batches.

Every method blocks on the disk, and may be called from any thread: a lock lets one at a time
in. A write-ahead log keeps the file whole when the process is killed in the middle of a write.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from dep2p_daemon.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_log = structlog.get_logger(__name__)

SCHEMA_VERSION: Final = 1
"""`PRAGMA user_version` of the file; a file of another version is moved aside."""

BUSY_TIMEOUT: Final = 5.0
"""Seconds to wait for somebody who looks into the file with the `sqlite3` program."""

_CREATE: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE peers (
    peer_id BLOB PRIMARY KEY,
    changed_at REAL NOT NULL,
    last_seen REAL NOT NULL,
    agent_version TEXT NOT NULL,
    protocol_version TEXT NOT NULL,
    record_seq TEXT NOT NULL,
    protocols TEXT NOT NULL,
    addresses TEXT NOT NULL,
    expires_at REAL NOT NULL,
    size INTEGER NOT NULL
) STRICT;
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""
_COLUMNS: Final = (
    "peer_id, changed_at, last_seen, agent_version, protocol_version, record_seq, protocols, "
    "addresses, expires_at, size"
)
_LOAD: Final = f"SELECT {_COLUMNS} FROM peers ORDER BY changed_at"
_UPSERT: Final = f"INSERT OR REPLACE INTO peers ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_DELETE: Final = "DELETE FROM peers WHERE peer_id = ?"

_SQLITE_ERROR: Final = 1  # for example "no such column"
_DAMAGED: Final = frozenset({_SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_COMPANIONS: Final = ("-wal", "-shm", "-journal")


@dataclass(frozen=True, slots=True)
class StoredPeer:
    """A row. All times are Unix times in seconds."""

    peer_id: bytes
    changed_at: float
    last_seen: float
    """0 when there never was a connection."""
    agent_version: str
    protocol_version: str
    record_seq: str
    """Decimal, because SQLite has no unsigned 64-bit integers; empty without a record."""
    protocols: str
    """JSON: a list of texts."""
    addresses: str
    """JSON: a list of [multiaddr, learnt at, expires at, source]."""
    expires_at: float
    """When the last of the addresses expires; 0 without addresses."""
    size: int
    """Bytes of memory that it takes when it is decoded, roughly."""


class _OtherSchema(Exception):
    """The file was made by another version of this program."""


class PeerstoreFile:
    """An open file. Closed with `close`, which is idempotent."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it. One that is damaged is moved aside, with a warning.

        Raises:
            ConfigError: it can be neither opened nor made; with the remedy.
        """
        self._path = path
        self._lock = threading.Lock()
        self._rows: list[StoredPeer] = []
        try:
            try:
                self._connection = self._open()
            except (sqlite3.DatabaseError, _OtherSchema) as error:
                if not _is_damage(error):
                    raise
                self._move_aside(str(error))
                self._connection = self._open()
        except (sqlite3.DatabaseError, OSError) as error:
            raise ConfigError(
                f"the peerstore {path} cannot be opened: {error}",
                reason="PEERSTORE_UNUSABLE",
                remedy=f"make {path.parent} a directory that this user can write to, end the "
                "other program that uses the file, or name another directory with --data-dir",
                path=path,
            ) from error

    def take_rows(self) -> list[StoredPeer]:
        """Hand over what was in the file when it was opened, the oldest first."""
        rows, self._rows = self._rows, []
        return rows

    def write(self, changed: Iterable[StoredPeer], removed: Iterable[bytes]) -> None:
        """Replace and remove rows, all or none. Raises OSError saying why it failed."""
        rows = [
            (
                row.peer_id,
                row.changed_at,
                row.last_seen,
                row.agent_version,
                row.protocol_version,
                row.record_seq,
                row.protocols,
                row.addresses,
                row.expires_at,
                row.size,
            )
            for row in changed
        ]
        with self._lock:
            try:
                with self._connection as connection:
                    connection.executemany(_UPSERT, rows)
                    connection.executemany(_DELETE, [(peer_id,) for peer_id in removed])
            except sqlite3.Error as error:
                raise OSError(f"the peerstore {self._path} cannot be written: {error}") from error

    def close(self) -> None:
        """Merge the write-ahead log into the file and close it."""
        with self._lock:
            self._connection.close()

    def _open(self) -> sqlite3.Connection:
        # SQLite gives its companion files the mode of this one.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(
            self._path, timeout=BUSY_TIMEOUT, check_same_thread=False, isolation_level="IMMEDIATE"
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            # A power failure may cost the last seconds of what can be learnt again, no more.
            connection.execute("PRAGMA synchronous = NORMAL")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                connection.executescript(_CREATE)
            elif version != SCHEMA_VERSION:
                raise _OtherSchema(f"it has the schema version {version}")
            with closing(connection.execute(_LOAD)) as cursor:
                self._rows = [StoredPeer(*row) for row in cursor]
        except BaseException:
            connection.close()
            raise
        return connection

    def _move_aside(self, why: str) -> None:
        aside = self._path.with_name(f"{self._path.name}.damaged")
        # Its companions would be taken for the new file's.
        for companion in _COMPANIONS:
            self._path.with_name(f"{self._path.name}{companion}").unlink(missing_ok=True)
        self._path.replace(aside)
        _log.warning(
            "the peerstore cannot be read; starting with an empty one",
            reason="PEERSTORE_DAMAGED",
            error=why,
            path=str(self._path),
            moved_to=str(aside),
        )


def _is_damage(error: Exception) -> bool:
    """Tell a file that will never open again from one that is locked or may not be opened."""
    if isinstance(error, _OtherSchema):
        return True
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED
