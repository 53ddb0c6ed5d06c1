"""Streams between a program and a peer: halves, resets, codes, cancelling, whatever breaks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from tests.api_nodes import TRANSPORTS, ApiNode, Inbound, api_nodes, read_all
from tests.waiting import until

import dep2p
from dep2p.v1 import stream_service_pb2, stream_service_pb2_grpc
from dep2p_daemon.errors import StreamResetError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dep2p_daemon.muxed import Stream
from dep2p_daemon.rpc.carry import Carrier

PROTOCOL = "/test/1"
ECHO = "/dep2p/echo/1.0.0"

Request = stream_service_pb2.OpenStreamRequest


@pytest.fixture(params=TRANSPORTS)
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[tuple[ApiNode, ApiNode]]:
    """Two connected nodes."""
    async with api_nodes() as start:
        a, b = await start(), await start()
        await a.client.dial(b.address(request.param))
        yield a, b


@pytest.fixture
async def quic_pair() -> AsyncIterator[tuple[ApiNode, ApiNode]]:
    async with api_nodes() as start:
        a, b = await start(), await start()
        await a.client.dial(b.address("quic-v1"))
        yield a, b


class RawCall:
    """OpenStream as any gRPC client sees it."""

    def __init__(self, node: ApiNode) -> None:
        self._channel = grpc.aio.insecure_channel(
            f"unix:{node.config.socket}", options=(("grpc.use_local_subchannel_pool", 1),)
        )
        self.call: Any = stream_service_pb2_grpc.StreamServiceStub(self._channel).OpenStream()

    async def __aenter__(self) -> RawCall:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._channel.close()

    async def open(self, peer: str, protocol: str = PROTOCOL) -> Any:
        await self.call.write(Request(open=Request.Open(peer=peer, protocols=[protocol])))
        return await self.call.read()

    async def rest(self) -> list[str]:
        """The kinds of messages up to the end, data joined."""
        kinds = []
        while (message := await self.call.read()) is not grpc.aio.EOF:
            kind = message.WhichOneof("message")
            kinds.append(message.data.decode() if kind == "data" else kind)
        return [kind for kind in kinds if kind]


async def test_halves_close_one_after_the_other(pair: tuple[ApiNode, ApiNode]) -> None:
    a, b = pair
    async with Inbound(b) as inbound:
        async with await a.client.open_stream(b.peer_id, [PROTOCOL]) as stream:
            far = await inbound.next()
            assert (stream.protocol, stream.peer_id, stream.relayed) == (
                PROTOCOL,
                b.peer_id,
                False,
            )
            await stream.write(b"question")
            await stream.close_write()
            assert await read_all(far) == b"question"
            await far.write(b"answer")
            assert await stream.read() == b"answer"
            await far.write(b", and more")
            await far.close_write()
            assert await stream.read_all() == b", and more"
        assert stream.info.direction == 2


async def test_the_peer_may_close_first(pair: tuple[ApiNode, ApiNode]) -> None:
    a, b = pair
    async with (
        Inbound(b) as inbound,
        await a.client.open_stream(b.peer_id, [PROTOCOL]) as stream,
    ):
        far = await inbound.next()
        await far.close_write()
        assert await stream.read() == b""
        await stream.write(b"still talking")
        await stream.close_write()
        assert await read_all(far) == b"still talking"


async def test_grpcs_own_half_close_is_an_end(pair: tuple[ApiNode, ApiNode]) -> None:
    a, b = pair
    async with RawCall(a) as raw:
        assert (await raw.open(b.peer_id, ECHO)).opened.protocol == ECHO
        await raw.call.write(Request(data=b"Hello"))
        await raw.call.done_writing()
        assert await raw.rest() == ["Hello", "end"]
        assert await raw.call.code() is grpc.StatusCode.OK


async def test_the_call_ends_when_both_halves_have_without_grpcs_half_close(
    pair: tuple[ApiNode, ApiNode],
) -> None:
    a, b = pair
    async with RawCall(a) as raw:
        await raw.open(b.peer_id, ECHO)
        await raw.call.write(Request(end=stream_service_pb2.StreamEnd()))
        assert await raw.rest() == ["end"]
        assert await raw.call.code() is grpc.StatusCode.OK


async def test_the_peers_reset_arrives_with_its_code(quic_pair: tuple[ApiNode, ApiNode]) -> None:
    a, b = quic_pair
    async with Inbound(b) as inbound:
        stream = await a.client.open_stream(b.peer_id, [PROTOCOL])
        far = await inbound.next()
        far.reset(77)
        with pytest.raises(dep2p.StreamResetError) as caught:
            await stream.read()
        assert caught.value.reset_code == 77
        assert caught.value.metadata["by"] == "peer"
        assert caught.value.code is grpc.StatusCode.ABORTED
        with pytest.raises(dep2p.StreamResetError):
            await stream.write(b"x")
        await stream.aclose()  # what was told already is not told again


async def test_our_reset_arrives_with_its_code(quic_pair: tuple[ApiNode, ApiNode]) -> None:
    a, b = quic_pair
    async with Inbound(b) as inbound:
        stream = await a.client.open_stream(b.peer_id, [PROTOCOL])
        far = await inbound.next()
        await stream.reset(78)
        with pytest.raises(StreamResetError) as caught:
            await read_all(far)
        assert (caught.value.code, caught.value.remote) == (78, True)
        with pytest.raises(dep2p.StreamResetError) as local:
            await stream.read()
        assert local.value.metadata["by"] == "local"


async def test_a_reset_wakes_the_program_that_reads(quic_pair: tuple[ApiNode, ApiNode]) -> None:
    a, b = quic_pair
    async with Inbound(b) as inbound:
        stream = await a.client.open_stream(b.peer_id, [PROTOCOL])
        await inbound.next()
        reading = asyncio.create_task(stream.read())
        await asyncio.sleep(0)
        await stream.reset(5)
        with pytest.raises(dep2p.StreamResetError):
            await reading


async def write_half(stream: dep2p.Stream) -> None:
    async with stream:
        await stream.write(b"half of it")
        raise ZeroDivisionError


async def test_an_exception_in_the_program_resets(pair: tuple[ApiNode, ApiNode]) -> None:
    a, b = pair
    async with Inbound(b) as inbound:
        stream = await a.client.open_stream(b.peer_id, [PROTOCOL])
        with pytest.raises(ZeroDivisionError):
            await write_half(stream)
        with pytest.raises(StreamResetError):
            await read_all(await inbound.next())


async def test_a_cancelled_call_resets(pair: tuple[ApiNode, ApiNode]) -> None:
    """gRPC tells a broken call and a half-close by the same EOF: the peer must see no end."""
    a, b = pair
    async with Inbound(b) as inbound:
        for _ in range(20):
            async with RawCall(a) as raw:
                await raw.open(b.peer_id)
                far = await inbound.next()
                await raw.call.write(Request(data=b"truncated"))
                assert await far.read() == b"truncated"
                raw.call.cancel()
                with pytest.raises(StreamResetError):
                    await far.read()


async def test_cancelling_after_our_end_loses_nothing_that_was_written(
    quic_pair: tuple[ApiNode, ApiNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = asyncio.Event()
    close = Carrier._close

    def note(carrier: Carrier, half: str) -> None:
        close(carrier, half)
        ended.set()

    monkeypatch.setattr(Carrier, "_close", note)
    a, b = quic_pair
    # More than the peer's window: some is still with us when the program leaves.
    payload = os.urandom(600_000)
    async with Inbound(b) as inbound, RawCall(a) as raw:
        await raw.open(b.peer_id)
        far = await inbound.next()
        await raw.call.write(Request(data=payload))
        await raw.call.write(Request(end=stream_service_pb2.StreamEnd()))
        await ended.wait()
        raw.call.cancel()
        await a.server._running.wait_idle()
        assert await read_all(far) == payload


async def test_a_lost_channel_resets(pair: tuple[ApiNode, ApiNode]) -> None:
    a, b = pair
    async with Inbound(b) as inbound:
        async with RawCall(a) as raw:
            await raw.open(b.peer_id)
            far = await inbound.next()
        with pytest.raises(StreamResetError):
            await far.read()


KILLED = """
import asyncio, sys, dep2p

