"""One HTTP/1.1 request and its response, as UPnP needs it: https://www.rfc-editor.org/rfc/rfc9112

Not a general client: one request for each connection, no redirects, no cookies, no compression,
and bounds on everything that comes back. What asks decides whom to ask; nothing here follows a URL.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dep2p_daemon.errors import ProtocolViolationError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_HEAD: Final = 8192
"""Bytes of the status line and the headers."""
MAX_BODY: Final = 64 * 1024
"""Bytes; the descriptions of routers have 2 to 20 kB."""
_MAX_INTERIM: Final = 2
"""Responses 1xx before the real one."""
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: .*)?\Z")
_HEX: Final = re.compile(rb"[0-9a-fA-F]{1,8}\Z")


@dataclass(frozen=True, slots=True)
class Response:
    """What came back."""

    status: int
    body: bytes


def encode_request(
    method: str,
    host: str,
    path: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> bytes:
    """A whole request; the connection closes behind its response."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


async def read_response(reader: asyncio.StreamReader) -> Response:
    """Read one response; the caller sets the deadline and the reader's limit (`MAX_HEAD`).

    Raises:
        ProtocolViolationError: it is no HTTP, too long, or cut off.
        OSError: the connection broke.
    """
    try:
        for _ in range(_MAX_INTERIM + 1):
            status, headers = _head(await reader.readuntil(b"\r\n\r\n"))
            if status >= 200:
                return Response(status, await _body(reader, headers))
    except asyncio.IncompleteReadError:
        raise _violation("it was cut off") from None
    except asyncio.LimitOverrunError:
        raise _violation("a line or the headers are too long") from None
    raise _violation("too many interim responses")


def _head(data: bytes) -> tuple[int, dict[bytes, bytes]]:
    first, *lines = data[:-4].split(b"\r\n")
    match = _STATUS.match(first)
    if match is None:
        raise _violation("it is no HTTP")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if colon:
            headers[name.strip().lower()] = value.strip().lower()
    return int(match[1]), headers


async def _body(reader: asyncio.StreamReader, headers: dict[bytes, bytes]) -> bytes:
    if headers.get(b"transfer-encoding", b"identity") != b"identity":
        return await _chunks(reader)
    length = headers.get(b"content-length")
    if length is not None:
        if not length.isdigit() or len(length) > 9 or int(length) > MAX_BODY:
            raise _violation("the body is too long")
        return await reader.readexactly(int(length))
    body = bytearray()
    while data := await reader.read(MAX_HEAD):
        body += data
        _check(len(body))
    return bytes(body)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    """Section 7.1; the trailer, if any, is left unread."""
    body = bytearray()
    while True:
        digits = (await reader.readuntil(b"\r\n"))[:-2].partition(b";")[0].strip()
        if _HEX.match(digits) is None:
            raise _violation("a chunk without a length")
        size = int(digits, 16)
        if size == 0:
            return bytes(body)
        _check(len(body) + size)
        body += await reader.readexactly(size)
        if await reader.readexactly(2) != b"\r\n":
            raise _violation("a chunk without an end")


def _check(length: int) -> None:
    if length > MAX_BODY:
        raise _violation("the body is too long")


def _violation(what: str) -> ProtocolViolationError:
    return ProtocolViolationError(
        f"the gateway's HTTP response cannot be used: {what}", reason="UPNP_MALFORMED"
    )
