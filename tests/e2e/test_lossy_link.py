"""Bulk data between daemons in the laboratory, on the short way through QUIC (`quic.fast_path`).

`make bench-lab` compares its throughput with the stock path's, cell by cell.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest
from tests.e2e.lab_daemons import laboratory
from tests.natlab.impairment import Impairment
from tests.packet_paths import AT_LEAST, PacketPaths
from tests.requires import require_natlab

import dep2p

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.lab_daemons import LabNet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

BULK: Final = "/test/bulk/1.0.0"
GOOD, BAD = Impairment(delay_ms=5), Impairment(delay_ms=50, loss_pct=5)
MEGABYTES_8: Final = 8_000_000
MEGABYTE: Final = 1_000_000
"""Ten seconds at what 5 % of loss and a round trip of 100 ms leave."""
STALL_SECONDS: Final = 2.0


@pytest.fixture(autouse=True)
def machine() -> None:
    require_natlab()


async def transfer(ours: dep2p.Node, theirs: dep2p.Node, peer: str, size: int) -> float:
    """Send `size` bytes to a program at `peer`; returns the longest time without any of them."""
    async with theirs.listen(BULK) as listener, await ours.open_stream(peer, [BULK]) as stream:

        async def send() -> None:
            await stream.write(bytes(size))
            await stream.close_write()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send())
            async with await anext(aiter(listener)) as inbound:
                received, last, longest = 0, time.monotonic(), 0.0
                while data := await inbound.read():
                    now = time.monotonic()
                    received += len(data)
                    longest, last = max(longest, now - last), now
    assert received == size
    return longest


@contextlib.asynccontextmanager
async def three_daemons() -> AsyncIterator[tuple[LabNet, tuple[dep2p.Node, ...]]]:
    """alice and bob with public addresses and a relay, and a client of each."""
    async with (
        laboratory("none", "none", links={"alice": GOOD, "bob": GOOD}) as net,
        contextlib.AsyncExitStack() as stack,
    ):
        await net.start_relay()
        for name in ("alice", "bob"):
            daemon = net.prepare(name, f"--relay={net.relay_addresses(name)[0]}")
            # What is relayed stays relayed, and nothing but the transfer is counted.
            daemon.env |= {"DEP2P_NAT__HOLE_PUNCHING": "false", "DEP2P_NAT__AUTONAT": "false"}
            await daemon.start()
            assert (await daemon.ctl("wait", "relay", "--timeout=30s")).code == 0
        nodes = [
            await stack.enter_async_context(dep2p.connect(daemon.socket))
            for daemon in (net.alice, net.bob, net.relay)
        ]
        yield net, tuple(nodes)


@dataclass(frozen=True, kw_only=True)
class Bulk:
    """What a transfer from alice to bob showed."""

    longest_gap: float
    sender: PacketPaths
    receiver: PacketPaths
    relay: PacketPaths

    @property
    def relay_share_received(self) -> float:
        """Without what bob sent: acknowledgements."""
        stock = max(0, self.relay.received_stock - self.receiver.sent_stock)
        return self.relay.received_fast / (self.relay.received_fast + stock)

    @property
    def relay_share_sent(self) -> float:
        """Without what alice received: acknowledgements."""
        stock = max(0, self.relay.sent_stock - self.sender.received_stock)
        return self.relay.sent_fast / (self.relay.sent_fast + stock)


async def measured(nodes: tuple[dep2p.Node, ...], peer: str, size: int) -> Bulk:
    before = [await PacketPaths.of(node) for node in nodes]
    gap = await transfer(nodes[0], nodes[1], peer, size)
    after = [await PacketPaths.of(node) for node in nodes]
    sender, receiver, relay = (b - a for a, b in zip(before, after, strict=True))
    return Bulk(longest_gap=gap, sender=sender, receiver=receiver, relay=relay)


async def test_bulk_data_takes_the_short_way_and_loss_does_not_stall_it() -> None:
    async with three_daemons() as (net, nodes):
        circuit = net.circuit("alice", "bob")
        assert (await net.alice.ctl("dial", circuit, "--policy=relayed")).code == 0
        relayed = await measured(nodes, circuit, MEGABYTES_8)
        assert relayed.sender.share_sent >= AT_LEAST
        assert relayed.receiver.share_received >= AT_LEAST
        assert relayed.relay_share_received >= AT_LEAST
        assert relayed.relay_share_sent >= AT_LEAST

        host = net.lab.address("bob")
        address = next(each for each in net.bob.addresses if f"{host}/udp/" in each)
        assert (await net.alice.ctl("dial", address, "--policy=direct")).code == 0
        direct = await measured(nodes, net.bob.peer_id, MEGABYTES_8)
        assert direct.sender.share_sent >= AT_LEAST
        assert direct.receiver.share_received >= AT_LEAST

        # A new connection: the old one has a window that no such link would have let it have.
        assert (await net.alice.ctl("disconnect", net.bob.peer_id)).code == 0
        await asyncio.to_thread(net.lab.set_link, "bob", BAD)
        assert (await net.alice.ctl("dial", address, "--policy=direct")).code == 0
        lossy = await measured(nodes, net.bob.peer_id, MEGABYTE)
        assert lossy.longest_gap < STALL_SECONDS
        assert lossy.sender.sent_fast > lossy.sender.sent_stock
        assert lossy.receiver.received_fast > lossy.receiver.received_stock
