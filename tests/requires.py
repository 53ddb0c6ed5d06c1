"""Tests that need a tool of the machine skip without it, and fail without it in CI."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

IN_CI = os.environ.get("DEP2P_CI") == "1"
"""`.ci/run` installs what the tests need and sets it: there, nothing may skip."""


def unavailable(reason: str) -> NoReturn:
    """Skip the test because of `reason`; in CI, fail it."""
    if IN_CI:
        pytest.fail(f"in CI nothing may skip: {reason}")
    pytest.skip(reason)


def require_tool(name: str) -> str:
    """Return the path of the program `name`, or skip."""
    path = shutil.which(name)
    if path is None:
        unavailable(f"{name} is not installed")
    return path


def require_miniupnpd() -> str:
    """Return the path of a home router's port mapping daemon, or skip."""
    path = shutil.which("miniupnpd")
    if path is None:
        unavailable("miniupnpd is not installed (Debian: miniupnpd-nftables)")
    return path


def require_root() -> None:
    """Skip unless the tests run as root."""
    if os.geteuid() != 0:
        unavailable("needs root")


def require_natlab() -> None:
    """Skip where `tests/natlab` cannot make network namespaces and NATs."""
    require_root()
    require_tool("ip")
    require_tool("nft")
