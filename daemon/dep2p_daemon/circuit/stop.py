"""The relay's side of the stop protocol: offer a circuit to its target.

https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#stop-protocol
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from dep2p_daemon.circuit.admission import Refusal
from dep2p_daemon.circuit.messages import (
    MAX_MESSAGE_BYTES,
    STOP_PROTOCOL,
    Status,
    StopConnect,
    StopStatus,
    decode_stop,
    encode_stop,
    status_name,
)
from dep2p_daemon.errors import Dep2pError
from dep2p_daemon.muxed import read_message, write_message

if TYPE_CHECKING:
    from dep2p_daemon.muxed import Connection, Stream
    from dep2p_daemon.swarm.swarm import Swarm


async def offer_circuit(
    swarm: Swarm, connection: Connection | None, offer: StopConnect, *, timeout: float
) -> Stream | Refusal:
    """Offer a circuit over the target's connection; return the stream once it has accepted.

    Nothing is read past the target's status: what follows is for the other end. Whatever goes
    wrong is CONNECTION_FAILED to the source, with a finer reason for our log.
    """
    if connection is None:
        return Refusal(Status.CONNECTION_FAILED, "TARGET_NOT_CONNECTED")
    try:
        async with asyncio.timeout(timeout):
            return await _ask(swarm, connection, offer)
    except TimeoutError:
        return Refusal(Status.CONNECTION_FAILED, "TARGET_TIMEOUT")
    except Dep2pError as error:
        return Refusal(Status.CONNECTION_FAILED, error.reason)


async def _ask(swarm: Swarm, connection: Connection, offer: StopConnect) -> Stream | Refusal:
    target = connection.remote_peer
    stream = await swarm.open_stream(target, [STOP_PROTOCOL], connection=connection)
    try:
        await write_message(stream, encode_stop(offer))
        answer = decode_stop(await read_message(stream, MAX_MESSAGE_BYTES))
    except BaseException:
        stream.reset()
        raise
    if answer == StopStatus(Status.OK):
        return stream
    stream.reset()
    said = status_name(answer.status) if isinstance(answer, StopStatus) else "CONNECT"
    return Refusal(Status.CONNECTION_FAILED, f"TARGET_SAID_{said}")
