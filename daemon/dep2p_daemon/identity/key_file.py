"""The node's key on disk: a libp2p `PrivateKey` protobuf, made on the first start, mode 0600."""

from __future__ import annotations

import os
import stat
import tempfile
from typing import TYPE_CHECKING, Final

from dep2p_daemon.errors import ConfigError, InvalidArgumentError
from dep2p_daemon.identity.keys import PrivateKey

if TYPE_CHECKING:
    from pathlib import Path

MAX_FILE_BYTES: Final = 4096
"""An Ed25519 key takes 68 bytes; more than this is no key file at all."""


def load_or_create(path: Path) -> PrivateKey:
    """Return the key at `path`; make a new one there when the file does not exist.

    A new file appears whole or not at all, whenever the process or the machine stops, and two
    daemons that start at once get the same key. Its directory must exist. Blocks on the disk.

    Raises:
        ConfigError: unreadable or unwritable, open to other users, or no key; with the remedy.
    """
    try:
        return _load(path)
    except FileNotFoundError:
        _create(path, PrivateKey.generate())
    try:
        return _load(path)
    except FileNotFoundError as error:
        raise _unwritable(path, "it disappeared right after it was made") from error


def _load(path: Path) -> PrivateKey:
    """Read the key. Raises FileNotFoundError, or ConfigError for all else."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(
            f"the node key {path} cannot be read: {error.strerror}",
            reason="KEY_FILE_UNREADABLE",
            remedy="run dep2pd as the user that owns the data directory, or name another "
            "directory with --data-dir",
            path=path,
        ) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            f"the node key {path} has mode {stat.S_IMODE(mode):04o}: other users can read or "
            "change it",
            reason="KEY_FILE_MODE",
            remedy=f"run: chmod 600 {path}",
            path=path,
        )
    try:
        return PrivateKey.from_protobuf(data)
    except InvalidArgumentError as error:
        raise ConfigError(
            f"the node key {path} is damaged or of another kind: {error.message}",
            reason="KEY_FILE_INVALID",
            remedy="restore it from a backup, or move it away to start with a new peer id",
            path=path,
        ) from error


def _create(path: Path, key: PrivateKey) -> None:
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(key.to_protobuf())
                file.flush()
                os.fsync(file.fileno())
            # Unlike rename, link does not replace the key of a daemon that was quicker.
            os.link(temporary, path)
        except FileExistsError:
            return
        finally:
            os.unlink(temporary)
        _sync_directory(path.parent)
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from error


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"no node key can be made at {path}: {why}",
        reason="KEY_FILE_UNWRITABLE",
        remedy=f"make {path.parent} a directory that this user can write to, or name another "
        "with --data-dir",
        path=path,
    )
