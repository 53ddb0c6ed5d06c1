"""`dep2pctl why`: what was tried with a peer, in a table and as JSON."""

from __future__ import annotations

import asyncio

import pytest
from tests.e2e.lab_daemons import lab_daemons
from tests.e2e.processes import daemons
from tests.requires import require_natlab

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

STRANGER = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X"


async def test_direct_failed_and_never_tried() -> None:
    async with daemons() as start:
        one, other = await start("one"), await start("other")
        never = await one.ctl_json("why", STRANGER)
        assert (never["reason"], never["path"], never["dials"]) == ("NOT_TRIED", None, [])
        dead = other.address()
        await one.ctl_json("dial", dead)
        direct = await one.ctl_json("why", other.peer_id)
        assert (direct["reason"], direct["path"]) == ("DIRECT", "direct")
        (dial,) = direct["dials"]
        assert dial["connection_id"] == direct["connections"][0]["connection_id"]
        (attempt,) = dial["attempts"]
        assert attempt["outcome"] == "connected"
        assert f"{attempt['address']}/p2p/{other.peer_id}" == dead
        await other.kill()
        await one.ctl("disconnect", other.peer_id)
        assert (await one.ctl("dial", dead, "--timeout=20s")).code == 1
        gone = await one.ctl_json("why", other.peer_id)
        last = gone["dials"][-1]
        assert gone["path"] is None
        assert gone["reason"] == last["reason"] != ""
        assert gone["remedy"]
        assert last["attempts"][0]["outcome"] == "failed"
        for_people = (await one.ctl("why", other.peer_id)).text
        assert gone["reason"] in for_people
        assert attempt["address"] in for_people
        assert (await one.ctl("why", "nobody")).code == 2


async def test_two_symmetric_nats_are_the_reason_on_both_sides() -> None:
    require_natlab()
    async with lab_daemons("symmetric", "symmetric") as net:
        await net.alice.ctl_json("dial", net.circuit("alice", "bob"))
        for one, other in ((net.alice, net.bob), (net.bob, net.alice)):
            async with asyncio.timeout(40):
                while True:
                    told = await one.ctl_json("why", other.peer_id)
                    if told["punches"] and told["punches"][-1]["outcome"]:
                        break
                    await asyncio.sleep(0.3)
            assert told["path"] == "relayed"
            punch = told["punches"][-1]
            assert punch["outcome"] == "FAILED"
            assert told["reason"] == punch["reason"]
            assert told["verdict"].startswith("relayed: ")
            assert told["remedy"]
            assert punch["relay"] == net.relay.peer_id
            text = (await one.ctl("why", other.peer_id)).text
            assert "hole punch at" in text
            assert punch["reason"] in text
