"""Make a muxed connection of a raw byte channel: multistream-select, Noise, Yamux.

https://github.com/libp2p/specs/blob/master/connections/README.md#upgrading-connections

Flow: /noise by multistream-select; the handshake, which also agrees on the muxer; if it did
not, the muxer by multistream-select inside Noise. The same on TCP and on a stream circuit.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from dep2p_daemon.errors import AuthenticationError, UnreachableError
from dep2p_daemon.multistream import handle, select
from dep2p_daemon.muxed import ByteChannel, Direction, ReceiveMemory
from dep2p_daemon.tcp.channel import bulk
from dep2p_daemon.tcp.noise_handshake import NOISE_PROTOCOL
from dep2p_daemon.tcp.secure_channel import SecureChannel, secure
from dep2p_daemon.tcp.settings import TcpSettings
from dep2p_daemon.tcp.yamux import YAMUX_PROTOCOL
from dep2p_daemon.tcp.yamux_connection import YamuxConnection

if TYPE_CHECKING:
    from dep2p_daemon.identity.keys import PrivateKey
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.muxed import CircuitLimits, Connection

MUXERS: Final = (YAMUX_PROTOCOL,)


async def upgrade(
    channel: ByteChannel,
    *,
    key: PrivateKey,
    initiator: bool,
    expected_peer: PeerId | None,
    task_group: asyncio.TaskGroup,
    local_address: Multiaddr,
    remote_address: Multiaddr,
    relay: PeerId | None = None,
    limits: CircuitLimits | None = None,
    settings: TcpSettings | None = None,
    memory: ReceiveMemory | None = None,
    patience: float | None = None,
) -> Connection:
    """Secure and multiplex `channel`, and own it from here on.

    The connection's tasks run in `task_group`; its end ends the channel. `memory` bounds the
    unread bytes of all connections that share it. `patience` is the time in seconds until we know
    that the peer wants Noise, for where it may wait for us as well. The caller sets the deadline
    (`asyncio.timeout`); on any error, and when cancelled, the channel is aborted.

    Raises:
        UnreachableError: the peer did not begin in time.
        AuthenticationError: the peer did not prove its identity, or is not `expected_peer`.
        ProtocolNotSupportedError: it speaks another security or muxer than ours.
        ProtocolViolationError: it broke one of the protocols.
        ConnectionClosedError, StreamResetError: the channel broke.
    """
    settings = settings or TcpSettings()
    try:
        try:
            async with asyncio.timeout(patience):
                await _negotiate(channel, NOISE_PROTOCOL, initiator)
        except TimeoutError:
            raise UnreachableError(
                f"the peer did not begin the handshake in {patience:g} s",
                reason="HANDSHAKE_NOT_BEGUN",
            ) from None
        secured = await secure(
            bulk(channel),
            key=key,
            initiator=initiator,
            expected_peer=expected_peer,
            muxers=MUXERS,
        )
        if secured.remote_peer == key.peer_id:
            raise AuthenticationError("this node reached itself", reason="SELF_CONNECTION")
        if secured.muxer is None:
            await _negotiate(secured, YAMUX_PROTOCOL, initiator)
        connection = YamuxConnection(
            secured,
            local_peer=key.peer_id,
            direction=Direction.OUTBOUND if initiator else Direction.INBOUND,
            local_address=local_address,
            remote_address=remote_address,
            settings=settings.yamux,
            memory=memory or ReceiveMemory(settings.receive_memory),
            relay=relay,
            limits=limits,
        )
        connection.start(task_group)
    except BaseException:
        channel.abort()
        raise
    return connection


async def _negotiate(channel: ByteChannel | SecureChannel, protocol: str, initiator: bool) -> None:
    if initiator:
        await select(channel, (protocol,))
    else:
        await handle(channel, lambda offered: offered == protocol)
