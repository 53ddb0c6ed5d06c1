"""Notices that a direct path has died although nobody said so.

A NAT that restarts, or forgets a mapping, drops the packets of a punched connection in silence.
QUIC and TCP find out after half a minute or more; a relay is there all the time. So a direct
connection with a peer that has relays is pinged whenever it was silent for a few seconds, and
ended when it stays so: the next stream goes through a relay again, and a new punch follows.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from dep2p_daemon.errors import ConnectionClosedError, Dep2pError, DialTimeoutError
from dep2p_daemon.muxed import CloseCode
from dep2p_daemon.protocols import ping

if TYPE_CHECKING:
    from dep2p_daemon.muxed import Connection
    from dep2p_daemon.swarm.swarm import Swarm

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class LivenessSettings:
    """Times in seconds. A dead path is noticed after `interval + tries * timeout` at most."""

    interval: float = 4.0
    """Silence after which the peer is pinged."""
    timeout: float = 2.5
    """For an answer; four round trips where they are longer."""
    tries: int = 2
    """Pings in a row without an answer that end the connection."""


async def guard(swarm: Swarm, connection: Connection, settings: LivenessSettings) -> None:
    """Watch `connection` until it ends; end it when the peer cannot be heard any more."""
    silent = 0
    while not connection.is_closed:
        before = _signs_of_life(connection)
        if not silent:
            await asyncio.sleep(settings.interval)
        if _signs_of_life(connection) != before or await _answers(swarm, connection, settings):
            silent = 0
            continue
        silent = silent + 1 if _signs_of_life(connection) == before else 0
        if silent >= settings.tries and not connection.is_closed:
            _log.info(
                "direct path lost",
                peer=str(connection.remote_peer),
                connection=connection.id,
                address=str(connection.remote_address),
                reason="PATH_SILENT",
            )
            await connection.close(CloseCode.GARBAGE_COLLECTED, "the path went silent")


def _signs_of_life(connection: Connection) -> tuple[int, float | None]:
    """What changes as packets arrive: streams' bytes, and with acknowledgements the round trip."""
    return connection.traffic.received, connection.rtt


async def _answers(swarm: Swarm, connection: Connection, settings: LivenessSettings) -> bool:
    """Whether the peer answers, be it with a refusal."""
    try:
        async with (
            asyncio.timeout(max(settings.timeout, 4 * (connection.rtt or 0.0))),
            aclosing(ping.ping(swarm, connection)) as round_trips,
        ):
            await anext(round_trips)
    except (TimeoutError, DialTimeoutError, ConnectionClosedError):
        return False
    except Dep2pError:
        return True  # it does not serve pings, or has enough of them
    return True
