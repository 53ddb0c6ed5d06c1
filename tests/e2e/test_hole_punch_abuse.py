"""A hostile peer tells a real daemon whom to send packets to: what leaves its machine."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.e2e import hostile_peer
from tests.e2e.lab_daemons import LabNet, laboratory
from tests.e2e.processes import environment
from tests.requires import require_natlab

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

HERE = Path(__file__).parent
MAX_ADDRESSES = 8
MAX_IPS = 2
ROUNDS_ALLOWED = 14
"""Twelve in a row, and one per ten seconds."""
PACKETS = 320
"""The budget of one attempt: eight addresses, forty packets each."""


@pytest.fixture(autouse=True)
def machine() -> None:
    require_natlab()


@contextlib.asynccontextmanager
async def program(
    net: LabNet, node: str, script: str, *args: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *net.lab.command(node),
        sys.executable,
        HERE / script,
        *args,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment(),
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    text = (await process.stdout.readline()).decode().strip()
    assert text, "the program ended"
    return text


async def test_few_addresses_few_packets_and_none_that_must_not_be_dialled() -> None:
    async with laboratory("port-restricted", "none") as net:
        await net.start_relay()
        alice = await net.start_client("alice")
        relay = net.relay_addresses("bob")[0]
        async with (
            program(net, "bob", "hostile_peer.py", relay) as hostile,
            program(net, "alice", "packet_count.py") as sniffer,
        ):
            peer_id = await line(hostile)
            assert await line(sniffer) == "ready"
            circuit = f"{net.relay_addresses('alice')[0]}/p2p-circuit/p2p/{peer_id}"
            answer = await alice.ctl_json("dial", circuit)
            assert answer["path"] == "relayed"
            refused = []
            while (said := await line(hostile)) != "done":
                refused.append(said)
            # Rounds without end meet the limit.
            assert len(refused) >= hostile_peer.ROUNDS - ROUNDS_ALLOWED
            assert sniffer.stdin is not None
            sniffer.stdin.close()
            counts: dict[str, int] = json.loads(await line(sniffer))
        theirs = {str(net.lab.address("relay"))} | set(net.lab.addresses("relay"))
        sent = {
            tuple(where.split()): count
            for where, count in counts.items()
            if where.split()[1] not in theirs and not where.split()[1].startswith("127.")
        }
        forbidden = {
            ("tcp" if "tcp" in one.protocols else "udp", str(one.ip), str(one.port))
            for one in hostile_peer.FORBIDDEN
        }
        # The daemon's own traffic: mDNS, and the search for a router that maps ports.
        own = {("udp", "239.255.255.250", "1900")}
        own |= {("udp", "192.168.1.1", port) for port in ("5351", "1900")}
        punched = {w: n for w, n in sent.items() if w[2] != "5353" and w not in own}
        assert not forbidden & punched.keys()
        assert 0 < len(punched) <= MAX_ADDRESSES, punched
        assert len({where[1] for where in punched}) <= MAX_IPS
        assert all(ipaddress.ip_address(where[1]).is_global for where in punched)
        assert sum(punched.values()) <= PACKETS, punched
        # It lives, and serves.
        assert (await alice.ctl("status")).code == 0
