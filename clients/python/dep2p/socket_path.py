"""Where the daemon's socket is, and why nobody answers there."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from grpc import StatusCode

from dep2p.errors import DaemonNotReachableError

if TYPE_CHECKING:
    from collections.abc import Mapping


def default_socket_path(env: Mapping[str, str] | None = None, uid: int | None = None) -> Path:
    """Return $DEP2P_SOCKET, else root's or the user's own socket.

    That is `/run/dep2p/dep2pd.sock` for root and `$XDG_RUNTIME_DIR/dep2p/dep2pd.sock` for others.
    """
    env = os.environ if env is None else env
    uid = os.getuid() if uid is None else uid
    if named := env.get("DEP2P_SOCKET"):
        return Path(named)
    if uid == 0:
        return Path("/run/dep2p/dep2pd.sock")
    return Path(env.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}") / "dep2p" / "dep2pd.sock"


def not_reachable(path: Path, details: str = "") -> DaemonNotReachableError:
    """Return the error of a call that found nobody at `path`, saying why."""
    remedy = "start the daemon: dep2pd; or name its socket: --socket, $DEP2P_SOCKET"
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        why = "there is no such socket"
    except PermissionError:
        why, remedy = "no permission to look there", "run as the user that the daemon runs as"
    else:
        if not stat.S_ISSOCK(mode):
            why = "that is no socket"
        elif not os.access(path, os.W_OK):
            why, remedy = "no permission", "run as the user that the daemon runs as"
        else:
            why = "nobody answers"
    return DaemonNotReachableError(
        f"no daemon at {path}: {why}",
        reason="DAEMON_NOT_REACHABLE",
        remedy=remedy,
        metadata={"socket": str(path), "details": details},
        code=StatusCode.UNAVAILABLE,
    )
