"""Links of all widths between two daemons: what they carry is found, and lost, and found again.

Routers that drop what is too large and say nothing (ICMP is dropped) are black holes: the worst
case for path MTU discovery, and common.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e.lab_daemons import laboratory
from tests.natlab.impairment import Impairment
from tests.requires import require_natlab

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.lab_daemons import LabNet

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(120)]

JUMBO = 9000
SILENCE = (
    "add table inet nomtu; add chain inet nomtu o { type filter hook output priority 0; }; "
    "add rule inet nomtu o icmp type destination-unreachable drop; "
    "add rule inet nomtu o icmpv6 type packet-too-big drop"
)


@pytest.fixture(autouse=True)
def machine() -> None:
    require_natlab()


@asynccontextmanager
async def two_daemons(mtu: int, *, silent: bool) -> AsyncIterator[LabNet]:
    """alice and bob, one router between them that says what is too large, or does not."""
    async with laboratory("none", "none", link=Impairment(mtu=mtu)) as net:
        if silent:
            run(net, "inet", "nft", SILENCE)
        for name in ("alice", "bob"):
            daemon = net.prepare(name, "--port=4001")
            daemon.config = "[perf]\nenabled = true\n"
            await daemon.start()
        yield net


def run(net: LabNet, node: str, *command: str) -> None:
    done = net.lab.run(node, command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def set_mtu(net: LabNet, node: str, device: str, mtu: int) -> None:
    run(net, node, "ip", "link", "set", device, "mtu", str(mtu))


def bob_at(net: LabNet, family: str) -> str:
    host = net.lab.address("bob") if family == "ip4" else net.lab.address6("bob")
    return f"/{family}/{host}/udp/4001/quic-v1/p2p/{net.bob.peer_id}"


async def connection(net: LabNet) -> dict[str, Any]:
    (found,) = await net.connections("alice", net.bob.peer_id)
    return found


async def upload(net: LabNet, megabytes: int) -> None:
    done = await net.alice.ctl(
        "perf", f"--upload={megabytes}MB", "--download=0", net.bob.peer_id, timeout=60
    )
    assert done.code == 0, f"{done.stderr}\n{net.alice.log_tail()}"


async def upload_while(net: LabNet, megabytes: int, *change: Any) -> None:
    """Upload, and set an MTU (node, device, mtu) once a tenth of it has gone."""
    before = int((await connection(net))["sent_bytes"])
    job = asyncio.create_task(upload(net, megabytes))
    while int((await connection(net))["sent_bytes"]) - before < megabytes * 100_000:
        assert not job.done()
    set_mtu(net, *change)
    assert not job.done()
    await job


async def test_each_link_is_used_as_it_is_and_as_it_becomes() -> None:
    async with two_daemons(JUMBO, silent=True) as net:
        await net.alice.ctl_json("dial", bob_at(net, "ip4"))
        await upload(net, 20)
        jumbo = await connection(net)
        assert jumbo["datagram_bytes"] == 8952

        # A tunnel takes the place of a router's link in mid-transfer: the connection lives on.
        await upload_while(net, 300, "inet", "bob", 1400)
        now = await connection(net)
        assert (now["connection_id"], now["datagram_bytes"]) == (jumbo["connection_id"], 1372)

        # Who comes later finds it so, over either family; and Ethernet as Ethernet.
        for mtu, *found in ((1400, 1372, 1352), (1280, 1232, 1232), (1500, 1452, 1452)):
            set_mtu(net, "inet", "bob", mtu)
            for family, size in zip(("ip4", "ip6"), found, strict=True):
                await net.alice.ctl("disconnect", net.bob.peer_id)
                await net.alice.ctl_json("dial", bob_at(net, family))
                await upload(net, 5)
                assert (await connection(net))["datagram_bytes"] == size, (mtu, family)


async def test_the_own_interface_becomes_narrow_and_a_router_that_says_so() -> None:
    async with two_daemons(JUMBO, silent=False) as net:
        await net.alice.ctl_json("dial", bob_at(net, "ip4"))
        await upload(net, 20)
        jumbo = await connection(net)
        assert jumbo["datagram_bytes"] == 8952
        (device,) = [wire.device for wire in net.lab.plan.wires if wire.node == "alice"]
        await upload_while(net, 300, "alice", device, 1400)
        now = await connection(net)
        assert (now["connection_id"], now["datagram_bytes"]) == (jumbo["connection_id"], 1372)

        # Its ICMP messages make the socket's next calls fail, whatever those send.
        await upload_while(net, 100, "inet", "bob", 1300)
        now = await connection(net)
        assert (now["connection_id"], now["datagram_bytes"]) == (jumbo["connection_id"], 1232)
