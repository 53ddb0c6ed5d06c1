"""Daemons to measure: real `dep2pd` processes as the end-to-end tests start them, and /proc."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.processes import daemons

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.processes import Daemon

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")

PEER = "[perf]\nenabled = true\n"
DATAGRAMS_1400 = "max_datagram_size = 1400\n"
"""What most paths of the internet carry; bulk data over QUIC is measured with it."""
MANY_CONNECTIONS = """
[limits]
max_connections = 4000
max_inbound_connections = 4000
max_inbound_connections_per_ip = 4000
"""
RELAY = f"""
[relay_server]
max_reservations = 2000
max_reservations_per_ip = 2000
max_circuits = 200
max_circuits_per_source = 100
max_circuits_per_target = 100
rate = 0
{MANY_CONNECTIONS}"""


@dataclass(frozen=True)
class Usage:
    """What a process has used so far."""

    cpu_seconds: float
    resident_bytes: int

    @classmethod
    def of(cls, pid: int) -> Usage:
        """Read it from /proc; children that ended are not counted."""
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        cpu_seconds = (int(fields[11]) + int(fields[12])) / CLOCK_TICKS
        return cls(cpu_seconds, pages * os.sysconf("SC_PAGESIZE"))


@asynccontextmanager
async def network(*names: str, quic: str = "", limits: str = "") -> AsyncIterator[list[Daemon]]:
    """Start daemons by name: "relay" is a relay with raised limits, all others serve perf.

    `quic` are lines of the section of that name, for all of them; `limits` is that section of the
    others' configuration.
    """
    async with daemons() as start:
        started: list[Daemon] = []
        for name in names:
            daemon = start.prepare(name, "--log-level=info")
            daemon.config = RELAY if name == "relay" else PEER + limits
            daemon.config += f"\n[quic]\n{quic}"
            if name == "relay":
                daemon.flags = (*daemon.flags, "--preset=relay")
            await daemon.start()
            started.append(daemon)
        yield started
