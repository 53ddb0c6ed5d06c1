"""A byte channel secured with Noise: the asyncio shell of `noise.py` and `noise_handshake.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dep2p_daemon.errors import ConnectionClosedError, ProtocolViolationError
from dep2p_daemon.muxed import READ_CHUNK, Buffer, read_exactly
from dep2p_daemon.tcp.noise_handshake import MAX_HANDSHAKE_MESSAGE, NoiseHandshake, NoiseSession

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dep2p_daemon.identity.keys import PrivateKey
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.tcp.channel import BulkChannel


class SecureChannel:
    """A `ByteChannel` on which both peers know who the other is."""

    def __init__(self, channel: BulkChannel, session: NoiseSession) -> None:
        self._channel = channel
        self._noise = session.transport
        self._unread = b""
        self.remote_peer = session.remote_peer
        self.remote_key = session.remote_key
        self.muxer = session.muxer
        """What the handshake agreed on, None if that is still to be negotiated."""

    async def read(self, max_bytes: int = READ_CHUNK) -> bytes:
        """Return up to `max_bytes`, b"" at the end."""
        if not self._unread:
            self._unread = b"".join(await self.read_plaintexts())
        data, self._unread = self._unread[:max_bytes], self._unread[max_bytes:]
        return data

    async def read_plaintexts(self) -> list[bytes]:
        """Return the plaintexts of the next frames, [] at the end.

        Raises:
            AuthenticationError: a frame was forged or damaged.
            ConnectionClosedError: the channel broke, or ended within a frame.
        """
        if self._unread:
            unread, self._unread = self._unread, b""
            return [unread]
        while True:
            data = await self._channel.read_bulk()
            if not data:
                if not self._noise.at_frame_boundary:
                    raise ConnectionClosedError("the connection ended within a frame", remote=True)
                return []
            plaintexts = [plaintext for plaintext in self._noise.open(data) if plaintext]
            if plaintexts:
                return plaintexts

    async def write(self, data: Buffer) -> None:
        """Write all of `data`."""
        await self.write_parts([data])

    async def write_parts(self, parts: Sequence[Buffer]) -> None:
        """Write all of `parts`, in as few frames as hold them. Cancelled, abort the channel."""
        await self._channel.write_pieces(self._noise.seal(parts))

    async def close_write(self) -> None:
        """Send the end of our half."""
        await self._channel.close_write()

    def abort(self) -> None:
        """Drop both halves at once. Idempotent."""
        self._channel.abort()


async def secure(
    channel: BulkChannel,
    *,
    key: PrivateKey,
    initiator: bool,
    expected_peer: PeerId | None,
    muxers: Sequence[str],
) -> SecureChannel:
    """Shake hands on `channel` and return it secured.

    The caller sets the deadline, and aborts the channel on an error.

    Raises:
        AuthenticationError: the peer did not prove its identity, or is another one.
        ProtocolViolationError: it does not speak Noise.
    """
    handshake = NoiseHandshake(key, initiator=initiator, muxers=muxers, expected_peer=expected_peer)
    message = handshake.start()
    while True:
        if message:
            await channel.write(len(message).to_bytes(2, "big") + message)
        if handshake.session is not None:
            return SecureChannel(channel, handshake.session)
        size = int.from_bytes(await read_exactly(channel, 2), "big")
        if size > MAX_HANDSHAKE_MESSAGE:
            raise ProtocolViolationError(
                f"a Noise handshake message of {size} bytes", reason="NOISE_HANDSHAKE"
            )
        message = handshake.receive(await read_exactly(channel, size))
