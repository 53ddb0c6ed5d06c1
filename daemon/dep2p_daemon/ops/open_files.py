"""Room for as many sockets as connections are allowed: the limit of open files."""

from __future__ import annotations

import resource
from typing import Final

BESIDE_CONNECTIONS: Final = 256
"""Descriptors for everything else: listeners, the API's clients, the database, logs."""


def raise_open_files_limit(connections: int) -> int:
    """Raise the soft limit to what `connections` need, as far as the hard one allows.

    Returns:
        How many connections there is room for; at least `connections` when all is well.
    """
    wanted = connections + BESIDE_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return connections if soft == resource.RLIM_INFINITY else max(0, soft - BESIDE_CONNECTIONS)
