"""`ping`: round trips with libp2p's ping."""

from __future__ import annotations

import asyncio
import statistics
from typing import TYPE_CHECKING, Any

import click

import dep2p
from dep2pctl.app import ApiCommand
from dep2pctl.as_json import as_json
from dep2pctl.output import milliseconds
from dep2pctl.param_types import DURATION
from dep2pctl.session import Session, pass_session

if TYPE_CHECKING:
    from dep2p.v1.peer_service_pb2 import PingResponse


@click.command(
    cls=ApiCommand,
    examples="""
    dep2pctl ping 12D3KooW...
    dep2pctl ping -c 3 -i 200ms 12D3KooW...
    dep2pctl -o json ping -c 10 12D3KooW... | jq .rtt_ms
    """,
)
@click.argument("peer")
@click.option(
    "-c", "--count", type=click.IntRange(min=0), default=0, help="End after COUNT. [until Ctrl-C]"
)
@click.option("-i", "--interval", type=DURATION, default="1s", help="Between two pings. [1s]")
@click.option("--timeout", type=DURATION, help="Give up after this time, over all. [none]")
@pass_session
def ping(session: Session, peer: str, count: int, interval: float, timeout: float | None) -> None:
    """Measure round trips to a peer.

    PEER is a peer id or an address; it is dialled if needed.
    """
    replies: list[float] = []

    async def work(node: dep2p.Node) -> None:
        try:
            async with asyncio.timeout(timeout):
                async for reply in node.ping(peer, count=count, interval=interval):
                    replies.append(reply.rtt_ms)
                    session.show_line(as_json(reply), reply_text(reply))
        except TimeoutError:
            raise dep2p.DeadlineError(
                f"{len(replies)} replies in {timeout:g} s",
                reason="DEADLINE_EXCEEDED",
                remedy="give it more --timeout, or fewer --count",
            ) from None
        finally:
            if replies:
                session.show_line({"summary": summary(replies)}, summary_text(replies))

    session.run(work)


def reply_text(reply: PingResponse) -> str:
    """One reply as a line."""
    from dep2pctl.views import path_name

    return (
        f"{reply.sequence}: {milliseconds(reply.rtt_ms)}, {path_name(reply.path)}, "
        f"{reply.remote_address}"
    )


def summary(replies: list[float]) -> dict[str, Any]:
    """What all replies say together; in milliseconds."""
    return {
        "count": len(replies),
        "min_ms": min(replies),
        "median_ms": statistics.median(replies),
        "max_ms": max(replies),
    }


def summary_text(replies: list[float]) -> str:
    """The same for people."""
    return (
        f"{len(replies)} replies: min {milliseconds(min(replies))}, "
        f"median {milliseconds(statistics.median(replies))}, max {milliseconds(max(replies))}"
    )
