from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, cast

import pytest

import dep2p
from dep2pctl.pipes import BlockingCalls, carry

if TYPE_CHECKING:
    from collections.abc import Iterable


class Words:
    """A source of given words; without an end when `endless`."""

    def __init__(self, words: Iterable[bytes], *, endless: bool = False) -> None:
        self._words = deque(words)
        self._endless = endless

    async def read(self) -> bytes:
        if self._words:
            return self._words.popleft()
        if self._endless:
            await asyncio.Event().wait()
        return b""


class Paper:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.text = b""
        self.ended = False

    async def write(self, data: bytes) -> None:
        assert not self.ended
        self.text += data

    async def end(self) -> None:
        self.ended = True


class Peer:
    """The stream's other end: answers with the reverse of everything once we have ended."""

    def __init__(self, *, greeting: bytes = b"", answers: bool = True) -> None:
        self._incoming: asyncio.Queue[bytes | dep2p.Dep2pError] = asyncio.Queue()
        if greeting:
            self._incoming.put_nowait(greeting)
        self._answers = answers
        if not answers:
            self._incoming.put_nowait(b"")
        self.heard = b""

    async def read(self) -> bytes:
        item = await self._incoming.get()
        if isinstance(item, dep2p.Dep2pError):
            raise item
        return item

    async def write(self, data: bytes) -> None:
        self.heard += data

    async def close_write(self) -> None:
        if self._answers:
            self._incoming.put_nowait(self.heard[::-1])
            self._incoming.put_nowait(b"")

    def reset(self) -> None:
        self._incoming.put_nowait(dep2p.StreamResetError("reset", reason="STREAM_RESET"))


async def carried(peer: Peer, source: Words, *, leave_at_end: bool = False) -> Paper:
    paper = Paper()
    await carry(cast("dep2p.Stream", peer), source, paper, leave_at_end=leave_at_end)
    return paper


async def test_both_halves_are_carried_to_their_ends() -> None:
    peer = Peer(greeting=b"hi ")
    paper = await carried(peer, Words([b"ab", b"c"]))
    assert peer.heard == b"abc"
    assert (paper.text, paper.ended) == (b"hi cba", True)


async def test_the_end_of_the_peer_ends_the_output_and_not_the_input() -> None:
    peer = Peer(answers=False)
    paper = await carried(peer, Words([b"still ", b"talking"]))
    assert paper.ended
    assert peer.heard == b"still talking"


async def test_a_terminal_is_left_when_the_peer_has_ended() -> None:
    paper = await carried(Peer(answers=False), Words([b"x"], endless=True), leave_at_end=True)
    assert paper.ended


async def test_a_reset_ends_both() -> None:
    peer = Peer(greeting=b"x")
    peer.reset()
    with pytest.raises(ExceptionGroup) as caught:
        await carried(peer, Words([], endless=True))
    assert caught.group_contains(dep2p.StreamResetError)


async def test_blocking_calls_run_in_turn_and_tell_their_errors() -> None:
    calls = BlockingCalls("test")
    first, second = await asyncio.gather(calls.call(lambda: 1), calls.call(lambda: 2))
    assert (first, second) == (1, 2)
    with pytest.raises(ZeroDivisionError):
        await calls.call(lambda: 1 // 0)


async def test_a_cancelled_call_leaves_the_thread_working() -> None:
    calls = BlockingCalls("test")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await calls.call(lambda: 1)
    assert await calls.call(lambda: 2) == 2