async def main():
    async with dep2p.connect(sys.argv[1]) as node:
        stream = await node.open_stream(sys.argv[2], [sys.argv[3]])
        await stream.write(b"before the end")
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_killed_program_resets(pair: tuple[ApiNode, ApiNode]) -> None:
    a, b = pair
    async with Inbound(b) as inbound:
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-c", KILLED, str(a.config.socket), b.peer_id, PROTOCOL
        )
        try:
            far = await inbound.next()
            assert await far.read() == b"before the end"
        finally:
            os.kill(program.pid, signal.SIGKILL)
            await program.wait()
        with pytest.raises(StreamResetError):
            await far.read()


async def test_leaving_early_loses_nothing_that_was_written(
    pair: tuple[ApiNode, ApiNode],
) -> None:
    """The peer sends without end and reads slowly; what we wrote must reach it whole."""
    a, b = pair
    payload = bytes(range(256)) * 8192  # 2 MiB
    received = bytearray()

    async def far_side(far: Stream) -> None:
        async def talk() -> None:
            with contextlib.suppress(StreamResetError):
                while True:
                    await far.write(bytes(65536))

        talking = asyncio.create_task(talk())
        while piece := await far.read(16384):
            received.extend(piece)
            await asyncio.sleep(0)
        await talking

    async with Inbound(b) as inbound, asyncio.TaskGroup() as tasks:
        async with await a.client.open_stream(b.peer_id, [PROTOCOL]) as stream:
            serving = tasks.create_task(far_side(await inbound.next()))
            assert await stream.read()
            await stream.write(payload)
        if a.daemon.swarm.connections()[0].muxer == "quic":
            await serving
        else:
            # yamux has no word for "stop reading": the peer's writes end with the connection.
            await until(lambda: len(received) >= len(payload))
            serving.cancel()
    assert bytes(received) == payload


