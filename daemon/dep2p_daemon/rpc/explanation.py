"""ExplainPeer: what was tried with a peer, and a verdict in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dep2p.v1 import explanation_pb2, peer_pb2
from dep2p_daemon.nat.trail import explain, reason_while_relayed
from dep2p_daemon.rpc.conversion import (
    connection_message,
    milliseconds,
    optional_timestamp,
    path_of,
    timestamp,
)

if TYPE_CHECKING:
    from dep2p_daemon.daemon import Daemon
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.nat.trail import Step, Trail
    from dep2p_daemon.swarm.dial_trail import DialTrail

_Verdict = tuple[str, str, str]
"""Reason, words, remedy."""

_DIRECT: Final = ("DIRECT", "there is a direct connection", "")
_SEEKING: Final = ("RELAYED_SEEKING", "relayed; a direct path is being sought now", "")
_NOT_SOUGHT: Final = (
    "RELAYED_NOT_SOUGHT",
    "relayed; no direct path was sought: the dialled side begins, and it has not",
    "look at the peer's own `dep2pctl why`; it may have hole punching turned off",
)
_OFF: Final = (
    "HOLE_PUNCHING_OFF",
    "relayed, and hole punching is turned off on this node",
    "set nat.hole_punching = true",
)
_NOT_TRIED: Final = (
    "NOT_TRIED",
    "not connected, and nothing was tried lately",
    "try it: dep2pctl dial PEER",
)


def explanation(daemon: Daemon, peer: PeerId) -> explanation_pb2.PeerExplanation:
    """Return all that is recorded of a peer, with a verdict."""
    best = daemon.swarm.best_connection(peer)
    dials = daemon.swarm.dial_trails.of(peer)
    punches = daemon.hole_puncher.trails.of(peer) if daemon.hole_puncher is not None else ()
    if best is None:
        reason, verdict, remedy = _unconnected(dials)
    elif not best.relayed:
        reason, verdict, remedy = _DIRECT
    elif daemon.hole_puncher is None:
        reason, verdict, remedy = _OFF
    else:
        reason, verdict, remedy = _relayed(punches)
    return explanation_pb2.PeerExplanation(
        peer_id=str(peer),
        path=peer_pb2.PATH_UNSPECIFIED if best is None else path_of(best),
        reason=reason,
        verdict=verdict,
        remedy=remedy,
        connections=[connection_message(one) for one in daemon.swarm.connections(peer)],
        addresses=_addresses(daemon, peer),
        dials=[_dial(trail) for trail in dials],
        punches=[_punch(trail) for trail in punches],
    )


def _unconnected(dials: tuple[DialTrail, ...]) -> _Verdict:
    if not dials:
        return _NOT_TRIED
    last = dials[-1]
    if last.connection_id:
        return "DISCONNECTED", "not connected any more; the last dial had worked", ""
    return last.reason, f"not connected: {last.detail}", last.remedy


def _relayed(punches: tuple[Trail, ...]) -> _Verdict:
    if not punches:
        return _NOT_SOUGHT
    last = punches[-1]
    if last.reason is None:
        return _SEEKING
    reason = reason_while_relayed(last)
    words, remedy = explain(reason)
    return reason.value, f"relayed: {words}", remedy


def _addresses(daemon: Daemon, peer: PeerId) -> list[explanation_pb2.KnownAddress]:
    info = daemon.peerstore.get(peer)
    known = [
        explanation_pb2.KnownAddress(
            address=str(one.address), source=one.source, expire_time=timestamp(one.expires_at)
        )
        for one in (info.addresses if info is not None else ())
    ]
    circuits = (
        *daemon.relay_client.circuits_to(peer),
        *daemon.relay_supervisor.circuits_to(peer),
    )
    return known + [
        explanation_pb2.KnownAddress(address=str(address), source="relays") for address in circuits
    ]


def _dial(trail: DialTrail) -> explanation_pb2.DialTrail:
    path = peer_pb2.PATH_RELAYED if trail.relayed else peer_pb2.PATH_DIRECT
    return explanation_pb2.DialTrail(
        start_time=timestamp(trail.started_at),
        duration_ms=trail.duration * 1e3,
        policy=trail.policy.value,
        path=path if trail.connection_id else peer_pb2.PATH_UNSPECIFIED,
        connection_id=trail.connection_id,
        reason=trail.reason,
        detail=trail.detail,
        attempts=[
            explanation_pb2.DialAttempt(
                address=str(attempt.address),
                outcome=explanation_pb2.DialAttempt.Outcome.Value(
                    f"OUTCOME_{attempt.outcome.value}"
                ),
                began_after_ms=attempt.began_after * 1e3,
                duration_ms=attempt.duration * 1e3,
                reason=attempt.reason,
                detail=attempt.detail,
            )
            for attempt in trail.attempts
        ],
    )


def _punch(trail: Trail) -> explanation_pb2.PunchTrail:
    words, remedy = ("", "") if trail.reason is None else explain(trail.reason)
    ended = trail.ended_at
    return explanation_pb2.PunchTrail(
        start_time=timestamp(trail.started_at),
        duration_ms=None if ended is None else (ended - trail.started_at) * 1e3,
        side=trail.side.value,
        relay="" if trail.relay is None else str(trail.relay),
        own_mapping=trail.own_mapping.value,
        own_candidates=[str(address) for address in trail.own_candidates],
        peer_candidates=[
            explanation_pb2.PunchCandidate(
                address=str(candidate.address),
                rejection="" if candidate.rejection is None else candidate.rejection.value,
            )
            for candidate in trail.peer_candidates
        ],
        steps=[_step(step) for step in trail.steps],
        outcome="" if trail.outcome is None else trail.outcome.value,
        reason="" if trail.reason is None else trail.reason.value,
        verdict=words,
        remedy=remedy,
        detail=trail.detail,
        connection_id=trail.connection_id,
    )


def _step(step: Step) -> explanation_pb2.PunchStep:
    return explanation_pb2.PunchStep(
        kind=step.kind.value,
        number=step.number,
        role="" if step.role is None else step.role.value,
        addresses=[str(address) for address in step.addresses],
        start_time=optional_timestamp(step.started_at),
        rtt_ms=milliseconds(step.rtt),
        duration_ms=milliseconds(step.duration),
        probe_count=step.probes,
        outcome="" if step.outcome is None else step.outcome.value,
        detail=step.detail,
    )
