"""A lock is one process's, is never stale, and says whose it is."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from dep2p_daemon.errors import ConfigError, PreconditionError
from dep2p_daemon.lock_file import LockFile

if TYPE_CHECKING:
    from pathlib import Path

HOLDER = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(descriptor, fcntl.LOCK_EX)
os.write(descriptor, f"{os.getpid()}\\n".encode())
print("locked", flush=True)
sys.stdin.read()
"""


def take(path: Path) -> None:
    with LockFile(path, what="the thing", option="--thing"):
        pass


def test_it_says_who_has_it_and_frees_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with LockFile(path, what="the thing", option="--thing"):
        assert path.read_text() == f"{os.getpid()}\n"
        with pytest.raises(PreconditionError) as caught:
            take(path)
    assert caught.value.reason == "ALREADY_RUNNING"
    assert f"process {os.getpid()} has the thing" in caught.value.message
    assert "--thing" in caught.value.remedy
    assert path.read_text() == ""
    take(path)


def test_a_killed_holder_leaves_no_stale_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(PreconditionError) as caught:
            take(path)
        assert caught.value.metadata["pid"] == str(holder.pid)
        assert f"kill {holder.pid}" in caught.value.remedy
        holder.kill()
    take(path)


def test_a_program_that_is_started_does_not_inherit_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with LockFile(path, what="the thing", option="--thing"):
        child = subprocess.Popen(["sleep", "60"])
    try:
        take(path)
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("kind", ["directory", "link", "missing"])
def test_what_cannot_be_a_lock_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "lock"
    if kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path = tmp_path / "no" / "lock"
    with pytest.raises(ConfigError) as caught:
        take(path)
    assert caught.value.reason == "LOCK_FAILED"
    assert not (tmp_path / "elsewhere").exists()
