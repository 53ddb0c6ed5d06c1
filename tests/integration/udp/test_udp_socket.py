"""The batched socket against the kernel."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any

import pytest
from tests.waiting import turns, until

from dep2p_daemon.errors import ConfigError
from dep2p_daemon.udp.options import SOL_UDP, UDP_SEGMENT
from dep2p_daemon.udp.settings import UdpSettings
from dep2p_daemon.udp.socket import UdpSocket

Open = Callable[..., UdpSocket]


@pytest.fixture
async def open_socket() -> Any:
    opened = []

    def open_one(host: str = "127.0.0.1", settings: UdpSettings | None = None) -> UdpSocket:
        opened.append(UdpSocket.open(host, 0, settings))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()
        each.close()


class Inbox:
    """What a socket received."""

    def __init__(self, udp: UdpSocket) -> None:
        self.datagrams: list[bytes] = []
        self.calls: list[tuple[int, Any, bytes | None]] = []
        udp.demultiplexer.set_quic_handler(self._take)

    def _take(self, datagrams: list[bytes], sender: Any, local: bytes | None) -> None:
        self.datagrams += datagrams
        self.calls.append((len(datagrams), sender, local))

    async def wait_for(self, count: int) -> list[bytes]:
        await until(lambda: len(self.datagrams) >= count)
        return self.datagrams


def numbered(count: int, size: int = 1400) -> list[bytes]:
    return [b"\x40" + number.to_bytes(4, "big") + bytes(size - 5) for number in range(count)]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "::"])
@pytest.mark.parametrize("offload", [True, False])
async def test_batches_arrive_whole_and_in_order(
    open_socket: Open, host: str, offload: bool
) -> None:
    sender = open_socket(host, UdpSettings(offload=offload))
    receiver = open_socket(host, UdpSettings(offload=offload))
    inbox = Inbox(receiver)
    loopback = "127.0.0.1" if receiver.family == socket.AF_INET else "::1"
    sent = [*numbered(100), b"\x40short", *numbered(3, 200)]
    assert sender.send(sent, receiver.address(loopback, receiver.port)) == 0
    assert await inbox.wait_for(len(sent)) == sent
    assert inbox.calls[0][1][:2] == (loopback, sender.port)
    local = socket.inet_pton(receiver.family, loopback) if receiver.is_wildcard else None
    assert inbox.calls[0][2] == local
    assert receiver.counters.received == sender.counters.sent == len(sent)
    assert receiver.counters.received_bytes == sum(map(len, sent))
    assert (len(inbox.calls) < 20) is offload


async def test_replies_leave_from_the_address_that_was_hit(open_socket: Open) -> None:
    server, client = open_socket("0.0.0.0"), open_socket()
    inbox, answers = Inbox(server), Inbox(client)
    client.send([b"\x40"], ("127.0.0.3", server.port))
    await inbox.wait_for(1)
    _, address, local = inbox.calls[0]
    for batch in ([b"\x40one"], numbered(5)):
        server.send(batch, address, local)
    await answers.wait_for(6)
    assert {sender for _, sender, _ in answers.calls} == {("127.0.0.3", server.port)}


async def test_icmp_names_the_unreachable(open_socket: Open) -> None:
    client, server = open_socket(), open_socket()
    inbox = Inbox(server)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as held:
        held.bind(("127.0.0.1", 0))
        closed = held.getsockname()
    told: asyncio.Future[tuple[Any, int]] = asyncio.get_running_loop().create_future()
    client.on_unreachable = lambda address, code: told.set_result((address, code))
    client.send([b"\x40"], closed)
    assert await told == (closed, errno.ECONNREFUSED)
    # The next datagrams are for somebody else and must not suffer for it.
    client.on_unreachable = None
    for _ in range(5):
        client.send([b"\x40"], closed)
        client.send(numbered(3), ("127.0.0.1", server.port))
        client.send([b"\x40"], closed)
        assert client.send([b"\x40"], ("127.0.0.1", server.port)) == 0
    assert len(await inbox.wait_for(20)) == 20


async def test_datagrams_beyond_the_mtu_are_counted_not_raised(open_socket: Open) -> None:
    client, server = open_socket(), open_socket()
    inbox = Inbox(server)
    target = ("127.0.0.1", server.port)
    too_big = b"\x40" + bytes(70_000)
    assert client.send([too_big, b"\x40fits", too_big], target) == errno.EMSGSIZE
    assert await inbox.wait_for(1) == [b"\x40fits"]
    assert client.counters.dropped_too_big == 2


class Faulty:
    """The real socket, but the kernel says no to what the test chooses."""

    def __init__(self, real: socket.socket) -> None:
        self.real = real
        self.batch_error: int | None = None
        self.blocked = False
        self.batches = 0

    def sendmsg(self, buffers: Any, ancillary: Any, flags: int, address: Any) -> int:
        if self.blocked:
            raise BlockingIOError
        if any(cmsg[:2] == (SOL_UDP, UDP_SEGMENT) for cmsg in ancillary):
            self.batches += 1
            if self.batch_error is not None:
                raise OSError(self.batch_error, "no")
        return self.real.sendmsg(buffers, ancillary, flags, address)

    def sendto(self, datagram: bytes, address: Any) -> int:
        if self.blocked:
            raise BlockingIOError
        return self.real.sendto(datagram, address)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def make_faulty(udp: UdpSocket) -> Faulty:
    faulty = Faulty(udp._socket)
    udp._socket = faulty  # type: ignore[assignment]
    return faulty


@pytest.mark.parametrize(
    ("code", "tried_again", "tried_elsewhere"),
    [
        (errno.EIO, False, True),
        (errno.EINVAL, False, True),
        (errno.EOPNOTSUPP, False, False),
        (errno.EMSGSIZE, True, True),
    ],
)
async def test_a_refused_batch_goes_out_singly(
    open_socket: Open,
    code: int,
    tried_again: bool,
    tried_elsewhere: bool,
) -> None:
    client, server, other = open_socket(), open_socket(), open_socket()
    inbox = Inbox(server)
    faulty = make_faulty(client)
    faulty.batch_error = code
    target = ("127.0.0.1", server.port)
    assert client.send(numbered(10), target) == 0
    assert await inbox.wait_for(10) == numbered(10)
    assert (client.counters.offload_refusals, faulty.batches) == (1, 1)
    client.send(numbered(10), target)
    assert await inbox.wait_for(20) == numbered(10) * 2
    assert faulty.batches == (2 if tried_again else 1)
    before = faulty.batches
    client.send(numbered(10), ("127.0.0.1", other.port))
    assert faulty.batches - before == tried_elsewhere


async def test_a_full_kernel_buffer_queues_then_drops_then_drains(
    open_socket: Open,
) -> None:
    client, server = open_socket(settings=UdpSettings(send_queue_datagrams=10)), open_socket()
    inbox = Inbox(server)
    drained: list[bool] = []
    client.on_writable = lambda: drained.append(True)
    faulty = make_faulty(client)
    faulty.blocked = True
    target = ("127.0.0.1", server.port)
    sent = numbered(12)
    assert client.send(sent[:4], target) == 0
    assert client.is_blocked
    assert client.send(sent[4:5], target) == 0
    client.send(sent[5:11], target)  # one more than fits
    assert client.counters.dropped_queue_full == 6
    await turns(5)
    assert client.is_blocked
    assert not drained
    faulty.blocked = False
    assert await inbox.wait_for(5) == sent[:5]
    assert drained == [True]
    assert not client.is_blocked
    client.send(sent[11:], target)
    assert (await inbox.wait_for(6))[-1] == sent[11]


async def test_one_wake_is_bounded(open_socket: Open) -> None:
    settings = UdpSettings(max_datagrams_per_wake=8, offload=False)
    sender, receiver = open_socket(), open_socket(settings=settings)
    inbox = Inbox(receiver)
    sender.send(numbered(50, 100), ("127.0.0.1", receiver.port))
    sizes = []
    while len(inbox.datagrams) < 50:
        before = len(inbox.datagrams)
        await asyncio.sleep(0)
        sizes.append(len(inbox.datagrams) - before)
    assert max(sizes) == 8


async def test_an_address_that_is_not_here(open_socket: Open) -> None:
    with pytest.raises(ConfigError) as caught:
        open_socket("203.0.113.77")
    assert "203.0.113.77" in caught.value.message
    assert caught.value.remedy


async def test_after_close_nothing_is_sent_or_raised(open_socket: Open) -> None:
    client = open_socket()
    client.close()
    assert client.is_closed
    assert client.send([b"\x40"], ("127.0.0.1", 9)) == errno.EBADF


async def test_ipv6_is_not_ipv4_in_disguise(open_socket: Open) -> None:
    v6 = open_socket("::")
    v4 = UdpSocket.open("0.0.0.0", v6.port)  # would clash without V6ONLY
    v4.close()
    assert v6.address("0:0:0:0:0:0:0:1", 5) == ("::1", 5, 0, 0)
    assert v6.address("fe80::1%1", 5) == ("fe80::1", 5, 0, 1)
    assert v6.address("fe80::1%lo", 5) == ("fe80::1", 5, 0, 1)