async def test_a_cancelled_write_resets(pair: tuple[ApiNode, ApiNode]) -> None:
    a, b = pair
    async with Inbound(b) as inbound:
        stream = await a.client.open_stream(b.peer_id, [PROTOCOL])
        far = await inbound.next()
        writing = asyncio.create_task(stream.write(bytes(32 << 20)))
        await far.read(1)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        with pytest.raises(StreamResetError):
            await read_all(far)
        with pytest.raises(dep2p.StreamResetError):
            await stream.write(b"x")
        await stream.aclose()


async def test_a_peer_that_closes_both_halves_when_it_has_all(
    quic_pair: tuple[ApiNode, ApiNode],
) -> None:
    """As go-libp2p's Close does: its answer is complete, so the call is well."""
    a, b = quic_pair
    async with Inbound(b) as inbound, RawCall(a) as raw:
        await raw.open(b.peer_id)
        far = await inbound.next()
        await raw.call.write(Request(data=b"request"))
        assert await far.read() == b"request"
        await far.write(b"response")
        await far.aclose()
        received = await raw.call.read()
        assert received.data == b"response"
        assert (await raw.call.read()).HasField("end")
        await raw.call.write(Request(end=stream_service_pb2.StreamEnd()))
        assert await raw.rest() == []
        assert await raw.call.code() is grpc.StatusCode.OK


async def test_a_peer_that_stops_reading_may_still_answer(
    quic_pair: tuple[ApiNode, ApiNode],
) -> None:
    a, b = quic_pair
    async with Inbound(b) as inbound:
        stream = await a.client.open_stream(b.peer_id, [PROTOCOL])
        far = await inbound.next()
        far.stop_reading(9)

        async def push() -> None:
            while True:
                await stream.write(bytes(65536))

        pushing = asyncio.create_task(push())
        await asyncio.sleep(0.3)  # the daemon's write has failed long before the answer comes
        await far.write(b"too much")
        await far.close_write()
        assert await stream.read_all() == b"too much"
        with pytest.raises(dep2p.StreamResetError) as caught:
            await pushing
        assert caught.value.reset_code == 9


async def test_reading_survives_a_timeout(pair: tuple[ApiNode, ApiNode]) -> None:
    a, b = pair
    async with Inbound(b) as inbound, await a.client.open_stream(b.peer_id, [PROTOCOL]) as stream:
        far = await inbound.next()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await stream.read()
        await far.write(b"late")
        assert await stream.read() == b"late"
        await far.close_write()


async def test_reads_are_cut_and_joined_as_asked(pair: tuple[ApiNode, ApiNode]) -> None:
    a, b = pair
    async with await a.client.open_stream(b.peer_id, [ECHO]) as stream:
        await stream.write(b"0123456789")
        assert await stream.read_exactly(3) == b"012"
        assert await stream.read(2) == b"34"
        assert await stream.read_exactly(5) == b"56789"
        await stream.close_write()
        with pytest.raises(asyncio.IncompleteReadError):
            await stream.read_exactly(1)
        with pytest.raises(dep2p.PreconditionError):
            await stream.write(b"after the end")


