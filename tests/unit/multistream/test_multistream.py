from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from dep2p_daemon.errors import (
    InvalidArgumentError,
    ProtocolNotSupportedError,
    ProtocolViolationError,
    StreamResetError,
)
from dep2p_daemon.multistream import (
    HEADER,
    MAX_LINE_BYTES,
    MAX_PROPOSALS,
    Initiator,
    LineParser,
    Responder,
    encode_line,
    handle,
    lazy_select,
    select,
)
from dep2p_daemon.muxed import READ_CHUNK, Buffer, Direction, ReceiveBuffer, Stream

if TYPE_CHECKING:
    from dep2p_daemon.muxed import Connection

HELLO = encode_line(HEADER)
NA = encode_line("na")


class MemoryStream(Stream):
    """One end of a stream in memory; counts its writes."""

    def __init__(self) -> None:
        super().__init__(cast("Connection", None), 1, Direction.OUTBOUND)
        self.buffer = ReceiveBuffer(lambda _: None)
        self.peer: MemoryStream
        self.writes: list[bytes] = []
        self.reset_codes: list[int] = []

    @override
    async def read(self, max_bytes: int = READ_CHUNK) -> bytes:
        return await self.buffer.read(max_bytes)

    @override
    def unread(self, data: bytes) -> None:
        self.buffer.unread(data)

    @override
    async def write(self, data: Buffer) -> None:
        if self.reset_codes:
            raise StreamResetError(remote=False)
        self.writes.append(bytes(data))
        self.peer.buffer.feed(bytes(data))

    @override
    async def close_write(self) -> None:
        self.peer.buffer.feed_eof()

    @override
    def reset(self, code: int = 0) -> None:
        self.reset_codes.append(code)
        for end in (self, self.peer):
            end.buffer.feed_error(StreamResetError(code=code))

    @override
    def stop_reading(self, code: int = 0) -> None:
        self.buffer.discard()

    @property
    @override
    def closed(self) -> bool:
        return bool(self.reset_codes)


def pair() -> tuple[MemoryStream, MemoryStream]:
    a, b = MemoryStream(), MemoryStream()
    a.peer, b.peer = b, a
    return a, b


def lines_of(data: bytes) -> list[str]:
    """Decode as the parser demands: never more than it wants."""
    parser, pending, lines = LineParser(), deque([data]), []
    while pending and pending[0]:
        wanted = parser.wanted
        line = parser.feed(pending[0][:wanted])
        pending[0] = pending[0][wanted:]
        if line is not None:
            lines.append(line)
    return lines


def test_wire_format() -> None:
    assert HELLO == b"\x13/multistream/1.0.0\n"
    assert NA == b"\x03na\n"
    assert encode_line("x" * 200) == b"\xc9\x01" + b"x" * 200 + b"\n"


@given(st.lists(st.text(max_size=200), max_size=5))
def test_lines_survive_the_wire(texts: list[str]) -> None:
    assert lines_of(b"".join(map(encode_line, texts))) == texts


@given(st.binary(max_size=4096))
def test_random_bytes_give_lines_or_a_violation(data: bytes) -> None:
    try:
        lines = lines_of(data)
    except ProtocolViolationError:
        return
    assert all(len(line.encode()) < MAX_LINE_BYTES for line in lines)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x00", id="empty"),
        pytest.param(b"\x81\x08", id="1025 bytes"),
        pytest.param(b"\xff\xff\x01", id="length of three bytes"),
        pytest.param(b"\x02ab", id="no newline"),
        pytest.param(b"\x03\xff\xfe\n", id="not utf-8"),
    ],
)
def test_bad_line(data: bytes) -> None:
    with pytest.raises(ProtocolViolationError):
        lines_of(data)


def test_longest_line_is_accepted_and_one_more_is_ours_to_refuse() -> None:
    longest = "x" * (MAX_LINE_BYTES - 1)
    assert lines_of(encode_line(longest)) == [longest]
    with pytest.raises(InvalidArgumentError):
        encode_line(longest + "x")


@pytest.mark.parametrize("protocols", [[], [""], ["/a\n/b"]])
def test_initiator_refuses_what_is_no_protocol(protocols: list[str]) -> None:
    with pytest.raises(InvalidArgumentError):
        Initiator(protocols)


def test_initiator_takes_the_second_proposal() -> None:
    initiator = Initiator(["/a", "/b"])
    assert initiator.start() == HELLO + encode_line("/a")
    assert initiator.receive(HEADER) == b""
    assert initiator.receive("na") == encode_line("/b")
    assert initiator.receive("/b") == b""
    assert initiator.selected == "/b"


def test_initiator_gives_up_after_the_last_refusal() -> None:
    initiator = Initiator(["/a"])
    initiator.receive(HEADER)
    with pytest.raises(ProtocolNotSupportedError, match="/a"):
        initiator.receive("na")


@pytest.mark.parametrize("answers", [["na"], [HEADER, "/other"], [HEADER, HEADER]])
def test_initiator_refuses_a_wrong_answer(answers: list[str]) -> None:
    initiator = Initiator(["/a"])
    for answer in answers[:-1]:
        initiator.receive(answer)
    with pytest.raises(ProtocolViolationError):
        initiator.receive(answers[-1])


