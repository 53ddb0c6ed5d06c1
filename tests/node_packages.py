"""Node programs of this repository: their locked packages, installed once."""

from __future__ import annotations

import functools
import subprocess
from typing import TYPE_CHECKING

from tests.requires import require_tool, unavailable

if TYPE_CHECKING:
    from pathlib import Path

OLDEST_NODE = 18
"""Debian 12's and Ubuntu 24.04's."""
INSTALL_SECONDS = 300


@functools.cache
def node_with_packages(directory: Path) -> str:
    """Return node's path; run `npm ci` in `directory` if its packages are not there.

    Skips, and fails in CI, where node is missing or too old or the packages cannot be had.
    """
    node = require_tool("node")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.lstrip("v").partition(".")[0]) < OLDEST_NODE:
        unavailable(f"node {version.strip()} is older than {OLDEST_NODE}")
    # npm writes this file when it is done: a broken install has none.
    installed = directory / "node_modules" / ".package-lock.json"
    locked = directory / "package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < locked.stat().st_mtime:
        npm = require_tool("npm")
        done = subprocess.run(
            [npm, "ci"],
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
        if done.returncode:
            unavailable(f"npm ci failed in {directory}: {done.stderr[-2000:]}")
    return node
