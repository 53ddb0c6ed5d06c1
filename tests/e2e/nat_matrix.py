"""Every pair of networks in both dial directions: what a dial leads to, and how long it takes.

    .venv/bin/python -m tests.e2e.nat_matrix --runs runs.jsonl --write docs/nat-matrix.md

One laboratory for each kind of dialler: eight of them and one listener of each kind, all with
daemons of their own that have never heard of anybody but the relay. Those pairs that become
direct are dialled one after the other, so that each has the machine to itself; the others beside
them. The time is that of `dep2pctl dial --wait-direct` from its start to its end.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import datetime
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.e2e.lab_daemons import LINK, RELAY_PORT, LabNet, laboratory

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

KINDS: Final = (
    "none",
    "full-cone",
    "restricted-cone",
    "port-restricted",
    "symmetric",
    "cgnat",
    "udp-blocked",
    "ipv6-firewall",
)
PORT_FILTERING: Final = frozenset({"port-restricted", "symmetric", "cgnat", "udp-blocked"})
"""Let in only what comes from an address and port that was sent to."""
MEDIAN_SECONDS: Final = 3.0
"""From the dial to the direct path, with links of 20 ms."""
WAIT: Final = "10s"
RESERVED_SECONDS: Final = 30.0


def expected(one: str, other: str) -> str:
    """What a dial from `one` leads to: "direct", or the reason why it stays relayed."""
    pair = {one, other}
    if "ipv6-firewall" in pair and not pair <= {"ipv6-firewall", "none"}:
        return "NO_COMMON_IP_VERSION"
    if "symmetric" in pair and pair <= PORT_FILTERING:
        if pair == {"symmetric"}:
            return "BOTH_NATS_SYMMETRIC"
        return "OWN_NAT_SYMMETRIC" if one == "symmetric" else "PEER_NAT_SYMMETRIC"
    return "direct"


@dataclass(frozen=True)
class Cell:
    """One dial."""

    dialler: str
    listener: str
    outcome: str
    """ "direct", or the reason why the path stayed relayed."""
    transport: str
    """Of the connection, to the relay where it is relayed: "QUIC" or "TCP"."""
    seconds: float
    """Until `dep2pctl dial --wait-direct` had ended."""


async def row(dialler: str) -> list[Cell]:
    """Dial a listener of each kind from a dialler of this kind; each must echo."""
    hosts = {f"d{n}": dialler for n in range(len(KINDS))}
    hosts |= {f"l{n}": kind for n, kind in enumerate(KINDS)}
    async with laboratory(None, None, hosts=hosts, link=LINK) as net:
        relay = net.prepare("relay", "--preset=relay", f"--port={RELAY_PORT}")
        # All public hosts are in one IPv6 /64, which counts as one place.
        relay.config = f"[relay_server]\nmax_reservations_per_ip = {len(hosts)}\n"
        await relay.start()
        await asyncio.gather(*(_start(net, node) for node in hosts))
        others = [
            asyncio.create_task(_dial(net, dialler, number))
            for number, listener in enumerate(KINDS)
            if expected(dialler, listener) != "direct"
        ]
        try:
            cells = [
                await _dial(net, dialler, number)
                for number, listener in enumerate(KINDS)
                if expected(dialler, listener) == "direct"
            ]
            cells += await asyncio.gather(*others)
        finally:
            for task in others:
                task.cancel()
    return sorted(cells, key=lambda cell: KINDS.index(cell.listener))


async def _start(net: LabNet, node: str) -> None:
    daemon = await net.start(node, *(f"--relay={one}" for one in net.relay_addresses(node)))
    await daemon.wait_for_line("reservation made", RESERVED_SECONDS)


async def _dial(net: LabNet, dialler: str, number: int) -> Cell:
    node, other = f"d{number}", f"l{number}"
    circuit = net.circuit(node, other)
    began = time.monotonic()
    answer = await net.nodes[node].ctl_json("dial", circuit, "--wait-direct", WAIT)
    seconds = time.monotonic() - began
    direct = answer["path"] == "direct"
    await net.echo(node, net.nodes[other].peer_id if direct else circuit)
    return Cell(
        dialler=dialler,
        listener=KINDS[number],
        outcome="direct" if direct else answer["direct_failure"]["reason"],
        transport="TCP" if "/tcp/" in answer["remote_address"] else "QUIC",
        seconds=seconds,
    )


def median_of_direct(cells: Iterable[Cell]) -> float:
    """The median time of the dials that led to a direct path."""
    return statistics.median(cell.seconds for cell in cells if cell.outcome == "direct")


def table(cells: Sequence[Cell]) -> str:
    """The matrix in Markdown: a row for each dialler, the medians where there are several runs."""
    lines = [
        "| dialler ↓ listener → | " + " | ".join(KINDS) + " |",
        "| --- |" + " --- |" * len(KINDS),
    ]
    for dialler in KINDS:
        texts = []
        for listener in KINDS:
            here = [one for one in cells if (one.dialler, one.listener) == (dialler, listener)]
            texts.append(" / ".join(_texts(here)))
        lines.append(f"| **{dialler}** | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _texts(cells: Sequence[Cell]) -> list[str]:
    """One text for each outcome of a pair; more than one is a finding."""
    texts = []
    for outcome, transport in sorted({(one.outcome, one.transport) for one in cells}):
        seconds = [
            one.seconds for one in cells if (one.outcome, one.transport) == (outcome, transport)
        ]
        share = "" if len(seconds) == len(cells) else f" {len(seconds)} of {len(cells)}"
        name = f"direct {transport}" if outcome == "direct" else outcome
        texts.append(f"{name}{share} {statistics.median(seconds):.1f} s")
    return texts


def page(cells: Sequence[Cell]) -> str:
    """docs/nat-matrix.md."""
    direct = [cell for cell in cells if cell.outcome == "direct"]
    slowest = max(direct, key=lambda cell: cell.seconds)
    today = datetime.datetime.now(datetime.UTC).date()
    runs = len(cells) // len(KINDS) ** 2
    times = "once" if runs == 1 else f"{runs} times"
    where = f"{slowest.dialler} to {slowest.listener}"
    return f"""# Who reaches whom directly

