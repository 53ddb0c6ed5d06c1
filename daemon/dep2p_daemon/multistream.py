r"""multistream-select 1.0: agree on the protocol of a channel or a stream.

https://github.com/multiformats/multistream-select and
https://github.com/libp2p/specs/blob/master/connections/README.md#multistream-select

Flow:
  1. Both sides send the header `/multistream/1.0.0`, without waiting for each other.
  2. The initiator proposes a protocol; the responder echoes it, or answers `na` and the
     initiator proposes the next one.
  3. After the echo the channel belongs to that protocol. The initiator may pipeline all this
     with its first payload (`lazy_select`), so the responder never reads past a line.

Layout of a line: unsigned varint length (including the newline), UTF-8 text, `\n`.

Deadlines are the caller's (`asyncio.timeout`); a negotiation without one is a mistake.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from dep2p_daemon.errors import (
    InvalidArgumentError,
    ProtocolNotSupportedError,
    ProtocolViolationError,
)
from dep2p_daemon.muxed import READ_CHUNK, Buffer, CloseCode, Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dep2p_daemon.muxed import ByteChannel

HEADER: Final = "/multistream/1.0.0"
NOT_AVAILABLE: Final = "na"
MAX_LINE_BYTES: Final = 1024
"""Longest line, with its newline; go-multistream's limit."""
MAX_PROPOSALS: Final = 64
"""Proposals answered on one channel; ours: peers offer a handful of versions at most."""

_MAX_LENGTH_BYTES: Final = 2
"""1024 takes two bytes as a varint; a longer length is refused before its third byte."""


def encode_line(text: str) -> bytes:
    """Encode one line. Raises InvalidArgumentError if a peer would not accept it."""
    body = text.encode() + b"\n"
    length = len(body)
    if length > MAX_LINE_BYTES:
        raise InvalidArgumentError(
            f"a protocol id of {length - 1} bytes, where {MAX_LINE_BYTES - 1} fit",
            reason="PROTOCOL_ID_INVALID",
        )
    if length < 0x80:
        return bytes((length,)) + body
    return bytes((length & 0x7F | 0x80, length >> 7)) + body


_HEADER_LINE: Final = encode_line(HEADER)
_NOT_AVAILABLE_LINE: Final = encode_line(NOT_AVAILABLE)


class LineParser:
    """Decodes lines from bytes; asks for no byte past the line that it is in.

    Give `feed` at most `wanted` bytes at a time.
    """

    def __init__(self) -> None:
        self._length = 0
        self._length_bytes = 0
        self._body: bytearray | None = None

    @property
    def wanted(self) -> int:
        """How many bytes may be read without touching what follows the line."""
        return 1 if self._body is None else self._length - len(self._body)

    def feed(self, data: bytes) -> str | None:
        """Take bytes; return the line's text once it is complete.

        Raises:
            ProtocolViolationError: the end of the channel (`data` is empty), a line that is
                empty or too long, not ended by a newline, or not UTF-8.
        """
        if not data:
            raise ProtocolViolationError(
                "the peer ended the stream while a protocol was being negotiated",
                reason="UNEXPECTED_END",
            )
        if self._body is None:
            self._feed_length(data[0])
            return None
        self._body += data
        if len(self._body) < self._length:
            return None
        line = bytes(self._body)
        self._body, self._length, self._length_bytes = None, 0, 0
        if not line.endswith(b"\n"):
            raise _violation("a line without a newline at its end")
        try:
            return line[:-1].decode()
        except UnicodeDecodeError as error:
            raise _violation("a line that is not UTF-8") from error

    def _feed_length(self, byte: int) -> None:
        self._length |= (byte & 0x7F) << (7 * self._length_bytes)
        self._length_bytes += 1
        if byte >= 0x80:
            if self._length_bytes == _MAX_LENGTH_BYTES:
                raise _violation("a line longer than 1024 bytes")
            return
        if not 0 < self._length <= MAX_LINE_BYTES:
            raise _violation(f"a line of {self._length} bytes")
        self._body = bytearray()


