"""CheckNetwork, as programs and `dep2pctl` call it."""

from __future__ import annotations

from tests.api_nodes import EventLog, api_nodes

from dep2p.v1 import network_pb2 as pb


async def test_a_node_without_public_peers_knows_nothing_and_says_so() -> None:
    async with api_nodes() as start:
        node = await start()
        steps = [step async for step in node.client.check_network()]
        assert all(step.progress for step in steps[:-1])
        assert len(steps) > 1
        report = steps[-1].report
        assert report.verdict == pb.NetworkReport.VERDICT_UNKNOWN
        assert report.summary
        assert not report.udp.HasField("works")
        assert report.udp.mapping == pb.MAPPING_UNKNOWN
        assert report.udp.filtering == pb.FILTERING_UNKNOWN
        assert not report.HasField("hairpin")
        assert report.reachability == pb.REACHABILITY_UNKNOWN


async def test_a_watch_begins_with_what_is_known_of_reachability() -> None:
    async with api_nodes() as start:
        node = await start()
        async with EventLog(node.client, "reachability_changed") as events:
            event = await events.wait("reachability_changed")
            assert event.snapshot
            assert event.reachability_changed.reachability == pb.REACHABILITY_UNKNOWN


async def test_without_autonat_the_check_still_works() -> None:
    async with api_nodes() as start:
        node = await start(nat={"autonat": False})
        assert not any("autonat" in one for one in (await node.client.get_node()).protocols)
        steps = [step async for step in node.client.check_network()]
        assert steps[-1].report.verdict == pb.NetworkReport.VERDICT_UNKNOWN
