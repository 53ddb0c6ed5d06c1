"""The options of a UDP socket: offload, buffers, local addresses, errors, don't-fragment."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from dep2p_daemon.udp.settings import UdpSettings

# Linux constants that the socket module does not have.
SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
IP_PKTINFO: Final = 8
IP_MTU_DISCOVER: Final = 10
IP_RECVERR: Final = 11
IPV6_MTU_DISCOVER: Final = 23
IPV6_RECVERR: Final = 25
PMTUDISC_DO: Final = 2
PMTUDISC_PROBE: Final = 3
MSG_ERRQUEUE: Final = 0x2000
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33

_log = structlog.get_logger(__name__)


def configure(sock: socket.socket, settings: UdpSettings, *, is_wildcard: bool) -> bool:
    """Set what the platform knows, leave out what it does not, and log what was granted.

    Args:
        sock: a bound UDP socket.
        settings: what is wanted.
        is_wildcard: the socket has several local addresses, and must be told which one was hit.

    Returns:
        Whether batches can be sent (UDP_SEGMENT).
    """
    granted = {}
    for name, force, option in (
        ("receive", SO_RCVBUFFORCE, socket.SO_RCVBUF),
        ("send", SO_SNDBUFFORCE, socket.SO_SNDBUF),
    ):
        if not _set(sock, socket.SOL_SOCKET, force, settings.buffer_bytes):
            _set(sock, socket.SOL_SOCKET, option, settings.buffer_bytes)
        # Linux reports twice what can be used, for its own bookkeeping.
        granted[name] = sock.getsockopt(socket.SOL_SOCKET, option) // 2
    gro = settings.offload and _set(sock, SOL_UDP, UDP_GRO, 1)
    gso = settings.offload and _has_gso(sock)
    if sock.family == socket.AF_INET6:
        level, discover, errors = socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_RECVERR
        local = socket.IPV6_RECVPKTINFO
    else:
        level, discover, errors = socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_RECVERR
        local = IP_PKTINFO
    # PROBE sends what we say, whatever the kernel believes of the path.
    dont_fragment = _set(sock, level, discover, PMTUDISC_PROBE) or _set(
        sock, level, discover, PMTUDISC_DO
    )
    _set(sock, level, errors, 1)
    if is_wildcard:
        _set(sock, level, local, 1)
    host, port = sock.getsockname()[:2]
    _log.debug(
        "udp socket open",
        host=host,
        port=port,
        wanted_buffer=settings.buffer_bytes,
        receive_buffer=granted["receive"],
        send_buffer=granted["send"],
        gro=gro,
        gso=gso,
        dont_fragment=dont_fragment,
    )
    if granted["receive"] < settings.buffer_bytes // 2:
        # Bursts that do not fit are lost, and QUIC slows down for it.
        _log.info(
            "udp buffers are smaller than wanted",
            wanted_buffer=settings.buffer_bytes,
            receive_buffer=granted["receive"],
            remedy=f"sysctl -w net.core.rmem_max={settings.buffer_bytes}"
            f" net.core.wmem_max={settings.buffer_bytes}",
        )
    return gso


def _set(sock: socket.socket, level: int, option: int, value: int) -> bool:
    try:
        sock.setsockopt(level, option, value)
    except OSError:
        return False
    return True


def _has_gso(sock: socket.socket) -> bool:
    try:
        sock.getsockopt(SOL_UDP, UDP_SEGMENT)
    except OSError:
        return False
    return True
