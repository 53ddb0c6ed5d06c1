"""Streams that we open, up to the agreed protocol."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from dep2p_daemon import multistream
from dep2p_daemon.errors import DialTimeoutError
from dep2p_daemon.muxed import CloseCode

if TYPE_CHECKING:
    from collections.abc import Sequence, Set

    from dep2p_daemon.muxed import Connection, Stream


async def open_negotiated(
    connection: Connection,
    protocols: Sequence[str],
    *,
    listed: Set[str],
    timeout: float,
) -> Stream:
    """Open a stream on `connection` for the first of `protocols` that the peer takes.

    A single protocol that identify `listed` is started without waiting for the answer, which the
    first `read` then checks.

    Raises:
        ProtocolNotSupportedError: the peer takes none of them.
        DialTimeoutError: no stream, or no answer, within `timeout` seconds.
        ConnectionClosedError, StreamResetError: the connection or the stream broke.
    """
    try:
        async with asyncio.timeout(timeout):
            stream = await connection.open_stream()
            try:
                if len(protocols) == 1 and protocols[0] in listed:
                    stream = multistream.lazy_select(stream, protocols[0])
                    # Sent at once: a peer that speaks first has to hear of the stream.
                    await stream.write(b"")
                else:
                    stream.protocol = await multistream.select(stream, protocols)
            except BaseException:
                stream.reset(CloseCode.PROTOCOL_NEGOTIATION_FAILED)
                raise
    except TimeoutError:
        raise DialTimeoutError(
            f"{connection.remote_peer} did not answer for {' or '.join(protocols)} "
            f"within {timeout:g} s",
            reason="NEGOTIATION_TIMEOUT",
            remedy="the connection may be broken: disconnect, and try again",
            peer=connection.remote_peer,
            protocols=" ".join(protocols),
        ) from None
    return stream
