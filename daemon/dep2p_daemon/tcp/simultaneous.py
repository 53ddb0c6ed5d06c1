"""Two peers that connect to each other at the same time, each from its listening port (DCUtR).

https://github.com/libp2p/specs/blob/master/relay/DCUtR.md#the-protocol

If the two SYNs cross, TCP makes one connection of them (RFC 9293, section 3.5) and both
`connect` calls succeed. If one is early and gets through, it finds the other side's listening
socket. So who connected and who accepted says nothing of who is to begin the handshake: that is
agreed beforehand. A side that is to begin has to know its peer's connection when it is accepted,
which `Crossings` does, from the moment on when the peer may connect. A peer without such foresight
waits on such a connection as we do; after `PATIENCE` it is given up, for the next one to be made.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from dep2p_daemon.errors import PreconditionError, UnreachableError
from dep2p_daemon.tcp.sockets import connect_from, socket_address

if TYPE_CHECKING:
    import socket

    from dep2p_daemon.multiaddr import Multiaddr

RETRY_PAUSE: Final = 0.15
"""Seconds after a refused SYN; the other side may not have sent its own yet."""
MAX_TRIES: Final = 30
PATIENCE: Final = 2.0
"""Seconds that who is to begin the handshake has for it: a round trip or two, and by how much the
two sides act apart."""


class Crossings:
    """The peers whose connections we are to begin the handshake on, whoever connects."""

    def __init__(self) -> None:
        self._expected: dict[tuple[str, int], asyncio.Future[socket.socket]] = {}
        self._early: dict[tuple[str, int], asyncio.TimerHandle] = {}
        """Ends those that no `connect` has taken over yet."""

    def expect(self, address: Multiaddr, seconds: float) -> None:
        """Keep what comes from `address` before our `connect` for it, for so long."""
        where = _where(address)
        if (timer := self._early.pop(where, None)) is not None:
            timer.cancel()
        elif where in self._expected:
            return  # a dial that runs takes it
        loop = asyncio.get_running_loop()
        self._expected.setdefault(where, loop.create_future())
        self._early[where] = loop.call_later(seconds, self._give_up, where)

    def close(self) -> None:
        """Expect nobody before a `connect` any more, and close what is kept."""
        for where, timer in tuple(self._early.items()):
            timer.cancel()
            self._give_up(where)

    def _give_up(self, where: tuple[str, int]) -> None:
        del self._early[where]
        kept = self._expected.pop(where)
        kept.add_done_callback(_close_socket)
        kept.cancel()

    def take(self, sock: socket.socket, name: tuple[str, int]) -> bool:
        """Take an accepted socket that comes from where we connect to, or are about to."""
        future = self._expected.get((name[0].partition("%")[0], name[1]))
        if future is None or future.done():
            return False
        future.set_result(sock)
        return True

    async def connect(self, address: Multiaddr, source: tuple[str, int]) -> socket.socket:
        """Connect to `address` from `source`, or accept from there. The caller sets the deadline.

        Raises:
            UnreachableError: it was refused again and again.
            PreconditionError: such a dial runs already.
        """
        where = _where(address)
        if (timer := self._early.pop(where, None)) is not None:
            timer.cancel()
        elif where in self._expected:
            raise PreconditionError(f"{address} is being dialled already", reason="DIAL_RUNNING")
        accepted = self._expected.setdefault(where, asyncio.get_running_loop().create_future())
        dial = asyncio.create_task(connect_repeatedly(address, source))
        chosen: asyncio.Future[socket.socket] = dial
        done = False
        try:
            await asyncio.wait({dial, accepted}, return_when=asyncio.FIRST_COMPLETED)
            chosen = accepted if accepted.done() else dial
            done = True
            return chosen.result()
        finally:
            del self._expected[where]
            dial.cancel()
            for way in (dial, accepted):
                if way is not chosen or not done:
                    way.add_done_callback(_close_socket)
            accepted.cancel()


async def connect_repeatedly(address: Multiaddr, source: tuple[str, int]) -> socket.socket:
    """Connect to `address` from `source`, again after each refusal.

    Raises:
        UnreachableError: it was refused `MAX_TRIES` times.
    """
    for _ in range(MAX_TRIES - 1):
        try:
            return await connect_from(address, source)
        except OSError:
            await asyncio.sleep(RETRY_PAUSE)
    try:
        return await connect_from(address, source)
    except OSError as error:
        raise UnreachableError(
            f"cannot connect to {address}, tried {MAX_TRIES} times: {error.strerror or error}",
            reason="CONNECT_FAILED",
            address=address,
        ) from error


def _where(address: Multiaddr) -> tuple[str, int]:
    _, (host, port) = socket_address(address)
    return host.partition("%")[0], port


def _close_socket(way: asyncio.Future[socket.socket]) -> None:
    if not way.cancelled() and way.exception() is None:
        way.result().close()
