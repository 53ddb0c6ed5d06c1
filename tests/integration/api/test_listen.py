"""Serving a protocol: offers, who may be offered, what becomes of offers nobody takes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest
from tests.api_nodes import ApiNode, Inbound, api_nodes
from tests.waiting import until

import dep2p
from dep2p_daemon.errors import StreamResetError
from dep2p_daemon.muxed import CloseCode
from dep2p_daemon.rpc import offers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dep2p_daemon.muxed import Stream

PROTOCOL = "/served/1"


@pytest.fixture
async def pair() -> AsyncIterator[tuple[ApiNode, ApiNode]]:
    """A dialler and a listener, connected."""
    async with api_nodes() as start:
        a, b = await start(), await start()
        await a.client.dial(b.address())
        yield a, b


async def swarm_stream(a: ApiNode, b: ApiNode, protocol: str = PROTOCOL) -> Stream:
    """A stream from `a` to `b` with nothing of the API on `a`'s side."""
    stream = await a.daemon.swarm.open_stream(b.daemon.peer_id, [protocol])
    await stream.write(b"hello")
    return stream


async def drain(stream: Stream) -> None:
    while await stream.read():
        pass


async def reset_code(stream: Stream) -> int:
    with pytest.raises(StreamResetError) as caught:
        await drain(stream)
    return caught.value.code


async def refusal(a: ApiNode, b: ApiNode) -> int:
    """The code of a reset that comes while the stream is opened, or right after."""

    async def attempt() -> None:
        await drain(await swarm_stream(a, b))

    with pytest.raises(StreamResetError) as caught:
        await attempt()
    return caught.value.code


async def test_streams_are_offered_and_accepted(pair: tuple[ApiNode, ApiNode]) -> None:
    a, b = pair
    async with b.client.listen(PROTOCOL) as listener:
        assert PROTOCOL in (await b.client.get_node()).protocols
        async with await a.client.open_stream(b.peer_id, [PROTOCOL]) as near:
            await near.write(b"ping")
            async with await anext(listener) as far:
                assert (far.peer_id, far.protocol) == (a.peer_id, PROTOCOL)
                assert far.info.direction == 1
                assert await far.read() == b"ping"
                # It counts as long as it lives, so that the swarm's caps see it.
                assert b.daemon.swarm._streams.running == 1
                await far.write(b"pong")
                await far.close_write()
                assert await near.read_all() == b"pong"


async def test_one_listener_serves_many_streams_at_once(pair: tuple[ApiNode, ApiNode]) -> None:
    a, b = pair

    async def serve(stream: dep2p.Stream) -> None:
        async with stream:
            await stream.write(await stream.read_all())

    async def ask(number: int) -> bytes:
        async with await a.client.open_stream(b.peer_id, [PROTOCOL]) as stream:
            await stream.write(b"%d" % number)
            await stream.close_write()
            return await stream.read_all()

    async with b.client.listen(PROTOCOL) as listener, asyncio.TaskGroup() as tasks:

        async def accept() -> None:
            async for stream in listener:
                tasks.create_task(serve(stream))

        accepting = tasks.create_task(accept())
        answers = await asyncio.gather(*(ask(number) for number in range(50)))
        accepting.cancel()
    assert answers == [b"%d" % number for number in range(50)]


async def test_a_protocol_has_one_listener(pair: tuple[ApiNode, ApiNode]) -> None:
    _, b = pair
    async with b.client.listen(PROTOCOL):
        with pytest.raises(dep2p.AlreadyExistsError) as caught:
            await b.client.listen(PROTOCOL).__aenter__()
        assert caught.value.reason == "PROTOCOL_TAKEN"
    async with b.client.listen(PROTOCOL):  # it is free again
        pass
    with pytest.raises(dep2p.AlreadyExistsError):
        await b.client.listen("/ipfs/ping/1.0.0").__aenter__()


@pytest.mark.parametrize("protocol", ["", "no-slash", "/new\nline", "/" + "x" * 2000])
async def test_what_is_no_protocol_id_is_refused(
    pair: tuple[ApiNode, ApiNode], protocol: str
) -> None:
    with pytest.raises(dep2p.InvalidArgumentError) as caught:
        await pair[1].client.listen(protocol).__aenter__()
    assert caught.value.reason == "PROTOCOL_INVALID"


async def test_an_allowed_peer_that_is_no_peer_id_is_refused(
    pair: tuple[ApiNode, ApiNode],
) -> None:
    with pytest.raises(dep2p.InvalidArgumentError):
        await pair[1].client.listen(PROTOCOL, allowed_peers=["Alice"]).__aenter__()


async def test_only_allowed_peers_are_offered() -> None:
    async with api_nodes() as start:
        friend, stranger, b = await start(), await start(), await start()
        for node in (friend, stranger):
            await node.client.dial(b.address())
        async with b.client.listen(PROTOCOL, allowed_peers=[friend.peer_id]) as listener:
            assert await refusal(stranger, b) == CloseCode.GATED
            welcome = await swarm_stream(friend, b)
            async with await anext(listener) as stream:
                assert stream.peer_id == friend.peer_id
                await welcome.aclose()


async def test_an_offer_that_nobody_accepts_is_reset(
    pair: tuple[ApiNode, ApiNode],
) -> None:
    a, b = pair
    b.server._streams.offers.accept_seconds = 0.05
    async with b.client.listen(PROTOCOL) as listener:
        assert await reset_code(await swarm_stream(a, b)) == CloseCode.GARBAGE_COLLECTED
        offer = await listener.next_offer()
        assert offer is not None
        with pytest.raises(dep2p.NotFoundError) as caught:
            await offer.accept()
        assert caught.value.reason == "OFFER_NOT_FOUND"
    assert offers.ACCEPT_SECONDS == 10.0, "part of the API's contract"


