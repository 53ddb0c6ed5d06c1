"""`events`: what happens, as it happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dep2p.v1.event_pb2 import Event
from dep2pctl.app import ApiCommand
from dep2pctl.as_json import as_json
from dep2pctl.output import printable
from dep2pctl.session import Session, pass_session

if TYPE_CHECKING:
    import dep2p

TYPES = [field.name for field in Event.DESCRIPTOR.oneofs_by_name["event"].fields]


@click.command(
    cls=ApiCommand,
    examples="""
    dep2pctl events
    dep2pctl events --type connection_opened --no-snapshot -n 1
    dep2pctl -o json events | jq -r 'select(.type == "relay_changed").relay_changed.state'
    """,
)
@click.option(
    "--type",
    "types",
    multiple=True,
    type=click.Choice(TYPES),
    help="Only these; may be repeated. [all]",
)
@click.option("--no-snapshot", is_flag=True, help="Leave the current state out.")
@click.option("-n", "--count", type=click.IntRange(min=1), help="End after COUNT events.")
@pass_session
def events(session: Session, types: tuple[str, ...], no_snapshot: bool, count: int | None) -> None:
    """Print the state and then every change.

    Until Ctrl-C or the daemon's end. With -o json each line is one event: its `type` names the
    member that has the details.
    """

    async def work(node: dep2p.Node) -> None:
        from dep2pctl.views import event_text

        left = count
        async for event in node.watch_events(*types, skip_snapshot=no_snapshot):
            kind = event.WhichOneof("event")
            session.show_line({"type": kind, **as_json(event)}, printable(event_text(event)))
            if left is not None:
                left -= 1
                if left == 0:
                    return

    session.run(work)
