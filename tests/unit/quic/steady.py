"""Connections that are as if a handshake were behind them, with keys that the test knows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aioquic import tls
from aioquic.quic.connection import QuicConnectionState, QuicNetworkPath
from aioquic.tls import CipherSuite

from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.quic.aioquic_connection import AioquicConnection
from dep2p_daemon.quic.bulk_send import encode_varint
from dep2p_daemon.quic.connection_ids import ConnectionIds
from dep2p_daemon.quic.context import QuicContext
from dep2p_daemon.quic.one_rtt_keys import OneRttKeys, header_masks
from dep2p_daemon.quic.packets import VERSION_1
from dep2p_daemon.quic.settings import QuicSettings

if TYPE_CHECKING:
    from aioquic.quic.crypto import CryptoContext

SUITES = (
    CipherSuite.AES_128_GCM_SHA256,
    CipherSuite.AES_256_GCM_SHA384,
    CipherSuite.CHACHA20_POLY1305_SHA256,
)
PEER = ("192.0.2.1", 4001)
OUR_ID, PEER_ID = b"our--id!", b"peer-id!"
_CONTEXT = QuicContext.create(PrivateKey.from_seed(bytes(32)), QuicSettings())


def _secret(suite: CipherSuite, name: bytes) -> bytes:
    return name.ljust(48 if suite is CipherSuite.AES_256_GCM_SHA384 else 32, b"s")


def steady_connection(
    *, is_client: bool, suite: CipherSuite, fast_path: bool, window: int = 1 << 20
) -> AioquicConnection:
    configuration = _CONTEXT.configuration(is_client=is_client)
    configuration.max_stream_data = window
    connection: Any = AioquicConnection(
        configuration=configuration,
        connection_ids=ConnectionIds(bytes(32)),
        max_inbound_streams=8,
        max_datagram_size=1200,
        connection_window=window * 3 // 2,
        fast_path=fast_path,
        original_destination_connection_id=None if is_client else b"original",
    )
    connection._host_cids[0].cid = connection.host_cid = OUR_ID
    connection._network_paths = [QuicNetworkPath(PEER, is_validated=True)]
    connection._version = VERSION_1
    connection._initialize(b"original")
    for context, name in (
        (connection.one_rtt_keys.recv, b"peer"),
        (connection.one_rtt_keys.send, b"our"),
    ):
        context.setup(cipher_suite=suite, secret=_secret(suite, name), version=VERSION_1)
    for epoch in (tls.Epoch.INITIAL, tls.Epoch.HANDSHAKE):
        connection._discard_epoch(epoch)
    connection._peer_cid.cid = PEER_ID
    connection._peer_cid.sequence_number = 0
    connection._state = QuicConnectionState.CONNECTED
    connection._handshake_complete = connection._handshake_confirmed = True
    connection._loss.handshake_confirmed = True
    connection._loss.peer_completed_address_validation = True
    connection._close_at = 30.0
    connection._remote_max_data = 1 << 40
    connection._remote_max_stream_data_bidi_local = 1 << 40
    connection._remote_max_stream_data_bidi_remote = 1 << 40
    connection._remote_max_streams_bidi = 64
    result: AioquicConnection = connection
    return result


@dataclass
class PeerSeal:
    """Seals 1-RTT packets as the peer of a steady connection would."""

    suite: CipherSuite
    keys: OneRttKeys = field(default_factory=OneRttKeys)

    def __post_init__(self) -> None:
        for context, name in ((self.keys.send, b"peer"), (self.keys.recv, b"our")):
            context.setup(
                cipher_suite=self.suite, secret=_secret(self.suite, name), version=VERSION_1
            )

    def update_keys(self) -> None:
        self.keys.update_key()
        self.keys.apply_update()

    def packet(
        self,
        number: int,
        payload: bytes,
        *,
        number_size: int = 2,
        reserved: int = 0,
        connection_id: bytes = OUR_ID,
        keys: CryptoContext | None = None,
    ) -> bytes:
        keys = keys or self.keys.send
        assert keys.aead is not None
        assert self.keys.send.hp is not None
        first = 0x40 | reserved << 3 | keys.key_phase << 2 | number_size - 1
        truncated = (number & ((1 << 8 * number_size) - 1)).to_bytes(number_size, "big")
        header = bytes((first,)) + connection_id + truncated
        body = keys.aead.encrypt(payload, header, number)
        sample = 4 - number_size
        mask, _ = header_masks(self.keys.send.hp, [body[sample : sample + 16]])
        protected = bytes(a ^ b for a, b in zip(truncated, mask[1:5], strict=False))
        return bytes((first ^ mask[0] & 0x1F,)) + connection_id + protected + body


def stream_frame(
    stream_id: int, offset: int, data: bytes, *, fin: bool = False, length: bool = True
) -> bytes:
    kind = 0x08 | (4 if offset else 0) | (2 if length else 0) | (1 if fin else 0)
    frame = bytes((kind,)) + encode_varint(stream_id)
    if offset:
        frame += encode_varint(offset)
    return frame + (encode_varint(len(data)) if length else b"") + data


def contents(stream_id: int, start: int, size: int) -> bytes:
    """What stands at an offset of a stream: the same in every copy."""
    return bytes((stream_id * 7 + (start + i) * 13 + (start + i >> 8)) & 0xFF for i in range(size))
