"""Measures what a laboratory does, with sockets in its nodes: mapping, filtering, punching.

This is what the self-test compares with `kinds.KINDS`; nothing of the daemon is in it.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import time
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tests.natlab.kinds import Filtering, Mapping

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.natlab.lab import Lab

Endpoint: TypeAlias = tuple[str, int]
LOCAL_SECONDS: Final = 1.0
"""By then a packet that comes at all has come, without a delay on the links."""
SILENCE_SECONDS: Final = 0.2
"""When one must not come."""


def receive(sock: socket.socket, timeout: float = LOCAL_SECONDS) -> tuple[bytes, Endpoint] | None:
    """The next datagram and who sent it; None if there is none in time."""
    sock.settimeout(timeout)
    try:
        data, sender = sock.recvfrom(2048)
    except (TimeoutError, BlockingIOError, ConnectionRefusedError):
        return None
    return data, sender[:2]


def drain(*sockets: socket.socket) -> None:
    """Forget what has come."""
    for sock in sockets:
        while receive(sock, 0) is not None:
            pass


def at(sock: socket.socket) -> Endpoint:
    """The local address and port of a socket."""
    name: tuple[Any, ...] = sock.getsockname()
    return name[0], name[1]


class Reflector:
    """Four sockets of the relay: two addresses of a family, two ports each."""

    def __init__(self, lab: Lab, *, ipv6: bool = False) -> None:
        addresses = [a for a in lab.addresses("relay") if (":" in a) == ipv6]
        self.sockets = {
            (number, port): lab.socket("relay", bind=(address, 0))
            for number, address in enumerate(addresses)
            for port in range(2)
        }
        self.first = self.sockets[0, 0]
        self._lab = lab
        self._any = "::" if ipv6 else "0.0.0.0"

    def client(self, host: str) -> socket.socket:
        """A new socket of a host, of this family."""
        return self._lab.socket(host, bind=(self._any, 0))

    def seen(
        self,
        sock: socket.socket,
        server: socket.socket | None = None,
        *,
        wait: float = LOCAL_SECONDS,
    ) -> Endpoint | None:
        """The address and port that a socket of the relay sees for `sock`."""
        server = server or self.first
        drain(server)
        sock.sendto(b"who", at(server))
        got = receive(server, wait)
        return got and got[1]


def mapping(lab: Lab, host: str, reflector: Reflector, *, wait: float = LOCAL_SECONDS) -> Mapping:
    """What the host's NATs do to a new socket's port, by RFC 4787, section 4.1."""
    sock = lab.socket(host, bind=("", 0))
    seen = {
        key: reflector.seen(sock, server, wait=wait) for key, server in reflector.sockets.items()
    }
    endpoints = set(seen.values())
    if None in endpoints:
        assert endpoints == {None}, f"{host}: packets were lost: {seen}"
        return Mapping.BLOCKED
    assert {endpoint[0] for endpoint in endpoints if endpoint} == {lab.public_address(host)}
    if endpoints == {(lab.address(host), at(sock)[1])}:
        return Mapping.NONE
    if len(endpoints) == 1:
        return Mapping.ENDPOINT_INDEPENDENT
    if len(endpoints) == 2 and seen[0, 0] == seen[0, 1] and seen[1, 0] == seen[1, 1]:
        return Mapping.ADDRESS_DEPENDENT
    assert len(endpoints) == 4, f"{host}: no known behaviour: {seen}"
    return Mapping.ADDRESS_AND_PORT_DEPENDENT


def filtering(
    lab: Lab, host: str, reflector: Reflector, *, wait: float = LOCAL_SECONDS
) -> Filtering:
    """Whose packets reach a socket that has sent to one endpoint, by RFC 4787, section 5."""
    stranger_reaches = _unsolicited(lab, host, reflector)
    sock = lab.socket(host, bind=("", 0))
    external = reflector.seen(sock, wait=wait)
    if external is None:
        return Filtering.BLOCKED
    reflector.sockets[0, 1].sendto(b"other port", external)
    reflector.sockets[1, 0].sendto(b"other address", external)
    reflector.first.sendto(b"last", external)  # on the same path, so it comes behind the others
    got = set()
    while b"last" not in got:
        packet = receive(sock)
        assert packet is not None, f"{host}: an answer was lost"
        got.add(packet[0])
    if b"other address" in got:
        return Filtering.NONE if stranger_reaches else Filtering.ENDPOINT_INDEPENDENT
    if b"other port" in got:
        return Filtering.ADDRESS_DEPENDENT
    return Filtering.ADDRESS_AND_PORT_DEPENDENT


def _unsolicited(lab: Lab, host: str, reflector: Reflector) -> bool:
    """Whether packets reach a socket that never sent one, at the port it is bound to."""
    sock = lab.socket(host, bind=("", 0))
    reflector.first.sendto(b"hello", (lab.public_address(host), at(sock)[1]))
    return receive(sock, SILENCE_SECONDS) is not None


def hairpin(lab: Lab, host: str, neighbour: str, reflector: Reflector) -> tuple[bool, bool]:
    """Two hosts of one LAN by their external addresses: (unasked, when both send) it arrives."""
    sock, other = (lab.socket(each, bind=("", 0)) for each in (host, neighbour))
    external, other_external = reflector.seen(sock), reflector.seen(other)
    assert external is not None
    assert other_external is not None
    sock.sendto(b"one", other_external)
    unasked = receive(other, SILENCE_SECONDS) is not None
    drain(sock, other)
    for _ in range(3):
        for each, target in ((sock, other_external), (other, external)):
            with contextlib.suppress(OSError):
                each.sendto(b"hi", target)
        there, back = receive(other, 0.05), receive(sock, 0.05)
        if there and back:
            assert (there[1], back[1]) == (external, other_external), "the source is not external"
            return unasked, True
    return unasked, False


def tcp_ports(lab: Lab, host: str, listeners: Iterable[socket.socket]) -> list[Endpoint]:
    """What listeners see as the source of TCP connections from one local port."""
    local = random.randrange(10000, 30000)
    seen = []
    for listener in listeners:
        client = lab.socket(host, socket.SOCK_STREAM, bind=("", local))
        client.settimeout(LOCAL_SECONDS * 2)
        listener.settimeout(LOCAL_SECONDS * 2)
        client.connect(at(listener))
        accepted, peer = listener.accept()
        with accepted:
            accepted.sendall(b"x")
            assert client.recv(1) == b"x"
            seen.append(peer[:2])
        client.close()
    return seen


def punch(
    first: str, second: str, reflector: Reflector, *, rounds: int = 4, wait: float = 0.03
) -> bool:
    """A plain UDP hole punch, `first` sending first; whether each heard the other."""
    sockets = {host: reflector.client(host) for host in (first, second)}
    external = {host: reflector.seen(sock, wait=SILENCE_SECONDS) for host, sock in sockets.items()}
    targets = {first: external[second], second: external[first]}
    heard: set[str] = set()
    try:
        if None in targets.values():
            return False
        for _ in range(rounds):
            for host, sock in sockets.items():
                with contextlib.suppress(OSError):
                    sock.sendto(b"punch", targets[host])  # type: ignore[arg-type]
            deadline = time.monotonic() + wait
            while len(heard) < 2 and (left := deadline - time.monotonic()) > 0:
                for ready in select.select(list(sockets.values()), (), (), left)[0]:
                    host = first if ready is sockets[first] else second
                    if (packet := receive(ready, 0)) is not None:
                        heard.add(host)
                        targets[host] = packet[1]  # answer where it came from
                        ready.sendto(b"punch", packet[1])
            if len(heard) == 2:
                break
    finally:
        for sock in sockets.values():
            sock.close()
    return len(heard) == 2


def tcp_punch(lab: Lab, first: str = "alice", second: str = "bob") -> bool:
    """A TCP simultaneous open from ports the relay has seen; whether both connect."""
    listener = lab.socket("relay", socket.SOCK_STREAM, bind=(lab.address("relay"), 0))
    listener.listen(4)
    listener.settimeout(LOCAL_SECONDS * 2)
    external, ports = {}, {}
    with contextlib.ExitStack() as kept:
        for host in (first, second):
            client = lab.socket(host, socket.SOCK_STREAM, bind=("", 0))
            client.connect(at(listener))
            accepted, external[host] = listener.accept()
            kept.enter_context(accepted)
            ports[host] = at(client)[1]
        sockets = []
        for host, other in ((first, second), (second, first)):
            sock = lab.socket(host, socket.SOCK_STREAM, bind=("", ports[host]))
            sock.setblocking(False)
            sock.connect_ex(external[other])
            sockets.append(sock)
        deadline = time.monotonic() + 2.5  # a SYN is repeated after one second
        connected: set[socket.socket] = set()
        while time.monotonic() < deadline and len(connected) < 2:
            pending = [sock for sock in sockets if sock not in connected]
            for sock in select.select((), pending, (), 0.1)[1]:
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    return False
                connected.add(sock)
        return len(connected) == 2
