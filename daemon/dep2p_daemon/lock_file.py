"""A file that says which process has something: the data directory, the API's socket.

`flock` ends with its process, however that ends, so that a lock is never stale. The file itself
stays: removing it would let two processes lock two files of one name.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Final, Self

from dep2p_daemon.errors import ConfigError, PreconditionError

if TYPE_CHECKING:
    from pathlib import Path

_MAX_PID_BYTES: Final = 32


class LockFile:
    """Holds a lock while it is open. A context manager; not for use from several threads."""

    def __init__(self, path: Path, *, what: str, option: str) -> None:
        """Name what the lock guards, and the option that chooses another such thing."""
        self._path = path
        self._what = what
        self._option = option
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            PreconditionError: reason ALREADY_RUNNING, another process has it.
            ConfigError: the file cannot be made.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(self._path, flags, 0o600)
        except OSError as error:
            raise ConfigError(
                f"the lock {self._path} cannot be made: {error.strerror}",
                reason="LOCK_FAILED",
                remedy=f"make its directory writable for this user, or name another with "
                f"{self._option}",
                path=self._path,
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(descriptor, _MAX_PID_BYTES, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise self._taken(pid) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def _taken(self, pid: str) -> PreconditionError:
        who = f"process {pid}" if pid else "another process"
        stop = f"stop it (dep2pctl stop, or: kill {pid})" if pid else "stop it"
        return PreconditionError(
            f"dep2pd runs already: {who} has {self._what}",
            reason="ALREADY_RUNNING",
            remedy=f"{stop}, or use another with {self._option}",
            path=self._path,
            pid=pid,
        )
