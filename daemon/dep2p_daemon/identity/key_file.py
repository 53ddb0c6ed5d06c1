"""The node key on disk: a PrivateKey protobuf, mode 0600, made on first start."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from dep2p_daemon.errors import AuthenticationError, ConfigError
from dep2p_daemon.identity.keys import PrivateKey

MAX_FILE_BYTES: Final = 1024


def load_or_create(path: Path) -> PrivateKey:
    """Load the key at `path`, or make a new one there (its directory must exist).

    A new file appears whole or not at all, and two starts at once agree on one key.

    Raises:
        ConfigError: unreadable, readable by others, or not a key; says what to do.
    """
    try:
        return _load(path)
    except FileNotFoundError:
        _create(path, PrivateKey.generate())
        return _load(path)


def _load(path: Path) -> PrivateKey:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(
            f"the node key {path} cannot be read: {error.strerror}",
            reason="KEY_FILE_UNREADABLE",
            remedy="run dep2pd as the user that owns the data directory, or name another with "
            "--data-dir",
            path=path,
        ) from error
    if mode & 0o077:
        raise ConfigError(
            f"the node key {path} has mode {mode:04o}: others can read or change it",
            reason="KEY_FILE_MODE",
            remedy=f"run: chmod 600 {path}",
            path=path,
        )
    try:
        return PrivateKey.from_protobuf(data)
    except AuthenticationError as error:
        raise ConfigError(
            f"the node key {path} is damaged: {error.message}",
            reason="KEY_FILE_INVALID",
            remedy="restore it from a backup, or move it away to start with a new identity",
            path=path,
        ) from error


def _create(path: Path, key: PrivateKey) -> None:
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise ConfigError(
            f"no node key can be made in {path.parent}: {error.strerror}",
            reason="KEY_FILE_UNWRITABLE",
            remedy="make the directory writable for this user, or name another with --data-dir",
            path=path,
        ) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(key.to_protobuf())
            file.flush()
            os.fsync(file.fileno())
        try:
            # link() fails where the file exists by now: the other start's key stays.
            os.link(temporary, path)
        except FileExistsError:
            return
    finally:
        os.unlink(temporary)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
