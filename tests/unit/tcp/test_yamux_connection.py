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
from dep2p_daemon.tcp.waiters import Waiters
from dep2p_daemon.tcp.yamux_connection import MAX_CONTROL_BACKLOG, YamuxConnection
from dep2p_daemon.tcp.yamux_frame import PING, RST, SYN, WINDOW_UPDATE, encode

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


async def test_streams_that_come_and_go_unaccepted_leave_nothing() -> None:
    class OpeningChannel(StuckChannel):
        @override
        async def read_plaintexts(self) -> list[bytes]:
            self.reads += 1
            await asyncio.sleep(0)
            if self.reads > 50:
                return [encode(WINDOW_UPDATE, SYN, 2 * self.reads + 1, 0)]
            return [
                encode(WINDOW_UPDATE, SYN, stream_id, 0) + encode(WINDOW_UPDATE, RST, stream_id, 0)
                for stream_id in range(1, 2001, 2)
            ]

    channel = OpeningChannel()
    async with asyncio.TaskGroup() as group:
        connection = connection_on(channel)
        connection.start(group)
        await turns(2000)
        assert connection.streams[0].id == 2 * 51 + 1
        # The first one to accept is the first that is still there.
        assert (await connection.accept_stream()).id == 2 * 51 + 1
        await connection.close()


async def test_a_turn_of_a_cancelled_task_goes_to_the_next() -> None:
    waiters = Waiters()
    first, second = (asyncio.create_task(waiters.wait()) for _ in range(2))
    await turns(1)
    waiters.wake_one()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await second


async def test_turns_are_given_in_order_and_to_all() -> None:
    waiters = Waiters()
    tasks = [asyncio.create_task(waiters.wait()) for _ in range(3)]
    await turns(1)
    waiters.wake_one()
    await turns(2)
    assert [task.done() for task in tasks] == [True, False, False]
    waiters.wake_all()
    await asyncio.gather(*tasks)
