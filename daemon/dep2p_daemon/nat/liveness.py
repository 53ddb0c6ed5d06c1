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
from typing import TYPE_CHECKING, Final

import structlog

from dep2p_daemon.errors import ConnectionClosedError, Dep2pError, DialTimeoutError
from dep2p_daemon.muxed import CloseCode
from dep2p_daemon.protocols import ping

if TYPE_CHECKING:
    from dep2p_daemon.muxed import Connection
    from dep2p_daemon.swarm.swarm import Swarm

_log = structlog.get_logger(__name__)


LOOKS_PER_INTERVAL: Final = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class LivenessSettings:
    """Times in seconds. A dead path is noticed after 1.25 `interval` + `tries` * `timeout`."""

    interval: float = 4.0
    """Silence after which the peer is pinged."""
    timeout: float = 2.0
    """For an answer; four round trips where they are longer."""
    relayed_silence: float = 1.0
    """Silence of a relayed connection after which a new stream asks first whether it lives."""
    tries: int = 2
    """Pings in a row without an answer that end the connection."""


async def guard(swarm: Swarm, connection: Connection, settings: LivenessSettings) -> None:
    """Watch `connection` until it ends; end it when the peer cannot be heard any more."""
    silent, before = 0.0, _signs_of_life(connection)
    while not connection.is_closed:
        await asyncio.sleep(settings.interval / LOOKS_PER_INTERVAL)
        now = _signs_of_life(connection)
        silent = silent + settings.interval / LOOKS_PER_INTERVAL if now == before else 0.0
        if silent >= settings.interval:
            await check(swarm, connection, settings)
            silent, now = 0.0, _signs_of_life(connection)
        before = now


async def check(swarm: Swarm, connection: Connection, settings: LivenessSettings) -> bool:
    """Return whether the peer can be heard; end `connection` when it cannot."""
    for _ in range(settings.tries):
        before = _signs_of_life(connection)
        if (
            connection.is_closed
            or await _answers(swarm, connection, settings)
            or _signs_of_life(connection) != before
        ):
            return not connection.is_closed
    if not connection.is_closed:
        _log.info(
            "path lost",
            peer=str(connection.remote_peer),
            connection=connection.id,
            path=connection.path,
            address=str(connection.remote_address),
            reason="PATH_SILENT",
        )
        await connection.close(CloseCode.GARBAGE_COLLECTED, "the path went silent")
    return False


async def may_carry(swarm: Swarm, connection: Connection, settings: LivenessSettings) -> bool:
    """Return whether a new stream may rely on `connection`; one silent for a while is asked.

    For relayed connections, which nobody watches: when a relay dies, those that went through it
    say nothing for a minute. It costs the first stream after a pause one round trip.
    """
    heard_at = connection.heard_at
    if not connection.relayed or heard_at is None:
        return True
    if asyncio.get_running_loop().time() - heard_at < settings.relayed_silence:
        return True
    if await _answers(swarm, connection, settings):
        return True
    _log.info(
        "a connection is silent: another one is sought",
        peer=str(connection.remote_peer),
        connection=connection.id,
        path=connection.path,
        reason="PATH_SILENT",
    )
    return False


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