async def test_megabytes_pass_both_ways_intact(pair: tuple[ApiNode, ApiNode]) -> None:
    a, b = pair
    payload = os.urandom(4 << 20)
    async with await a.client.open_stream(b.peer_id, [ECHO]) as stream:

        async def send() -> None:
            await stream.write(payload)
            await stream.close_write()

        sending = asyncio.create_task(send())
        assert await stream.read_all() == payload
        await sending


async def test_read_all_has_a_limit(pair: tuple[ApiNode, ApiNode]) -> None:
    a, b = pair
    async with await a.client.open_stream(b.peer_id, [ECHO]) as stream:
        await stream.write(bytes(5000))
        await stream.close_write()
        with pytest.raises(dep2p.LimitError):
            await stream.read_all(limit=4999)


@pytest.mark.parametrize(
    ("requests", "reason"),
    [
        ([Request(data=b"x")], "FIRST_REQUEST"),
        ([Request()], "FIRST_REQUEST"),
        ([], "FIRST_REQUEST"),
        ([Request(open=Request.Open(peer="nonsense", protocols=["/x"]))], "PEER_ID_INVALID"),
        ([Request(open=Request.Open(peer="PEER", protocols=[]))], "PROTOCOLS_INVALID"),
        ([Request(open=Request.Open(peer="PEER", protocols=["x"]))], "PROTOCOL_INVALID"),
        (
            [
                Request(open=Request.Open(peer="PEER", protocols=[ECHO])),
                Request(open=Request.Open(peer="PEER", protocols=[ECHO])),
            ],
            "UNEXPECTED_REQUEST",
        ),
        (
            [
                Request(open=Request.Open(peer="PEER", protocols=[ECHO])),
                Request(data=bytes((1 << 20) + 1)),
            ],
            "DATA_TOO_LARGE",
        ),
        (
            [
                Request(open=Request.Open(peer="PEER", protocols=[PROTOCOL])),
                Request(end=stream_service_pb2.StreamEnd()),
                Request(data=b"x"),
            ],
            "DATA_AFTER_END",
        ),
    ],
)
async def test_what_makes_no_sense_is_refused(
    quic_pair: tuple[ApiNode, ApiNode], requests: list[Any], reason: str
) -> None:
    a, b = quic_pair
    async with Inbound(b), RawCall(a) as raw:
        for request in requests:
            if request.open.peer == "PEER":
                request.open.peer = b.peer_id
            with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
                await raw.call.write(request)
        await raw.call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw.rest()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason.encode() in dict(caught.value.trailing_metadata())["grpc-status-details-bin"]


async def test_a_protocol_nobody_serves(pair: tuple[ApiNode, ApiNode]) -> None:
    a, b = pair
    with pytest.raises(dep2p.ProtocolNotSupportedError):
        await a.client.open_stream(b.peer_id, ["/nobody/1"])


async def test_the_first_protocol_that_the_peer_serves_is_taken(
    pair: tuple[ApiNode, ApiNode],
) -> None:
    a, b = pair
    async with await a.client.open_stream(b.peer_id, ["/nobody/1", ECHO]) as stream:
        assert stream.protocol == ECHO


async def test_a_lost_connection_is_told(pair: tuple[ApiNode, ApiNode]) -> None:
    a, b = pair
    async with Inbound(b):
        stream = await a.client.open_stream(b.peer_id, [PROTOCOL])
        await b.client.disconnect(a.peer_id)
        with pytest.raises(dep2p.UnreachableError):
            await stream.read()
        with pytest.raises(dep2p.UnreachableError):
            await stream.write(b"x")
        await stream.aclose()


def is_idle(node: ApiNode) -> bool:
    return not node.daemon.swarm.connections()[0].streams


async def test_nothing_of_a_stream_is_left_when_it_has_ended(
    pair: tuple[ApiNode, ApiNode],
) -> None:
    a, b = pair
    for _ in range(30):
        async with await a.client.open_stream(b.peer_id, [ECHO]) as stream:
            await stream.write(b"x")
            await stream.read()
    for node in (a, b):
        await until(partial(is_idle, node))
        assert (await node.client.get_node()).stream_count == 0
        assert node.server._running.count == 0
