"""`wait`: until a condition holds, for scripts."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import click

import dep2p
from dep2p.v1.peer_pb2 import PATH_DIRECT
from dep2p.v1.relay_pb2 import Relay
from dep2pctl.app import HELP_SETTINGS, ApiCommand
from dep2pctl.output import duration
from dep2pctl.param_types import DURATION
from dep2pctl.session import Session, pass_session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

RETRY_SECONDS: Final = 0.1

TIMEOUT = click.option(
    "--timeout", type=DURATION, default="30s", help="Exit with 4 after this time. [30s]"
)


@click.group(context_settings=HELP_SETTINGS)
def wait() -> None:
    """Wait until something holds.

    Exits with 0 when it does, with 4 at the deadline. The daemon need not run yet.
    """


class Progress:
    """Why it does not hold yet, for the message at the deadline."""

    def __init__(self, missing: str, remedy: str) -> None:
        self.missing = missing
        self.remedy = remedy


@wait.command(
    cls=ApiCommand,
    examples="""
    dep2pd & dep2pctl wait ready --timeout 10s && dep2pctl id
    """,
)
@TIMEOUT
@pass_session
def ready(session: Session, timeout: float) -> None:
    """Wait until the daemon answers."""
    progress = Progress("the daemon does not answer", "start it: dep2pd")

    async def condition(node: dep2p.Node) -> None:
        await node.get_node()

    _wait(session, "ready", condition, progress, timeout)


@wait.command(
    cls=ApiCommand,
    examples="""
    dep2pctl wait relay --timeout 10s
    dep2pctl wait relay 12D3KooW...
    """,
)
@click.argument("peer", required=False)
@TIMEOUT
@pass_session
def relay(session: Session, peer: str | None, timeout: float) -> None:
    """Wait until a reservation is held.

    At the relay PEER (a peer id), or at any relay.
    """
    progress = Progress(
        "no relay is configured" if peer is None else f"{peer} is no relay of this daemon",
        "add one: dep2pctl relay connect ADDRESS",
    )

    async def condition(node: dep2p.Node) -> None:
        async for item in node.watch_relays():
            if peer is not None and item.peer_id != peer:
                continue
            if item.state == Relay.STATE_RESERVED:
                return
            why = f": {item.last_error}" if item.last_error else ""
            progress.missing = f"no reservation at {item.peer_id} yet{why}"
            progress.remedy = "see dep2pctl relay list"
        raise _ended()

    _wait(session, "relay", condition, progress, timeout)


@wait.command(
    cls=ApiCommand,
    examples="""
    dep2pctl wait peer 12D3KooW... --timeout 1m
    """,
)
@click.argument("peer")
@TIMEOUT
@pass_session
def peer(session: Session, peer: str, timeout: float) -> None:
    """Wait until a peer is connected.

    By whatever path; PEER is a peer id.
    """
    _wait_for_peer(session, peer, timeout, direct=False)


@wait.command(
    cls=ApiCommand,
    examples="""
    dep2pctl wait direct 12D3KooW... --timeout 10s || echo "still relayed"
    """,
)
@click.argument("peer")
@TIMEOUT
@pass_session
def direct(session: Session, peer: str, timeout: float) -> None:
    """Wait until a peer is connected directly.

    Without a relay between; PEER is a peer id.
    """
    _wait_for_peer(session, peer, timeout, direct=True)


def _wait_for_peer(session: Session, peer: str, timeout: float, *, direct: bool) -> None:
    progress = Progress(f"{peer} is not connected", f"dial it: dep2pctl dial {peer}")

    async def condition(node: dep2p.Node) -> None:
        peer_id = await _canonical(node, peer)
        async for event in node.watch_events("connection_opened"):
            connection = event.connection_opened
            if connection.peer_id != peer_id:
                continue
            if not direct or connection.path == PATH_DIRECT:
                return
            progress.missing = f"{peer} is connected through a relay only"
            progress.remedy = f"dial it: dep2pctl dial --policy direct {peer}"
        raise _ended()

    _wait(session, "direct" if direct else "peer", condition, progress, timeout)


async def _canonical(node: dep2p.Node, peer: str) -> str:
    """The API's spelling of a peer id; raises InvalidArgumentError for what is none."""
    try:
        return (await node.get_peer(peer)).peer_id
    except dep2p.NotFoundError:
        return peer


def _wait(
    session: Session,
    name: str,
    condition: Callable[[dep2p.Node], Awaitable[None]],
    progress: Progress,
    timeout: float,
) -> None:
    """Run `condition` until it returns, again after every end of the daemon."""

    async def work() -> None:
        started = time.monotonic()
        try:
            async with asyncio.timeout(timeout):
                # Nobody tells of a daemon that is not there yet.
                while not await _holds(session, condition, progress):  # noqa: ASYNC110
                    await asyncio.sleep(RETRY_SECONDS)
        except TimeoutError:
            raise dep2p.DeadlineError(
                f"waited {duration(timeout)} in vain: {progress.missing}",
                reason="DEADLINE_EXCEEDED",
                remedy=progress.remedy,
            ) from None
        waited = round(time.monotonic() - started, 3)
        session.show(
            {"condition": name, "waited_seconds": waited},
            lambda: click.echo(f"{name} after {duration(waited)}"),
        )

    session.run_without_daemon(work)


async def _holds(
    session: Session, condition: Callable[[dep2p.Node], Awaitable[None]], progress: Progress
) -> bool:
    try:
        async with dep2p.connect(session.socket) as node:
            await condition(node)
    except dep2p.DaemonNotReachableError as error:
        progress.missing, progress.remedy = error.message, error.remedy
        return False
    return True


def _ended() -> dep2p.DaemonNotReachableError:
    return dep2p.DaemonNotReachableError("the daemon ended", remedy="start it: dep2pd")
