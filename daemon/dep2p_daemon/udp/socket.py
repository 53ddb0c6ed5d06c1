"""One UDP socket per listen address, read and written in batches.

Linux hands over up to 64 KiB of equally long datagrams of one flow in one `recvmsg` (UDP_GRO)
and takes as much in one `sendmsg` (UDP_SEGMENT); without either everything works one datagram
at a time. Replies leave from the local address that was hit (IP_PKTINFO), and the
"don't fragment" bit is set, as RFC 9000 section 14 wants.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from dep2p_daemon.errors import ConfigError
from dep2p_daemon.udp.batches import split_batches
from dep2p_daemon.udp.demultiplexer import Demultiplexer
from dep2p_daemon.udp.options import (
    IP_PKTINFO,
    IP_RECVERR,
    IPV6_RECVERR,
    MSG_ERRQUEUE,
    SOL_UDP,
    UDP_GRO,
    UDP_SEGMENT,
    configure,
)
from dep2p_daemon.udp.settings import UdpSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dep2p_daemon.udp.demultiplexer import SocketAddress

MAX_DESTINATIONS_WITHOUT_OFFLOAD: Final = 256
LARGE_DATAGRAM: Final = 16_384
"""A datagram counts as one for so many bytes of it, where the work of one turn is bounded."""

_GSO_REFUSALS: Final = frozenset(
    {errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.EOPNOTSUPP, errno.ENOPROTOOPT}
)
_PENDING_ERRORS: Final = frozenset({errno.ECONNREFUSED, errno.EMSGSIZE})
"""What ICMP messages about earlier datagrams, to anybody, make the next call fail with."""
_SEGMENT: Final = struct.Struct("=H")
_ERROR: Final = struct.Struct("=I")
_INT: Final = struct.Struct("=i")

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class UdpCounters:
    """What went through a socket, and what did not."""

    received: int = 0
    received_bytes: int = 0
    sent: int = 0
    sent_bytes: int = 0
    dropped_queue_full: int = 0
    """Datagrams not sent because the kernel's and our queue were full."""
    dropped_too_big: int = 0
    """Datagrams not sent because they exceed the interface's MTU (EMSGSIZE)."""
    dropped_error: int = 0
    """Datagrams that the kernel refused for another reason."""
    offload_refusals: int = 0
    """Batches that had to be sent one datagram at a time."""


