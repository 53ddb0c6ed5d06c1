"""GetMetrics and `/metrics`: the same numbers in two forms, and what they count."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.api_nodes import api_nodes

import dep2p
from dep2p.v1 import node_service_pb2 as pb
from dep2p_daemon.errors import ConfigError
from dep2pctl.commands.metrics import exposition

if TYPE_CHECKING:
    from collections.abc import Iterable

CLI_PAGE = Path(__file__).resolve().parents[3] / "docs" / "cli.md"


def value(families: Iterable[pb.MetricFamily], name: str, **labels: str) -> float:
    family = next(one for one in families if one.name == name)
    return sum(
        sample.value for sample in family.samples if labels.items() <= dict(sample.labels).items()
    )


def parsed(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text: bytes = answer.read()
    return text.decode()


async def test_connections_streams_and_packets_are_counted() -> None:
    async with api_nodes() as start:
        alice, bob = await start(), await start()
        await alice.client.dial(bob.address())
        families = await alice.client.get_metrics()
        direct = {"path": "direct", "transport": "quic-v1", "direction": "outbound"}
        assert value(families, "dep2p_peers") == 1
        assert value(families, "dep2p_connections", **direct) == 1
        assert value(families, "dep2p_connections_opened_total", **direct) == 1
        packets = value(families, "dep2p_quic_packets_total", path="stock")
        assert packets > 4
        assert value(families, "process_resident_memory_bytes") > 1e6

        await alice.client.disconnect(bob.peer_id)
        families = await alice.client.get_metrics("dep2p_")
        assert value(families, "dep2p_connections") == 0
        assert value(families, "dep2p_connections_opened_total") == 1
        # What a connection counted stays when it has gone.
        assert value(families, "dep2p_quic_packets_total", path="stock") >= packets


async def test_a_prefix_selects_by_name() -> None:
    async with api_nodes() as start:
        node = await start()
        families = await node.client.get_metrics("dep2p_quic")
        assert [one.name for one in families] == ["dep2p_quic_packets_total"]
        assert families[0].type == pb.METRIC_TYPE_COUNTER
        assert await node.client.get_metrics("nothing_of_ours") == []


async def test_the_documented_metrics_are_those_that_there_are() -> None:
    text = CLI_PAGE.read_text().partition("### metrics\n")[2].partition("\n### ")[0]
    documented = {
        name: (kind, tuple(re.findall(r"`(\w+)`", labels.partition(";")[0])))
        for name, kind, labels in re.findall(r"^\| `(dep2p_\w+)` \| (\w+) \|(.*)\|$", text, re.M)
    }
    async with api_nodes() as start:
        relay = await start(relay_server={"enabled": True})
        families = await relay.client.get_metrics("dep2p_")
        assert {
            one.name: pb.MetricType.Name(one.type).removeprefix("METRIC_TYPE_").lower()
            for one in families
        } == {name: kind for name, (kind, _) in documented.items()}


async def test_the_web_server_says_the_same_as_the_api() -> None:
    async with api_nodes() as start:
        node = await start(metrics={"listen": "127.0.0.1:0"})
        assert node.daemon.metrics_server is not None
        port = node.daemon.metrics_server.port
        served = parsed(await asyncio.to_thread(scrape, port))
        printed = parsed("".join(exposition(await node.client.get_metrics())))
        assert set(served) == set(printed)
        # The process goes on meanwhile; what is ours stays.
        ours = {key for key in served if key[0].startswith("dep2p_")}
        assert ours
        assert {key: served[key] for key in ours} == {key: printed[key] for key in ours}
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(scrape, port)


async def test_readers_at_the_same_time_and_a_stop_beneath_them_do_no_harm() -> None:
    async with api_nodes() as start:
        node = await start(metrics={"listen": "127.0.0.1:0"})
        assert node.daemon.metrics_server is not None
        port = node.daemon.metrics_server.port
        texts = await asyncio.gather(*(asyncio.to_thread(scrape, port) for _ in range(8)))
        assert all("dep2p_build_info" in text for text in texts)
        last = asyncio.create_task(asyncio.to_thread(scrape, port))
        await asyncio.sleep(0)
    await asyncio.wait([last])
    last.exception()  # an answer or a broken connection, never a hanging stop


async def test_an_address_in_use_is_told_with_the_flag() -> None:
    async with api_nodes() as start:
        node = await start(metrics={"listen": "127.0.0.1:0"})
        assert node.daemon.metrics_server is not None
        taken = f"127.0.0.1:{node.daemon.metrics_server.port}"
        with pytest.raises(ConfigError, match="cannot be served") as caught:
            await start(metrics={"listen": taken})
        assert "--metrics" in caught.value.remedy


def test_texts_are_escaped_as_the_format_wants() -> None:
    family = pb.MetricFamily(
        name="dep2p_x_total",
        type=pb.METRIC_TYPE_COUNTER,
        help='back\\slash, "quotes"\nand a line',
        samples=[pb.MetricSample(labels={"a": 'x"\\\n', "b": "y"}, value=0.5)],
    )
    text = "".join(exposition([family]))
    (read,) = text_string_to_metric_families(text)
    assert read.documentation == family.help
    assert read.samples[0].labels == {"a": 'x"\\\n', "b": "y"}
    assert read.samples[0].value == 0.5


def test_the_client_needs_no_prometheus() -> None:
    assert "prometheus" not in (Path(dep2p.__file__).parent / "client.py").read_text()