def _violation(what: str) -> ProtocolViolationError:
    return ProtocolViolationError(
        f"the peer broke multistream-select: {what}", reason="MULTISTREAM_VIOLATION"
    )


class Initiator:
    """The proposing side, without I/O: lines in, bytes to send out.

    Proposals go out one at a time, the first together with the header.
    """

    def __init__(self, protocols: Sequence[str]) -> None:
        if not protocols or not all(p and "\n" not in p for p in protocols):
            raise InvalidArgumentError(
                f"not a list of protocol ids: {list(protocols)!r}", reason="PROTOCOL_ID_INVALID"
            )
        self._protocols = tuple(protocols)
        self._lines = [encode_line(protocol) for protocol in protocols]
        self._proposed = 0
        self._greeted = False
        self.selected: str | None = None
        """The agreed protocol, once there is one."""

    def start(self) -> bytes:
        """Return what to send first."""
        return _HEADER_LINE + self._lines[0]

    def receive(self, line: str) -> bytes:
        """Take the responder's next line; return what to send now.

        Raises:
            ProtocolNotSupportedError: it supports none of the protocols.
            ProtocolViolationError: it answered something else.
        """
        if not self._greeted:
            _check_header(line)
            self._greeted = True
            return b""
        proposal = self._protocols[self._proposed]
        if line == proposal:
            self.selected = proposal
            return b""
        if line != NOT_AVAILABLE:
            raise _violation(f"the answer {line[:80]!r} to {proposal!r}")
        self._proposed += 1
        if self._proposed == len(self._protocols):
            raise _not_supported(self._protocols)
        return self._lines[self._proposed]


def _check_header(line: str) -> None:
    if line != HEADER:
        raise _violation(f"{line[:80]!r} where the header {HEADER} belongs")


def _not_supported(protocols: Sequence[str]) -> ProtocolNotSupportedError:
    names = ", ".join(protocols)
    return ProtocolNotSupportedError(
        f"the peer does not support {names}",
        remedy="check that the peer serves this protocol and that the name is spelled the same",
        protocols=names,
    )


class Responder:
    """The answering side, without I/O: lines in, bytes to send out.

    `ls` of old versions gets `na`, as from today's go-libp2p.
    """

    def __init__(self, is_supported: Callable[[str], bool]) -> None:
        self._is_supported = is_supported
        self._greeted = False
        self._refused: list[str] = []
        self.selected: str | None = None
        """The agreed protocol, once there is one."""

    def start(self) -> bytes:
        """Return what to send first; an initiator may be waiting for it."""
        return _HEADER_LINE

    def receive(self, line: str) -> bytes:
        """Take the initiator's next line; return what to send now.

        Raises:
            ProtocolViolationError: no header, or more than MAX_PROPOSALS proposals.
        """
        if not self._greeted:
            _check_header(line)
            self._greeted = True
            return b""
        if self._is_supported(line):
            self.selected = line
            return encode_line(line)
        self._refused.append(line)
        if len(self._refused) >= MAX_PROPOSALS:
            raise _violation(f"{MAX_PROPOSALS} proposals, none of them supported")
        return _NOT_AVAILABLE_LINE

    def at_end(self) -> ProtocolNotSupportedError | None:
        """Return why the initiator gave up, if refusals were the reason."""
        if not self._refused:
            return None
        names = ", ".join(self._refused[:8])
        return ProtocolNotSupportedError(f"the peer proposed only {names}", protocols=names)


async def select(channel: ByteChannel, protocols: Sequence[str]) -> str:
    """Propose `protocols` in turn and return the one that the peer took.

    Reads nothing past the negotiation. The caller sets the deadline and closes the channel
    on an error.

    Raises:
        ProtocolNotSupportedError: the peer supports none of them.
        ProtocolViolationError: the peer does not speak multistream-select.
    """
    initiator = Initiator(protocols)
    parser = LineParser()
    await channel.write(initiator.start())
    while True:
        line = parser.feed(await channel.read(parser.wanted))
        if line is None:
            continue
        answer = initiator.receive(line)
        if initiator.selected is not None:
            return initiator.selected
        if answer:
            await channel.write(answer)


