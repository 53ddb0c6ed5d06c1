"""`kill -9` of relay, listener or dialler at any point: the others work on, a restart is clean."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.e2e.processes import daemons

import dep2p

if TYPE_CHECKING:
    from tests.e2e.processes import Daemon, Daemons

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]

ECHO = "/dep2p/echo/1.0.0"


async def echo(dialler: Daemon, target: str, text: bytes = b"Hello via Relay!") -> None:
    done = await dialler.ctl("stream", target, ECHO, stdin=text)
    assert (done.code, done.stdout) == (0, text), done.stderr


async def keep_talking(stream: dep2p.Stream) -> None:
    while True:
        await stream.write(b"x" * 65536)
        await stream.read()


async def reservation_at(relay: Daemon, holder: Daemon) -> None:
    """Wait for the relay's own word: its client may not yet know that it was restarted."""
    async with dep2p.connect(relay.socket) as node:
        async for event in node.watch_events("reservation_changed"):
            if event.reservation_changed.peer_id == holder.peer_id:
                return


async def triangle(start: Daemons) -> tuple[Daemon, Daemon, Daemon, str]:
    """A relay on a port that outlives it, a listener with a reservation, a dialler."""
    relay = await start("relay", "--preset=relay")
    # A restarted relay must come back where its clients look for it.
    quic = relay.address("quic-v1").split("/")
    relay.flags = (*relay.flags, f"--port={quic[quic.index('udp') + 1]}")
    listener = await start("listener", f"--relay={relay.address()}")
    assert (await listener.ctl("wait", "relay", "--timeout=10s")).code == 0
    dialler = start.prepare("dialler")
    # It would reserve at the relay too, as a node does that wants to be reached.
    dialler.env["DEP2P_RELAY_CLIENT__WANTED"] = "0"
    await dialler.start()
    return relay, listener, dialler, f"{relay.address()}/p2p-circuit/p2p/{listener.peer_id}"


async def test_relay_killed_in_a_transfer_and_restarted() -> None:
    async with daemons() as start:
        relay, listener, dialler, target = await triangle(start)
        await echo(dialler, target)
        async with dep2p.connect(dialler.socket) as node:
            stream = await node.open_stream(target, [ECHO])
            await stream.write(b"x")
            assert await stream.read() == b"x"
            await relay.kill()
            with pytest.raises(dep2p.Dep2pError):
                await keep_talking(stream)
        for daemon in (listener, dialler):
            assert (await daemon.ctl("wait", "ready", "--timeout=5s")).code == 0
        await relay.start()
        await reservation_at(relay, listener)
        await echo(dialler, target)


async def test_listener_killed_and_restarted() -> None:
    async with daemons() as start:
        relay, listener, dialler, target = await triangle(start)
        await echo(dialler, target)
        peer_id = listener.peer_id
        await listener.kill()
        done = await dialler.ctl("stream", target, ECHO, stdin=b"x")
        assert done.code != 0
        await listener.start()
        assert listener.peer_id == peer_id
        assert (await listener.ctl("wait", "relay", "--timeout=30s")).code == 0
        await echo(dialler, target)
        assert (await relay.ctl_json("status"))["relay_server_enabled"] is True


async def test_dialler_killed_and_restarted() -> None:
    async with daemons() as start:
        relay, listener, dialler, target = await triangle(start)
        await echo(dialler, target)
        await dialler.kill()
        await dialler.start()
        await echo(dialler, target)
        assert (await relay.ctl_json("status"))["reservation_count"] >= 1
        assert (await listener.ctl("wait", "ready", "--timeout=5s")).code == 0


@pytest.mark.parametrize("moment", [0.05, 0.2, 0.4, 0.7])
async def test_killed_while_starting(moment: float) -> None:
    async with daemons() as start:
        daemon = start.prepare("early")
        await daemon.launch()
        # Any moment of a start: the time itself is the case, there is nothing to wait for.
        await asyncio.sleep(moment)
        await daemon.kill()
        await daemon.start()
        assert (await daemon.ctl_json("id"))["peer_id"] == daemon.peer_id
