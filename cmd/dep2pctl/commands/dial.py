"""`dial` and `disconnect`."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

import click

import dep2p
from dep2pctl.app import ApiCommand
from dep2pctl.as_json import as_json
from dep2pctl.output import write_fields
from dep2pctl.param_types import DURATION
from dep2pctl.session import Session, pass_session

if TYPE_CHECKING:
    from dep2p.v1.peer_pb2 import Connection

PING_SECONDS: Final = 2.0


@click.command(
    cls=ApiCommand,
    examples="""
    dep2pctl dial 12D3KooW...
    dep2pctl dial /ip4/203.0.113.7/udp/4001/quic-v1/p2p/12D3KooW...
    dep2pctl dial /ip4/203.0.113.10/udp/4001/quic-v1/p2p/12D3KooW.../p2p-circuit/p2p/12D3KooW...
    dep2pctl -o json dial 12D3KooW... --policy direct | jq -r .path
    dep2pctl dial 12D3KooW... --wait-direct 10s
    """,
)
@click.argument("peer")
@click.option(
    "--policy",
    type=click.Choice(["auto", "direct", "relayed"]),
    default="auto",
    help="Which paths may be used; auto tries direct addresses and relays. [auto]",
)
@click.option("--new", is_flag=True, help="Make a new connection even if there is one.")
@click.option(
    "--wait-direct",
    type=DURATION,
    help="If the path is relayed, wait this long for a direct one, or for why there is none.",
)
@click.option("--timeout", type=DURATION, default="30s", help="Give up after this time. [30s]")
@pass_session
def dial(
    session: Session,
    peer: str,
    policy: dep2p.Policy,
    new: bool,
    wait_direct: float | None,
    timeout: float,
) -> None:
    """Connect to a peer and tell by which path.

    PEER is a peer id, or an address that ends in /p2p/PEER_ID. Behind a relay it is
    RELAY_ADDRESS/p2p/RELAY_ID/p2p-circuit/p2p/PEER_ID.

    With --wait-direct, a path that stays relayed is no error: the output says why it does.
    """

    async def work(node: dep2p.Node) -> None:
        from dep2pctl.views import connection_fields

        if wait_direct is None:
            connection = await node.dial(peer, policy=policy, force_new=new, timeout=timeout)
            failure = None
        else:
            response = await node.dial_direct(
                peer, wait=wait_direct, policy=policy, force_new=new, timeout=timeout
            )
            connection = response.connection
            failure = response.direct_failure if response.HasField("direct_failure") else None
        if not connection.HasField("rtt_ms"):
            await _measure(node, connection)
        fields, values = connection_fields(connection), as_json(connection)
        if wait_direct is not None:
            values["direct_failure"] = None if failure is None else as_json(failure)
        if failure is not None:
            fields.append(("not direct", f"{failure.message} ({failure.reason})"))
            if failure.remedy:
                fields.append(("remedy", failure.remedy))
        session.show(values, lambda: write_fields(fields))

    session.run(work)


async def _measure(node: dep2p.Node, connection: Connection) -> None:
    """Ping once over a connection too new to know its round trip; not every peer answers."""
    with contextlib.suppress(dep2p.Dep2pError, TimeoutError):
        async with asyncio.timeout(PING_SECONDS):
            async for reply in node.ping(connection.peer_id, count=1):
                connection.rtt_ms = reply.rtt_ms


@click.command(
    cls=ApiCommand,
    examples="""
    dep2pctl disconnect 12D3KooW...
    dep2pctl disconnect 12D3KooW... --connection c7
    """,
)
@click.argument("peer")
@click.option("--connection", default="", help="Close only this connection (ID of `connections`).")
@pass_session
def disconnect(session: Session, peer: str, connection: str) -> None:
    """Close the connections to a peer.

    All connections to PEER (a peer id), or the one named by --connection.
    """

    async def work(node: dep2p.Node) -> None:
        count = await node.disconnect(peer, connection)
        what = "one connection was" if count == 1 else f"{count} connections were"
        session.show({"closed_count": count}, lambda: click.echo(f"{what} closed"))

    session.run(work)
