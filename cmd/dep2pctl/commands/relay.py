"""`relay`: the relays through which peers reach this node."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from dep2pctl.app import HELP_SETTINGS, ApiCommand
from dep2pctl.as_json import as_json
from dep2pctl.output import printable, write_fields, write_table
from dep2pctl.param_types import DURATION
from dep2pctl.session import Session, pass_session

if TYPE_CHECKING:
    import dep2p


@click.group(context_settings=HELP_SETTINGS)
def relay() -> None:
    """Be reachable through relays.

    A reservation at a relay makes this node reachable behind any NAT. The daemon refreshes it,
    and makes it again after a lost connection, until `relay disconnect`.
    """


@relay.command(
    cls=ApiCommand,
    examples="""
    dep2pctl relay connect /ip4/203.0.113.10/udp/4001/quic-v1/p2p/12D3KooW...
    dep2pctl relay connect relay.example.com:4001
    dep2pctl -o json relay connect ADDRESS | jq -r '.circuit_addresses[0]'
    """,
)
@click.argument("address")
@click.option("--timeout", type=DURATION, default="30s", help="Give up after this time. [30s]")
@pass_session
def connect(session: Session, address: str, timeout: float) -> None:
    """Reserve a slot at a relay.

    Prints the addresses under which peers reach this node then. ADDRESS is what the relay
    printed: /ip4/.../udp/4001/quic-v1/p2p/RELAY_ID; or HOST:PORT, where the first to answer is
    the relay from then on, or /dnsaddr/NAME.
    """

    async def work(node: dep2p.Node) -> None:
        from dep2pctl.views import relay_fields

        reserved = await node.connect_relay(address, timeout=timeout)
        session.show(as_json(reserved), lambda: write_fields(relay_fields(reserved, time.time())))

    session.run(work)


@relay.command(
    cls=ApiCommand,
    examples="""
    dep2pctl relay disconnect 12D3KooW...
    dep2pctl relay disconnect relay.example.com:4001
    """,
)
@click.argument("relay")
@pass_session
def disconnect(session: Session, relay: str) -> None:
    """Give a reservation up and forget the relay.

    RELAY is the relay's peer id, or the HOST:PORT by which it was named. Who was found there is
    forgotten too. A relay of the configuration is back at the daemon's next start.
    """

    async def work(node: dep2p.Node) -> None:
        peer = await node.disconnect_relay(relay)
        session.show({"peer_id": peer}, lambda: click.echo("the relay is forgotten"))

    session.run(work)


@relay.command(
    name="list",
    cls=ApiCommand,
    examples="""
    dep2pctl relay list
    dep2pctl relay list --watch
    dep2pctl -o json relay list | jq -r '.relays[] | [.peer_id, .state, .last_error]'
    """,
)
@click.option("--watch", is_flag=True, help="Then go on with every change, until Ctrl-C.")
@pass_session
def list_(session: Session, watch: bool) -> None:
    """List the relays with their state.

    And why the last attempt failed, and when the next is due.
    """

    async def work(node: dep2p.Node) -> None:
        from dep2pctl.views import RELAY_HEADERS, relay_row, state_name

        if watch:
            async for item in node.watch_relays():
                error = f"  {printable(item.last_error)}" if item.last_error else ""
                session.show_line(as_json(item), f"{item.peer_id}  {state_name(item)}{error}")
            return
        relays = await node.list_relays()
        now = time.time()
        session.show(
            {"relays": [as_json(item) for item in relays]},
            lambda: write_table(
                RELAY_HEADERS,
                (relay_row(item, now) for item in relays),
                empty="no relay; add one: dep2pctl relay connect ADDRESS",
            ),
        )

    session.run(work)
