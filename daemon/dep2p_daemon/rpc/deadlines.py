"""How long a call may take: the caller's deadline, within the server's bounds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dep2p_daemon.rpc.interceptors import Context

DIAL_SECONDS: Final = 30.0
"""For a dial whose caller sets no deadline; ours: one slow address more than go-libp2p's 15 s."""
MAX_DIAL_SECONDS: Final = 120.0
"""No dial runs longer, whatever its caller asks for."""

MARGIN_SECONDS: Final = 0.25
"""Ours end this much before the caller's, so that what was tried is told: at the caller's own
deadline gRPC ends the call and drops our answer."""
MARGIN_SHARE: Final = 0.1
"""... but never more than this share of it."""


def seconds_left(context: Context, *, default: float, maximum: float) -> float:
    """Return how many seconds the work of this call may take."""
    # Typed as a float, but None for a caller without a deadline.
    remaining: float | None = context.time_remaining()
    if remaining is None:
        return default
    return min(maximum, remaining - min(MARGIN_SECONDS, MARGIN_SHARE * remaining))


def dial_deadline(context: Context) -> asyncio.Timeout:
    """Return a timeout for whatever may have to dial a peer first."""
    return asyncio.timeout(seconds_left(context, default=DIAL_SECONDS, maximum=MAX_DIAL_SECONDS))
