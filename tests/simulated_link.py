"""Two QUIC endpoints and a line between them, on virtual time: no sockets, no real second passes.

The line has a rate, a delay, a queue that drops what does not fit, and random loss. What runs on
it is the real driver with its timers; only the processors are nearly infinitely fast. `simulate`
runs it.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tests.virtual_time import VirtualTimeLoop

from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.quic.context import QuicContext
from dep2p_daemon.quic.driver import EndpointDriver
from dep2p_daemon.quic.settings import QuicSettings
from dep2p_daemon.udp.demultiplexer import Demultiplexer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from dep2p_daemon.muxed import Stream
    from dep2p_daemon.quic.connection import QuicConnection
    from dep2p_daemon.udp.demultiplexer import SocketAddress

HEADERS: Final = 28
"""Bytes of IPv4 and UDP before each datagram."""
COALESCING: Final = 0.00025
"""Seconds for which a receiver collects datagrams, as interrupts and GRO do."""


TURN: Final = 1e-6
"""Seconds of a turn of the loop: what is due in no time must not be due for ever."""

T = TypeVar("T")


class _SlowLoop(VirtualTimeLoop):
    def _run_once(self) -> None:
        self._clock.now += TURN
        super()._run_once()  # type: ignore[misc]


def simulate(scenario: Coroutine[Any, Any, T]) -> T:
    """Run `scenario` on virtual time."""
    with asyncio.Runner(loop_factory=_SlowLoop) as runner:
        return runner.run(scenario)


@dataclass(kw_only=True)
class Way:
    """One direction of a line."""

    rate: float
    """Bytes a second."""
    delay: float
    """Seconds, the queue not counted."""
    buffer: float
    """Bytes that the queue holds."""
    loss: float = 0.0
    """Share of the datagrams that vanish behind the queue."""
    seed: int = 1
    sent: int = 0
    """Datagrams that were handed to the line."""
    dropped: int = 0
    """Datagrams that found the queue full."""
    delivered_bytes: int = 0
    deliver: Callable[[list[bytes]], None] = field(default=lambda _datagrams: None)
    _free_at: float = 0.0
    _arriving: deque[tuple[float, bytes]] = field(default_factory=deque)
    _is_waiting: bool = False

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)

    def take(self, datagrams: Sequence[bytes]) -> None:
        """Queue, drop or lose datagrams."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for datagram in datagrams:
            self.sent += 1
            size = len(datagram) + HEADERS
            if (self._free_at - now) * self.rate + size > max(self.buffer, 2 * size):
                self.dropped += 1
                continue
            self._free_at = max(self._free_at, now) + size / self.rate
            if self._dice.random() >= self.loss:
                self._arriving.append((self._free_at + self.delay, datagram))
        self._wait(loop)

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._arriving and not self._is_waiting:
            self._is_waiting = True
            at = math.ceil(self._arriving[0][0] / COALESCING) * COALESCING
            loop.call_at(at, self._arrive)

    def _arrive(self) -> None:
        loop = asyncio.get_running_loop()
        self._is_waiting = False
        now, arrived = loop.time() + 1e-9, []
        while self._arriving and self._arriving[0][0] <= now:
            arrived.append(self._arriving.popleft()[1])
        self._wait(loop)
        if arrived:
            self.delivered_bytes += sum(map(len, arrived))
            self.deliver(arrived)


class LineSocket:
    """Stands in for a `UdpSocket` at one end of the line."""

    is_blocked = False
    is_closed = False

    def __init__(self, host: str, port: int, line: Way) -> None:
        self.host, self.port = host, port
        self.demultiplexer = Demultiplexer()
        self.on_writable: Any = None
        self.on_unreachable: Any = None
        self._line = line

    def send(
        self,
        datagrams: Sequence[bytes],
        _destination: SocketAddress,
        _local: bytes | None = None,
    ) -> int:
        self._line.take(datagrams)
        return 0

    def close(self) -> None:
        self.is_closed = True


