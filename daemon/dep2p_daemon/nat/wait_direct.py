"""Waiting for a direct path to a peer, or for the reason why there will be none."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dep2p_daemon.nat.dcutr import MAX_ROUNDS
from dep2p_daemon.nat.trail import (
    Outcome,
    Reason,
    Side,
    StepKind,
    Trail,
    TrailChanged,
    explain,
    reason_while_relayed,
)
from dep2p_daemon.swarm.dialing import DialPolicy
from dep2p_daemon.swarm.events import ConnectionOpened

if TYPE_CHECKING:
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.muxed import Connection
    from dep2p_daemon.nat.hole_punch import HolePuncher
    from dep2p_daemon.swarm.swarm import Swarm


@dataclass(frozen=True, slots=True)
class DirectFailure:
    """Why the path to a peer is not direct."""

    reason: Reason
    message: str
    remedy: str


async def wait_direct(
    swarm: Swarm, puncher: HolePuncher | None, peer: PeerId, timeout: float
) -> Connection | DirectFailure:
    """Return the direct connection to `peer`, as soon as there is one within `timeout` seconds.

    Otherwise why there is none: at once when an attempt that ran meanwhile has failed for good.
    """
    before = puncher.trails.latest(peer) if puncher is not None else None
    if before is not None and before.outcome is Outcome.FAILED:
        before = None if _fresh(before, swarm, peer) else before
    with swarm.events.subscribe() as events:
        try:
            async with asyncio.timeout(timeout):
                while True:
                    connection = swarm.best_connection(peer, DialPolicy.DIRECT)
                    if connection is not None:
                        return connection
                    if puncher is None:
                        return _failure(Reason.HOLE_PUNCHING_OFF)
                    trail = puncher.trails.latest(peer)
                    if _failed(trail) and trail is not before:
                        break
                    while not _concerns(await events.next(), peer):
                        pass
        except TimeoutError:
            pass
    return explain_relayed(puncher, peer)


def explain_relayed(puncher: HolePuncher | None, peer: PeerId) -> DirectFailure:
    """Say why the path to `peer` is relayed, from what was recorded last."""
    if puncher is None:
        return _failure(Reason.HOLE_PUNCHING_OFF)
    trail = puncher.trails.latest(peer)
    if trail is None:
        return _failure(Reason.NO_ATTEMPT)
    return _failure(reason_while_relayed(trail), trail.detail)


def _fresh(trail: Trail, swarm: Swarm, peer: PeerId) -> bool:
    """Whether a trail that has ended is about a connection that there still is."""
    opened = [one.opened_at for one in swarm.connections(peer) if one.relayed]
    return bool(opened) and trail.started_at >= min(opened)


def _failed(trail: Trail | None) -> bool:
    """Whether an attempt has failed, and the peer will not go on with another round."""
    if trail is None or trail.outcome is not Outcome.FAILED:
        return False
    rounds = sum(step.kind is StepKind.PUNCH for step in trail.steps)
    if trail.side is Side.INITIATOR or trail.reason is Reason.NO_COMMON_IP_VERSION:
        return True
    return rounds == 0 or rounds >= MAX_ROUNDS


def _concerns(event: object, peer: PeerId) -> bool:
    match event:
        case TrailChanged(trail):
            return trail.peer == peer
        case ConnectionOpened(connection):
            return connection.remote_peer == peer
        case _:
            return False


def _failure(reason: Reason, detail: str = "") -> DirectFailure:
    message, remedy = explain(reason)
    return DirectFailure(reason, f"{message}: {detail}" if detail else message, remedy)
