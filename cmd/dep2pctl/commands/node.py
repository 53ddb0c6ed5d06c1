"""`id`, `status` and `stop`: this daemon."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

import click

import dep2p
from dep2pctl.app import ApiCommand
from dep2pctl.as_json import as_json
from dep2pctl.output import write_fields
from dep2pctl.param_types import DURATION
from dep2pctl.session import Session, pass_session

POLL_SECONDS: Final = 0.05


@click.command(
    cls=ApiCommand,
    examples="""
    dep2pctl id
    dep2pctl -o json id | jq -r .peer_id
    """,
)
@pass_session
def id(session: Session) -> None:
    """Print this node's peer id and its addresses.

    The addresses are what to give to others: announced, listening and circuit addresses.
    """

    async def work(node: dep2p.Node) -> None:
        info = await node.get_node()
        addresses = list(info.addresses)
        session.show(
            {"peer_id": info.peer_id, "addresses": addresses},
            lambda: write_fields([("peer id", info.peer_id), ("addresses", addresses)]),
        )

    session.run(work)


@click.command(
    cls=ApiCommand,
    examples="""
    dep2pctl status
    dep2pctl -o json status | jq .connection_count
    """,
)
@pass_session
def status(session: Session) -> None:
    """Tell how the daemon does.

    Its addresses, connections, streams and protocols; on a relay, reservations and circuits.
    """

    async def work(node: dep2p.Node) -> None:
        from dep2pctl.views import node_fields

        info = await node.get_node()
        session.show(as_json(info), lambda: write_fields(node_fields(info, time.time())))

    session.run(work)


@click.command(
    cls=ApiCommand,
    examples="""
    dep2pctl stop
    dep2pctl stop --timeout 5s || kill -9 "$(pidof dep2pd)"
    """,
)
@click.option("--timeout", type=DURATION, default="40s", help="How long to wait for the end. [40s]")
@pass_session
def stop(session: Session, timeout: float) -> None:
    """End the daemon in order.

    Waits until it has ended: peers are told, streams are closed, the state is written.
    """

    async def work(node: dep2p.Node) -> None:
        process_id = (await node.get_node()).process_id
        visible = _runs(process_id)
        await node.stop()
        try:
            async with asyncio.timeout(timeout):
                # Nobody tells of the end of a process that is not ours.
                while _runs(process_id) if visible else await _answers(node):  # noqa: ASYNC110
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise dep2p.DeadlineError(
                f"the daemon (process {process_id}) still runs after {timeout:g} s",
                reason="STILL_RUNNING",
                remedy="look at its log; a SIGTERM more ends it at once",
            ) from None
        session.show({"process_id": process_id}, lambda: click.echo("stopped"))

    session.run(work)


def _runs(process_id: int) -> bool:
    """Whether the process is there; one that waits for its parent has ended."""
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


async def _answers(node: dep2p.Node) -> bool:
    """For a daemon whose process cannot be seen from here (a container's)."""
    try:
        await node.get_node()
    except dep2p.DaemonStoppingError:
        return True
    except dep2p.DaemonNotReachableError:
        return False
    return True
