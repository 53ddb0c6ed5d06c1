"""`why`: what was tried with a peer, and what came of it."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Final

import click

from dep2pctl.app import ApiCommand
from dep2pctl.as_json import as_json, enum_name
from dep2pctl.output import milliseconds, printable, write_fields, write_table
from dep2pctl.session import Session, pass_session

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    import dep2p
    from dep2p.v1.explanation_pb2 import DialTrail, PeerExplanation, PunchTrail

_NATS: Final = {
    "NONE": "none: a public address of its own",
    "ENDPOINT_INDEPENDENT": "endpoint-independent mapping (cone)",
    "ADDRESS_DEPENDENT": "address-dependent mapping (symmetric)",
    "NO_UDP": "no UDP: TCP addresses only",
    "UNKNOWN": "unknown",
}


@click.command(
    cls=ApiCommand,
    examples="""
    dep2pctl why 12D3KooW...
    dep2pctl -o json why 12D3KooW... | jq -r .reason
    dep2pctl -o json why 12D3KooW... | jq '.punches[-1].steps'
    """,
)
@click.argument("peer")
@pass_session
def why(session: Session, peer: str) -> None:
    """Tell why a peer is reached as it is.

    Directly, through a relay, or not at all: the last dials with every address tried, and the
    last attempts to punch through the NATs, with the reason and what to do. PEER is a peer id.
    """

    async def work(node: dep2p.Node) -> None:
        explained = await node.explain_peer(peer)
        session.show(as_json(explained), lambda: write_explanation(explained))

    session.run(work)


def write_explanation(explained: PeerExplanation) -> None:
    """Write it for people: the verdict first, then what it comes from."""
    from dep2pctl.views import path_name

    fields: list[tuple[str, object]] = [
        ("peer id", explained.peer_id),
        ("path", path_name(explained.path)),
        ("reason", explained.reason),
        ("verdict", explained.verdict),
    ]
    write_fields([*fields, *([("remedy", explained.remedy)] if explained.remedy else [])])
    if explained.addresses:
        click.echo("\nknown addresses")
        write_table(
            ("SOURCE", "ADDRESS"),
            [(known.source, known.address) for known in explained.addresses],
            empty="",
        )
    for dial in explained.dials:
        _write_dial(dial)
    for punch in explained.punches:
        _write_punch(punch)


def _write_dial(dial: DialTrail) -> None:
    from dep2pctl.views import path_name

    came = path_name(dial.path) if dial.connection_id else f"failed, {dial.reason}"
    click.echo(
        f"\ndial at {_clock(dial.start_time)}, policy {dial.policy}: "
        f"{came} after {milliseconds(dial.duration_ms)}"
    )
    write_table(
        ("FROM", "TOOK", "OUTCOME", "ADDRESS", "WHY"),
        [
            (
                milliseconds(attempt.began_after_ms),
                milliseconds(attempt.duration_ms),
                enum_name(type(attempt).Outcome.DESCRIPTOR, attempt.outcome) or "-",
                attempt.address,
                attempt.detail or attempt.reason,
            )
            for attempt in dial.attempts
        ],
        empty="no address",
    )


def _write_punch(punch: PunchTrail) -> None:
    took = milliseconds(punch.duration_ms) if punch.HasField("duration_ms") else "still running"
    click.echo(f"\nhole punch at {_clock(punch.start_time)}, {took}")
    fields: list[tuple[str, object]] = [
        ("side", punch.side.lower()),
        ("relay", punch.relay),
        ("our NAT", _NATS.get(punch.own_nat, punch.own_nat)),
        ("peer's NAT", _NATS.get(punch.peer_nat, punch.peer_nat)),
        ("our candidates", list(punch.own_candidates)),
        (
            "peer's candidates",
            [
                f"{candidate.address} {candidate.rejection}".rstrip()
                for candidate in punch.peer_candidates
            ],
        ),
        ("outcome", punch.outcome or "running"),
        ("reason", punch.reason),
        ("verdict", punch.verdict),
    ]
    if punch.remedy:
        fields.append(("remedy", punch.remedy))
    if punch.detail:
        fields.append(("detail", punch.detail))
    write_fields(fields)
    write_table(
        ("STEP", "FROM", "ROLE", "RTT", "TOOK", "PACKETS", "OUTCOME", "ADDRESSES"),
        [
            (
                f"punch {step.number}" if step.number else "direct dial",
                milliseconds(
                    1e3 * (_seconds(step.start_time) - _seconds(punch.start_time))
                    if step.HasField("start_time")
                    else None
                ),
                step.role.lower() or "-",
                milliseconds(step.rtt_ms if step.HasField("rtt_ms") else None),
                milliseconds(step.duration_ms if step.HasField("duration_ms") else None),
                step.probe_count,
                f"{step.outcome or 'running'} {step.detail}".rstrip(),
                " ".join(map(printable, step.addresses)),
            )
            for step in punch.steps
        ],
        empty="no step was made",
    )


def _seconds(time: Timestamp) -> float:
    return time.seconds + time.nanos / 1e9


def _clock(time: Timestamp) -> str:
    return time.ToDatetime(datetime.UTC).astimezone().strftime("%H:%M:%S")