def test_responder_refuses_ls_and_goes_on() -> None:
    responder = Responder({"/a"}.__contains__)
    assert responder.receive(HEADER) == b""
    assert responder.receive("ls") == NA
    assert responder.receive("/a") == encode_line("/a")
    assert responder.selected == "/a"


def test_responder_bounds_proposals() -> None:
    responder = Responder(lambda _: False)
    responder.receive(HEADER)
    for n in range(MAX_PROPOSALS - 1):
        assert responder.receive(f"/{n}") == NA
    with pytest.raises(ProtocolViolationError):
        responder.receive("/last")


def test_responder_wants_the_header_first() -> None:
    with pytest.raises(ProtocolViolationError):
        Responder(lambda _: True).receive("/a")


async def test_select_and_handle_agree_and_leave_the_rest_unread() -> None:
    a, b = pair()
    b.buffer.feed(HELLO + encode_line("/old") + encode_line("/new") + b"payload")
    assert await handle(b, {"/new"}.__contains__) == "/new"
    assert await b.read() == b"payload"
    assert await a.read() == HELLO + NA + encode_line("/new")

    a, b = pair()
    selected, handled = await asyncio.gather(
        select(a, ["/old", "/new"]), handle(b, {"/new"}.__contains__)
    )
    assert (selected, handled) == ("/new", "/new")
    assert len(a.writes) == 2


async def test_handle_when_the_initiator_gives_up() -> None:
    a, b = pair()
    await a.write(HELLO + encode_line("/a"))
    await a.close_write()
    with pytest.raises(ProtocolNotSupportedError, match="/a"):
        await handle(b, lambda _: False)


async def test_handle_when_the_initiator_says_nothing() -> None:
    a, b = pair()
    await a.close_write()
    with pytest.raises(ProtocolViolationError) as caught:
        await handle(b, lambda _: True)
    assert caught.value.reason == "UNEXPECTED_END"


async def test_lazy_sends_everything_in_the_first_write() -> None:
    a, b = pair()
    lazy = lazy_select(a, "/a")
    assert (lazy.protocol, a.protocol) == ("/a", "/a")
    await lazy.write(b"one")
    await lazy.write(memoryview(b"two"))
    assert a.writes == [HELLO + encode_line("/a") + b"one", b"two"]
    assert await handle(b, {"/a"}.__contains__) == "/a"
    assert await b.read() == b"onetwo"
    await b.write(b"reply")
    assert await lazy.read() == b"reply"
    lazy.unread(b"re")
    assert await lazy.read() == b"re"


async def test_lazy_read_sends_the_negotiation_by_itself() -> None:
    a, b = pair()
    lazy = lazy_select(a, "/a")
    reading = asyncio.create_task(lazy.read())
    assert await handle(b, {"/a"}.__contains__) == "/a"
    await b.write(b"server speaks first")
    assert await reading == b"server speaks first"
    await lazy.write(b"x")
    assert a.writes == [HELLO + encode_line("/a"), b"x"]


async def test_lazy_close_write_sends_the_negotiation() -> None:
    a, b = pair()
    await lazy_select(a, "/a").close_write()
    assert await handle(b, {"/a"}.__contains__) == "/a"
    assert await b.read() == b""


async def test_lazy_refusal_reaches_the_reader_and_resets() -> None:
    a, b = pair()
    lazy = lazy_select(a, "/a")
    await lazy.write(b"payload")
    await b.write(HELLO + NA)
    for _ in range(2):
        with pytest.raises(ProtocolNotSupportedError):
            await lazy.read()
    with pytest.raises(ProtocolNotSupportedError):
        await lazy.write(b"more")
    assert len(a.reset_codes) == 1


async def test_lazy_read_can_be_cancelled_and_continued() -> None:
    a, b = pair()
    lazy = lazy_select(a, "/a")
    await lazy.write(b"x")
    answer = HELLO + encode_line("/a") + b"reply"
    for index in range(len(answer) - 5):
        reading = asyncio.create_task(lazy.read())
        await b.write(answer[index : index + 1])
        for _ in range(3):
            await asyncio.sleep(0)
        assert a.buffer.size == 0
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    await b.write(b"reply")
    assert await lazy.read() == b"reply"


async def test_lazy_write_during_the_readers_negotiation_comes_after_it() -> None:
    a, b = pair()
    gate = asyncio.Event()
    plain_write = a.write

    async def slow_write(data: Buffer) -> None:
        await gate.wait()
        await plain_write(data)

    cast("Any", a).write = slow_write
    lazy = lazy_select(a, "/a")
    reading = asyncio.create_task(lazy.read())
    await asyncio.sleep(0)
    writing = asyncio.create_task(lazy.write(b"payload"))
    await asyncio.sleep(0)
    gate.set()
    await writing
    assert a.writes == [HELLO + encode_line("/a"), b"payload"]
    reading.cancel()
    assert await handle(b, {"/a"}.__contains__) == "/a"
    assert await b.read() == b"payload"


async def test_lazy_stream_is_closed_by_aclose() -> None:
    a, b = pair()
    lazy = lazy_select(a, "/a")
    await lazy.aclose()
    assert await handle(b, {"/a"}.__contains__) == "/a"
    assert await b.read() == b""
