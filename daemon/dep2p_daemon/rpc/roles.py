"""Who may call what: one table, full method name to role.

The unix socket's file mode is the only door of today, and whoever passes it is `ADMIN`. A method
without a row is refused, so that no new one is open by oversight.
"""

from __future__ import annotations

import enum
from typing import Final

from dep2p_daemon.errors import PermissionDeniedError


class Role(enum.IntEnum):
    """What a caller may do; each includes those before it."""

    READ = 1
    """See the state."""
    APP = 2
    """Be a program that talks to peers: dial, open streams, serve protocols."""
    OPERATOR = 3
    """Change what the daemon does for everybody: its relays."""
    ADMIN = 4
    """Stop it."""


METHODS: Final[dict[str, Role]] = {
    "/dep2p.v1.NodeService/GetNode": Role.READ,
    "/dep2p.v1.NodeService/WatchEvents": Role.READ,
    "/dep2p.v1.NodeService/CheckNetwork": Role.APP,
    "/dep2p.v1.NodeService/GetMetrics": Role.READ,
    "/dep2p.v1.NodeService/Stop": Role.ADMIN,
    "/dep2p.v1.PeerService/Dial": Role.APP,
    "/dep2p.v1.PeerService/Disconnect": Role.APP,
    "/dep2p.v1.PeerService/ListPeers": Role.READ,
    "/dep2p.v1.PeerService/GetPeer": Role.READ,
    "/dep2p.v1.PeerService/ListConnections": Role.READ,
    "/dep2p.v1.PeerService/Ping": Role.APP,
    "/dep2p.v1.PeerService/MeasureThroughput": Role.APP,
    "/dep2p.v1.PeerService/ExplainPeer": Role.READ,
    "/dep2p.v1.RelayService/ConnectRelay": Role.OPERATOR,
    "/dep2p.v1.RelayService/DisconnectRelay": Role.OPERATOR,
    "/dep2p.v1.RelayService/ListRelays": Role.READ,
    "/dep2p.v1.RelayService/WatchRelays": Role.READ,
    "/dep2p.v1.StreamService/OpenStream": Role.APP,
    "/dep2p.v1.StreamService/Listen": Role.APP,
    "/dep2p.v1.StreamService/AcceptStream": Role.APP,
    "/grpc.health.v1.Health/Check": Role.READ,
    "/grpc.health.v1.Health/Watch": Role.READ,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Role.READ,
}


def check_role(method: str, role: Role) -> None:
    """Raise PermissionDeniedError unless a caller with `role` may call `method`."""
    needed = METHODS.get(method)
    if needed is None:
        raise PermissionDeniedError(
            f"{method} has no entry in the table of roles, so nobody may call it",
            reason="METHOD_NOT_LISTED",
            remedy="this is a defect of the daemon: please report it",
            method=method,
        )
    if role < needed:
        raise PermissionDeniedError(
            f"{method} needs the role {needed.name.lower()}, and the caller has "
            f"{role.name.lower()}",
            reason="ROLE_TOO_LOW",
            remedy="use a token or a socket of that role",
            method=method,
            needed=needed.name.lower(),
            role=role.name.lower(),
        )