Measured, not promised: written by `python -m tests.e2e.nat_matrix` on {today}, with real
daemons in the NAT laboratory (`tests/natlab/README.md` has the kinds), {os.cpu_count()} cores, and
links of 20 ms: 40 ms to the relay and back, 80 ms between the peers. Each pair {times}, none
repeated or left out, by nodes that have never heard of anybody but one relay. The time, the median
of the runs, is that of `dep2pctl dial ADDRESS --wait-direct 10s` with its own start: until there is
a direct path, or the answer that there will be none, and why. Every pair talked in the end.

A node can tell whether its NAT is symmetric when two IP addresses see it: two relays or public
peers, or one that has two, as the relay here. Otherwise the reason is `PUNCH_FAILED`.

Direct: {len(direct)} of {len(cells)} dials, in the median after {median_of_direct(cells):.2f} s.
The slowest took {slowest.seconds:.2f} s ({where}).

{table(cells)}
"""


async def matrix() -> list[Cell]:
    """All pairs, once; under three minutes on two cores."""
    return [cell for dialler in KINDS for cell in await row(dialler)]


def main() -> None:
    """Measure once more, add it to the runs before, and write the page of all of them."""
    parser = argparse.ArgumentParser(description="Measure who reaches whom directly.")
    parser.add_argument("--runs", type=Path, required=True, help="file that collects the runs")
    parser.add_argument("--write", type=Path, help="the page to write")
    arguments = parser.parse_args()
    cells = asyncio.run(matrix())
    with arguments.runs.open("a") as file:
        file.writelines(f"{json.dumps(dataclasses.asdict(cell))}\n" for cell in cells)
    all_cells = [Cell(**json.loads(line)) for line in arguments.runs.read_text().splitlines()]
    if arguments.write is not None:
        arguments.write.write_text(page(all_cells))
    sys.stdout.write(f"{table(all_cells)}\n")


if __name__ == "__main__":
    main()
