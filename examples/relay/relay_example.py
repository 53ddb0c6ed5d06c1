#!/usr/bin/env python3
"""Two programs talk through a relay, each to the dep2pd on its own machine.

    python relay_example.py --mode listen --relay ADDRESS
    python relay_example.py --mode dial --relay ADDRESS --target PEER_ID

`--socket` names the daemon; without it the client's default is used. Only the public client
`dep2p` is needed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from typing import TYPE_CHECKING

# gRPC's core would tell on standard error that a daemon ended; the client raises it anyway.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from texts import LANGUAGES, Speaker, default_language

import dep2p
from dep2p.v1.peer_pb2 import PATH_RELAYED

if TYPE_CHECKING:
    from collections.abc import Callable

PROTOCOL = "/relay-example/1.0.0"
MESSAGE = "Hello via Relay!"
MAX_MESSAGE_BYTES = 1024 * 1024


async def start(node: dep2p.Node, say: Speaker) -> str:
    """Tell who this node is; returns its id."""
    peer_id = (await node.get_node()).peer_id
    say("node", peer_id=peer_id)
    say("connecting")
    return peer_id


async def listen(
    node: dep2p.Node, relay: str, say: Speaker, ready: Callable[[], object] = lambda: None
) -> None:
    """Answer every peer that comes through the relay, until cancelled."""
    peer_id = await start(node, say)
    # A reservation: it is what lets others reach this node through the relay.
    say("connected", relay=(await node.connect_relay(relay)).peer_id)
    async with node.listen(PROTOCOL) as listener, asyncio.TaskGroup() as group:
        say("listening")
        say("to_connect", peer_id=peer_id, relay=relay)
        say("keep_running")
        ready()
        async for stream in listener:
            group.create_task(answer(stream, say))


async def answer(stream: dep2p.Stream, say: Speaker) -> None:
    """Send back what a peer sends, to its end; what goes wrong ends this stream only."""
    try:
        async with stream:
            received = bytearray()
            while data := await stream.read():
                received += data
                if len(received) > MAX_MESSAGE_BYTES:
                    await stream.reset()
                    return
                await stream.write(data)
            await stream.close_write()
        say("said", peer_id=stream.peer_id, text=received.decode(errors="replace"))
    except dep2p.Dep2pError as error:
        say("error", error=error)


async def dial(node: dep2p.Node, relay: str, target: str, say: Speaker) -> None:
    """Reach `target` through the relay, say hello and check the answer."""
    await start(node, say)
    say("connected", relay=(await node.dial(relay)).peer_id)
    say("dialling", target=target)
    connection = await node.dial(f"{relay}/p2p-circuit/p2p/{target}", policy="relayed")
    say("circuit", path=say.text("relayed" if connection.path == PATH_RELAYED else "direct"))
    say("sent", text=MESSAGE)
    async with await node.open_stream(target, [PROTOCOL]) as stream:
        await stream.write(MESSAGE.encode())
        await stream.close_write()
        answered = (await stream.read_all()).decode(errors="replace")
    say("received", text=answered)
    if answered != MESSAGE:
        raise RuntimeError("the answer is not what was sent")
    say("works")


async def run(arguments: argparse.Namespace) -> int:
    """Do what the command line says; returns the exit code."""
    say = Speaker(arguments.lang)
    try:
        async with dep2p.connect(arguments.socket) as node:
            if arguments.mode == "listen":
                await listen(node, arguments.relay, say)
            else:
                await dial(node, arguments.relay, arguments.target, say)
    except (dep2p.Dep2pError, RuntimeError) as error:
        print(say.text("error", error=error), file=sys.stderr)
        return 1
    return 0


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description="Two programs talk through a relay.")
    parser.add_argument("--mode", choices=("listen", "dial"), required=True)
    parser.add_argument("--relay", metavar="ADDRESS", required=True, help="multiaddr of the relay")
    parser.add_argument("--target", metavar="PEER_ID", help="whom to dial")
    parser.add_argument("--socket", help="the daemon's Unix socket")
    parser.add_argument("--lang", choices=LANGUAGES, default=default_language())
    arguments = parser.parse_args()
    if arguments.mode == "dial" and not arguments.target:
        parser.error("--mode dial needs --target PEER_ID: the listener prints its id")
    try:
        return asyncio.run(run(arguments))
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