async def handle(channel: ByteChannel, is_supported: Callable[[str], bool]) -> str:
    """Answer a peer's proposals and return the protocol that was agreed on.

    Reads nothing past the negotiation, however much the initiator sent along. The caller
    sets the deadline and closes the channel on an error.

    Raises:
        ProtocolNotSupportedError: the initiator gave up after refusals.
        ProtocolViolationError: it does not speak multistream-select, or proposes endlessly.
    """
    responder = Responder(is_supported)
    parser = LineParser()
    await channel.write(responder.start())
    while True:
        data = await channel.read(parser.wanted)
        if not data and (given_up := responder.at_end()) is not None:
            raise given_up
        line = parser.feed(data)
        if line is None:
            continue
        answer = responder.receive(line)
        if answer:
            await channel.write(answer)
        if responder.selected is not None:
            return responder.selected


def lazy_select(stream: Stream, protocol: str) -> Stream:
    """Start `protocol` on an outbound stream without waiting for the peer's consent.

    The returned stream takes `stream`'s place: its first write carries the negotiation and
    the payload together, its first read checks the answer. A refusal raises
    ProtocolNotSupportedError from that read and resets the stream. A read or `close_write`
    before any write sends the negotiation by itself.
    """
    stream.protocol = protocol
    return _LazyStream(stream, protocol)


class _LazyStream(Stream):
    """A stream whose negotiation rides on its first write and first read."""

    def __init__(self, inner: Stream, protocol: str) -> None:
        super().__init__(inner.connection, inner.id, inner.direction)
        self.protocol = protocol
        self.opened_at = inner.opened_at
        self.traffic = inner.traffic
        self._inner = inner
        self._initiator = Initiator((protocol,))
        self._parser = LineParser()
        self._unsent = self._initiator.start()
        self._refusal: ProtocolNotSupportedError | ProtocolViolationError | None = None
        # A reader that has to send the negotiation must not interleave with a writer.
        self._sending = asyncio.Lock()

    @override
    async def read(self, max_bytes: int = READ_CHUNK) -> bytes:
        if self._initiator.selected is None:
            await self._check_answer()
        return await self._inner.read(max_bytes)

    @override
    def unread(self, data: bytes) -> None:
        self._inner.unread(data)

    @override
    async def write(self, data: Buffer) -> None:
        if self._refusal is not None:
            raise self._refusal
        if self._unsent:
            await self._send_first(data)
        else:
            await self._inner.write(data)

    @override
    async def close_write(self) -> None:
        if self._unsent and not self._inner.closed:
            await self._send_first(b"")
        await self._inner.close_write()

    @override
    def reset(self, code: int = CloseCode.NONE) -> None:
        self._inner.reset(code)

    @override
    def stop_reading(self, code: int = CloseCode.NONE) -> None:
        self._inner.stop_reading(code)

    @property
    @override
    def closed(self) -> bool:
        return self._inner.closed

    async def _send_first(self, data: Buffer) -> None:
        async with self._sending:
            first = self._unsent + bytes(data) if self._unsent else data
            if first:
                await self._write_or_reset(first)
            self._unsent = b""

    async def _write_or_reset(self, data: Buffer) -> None:
        try:
            await self._inner.write(data)
        except BaseException:
            # A negotiation that was cut short cannot be continued by a later call.
            self._inner.reset(CloseCode.PROTOCOL_NEGOTIATION_FAILED)
            raise

    async def _check_answer(self) -> None:
        """Read the answer line by line; cancelled, a later read goes on where it stopped."""
        if self._refusal is not None:
            raise self._refusal
        if self._unsent:
            await self._send_first(b"")
        try:
            while self._initiator.selected is None:
                line = self._parser.feed(await self._inner.read(self._parser.wanted))
                if line is not None:
                    self._initiator.receive(line)
        except (ProtocolNotSupportedError, ProtocolViolationError) as error:
            self._refusal = error
            self._inner.reset(CloseCode.PROTOCOL_NEGOTIATION_FAILED)
            raise
