"""`peers` and `connections`: who is there, and how."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from dep2pctl.app import ApiCommand
from dep2pctl.as_json import as_json
from dep2pctl.output import write_fields, write_table
from dep2pctl.session import Session, pass_session

if TYPE_CHECKING:
    import dep2p


@click.command(
    cls=ApiCommand,
    examples="""
    dep2pctl peers
    dep2pctl peers --known
    dep2pctl peers 12D3KooW...
    dep2pctl -o json peers | jq -r '.peers[] | select(.path == "relayed").peer_id'
    """,
)
@click.argument("peer", required=False)
@click.option("--known", is_flag=True, help="Also peers that are known and not connected.")
@pass_session
def peers(session: Session, peer: str | None, known: bool) -> None:
    """List the connected peers, or tell about one.

    With PEER (a peer id): its addresses, protocols, software and round trip.
    """

    async def work(node: dep2p.Node) -> None:
        from dep2pctl.views import PEER_HEADERS, peer_fields, peer_row

        if peer is not None:
            found = await node.get_peer(peer)
            session.show(as_json(found), lambda: write_fields(peer_fields(found, time.time())))
            return
        listed = await node.list_peers(include_known=known)
        session.show(
            {"peers": [as_json(item) for item in listed]},
            lambda: write_table(PEER_HEADERS, map(peer_row, listed), empty="no peer is connected"),
        )

    session.run(work)


@click.command(
    cls=ApiCommand,
    examples="""
    dep2pctl connections
    dep2pctl connections 12D3KooW...
    dep2pctl -o json connections | jq '.connections[] | {peer_id, path, rtt_ms}'
    """,
)
@click.argument("peer", required=False, default="")
@pass_session
def connections(session: Session, peer: str) -> None:
    """List the open connections.

    Of all peers, or of PEER (a peer id). PATH is direct, or relayed when the packets go through
    a relay.
    """

    async def work(node: dep2p.Node) -> None:
        from dep2pctl.views import CONNECTION_HEADERS, connection_row

        listed = await node.list_connections(peer)
        now = time.time()
        session.show(
            {"connections": [as_json(item) for item in listed]},
            lambda: write_table(
                CONNECTION_HEADERS,
                (connection_row(item, now) for item in listed),
                empty="no connection is open",
            ),
        )

    session.run(work)
