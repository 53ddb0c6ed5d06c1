"""`netcheck`: what this network lets through."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dep2pctl.app import ApiCommand
from dep2pctl.as_json import as_json
from dep2pctl.output import printable, write_fields
from dep2pctl.session import Session, pass_session

if TYPE_CHECKING:
    import dep2p


@click.command(
    cls=ApiCommand,
    examples="""
    dep2pctl netcheck
    dep2pctl -o json netcheck | jq -r '.verdict, .udp.mapping'
    """,
)
@pass_session
def netcheck(session: Session) -> None:
    """Check the network: UDP, TCP, NAT, reachability.

    With the relays and peers that are connected: two of them, at different IP addresses, are
    needed to tell what the NAT does. Takes up to half a minute.
    """

    async def work(node: dep2p.Node) -> None:
        from dep2p.v1.network_pb2 import NetworkReport
        from dep2pctl.network_views import report_fields

        report = NetworkReport()
        async for step in node.check_network():
            if step.HasField("report"):
                report = step.report
            elif not session.json:
                click.echo(f"{printable(step.progress)} ...", err=True)
        session.show(as_json(report), lambda: write_fields(report_fields(report)))

    session.run(work)
