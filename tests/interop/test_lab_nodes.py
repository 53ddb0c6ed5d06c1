"""A js-libp2p node in the NAT laboratory: it reserves at our relay, and we dial it from a NAT."""

from __future__ import annotations

import pytest
from tests.e2e.lab_daemons import laboratory
from tests.interop.js_peer import JsPeer
from tests.requires import require_natlab

pytestmark = [pytest.mark.interop, pytest.mark.e2e, pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def machine() -> None:
    require_natlab()


@pytest.mark.parametrize("transport", ["quic", "tcp"])
async def test_a_public_js_node_is_dialled_from_behind_a_nat(transport: str) -> None:
    async with laboratory("symmetric", "none") as net:
        await net.start("alice")
        host = net.lab.address("bob")
        async with JsPeer(
            transports=[transport], host=host, port=4001, prefix=net.lab.command("bob")
        ) as js:
            connection = await net.alice.ctl_json("dial", js.address(transport))
            assert connection["path"] == "direct"
            assert f"/ip4/{host}/" in connection["remote_address"]
            assert (await net.alice.ctl("ping", js.peer_id, "--count=1")).code == 0
            seen = await js.identified(net.alice.peer_id)
            assert seen["agent_version"].startswith("dep2pd/")


async def test_a_js_node_behind_a_nat_is_reached_through_our_relay() -> None:
    async with laboratory("port-restricted", "symmetric") as net:
        await net.start_relay()
        await net.start_client("alice")
        reserve_at = next(address for address in net.relay_addresses("bob") if "/tcp/" in address)
        async with JsPeer(
            transports=["tcp"],
            listen=False,
            reserve_at=reserve_at,
            prefix=net.lab.command("bob"),
        ) as js:
            circuit = f"{net.relay_addresses('alice')[0]}/p2p-circuit/p2p/{js.peer_id}"
            connection = await net.alice.ctl_json("dial", circuit, "--policy=relayed")
            assert connection["path"] == "relayed"
            assert (await net.alice.ctl("ping", js.peer_id, "--count=1")).code == 0
