"""Bad links: what the short way through QUIC carries where packets are lost, against aioquic's.

`python -m bench loss` (root) builds five laboratories of `tests/natlab`, one for each seed: alice
and bob with a line of 100 Mbit/s between them that delays and loses packets in both directions,
and on it two pairs of daemons, one with `quic.fast_path` and one without. A program at alice
writes to a stream for a fixed time, a program at bob reads it and watches the clock.

Where packets are lost, none of them comes near the line's rate: all ten transfers of a cell run
side by side. The cells without loss fill the line: there they run in turn, the order alternating.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tests.e2e.lab_daemons import laboratory
from tests.natlab.impairment import Impairment

import dep2p
from bench import report

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.lab_daemons import LabNet
    from tests.e2e.processes import Daemon

LOSSES: Final = (0.0, 1.0, 5.0)
ROUND_TRIPS: Final = (20.0, 100.0)
SEEDS: Final = (1, 2, 3, 4, 5)
RATE_MBIT: Final = 100.0
LOSSLESS_SECONDS: Final = 4.0
LOSSY_SECONDS: Final = 40.0
AT_LEAST: Final = 0.9
"""Of the stock path's throughput, in each cell."""
STALL_SECONDS: Final = 2.0
"""Without a byte for the reader: what an unlucky run of lost probes explains is shorter."""
PATHS: Final = ("fast", "stock")
_PROTOCOL: Final = "/bench/loss/1.0.0"
_TICK: Final = 0.02
_CHUNK: Final = bytes(64 * 1024)


@dataclass
class Transfer:
    """One stream, as its reader saw it."""

    megabits_per_second: float
    longest_gap: float
    """Seconds without a byte, the first byte's way included."""


@dataclass
class Cell:
    """One kind of link; transfers by path, in the order of the seeds."""

    loss_percent: float
    round_trip_ms: float
    fast: list[Transfer] = field(default_factory=list)
    stock: list[Transfer] = field(default_factory=list)
    own_pause: float = 0.0
    """Seconds for which the measuring process itself was not let run: no gap of the network's."""

    def transfers(self, path: str) -> list[Transfer]:
        """Those of one path."""
        return self.fast if path == "fast" else self.stock

    def median(self, path: str) -> float:
        """Median throughput of a path in Mbit/s."""
        return statistics.median(each.megabits_per_second for each in self.transfers(path))

    def longest_gap(self, path: str) -> float:
        """Of all seeds, in seconds."""
        return max(each.longest_gap for each in self.transfers(path))

    @property
    def ratio(self) -> float:
        """Fast by stock."""
        return self.median("fast") / self.median("stock")

    @property
    def verdict(self) -> str:
        """Whether the target holds."""
        if self.longest_gap("fast") - self.own_pause > STALL_SECONDS:
            return "MISSED: a stall"
        behind = f", {1 - self.ratio:.0%} behind" if self.ratio < 1 else ""
        return ("holds" if self.ratio >= AT_LEAST else "MISSED") + behind

    @property
    def row(self) -> str:
        """Its line of the table."""
        fast, stock = self.median("fast"), self.median("stock")
        samples = ", ".join(f"{each.megabits_per_second:.3g}" for each in self.fast)
        return (
            f"| {self.loss_percent:g} % | {self.round_trip_ms:g} ms | {fast:.3g} | {stock:.3g} "
            f"| {self.ratio:.2f} | {samples} | {self.longest_gap('fast'):.2f} s "
            f"| {self.longest_gap('stock'):.2f} s | {self.own_pause:.2f} s | {self.verdict} |"
        )

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        return asdict(self) | {
            "fast_median": self.median("fast"),
            "stock_median": self.median("stock"),
            "ratio": self.ratio,
            "fast_longest_gap": self.longest_gap("fast"),
            "stock_longest_gap": self.longest_gap("stock"),
            "verdict": self.verdict,
        }


@dataclass
class Pair:
    """A dialler and a listener."""

    ours: dep2p.Node
    offers: AsyncIterator[dep2p.Stream]
    """What comes to the listener."""
    peer_id: str
    address: str

    async def transfer(self, seconds: float) -> Transfer:
        """Write for so long over a new connection; what has been read by then counts."""
        connection = await self.ours.dial(self.address)
        if "/quic-v1" not in connection.remote_address:
            raise RuntimeError(f"not the connection to measure: {connection}")
        stream = await self.ours.open_stream(self.peer_id, [_PROTOCOL])
        begun = time.monotonic()
        writing = asyncio.create_task(_write(stream))
        try:
            return await _read(await anext(self.offers), begun, seconds)
        finally:
            writing.cancel()
            await asyncio.wait([writing])
            await stream.reset()
            await self.ours.disconnect(self.peer_id)


