"""The messages of one round on their stream: drives the machines of `dcutr.py`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from dep2p_daemon.errors import ProtocolViolationError
from dep2p_daemon.muxed import read_message, write_message
from dep2p_daemon.nat.dcutr import ActAt, Initiator, Receiver
from dep2p_daemon.nat.dcutr_message import (
    MAX_MESSAGE_BYTES,
    PROTOCOL,
    MessageType,
    decode,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.muxed import Connection, Stream
    from dep2p_daemon.nat.dcutr import Action
    from dep2p_daemon.nat.dcutr_message import DcutrMessage
    from dep2p_daemon.nat.nat_kind import NatKind
    from dep2p_daemon.swarm.swarm import Swarm


async def initiate(
    swarm: Swarm,
    connection: Connection,
    own: Sequence[Multiaddr],
    own_nat: NatKind,
    *,
    timeout: float,
) -> ActAt:
    """Open a stream on the relayed `connection`, exchange addresses, send SYNC.

    Raises:
        ProtocolViolationError: the peer broke the protocol, or took longer than `timeout`.
        PeerError, ProtocolNotSupportedError: the stream could not be opened, or broke.
    """
    now = asyncio.get_running_loop().time
    try:
        async with asyncio.timeout(timeout):
            stream = await swarm.open_stream(
                connection.remote_peer, [PROTOCOL], connection=connection
            )
            try:
                machine = Initiator(own, own_nat)
                act = await _write(stream, machine.start(now()))
                while act is None:
                    message = decode(await read_message(stream, MAX_MESSAGE_BYTES))
                    act = await _write(stream, machine.receive(message, now()))
            except BaseException:
                stream.reset()
                raise
            await stream.aclose()
            return act
    except TimeoutError:
        raise _too_slow(timeout) from None


async def answer(
    stream: Stream,
    own: Sequence[Multiaddr],
    own_nat: NatKind,
    *,
    prepare: Callable[[DcutrMessage], None],
    timeout: float,
) -> ActAt:
    """Answer CONNECT, wait for SYNC, close the stream. Raises as `initiate`.

    `prepare` gets the peer's CONNECT before the peer gets ours, and can connect.
    """
    now = asyncio.get_running_loop().time
    machine = Receiver(own, own_nat)
    act: ActAt | None = None
    try:
        async with asyncio.timeout(timeout):
            while act is None:
                message = decode(await read_message(stream, MAX_MESSAGE_BYTES))
                actions = machine.receive(message, now())
                if message.type is MessageType.CONNECT:
                    prepare(message)
                act = await _write(stream, actions)
            await stream.aclose()
            return act
    except TimeoutError:
        raise _too_slow(timeout) from None


async def _write(stream: Stream, actions: Sequence[Action]) -> ActAt | None:
    """Write what is to be sent; return when to act, if it has come to that."""
    act: ActAt | None = None
    for action in actions:
        if isinstance(action, ActAt):
            act = action
        else:
            await write_message(stream, encode(action.message))
    return act


def _too_slow(timeout: float) -> ProtocolViolationError:
    return ProtocolViolationError(
        f"the exchange of addresses was not over after {timeout:g} s", reason="DCUTR_TIMEOUT"
    )
