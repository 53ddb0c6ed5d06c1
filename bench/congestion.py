"""Congestion control on a simulated line: ours, aioquic's cubic, a sketch of BBR.

Run `python -m bench.congestion [--seconds 10] [--seeds 3]`. Virtual time: only the processor
decides how long it takes. Datagrams are 1400 bytes, on 1 Gbit/s 8900.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from unittest import mock

from aioquic.quic.congestion.base import register_congestion_control
from aioquic.quic.congestion.cubic import CubicCongestionControl
from tests.simulated_link import Reader, SimulatedLink, push, simulate
from typing_extensions import override

from bench.bbr import BBR, pace
from dep2p_daemon.quic.congestion import ALGORITHM, RunCongestionControl
from dep2p_daemon.quic.recovery import BulkPacket
from dep2p_daemon.quic.settings import QuicSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

RATES: Final = (10.0, 100.0, 1000.0)
ROUND_TRIPS: Final = (0.02, 0.1)
LOSSES: Final = (0.0, 0.01, 0.05)
BUFFERS: Final = (0.25, 1.0)
STOCK: Final = "stock-cubic"


class StockCubic(CubicCongestionControl, RunCongestionControl):
    """aioquic's, told of each packet of a run."""

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)

    @override
    def set_max_datagram_size(self, size: int) -> None:
        self._max_datagram_size = self.additive_increase_factor = size

    @override
    def on_run_acked(self, *, now: float, size: int, sent_time: float) -> None:
        while size > 0:
            packet = BulkPacket(0, sent_time, min(size, self._max_datagram_size), None, 0, 0, False)  # type: ignore[arg-type]
            self.on_packet_acked(now=now, packet=packet)
            size -= packet.sent_bytes


register_congestion_control(STOCK, StockCubic)


@dataclass(frozen=True)
class Cell:
    """A kind of line."""

    rate: float
    round_trip: float
    loss: float
    buffer: float

    @override
    def __str__(self) -> str:
        return (
            f"{self.rate:.0f} Mbit/s, {self.round_trip * 1000:.0f} ms, loss {self.loss:.0%}, "
            f"queue {self.buffer:g} BDP"
        )


@dataclass(frozen=True)
class Outcome:
    """What a transfer came to."""

    mbit: float
    """Of the whole time, slow start included."""
    late_mbit: float
    """Of the second half."""
    dropped: float
    """Share of the datagrams that found the queue full."""


def cells() -> Iterator[Cell]:
    """All of them."""
    for rate in RATES:
        for round_trip in ROUND_TRIPS:
            for loss in LOSSES:
                for buffer in BUFFERS:
                    yield Cell(rate, round_trip, loss, buffer)


async def transfer(cell: Cell, algorithm: str, seconds: float, seed: int) -> Outcome:
    """One stream for so long."""
    settings = QuicSettings(max_datagram_size=8900 if cell.rate >= 1000 else 1400)
    link = SimulatedLink(
        rate_mbit=cell.rate,
        round_trip=cell.round_trip,
        buffer_bdp=cell.buffer,
        loss=cell.loss,
        seed=seed,
        dialler=settings,
        listener=settings,
    )
    with mock.patch("dep2p_daemon.quic.context.ALGORITHM", algorithm):
        async with link:
            if algorithm == BBR:
                pace(link.recovery)
            ours, theirs = await link.stream()
            reader = Reader(theirs)
            tasks = [asyncio.create_task(push(ours)), asyncio.create_task(reader.run())]
            await asyncio.sleep(seconds / 2)
            first_half = reader.received
            await asyncio.sleep(seconds / 2)
            outcome = Outcome(
                reader.received * 8e-6 / seconds,
                (reader.received - first_half) * 16e-6 / seconds,
                link.forward.dropped / link.forward.sent,
            )
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            return outcome


def median(cell: Cell, algorithm: str, seconds: float, seeds: int) -> Outcome:
    """Of so many seeds; a line without losses has but one."""
    count = seeds if cell.loss else 1
    all_of_them = [
        simulate(transfer(cell, algorithm, seconds, seed)) for seed in range(1, count + 1)
    ]
    return Outcome(
        *(
            statistics.median(getattr(each, name) for each in all_of_them)
            for name in ("mbit", "late_mbit", "dropped")
        )
    )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--algorithms", nargs="+", default=[ALGORITHM, STOCK, BBR])
    parser.add_argument("--only", default="", help="part of a cell's name")
    options = parser.parse_args()
    print("| line | " + " | ".join(f"{name}: Mbit/s, late, dropped" for name in options.algorithms))
    for cell in cells():
        if options.only not in str(cell):
            continue
        outcomes = [
            median(cell, name, options.seconds, options.seeds) for name in options.algorithms
        ]
        told = [f"{each.mbit:.2f} | {each.late_mbit:.2f} | {each.dropped:.2%}" for each in outcomes]
        print(f"| {cell} | {' | '.join(told)} |", flush=True)


if __name__ == "__main__":
    main()
