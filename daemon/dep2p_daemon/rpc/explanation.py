"""ExplainPeer: what was tried with a peer, and a verdict in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dep2p.v1 import explanation_pb2, peer_pb2
from dep2p_daemon.muxed import Direction
from dep2p_daemon.nat.trail import Outcome, Side, StepKind, explain, reason_while_relayed
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
    from dep2p_daemon.muxed import Connection
    from dep2p_daemon.nat.trail import Step, Trail
    from dep2p_daemon.swarm.dial_trail import DialTrail

_Verdict = tuple[str, str, str]
"""Reason, words, remedy."""

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
        reason, verdict, remedy = _unconnected(daemon, peer, dials)
    elif not best.relayed:
        reason, verdict, remedy = "DIRECT", _how_direct(best, punches), ""
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


def _unconnected(daemon: Daemon, peer: PeerId, dials: tuple[DialTrail, ...]) -> _Verdict:
    if not dials:
        return _NOT_TRIED
    last = dials[-1]
    if last.connection_id:
        return (
            "DISCONNECTED",
            "not connected any more; the last dial had worked",
            "try it again: dep2pctl dial PEER",
        )
    if last.reason == "NO_RESERVATION":
        return last.reason, *_at_no_relay(daemon, peer, last)
    return last.reason, f"not connected: {last.detail}", last.remedy


def _at_no_relay(daemon: Daemon, peer: PeerId, last: DialTrail) -> tuple[str, str]:
    """Verdict and remedy where the relays answered, and the peer is at none of them."""
    asked = [
        str(address.split_circuit()[0].peer_id)
        for attempt in last.attempts
        if (address := attempt.address).is_circuit
    ]
    relays = ", ".join(dict.fromkeys(asked))
    told = any(address.is_circuit for address in daemon.peerstore.addresses(peer))
    if told:
        return (
            "not connected: the peer has no reservation any more at the relay it named "
            f"({relays}): it is offline, or lost its connection there",
            "see that dep2pd runs there, and that its `dep2pctl relay list` shows reserved",
        )
    return (
        f"not connected: the peer is at no relay that was asked ({relays}), and no other address "
        "of it is known: it is offline, or it uses other relays",
        "have both sides use one relay (`dep2pctl relay connect`), or dial an address that "
        "`dep2pctl id` prints there",
    )


def _how_direct(best: Connection, punches: tuple[Trail, ...]) -> str:
    """How the direct connection came to be."""
    trail = next((one for one in punches if one.connection_id == best.id), None)
    if trail is None:
        dialled = best.direction is Direction.OUTBOUND
        who = "this node dialled the peer" if dialled else "the peer dialled this node"
        return f"there is a direct connection: {who} without a relay"
    rounds = [step for step in trail.steps if step.kind is StepKind.PUNCH]
    took = "" if trail.ended_at is None else f" after {trail.ended_at - trail.started_at:.2f} s"
    if not rounds or any(
        step.kind is StepKind.DIRECT_DIAL and step.outcome is Outcome.DIRECT for step in trail.steps
    ):
        who = "this node" if trail.side is Side.INITIATOR else "the peer"
        return f"there is a direct connection: a plain dial of {who} got through{took}"
    return f"there is a direct connection: a hole was punched in round {rounds[-1].number}{took}"


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
        own_nat=trail.own_nat.value,
        peer_nat=trail.peer_nat.value,
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