async def _write(stream: dep2p.Stream) -> None:
    while True:
        await stream.write(_CHUNK)


async def _read(stream: dep2p.Stream, begun: float, seconds: float) -> Transfer:
    received, last, longest = 0, begun, 0.0
    try:
        async with asyncio.timeout(begun + seconds - time.monotonic()):
            while True:
                received += len(await stream.read())
                now = time.monotonic()
                longest, last = max(longest, now - last), now
    except TimeoutError:
        await stream.reset()
    longest = max(longest, begun + seconds - last)
    return Transfer(received * 8 / 1e6 / seconds, longest)


def link(round_trip_ms: float, loss_percent: float) -> Impairment:
    """Half of the delay and all of the loss in each direction."""
    return Impairment(
        delay_ms=round_trip_ms / 2, loss_pct=loss_percent, rate_mbit=(RATE_MBIT, RATE_MBIT)
    )


async def _start(net: LabNet, node: str, path: str) -> Daemon:
    daemon = net.daemons.prepare(f"{node}-{path}", "--log-level=info")
    daemon.prefix, daemon.listen = net.lab.command(node), net.lab.address(node)
    daemon.config = f"[quic]\nfast_path = {'true' if path == 'fast' else 'false'}\n"
    await daemon.start()
    return daemon


async def _pair(stack: AsyncExitStack, net: LabNet, path: str) -> Pair:
    alice, bob = await asyncio.gather(*(_start(net, node, path) for node in ("alice", "bob")))
    ours = await stack.enter_async_context(dep2p.connect(alice.socket))
    theirs = await stack.enter_async_context(dep2p.connect(bob.socket))
    listener = await stack.enter_async_context(theirs.listen(_PROTOCOL))
    return Pair(ours, aiter(listener), bob.peer_id, bob.address("quic-v1"))


async def _watch_own_pauses(cell: Cell) -> None:
    while True:
        asleep = time.monotonic()
        await asyncio.sleep(_TICK)
        cell.own_pause = max(cell.own_pause, time.monotonic() - asleep - _TICK)


async def _measure(cell: Cell, rooms: list[dict[str, Pair]]) -> None:
    if cell.loss_percent:
        asked = [pair.transfer(LOSSY_SECONDS) for room in rooms for pair in room.values()]
        done = await asyncio.gather(*asked)
        for index, path in enumerate(PATHS):
            cell.transfers(path).extend(done[index :: len(PATHS)])
        return
    for number, room in enumerate(rooms):
        for path in PATHS if number % 2 else PATHS[::-1]:
            cell.transfers(path).append(await room[path].transfer(LOSSLESS_SECONDS))


async def run() -> list[Cell]:
    """Measure all cells; about four minutes."""
    cells = []
    async with AsyncExitStack() as stack:
        rooms, nets = [], []
        for seed in SEEDS:
            net = await stack.enter_async_context(
                laboratory("none", "none", link=Impairment(), links={"bob": link(2, 0)}, seed=seed)
            )
            nets.append(net)
            rooms.append({path: await _pair(stack, net, path) for path in PATHS})
        for round_trip in ROUND_TRIPS:
            for loss in LOSSES:
                for net in nets:
                    await asyncio.to_thread(net.lab.set_link, "bob", link(round_trip, loss))
                cell = Cell(loss, round_trip)
                watch = asyncio.create_task(_watch_own_pauses(cell))
                await _measure(cell, rooms)
                watch.cancel()
                cells.append(cell)
    return cells


def table(cells: list[Cell]) -> str:
    """The cells as a Markdown table; throughput in Mbit/s."""
    return "\n".join(
        [
            "| loss | round trip | fast path | stock path | ratio | fast, by seed "
            "| longest gap, fast | longest gap, stock | own pause | at least 0.9, no stall |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
            *(cell.row for cell in cells),
        ]
    )


def main() -> None:
    """Run, print, and keep it in docs/."""
    cells = asyncio.run(run())
    print(table(cells))
    report.write_section("lossy links", table(cells), "loss", [cell.as_json() for cell in cells])
