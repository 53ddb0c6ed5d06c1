"""The asyncio shell of Yamux on channels of memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest
from structlog.testing import capture_logs
from typing_extensions import override

from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.muxed import Direction, ReceiveMemory
from dep2p_daemon.tcp.settings import YamuxSettings
from dep2p_daemon.tcp.yamux_connection import MAX_CONTROL_BACKLOG, YamuxConnection
from dep2p_daemon.tcp.yamux_frame import PING, SYN, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dep2p_daemon.muxed import Buffer
    from dep2p_daemon.tcp.secure_channel import SecureChannel

KEY = PrivateKey.from_seed(bytes(32))
ADDRESS = Multiaddr.for_tcp("192.0.2.1", 4001)
PINGS = encode(PING, SYN, 0, 1) * 100


class StuckChannel:
    """A peer that sends pings without end and takes nothing until `open` is set."""

    def __init__(self) -> None:
        self.remote_peer = KEY.peer_id
        self.remote_key = KEY.public_key
        self.reads = 0
        self.taken = 0
        self.open = asyncio.Event()
        self.aborted = False

    async def read_plaintexts(self) -> list[bytes]:
        self.reads += 1
        await asyncio.sleep(0)
        return [PINGS]

    async def write_parts(self, parts: Sequence[Buffer]) -> None:
        await self.open.wait()
        self.taken += sum(len(part) for part in parts)

    async def close_write(self) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


def connection_on(channel: object, settings: YamuxSettings | None = None) -> YamuxConnection:
    return YamuxConnection(
        cast("SecureChannel", channel),
        local_peer=KEY.peer_id,
        direction=Direction.INBOUND,
        local_address=ADDRESS,
        remote_address=ADDRESS,
        settings=settings or YamuxSettings(close_timeout=0.0),
        memory=ReceiveMemory(1 << 20),
    )


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_peer_that_takes_no_answers_is_not_read_any_further() -> None:
    channel = StuckChannel()
    async with asyncio.TaskGroup() as group:
        connection = connection_on(channel)
        connection.start(group)
        await turns(2000)
        stuck_at = channel.reads
        assert stuck_at <= 2 * MAX_CONTROL_BACKLOG / len(PINGS) + 2
        await turns(2000)
        assert channel.reads == stuck_at
        channel.open.set()
        await turns(2000)
        assert channel.reads > 2 * stuck_at
        await connection.close()
    assert channel.aborted


async def test_defect_in_the_channel_ends_this_connection_only() -> None:
    class BrokenChannel(StuckChannel):
        @override
        async def read_plaintexts(self) -> list[bytes]:
            raise ZeroDivisionError

    channel = BrokenChannel()
    with capture_logs() as logs:
        async with asyncio.TaskGroup() as group:
            connection = connection_on(channel)
            connection.start(group)
            error = await connection.wait_closed()
    assert error.reason == "INTERNAL"
    assert [entry["log_level"] for entry in logs] == ["error"]


@pytest.mark.parametrize("waiting", [1, 3])
async def test_cancelled_accept_passes_its_turn_on(waiting: int) -> None:
    channel = StuckChannel()
    async with asyncio.TaskGroup() as group:
        connection = connection_on(channel)
        connection.start(group)
        accepting = [asyncio.create_task(connection.accept_stream()) for _ in range(waiting)]
        await turns(2)
        for task in accepting:
            task.cancel()
        await asyncio.wait(accepting)
        await connection.close()
