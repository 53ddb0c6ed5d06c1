"""`stream`: standard input and output are a stream to a peer."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from dep2pctl.app import ApiCommand
from dep2pctl.param_types import DURATION
from dep2pctl.pipes import StandardInput, StandardOutput, carry
from dep2pctl.session import Session, pass_session

if TYPE_CHECKING:
    import dep2p


@click.command(
    cls=ApiCommand,
    examples="""
    dep2pctl stream 12D3KooW... /my-app/1.0.0                  # a terminal
    dep2pctl stream 12D3KooW... /file/1.0.0 < in > out         # any bytes
    echo hello | dep2pctl stream 12D3KooW... /dep2p/echo/1.0.0
    """,
)
@click.argument("peer")
@click.argument("protocol")
@click.option("--direct-only", is_flag=True, help="Fail rather than go through a relay.")
@click.option(
    "--timeout", type=DURATION, default="30s", help="For opening the stream, with a dial. [30s]"
)
@pass_session
def stream(session: Session, peer: str, protocol: str, direct_only: bool, timeout: float) -> None:
    """Make standard input and output a stream to a peer.

    Opens a stream of PROTOCOL to PEER. PEER is a peer id or an address; it is dialled if
    needed. The end of standard input closes our half, and what the peer still sends is printed
    until it closes its own. Ends with 1 when the stream is reset.
    """

    async def work(node: dep2p.Node) -> None:
        async with await node.open_stream(
            peer, [protocol], direct_only=direct_only, timeout=timeout
        ) as opened:
            await carry(opened, StandardInput(), StandardOutput(), leave_at_end=sys.stdin.isatty())

    session.run(work)
