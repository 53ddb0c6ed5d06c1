"""Two relays: one killed during a transfer and during idle, restarted; a node before its relay."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e.processes import daemons

import dep2p

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.processes import Daemon, Daemons

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]

ECHO = "/dep2p/echo/1.0.0"
CHUNK = b"x" * 65536


def port_of(address: str) -> str:
    parts = address.split("/")
    return parts[parts.index("udp") + 1]


async def relay(start: Daemons, name: str) -> Daemon:
    """A relay on a port that outlives it: it comes back where its clients look for it."""
    made = await start(name, "--preset=relay")
    made.flags = (*made.flags, f"--port={port_of(made.address())}")
    return made


async def quiet(start: Daemons, name: str, *flags: str) -> Daemon:
    """A node that reserves nowhere by itself."""
    made = start.prepare(name, *flags)
    made.env["DEP2P_RELAY_CLIENT__WANTED"] = "0"
    await made.start()
    return made


async def states(node: Daemon) -> dict[str, str]:
    listed = (await node.ctl_json("relay", "list"))["relays"]
    return {found["peer_id"]: found["state"] for found in listed}


async def until(node: Daemon, peer: str, state: str, *, within: float) -> None:
    """Wait until a relay is in a state."""
    began = time.monotonic()
    async with asyncio.timeout(within):
        async with dep2p.connect(node.socket) as client:
            async for found in client.watch_relays():
                if found.peer_id == peer and _state(found) == state:
                    print(f"{node.name}: {state} after {time.monotonic() - began:.1f} s")  # noqa: T201
                    return
    raise AssertionError("the watch ended")


def _state(found: Any) -> str:
    name: str = type(found).State.Name(found.state)
    return name.removeprefix("STATE_").lower()


def through(relay: Daemon, target: Daemon) -> str:
    return f"{relay.address()}/p2p-circuit/p2p/{target.peer_id}"


async def echo(dialler: Daemon, target: str) -> None:
    done = await dialler.ctl("stream", target, ECHO, stdin=b"hello")
    assert (done.code, done.stdout) == (0, b"hello"), done.stderr


async def eventually(condition: Callable[[], bool], *, within: float) -> None:
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - what it looks at is counted, not awaited
            await asyncio.sleep(0.01)


async def test_one_of_two_relays_is_killed_in_a_transfer_and_in_idle_and_comes_back() -> None:
    async with daemons() as start:
        one, other = await relay(start, "one"), await relay(start, "other")
        listener = await quiet(
            start, "listener", f"--relay={one.address()}", f"--relay={other.address()}"
        )
        for held in (one, other):
            await until(listener, held.peer_id, "reserved", within=10)
        dialler = await quiet(start, "dialler")
        async with dep2p.connect(dialler.socket) as node:
            # A transfer through one relay does not notice the death of the other.
            stream = await node.open_stream(through(other, listener), [ECHO])
            moved = 0

            async def transfer() -> None:
                nonlocal moved
                while True:
                    await stream.write(CHUNK)
                    received = 0
                    while received < len(CHUNK):
                        data = await stream.read()
                        assert data, "the stream ended"
                        received += len(data)
                    moved += received

            transferring = asyncio.create_task(transfer())
            await eventually(lambda: moved > 0, within=10)
            await one.kill()
            await until(listener, one.peer_id, "backoff", within=45)
            assert (await states(listener))[other.peer_id] == "reserved"
            before = moved
            await eventually(lambda: moved > before + 10 * len(CHUNK), within=10)
            assert not transferring.done()
            transferring.cancel()
            await asyncio.wait([transferring])
        # A new dialler that knows only the target reaches it through the relay that is left.
        newcomer = await quiet(
            start, "newcomer", f"--relay={one.address()}", f"--relay={other.address()}"
        )
        await until(newcomer, other.peer_id, "reserved", within=10)
        await echo(newcomer, listener.peer_id)
        await one.start()
        await until(listener, one.peer_id, "reserved", within=70)
        await echo(dialler, through(one, listener))
        # In idle: the other one.
        await other.kill()
        await until(listener, other.peer_id, "backoff", within=45)
        assert (await states(listener))[one.peer_id] == "reserved"
        await newcomer.ctl("disconnect", listener.peer_id)
        await echo(newcomer, listener.peer_id)
        await other.start()
        await until(listener, other.peer_id, "reserved", within=70)
        assert set((await states(listener)).values()) == {"reserved"}


async def test_nodes_that_start_a_minute_before_their_relay_reserve_within_5_s() -> None:
    async with daemons() as start:
        late = await relay(start, "late")
        port = port_of(late.address())
        await late.stop()
        flags = {"multiaddr": late.address(), "host-and-port": f"127.0.0.1:{port}"}
        nodes = [await quiet(start, form, f"--relay={flag}") for form, flag in flags.items()]
        for node in nodes:
            assert (await node.ctl("wait", "ready", "--timeout=5s")).code == 0
        await asyncio.sleep(60)
        for node in nodes:
            (listed,) = (await node.ctl_json("relay", "list"))["relays"]
            assert listed["state"] in ("connecting", "backoff")
            assert listed["source"] == "configured"
            assert listed["last_error"] or listed["state"] == "connecting"
        await late.start()
        await asyncio.gather(*(until(n, late.peer_id, "reserved", within=5) for n in nodes))


async def test_a_relay_by_host_and_port_is_the_one_that_answered_first() -> None:
    async with daemons() as start:
        first = await relay(start, "first")
        port = port_of(first.address())
        node = await quiet(start, "node", f"--relay=127.0.0.1:{port}")
        await until(node, first.peer_id, "reserved", within=10)
        await first.kill()
        impostor = await start("impostor", "--preset=relay", f"--port={port}")
        assert impostor.peer_id != first.peer_id
        async with asyncio.timeout(40):
            while True:
                (listed,) = (await node.ctl_json("relay", "list"))["relays"]
                if listed["last_error_reason"] == "RELAY_PEER_MISMATCH":
                    break
                await asyncio.sleep(0.2)
        assert listed["peer_id"] == first.peer_id