class UdpSocket:
    """A non-blocking UDP socket on the running loop. Closed by whoever opened it."""

    def __init__(self, sock: socket.socket, settings: UdpSettings) -> None:
        """Use `UdpSocket.open`; this takes a bound socket over."""
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._settings = settings
        self._family = socket.AddressFamily(sock.family)
        name = sock.getsockname()
        self.host: str = name[0].partition("%")[0]
        self.port: int = name[1]
        self.demultiplexer = Demultiplexer()
        self.counters = UdpCounters()
        self.on_writable: Callable[[], None] | None = None
        """Called when a full send queue has drained."""
        self.on_unreachable: Callable[[SocketAddress, int], None] | None = None
        """Called with a destination and an errno when ICMP says that it cannot be reached.

        ICMP is not authenticated: a hint for handshakes, never for established connections.
        """
        self._buffer = bytearray(1 << 16)
        self._view = memoryview(self._buffer)
        self._ancillary_size = socket.CMSG_SPACE(4) + socket.CMSG_SPACE(20)
        self._queue: deque[tuple[Sequence[bytes], SocketAddress, bytes | None]] = deque()
        self._queued = 0
        self._closed = False
        ip = ipaddress.ip_address(self.host)
        self.is_wildcard = ip.is_unspecified
        self.is_loopback = ip.is_loopback
        self._no_gso: dict[SocketAddress, None] = {}
        self._gso = configure(sock, settings, is_wildcard=self.is_wildcard)
        self._loop.add_reader(sock.fileno(), self._on_readable)

    @classmethod
    def open(cls, host: str, port: int, settings: UdpSettings | None = None) -> UdpSocket:
        """Bind a new socket to `host` (an IP address, `%scope` allowed) and `port` (0: any).

        Raises:
            ConfigError: the address cannot be bound; the message says why.
        """
        version = ipaddress.ip_address(host.partition("%")[0]).version
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            sock.setblocking(False)
            if family == socket.AF_INET6:
                # One form of every address: an IPv4 peer never shows up as ::ffff:a.b.c.d.
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                where = socket.getaddrinfo(
                    host, port, family, socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
                )[0][4]
                sock.bind(where)
            else:
                sock.bind((host, port))
            return cls(sock, settings if settings is not None else UdpSettings())
        except OSError as error:
            sock.close()
            raise ConfigError(
                f"cannot listen on UDP {host} port {port}: {error.strerror or error}",
                reason="LISTEN_FAILED",
                remedy="choose a free port and an address that this machine has",
                host=host,
                port=port,
            ) from error

    @property
    def family(self) -> socket.AddressFamily:
        """AF_INET or AF_INET6 (V6ONLY)."""
        return self._family

    @property
    def is_blocked(self) -> bool:
        """True while datagrams wait for the kernel; better send nothing new until then."""
        return bool(self._queue)

    @property
    def is_closed(self) -> bool:
        """True after `close`."""
        return self._closed

    def address(self, host: str, port: int) -> SocketAddress:
        """The socket address of `host`, in the form in which its datagrams will come."""
        host, _, scope = host.partition("%")
        packed = ipaddress.ip_address(host).packed
        if self._family == socket.AF_INET:
            return (socket.inet_ntop(socket.AF_INET, packed), port)
        scope_id = 0
        if scope:
            scope_id = int(scope) if scope.isdigit() else socket.if_nametoindex(scope)
        return (socket.inet_ntop(socket.AF_INET6, packed), port, 0, scope_id)

    def send(
        self, datagrams: Sequence[bytes], destination: SocketAddress, local: bytes | None = None
    ) -> int:
        """Send `datagrams` to `destination`, in as few system calls as the kernel allows.

        Never blocks and never raises: what cannot be sent is queued (bounded) or dropped and
        counted, as a network may.

        Args:
            datagrams: in order; neighbours of equal length travel as one batch.
            destination: from `address` or a handler.
            local: packed local IP to send from, where the socket has several.

        Returns:
            0, or the errno for which the kernel refused a datagram.
        """
        if self._closed:
            return errno.EBADF
        if self._queue:
            self._enqueue(datagrams, destination, local)
            return 0
        if len(datagrams) == 1:
            return self._send_batch(datagrams, destination, local)
        result = 0
        for batch in split_batches(datagrams):
            if self._queue:
                self._enqueue(batch, destination, local)
            else:
                result = self._send_batch(batch, destination, local) or result
        return result

    def close(self) -> None:
        """Close the socket; what is queued is dropped. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._socket.fileno())
        if self._queue:
            self._loop.remove_writer(self._socket.fileno())
            self._queue.clear()
            self._queued = 0
        self._socket.close()

    # Receiving

    def _on_readable(self) -> None:
        left = self._settings.max_datagrams_per_wake
        first = True
        while left > 0 and not self._closed:
            try:
                size, ancillary, _, sender = self._socket.recvmsg_into(
                    [self._buffer], self._ancillary_size
                )
            except (BlockingIOError, InterruptedError):
                if first:
                    self._read_errors()
                return
            except OSError:
                # The error of an earlier datagram of ours (IP_RECVERR), told once.
                self._read_errors()
                first = False
                left -= 1
                continue
            first = False
            segment = size
            local: bytes | None = None
            for level, kind, data in ancillary:
                if level == SOL_UDP:
                    if kind == UDP_GRO:
                        segment = _INT.unpack_from(data)[0]
                elif level == socket.IPPROTO_IP:
                    if kind == IP_PKTINFO:
                        local = data[8:12]
                elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
                    local = data[:16]
            count = self.demultiplexer.dispatch(self._view[:size], segment, sender, local)
            self.counters.received += count
            self.counters.received_bytes += size
            # Large datagrams are as much work as many small ones.
            left -= max(count, size // LARGE_DATAGRAM)

    def _read_errors(self) -> None:
        """Empty the error queue (a full one keeps the socket readable) and tell its news."""
        for _ in range(64):
            try:
                _, ancillary, _, destination = self._socket.recvmsg(64, 512, MSG_ERRQUEUE)
            except OSError:
                return
            for level, kind, data in ancillary:
                if (level, kind) in (
                    (socket.IPPROTO_IP, IP_RECVERR),
                    (socket.IPPROTO_IPV6, IPV6_RECVERR),
                ):
                    code = _ERROR.unpack_from(data)[0]
                    if destination and self.on_unreachable is not None:
                        self.on_unreachable(destination, code)

    # Sending

    def _ancillary(self, local: bytes | None) -> list[tuple[int, int, bytes]]:
        if local is None:
            return []
        if len(local) == 4:
            return [(socket.IPPROTO_IP, IP_PKTINFO, bytes(4) + local + bytes(4))]
        return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, local + bytes(4))]

    def _send_batch(
        self, batch: Sequence[bytes], destination: SocketAddress, local: bytes | None
    ) -> int:
        """Send what `split_batches` made: datagrams of one length, the last maybe shorter."""
        if len(batch) == 1:
            return self._send_one(batch[0], destination, local)
        refusal = 0
        if self._gso and destination not in self._no_gso:
            ancillary = self._ancillary(local)
            ancillary.append((SOL_UDP, UDP_SEGMENT, _SEGMENT.pack(len(batch[0]))))
            try:
                sent = self._socket.sendmsg(batch, ancillary, 0, destination)
            except (BlockingIOError, InterruptedError):
                self._enqueue(batch, destination, local)
                return 0
            except OSError as error:
                if error.errno not in _GSO_REFUSALS:
                    # Possibly the answer to an earlier datagram (IP_RECVERR): try again singly.
                    self._read_errors()
                else:
                    refusal = error.errno or 0
            else:
                self.counters.sent += len(batch)
                self.counters.sent_bytes += sent
                return 0
        result = 0
        for index, datagram in enumerate(batch):
            if self._queue:
                self._enqueue(batch[index:], destination, local)
                break
            result = self._send_one(datagram, destination, local) or result
        if refusal and result != errno.EMSGSIZE:  # or not the batch was refused, but its datagrams
            self._refuse_offload(destination, refusal)
        return result

    def _refuse_offload(self, destination: SocketAddress, code: int) -> None:
        self.counters.offload_refusals += 1
        if code in (errno.EOPNOTSUPP, errno.ENOPROTOOPT):
            self._gso = False
        elif code != errno.EMSGSIZE:
            if len(self._no_gso) >= MAX_DESTINATIONS_WITHOUT_OFFLOAD:
                self._no_gso.pop(next(iter(self._no_gso)))
            self._no_gso[destination] = None
        _log.debug(
            "batched sending refused", destination=destination[0], error=errno.errorcode.get(code)
        )

    def _send_one(self, datagram: bytes, destination: SocketAddress, local: bytes | None) -> int:
        for attempt in (1, 2):
            try:
                if local is None:
                    self._socket.sendto(datagram, destination)
                else:
                    self._socket.sendmsg([datagram], self._ancillary(local), 0, destination)
            except (BlockingIOError, InterruptedError):
                self._enqueue((datagram,), destination, local)
                return 0
            except OSError as error:
                code = error.errno or errno.EIO
                if code in _PENDING_ERRORS and attempt == 1:
                    # Told about an earlier datagram (IP_RECVERR); this one was not sent.
                    self._read_errors()
                    continue
                if code == errno.EMSGSIZE:
                    self.counters.dropped_too_big += 1
                else:
                    self.counters.dropped_error += 1
                return code
            self.counters.sent += 1
            self.counters.sent_bytes += len(datagram)
            return 0
        return errno.ECONNREFUSED

    def _enqueue(
        self, datagrams: Sequence[bytes], destination: SocketAddress, local: bytes | None
    ) -> None:
        if self._queued + len(datagrams) > self._settings.send_queue_datagrams:
            self.counters.dropped_queue_full += len(datagrams)
            return
        if not self._queue:
            self._loop.add_writer(self._socket.fileno(), self._on_writable)
        self._queue.append((datagrams, destination, local))
        self._queued += len(datagrams)

    def _on_writable(self) -> None:
        waiting, self._queue = self._queue, deque()
        self._queued = 0
        self._loop.remove_writer(self._socket.fileno())
        while waiting and not self._queue and not self._closed:
            datagrams, destination, local = waiting.popleft()
            self.send(datagrams, destination, local)
        for datagrams, destination, local in waiting:
            self._enqueue(datagrams, destination, local)
        if not self._queue and self.on_writable is not None:
            self.on_writable()