class End:
    """One endpoint of the line."""

    def __init__(self, host: str, settings: QuicSettings, seed: int, line: Way) -> None:
        self.key = PrivateKey.from_seed(bytes([seed]) * 32)
        self.context = QuicContext.create(self.key, settings)
        self.address = (host, 4001)
        self.socket = LineSocket(*self.address, line)
        self.driver = EndpointDriver(self.context, self.socket)  # type: ignore[arg-type]

    def taker(self, sender: SocketAddress) -> Callable[[list[bytes]], None]:
        """Return what takes datagrams of `sender` in."""

        def take(datagrams: list[bytes]) -> None:
            self.driver.endpoint.receive(datagrams, sender, None)
            self.driver._schedule_flush()

        return take


class SimulatedLink:
    """A line with a dialler and a listener; an async context manager."""

    def __init__(
        self,
        *,
        rate_mbit: float,
        round_trip: float,
        buffer_bdp: float = 1.0,
        loss: float = 0.0,
        seed: int = 1,
        dialler: QuicSettings | None = None,
        listener: QuicSettings | None = None,
    ) -> None:
        """Both directions are alike, but that only `forward` loses at random.

        Args:
            rate_mbit: Mbit/s.
            round_trip: seconds.
            buffer_bdp: what the queue holds, in bandwidth-delay products.
            loss: 0 to 1.
            seed: of the losses.
            dialler: its settings.
            listener: its settings.
        """
        rate = rate_mbit * 1e6 / 8
        self.rate = rate
        self.bdp = rate * round_trip
        self.forward, self.back = (
            Way(
                rate=rate,
                delay=round_trip / 2,
                buffer=buffer_bdp * self.bdp,
                loss=each_loss,
                seed=seed,
            )
            for each_loss in (loss, 0.0)
        )
        settings = QuicSettings(max_datagram_size=1400)
        self.dialler = End("192.0.2.1", dialler or settings, 1, self.forward)
        self.listener = End("192.0.2.2", listener or settings, 2, self.back)

    async def __aenter__(self) -> SimulatedLink:
        accepted: asyncio.Queue[QuicConnection] = asyncio.Queue()

        def accept(connection: QuicConnection) -> bool:
            accepted.put_nowait(connection)
            return True

        self.forward.deliver = self.listener.taker(self.dialler.address)
        self.back.deliver = self.dialler.taker(self.listener.address)
        self.listener.driver.endpoint.on_accepted = accept
        self._accepted = accepted
        self.ours, self.theirs = await self.connect()
        return self

    async def connect(self) -> tuple[QuicConnection, QuicConnection]:
        """Make one more connection; the dialler's end and the listener's."""
        dialled = asyncio.get_running_loop().create_future()
        self.dialler.driver.endpoint.connect(
            self.listener.address,
            self.listener.key.peer_id,
            on_established=dialled.set_result,
            on_failed=dialled.set_exception,
        )
        self.dialler.driver.flush()
        return await dialled, await self._accepted.get()

    async def __aexit__(self, *_: object) -> None:
        for end in (self.dialler, self.listener):
            end.driver.close(0, "")

    @property
    def recovery(self) -> Any:
        """Loss recovery of the dialler."""
        return self.ours._session.quic._recovery

    async def stream(self) -> tuple[Stream, Stream]:
        """A stream of the dialler: its writing and its reading end."""
        ours = await self.ours.open_stream()
        await ours.write(b"!")
        theirs = await self.theirs.accept_stream()
        assert await theirs.read() == b"!"
        return ours, theirs


_BLOCK: Final = bytes(256 * 1024)


async def push(stream: Stream) -> None:
    """Write without end."""
    while True:
        await stream.write(_BLOCK)


class Reader:
    """Reads a stream without end, as fast as it comes or at a rate."""

    def __init__(self, stream: Stream, bytes_per_second: float | None = None) -> None:
        self.received = 0
        self._stream = stream
        self._rate = bytes_per_second

    async def run(self) -> None:
        while data := await self._stream.read(64 * 1024):
            self.received += len(data)
            if self._rate is not None:
                await asyncio.sleep(len(data) / self._rate)