async def test_an_offer_is_accepted_once(pair: tuple[ApiNode, ApiNode]) -> None:
    a, b = pair
    async with b.client.listen(PROTOCOL) as listener:
        near = await swarm_stream(a, b)
        offer = await listener.next_offer()
        assert offer is not None
        assert len(offer.offer_id) >= 20, "unguessable"
        async with await offer.accept():
            with pytest.raises(dep2p.NotFoundError):
                await offer.accept()
            await near.aclose()
    for guess in ("", "x", offer.offer_id):
        with pytest.raises(dep2p.NotFoundError):
            await listener.accept(guess)


async def test_offers_that_wait_are_bounded(
    pair: tuple[ApiNode, ApiNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offers, "MAX_PENDING", 3)
    a, b = pair
    async with b.client.listen(PROTOCOL) as listener:
        waiting = [await swarm_stream(a, b) for _ in range(3)]
        await until(lambda: len(b.server._streams.offers.pending) == 3)
        assert await refusal(a, b) == CloseCode.RESOURCE_LIMIT_EXCEEDED
        async with await anext(listener):  # one is taken: there is room again
            waiting.append(await swarm_stream(a, b))
            await until(lambda: len(b.server._streams.offers.pending) == 3)
        for stream in waiting:
            stream.reset()


async def test_nothing_is_read_from_a_stream_before_it_is_accepted(
    pair: tuple[ApiNode, ApiNode],
) -> None:
    a, b = pair
    async with b.client.listen(PROTOCOL) as listener:
        near = await a.daemon.swarm.open_stream(b.daemon.peer_id, [PROTOCOL])
        pushing = asyncio.create_task(near.write(bytes(8 << 20)))
        offer = await listener.next_offer()
        assert offer is not None
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await asyncio.shield(pushing)
        async with await offer.accept() as far:
            total = 0
            while total < 8 << 20:
                total += len(await far.read())
            await pushing
            await near.aclose()


async def test_ending_the_listener_keeps_what_was_accepted(
    pair: tuple[ApiNode, ApiNode],
) -> None:
    a, b = pair
    async with contextlib.AsyncExitStack() as stack:
        listener = await stack.enter_async_context(b.client.listen(PROTOCOL))
        accepted, waiting = await swarm_stream(a, b), await swarm_stream(a, b)
        far = await anext(listener)
        assert await far.read() == b"hello"
        await until(lambda: len(b.server._streams.offers.pending) == 1)
        await stack.aclose()
        assert await reset_code(waiting) == CloseCode.GARBAGE_COLLECTED
        await until(lambda: PROTOCOL not in b.daemon.swarm.protocols)
        await accepted.write(b"still there")
        assert await far.read() == b"still there"
        await far.close_write()
        assert await accepted.read() == b""
        await accepted.aclose()
        await far.aclose()


async def test_a_listener_whose_program_is_gone_frees_the_protocol(
    pair: tuple[ApiNode, ApiNode],
) -> None:
    _, b = pair
    async with dep2p.connect(b.config.socket) as program:
        await program.listen(PROTOCOL).__aenter__()
        assert PROTOCOL in b.daemon.swarm.protocols
    await until(lambda: PROTOCOL not in b.daemon.swarm.protocols)


async def test_waiting_for_a_stream_may_be_cancelled(pair: tuple[ApiNode, ApiNode]) -> None:
    a, b = pair
    async with b.client.listen(PROTOCOL) as listener:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await anext(listener)
        near = await swarm_stream(a, b)
        async with await anext(listener) as far:
            assert await far.read() == b"hello"
            await near.aclose()


async def test_a_peer_that_gave_up_before_it_was_accepted(
    pair: tuple[ApiNode, ApiNode],
) -> None:
    a, b = pair
    async with b.client.listen(PROTOCOL) as listener:
        near = await swarm_stream(a, b)
        offer = await listener.next_offer()
        assert offer is not None
        near.reset(3)
        await until(lambda: not a.daemon.swarm.connections()[0].streams)
        with pytest.raises((dep2p.NotFoundError, dep2p.StreamResetError)):
            await read_to_end(offer)


async def read_to_end(offer: dep2p.Offer) -> None:
    async with await offer.accept() as far:
        await far.read_all()


async def test_the_daemons_end_is_told_to_listeners(pair: tuple[ApiNode, ApiNode]) -> None:
    _, b = pair
    async with b.client.listen(PROTOCOL) as listener:
        waiting = asyncio.ensure_future(anext(listener))
        await b.server._stop()
        with pytest.raises(dep2p.DaemonStoppingError):
            await waiting


async def test_the_number_of_listeners_is_bounded(
    pair: tuple[ApiNode, ApiNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offers, "MAX_LISTENERS", 1)
    _, b = pair
    async with b.client.listen(PROTOCOL):
        with pytest.raises(dep2p.LimitError) as caught:
            await b.client.listen("/another/1").__aenter__()
    assert caught.value.metadata["limit"] == "max_listeners"


async def test_echo_and_listeners_live_side_by_side(pair: tuple[ApiNode, ApiNode]) -> None:
    a, b = pair
    async with b.client.listen(PROTOCOL), Inbound(b, "/other/1") as inbound:
        near = await swarm_stream(a, b, "/other/1")
        far = await inbound.next()
        assert await far.read() == b"hello"
        near.reset()
