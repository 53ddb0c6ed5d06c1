"""The installed programs as scripts use them: a relay, a listener and a dialler, driven by
`dep2pctl`. What `docs/cli.md` promises is checked here against real daemons."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from tests.e2e.processes import daemons

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.processes import Daemon, Daemons

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

ECHO = "/dep2p/echo/1.0.0"
STRANGER = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
ALL_BYTES = bytes(range(256)) * 1024


@dataclass
class Trio:
    """The cast of the seed."""

    start: Daemons
    relay: Daemon
    listener: Daemon
    dialler: Daemon

    @property
    def circuit_address(self) -> str:
        """How the listener is reached through the relay."""
        return f"{self.relay.address()}/p2p-circuit/p2p/{self.listener.peer_id}"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def trio() -> AsyncIterator[Trio]:
    async with daemons() as start:
        relay = await start("relay", "--preset=relay")
        listener = await start("listener", f"--relay={relay.address()}")
        listener_ready = await listener.ctl("wait", "relay", "--timeout=20s")
        assert listener_ready.code == 0, listener_ready.stderr
        dialler = start.prepare("dialler")
        # It would reserve at the relay too, as a node does that wants to be reached.
        dialler.env["DEP2P_RELAY_CLIENT__WANTED"] = "0"
        await dialler.start()
        yield Trio(start, relay, listener, dialler)


@pytest_asyncio.fixture(loop_scope="module")
async def relayed(trio: Trio) -> Trio:
    """The trio, with dialler and listener connected through the relay."""
    dialled = await trio.dialler.ctl("dial", trio.circuit_address)
    assert dialled.code == 0, dialled.stderr
    return trio


async def test_id_tells_peer_id_and_full_addresses(trio: Trio) -> None:
    value = await trio.relay.ctl_json("id")
    assert value.keys() == {"schema_version", "peer_id", "addresses"}
    assert value["schema_version"] == 1
    assert value["peer_id"] == trio.relay.peer_id
    assert value["addresses"] == trio.relay.addresses
    assert all(address.endswith(f"/p2p/{trio.relay.peer_id}") for address in value["addresses"])
    for_people = (await trio.relay.ctl("id")).text
    assert trio.relay.peer_id in for_people.splitlines()[0]


async def test_a_listeners_circuit_address_is_among_its_addresses(trio: Trio) -> None:
    assert trio.circuit_address in (await trio.listener.ctl_json("id"))["addresses"]


async def test_status_tells_what_the_node_does(trio: Trio) -> None:
    relay = await trio.relay.ctl_json("status")
    assert relay["preset"] == "relay"
    assert relay["relay_server_enabled"] is True
    assert relay["reservation_count"] == 1
    assert relay["process_id"] == trio.relay.pid
    assert "/libp2p/circuit/relay/0.2.0/hop" in relay["protocols"]
    assert "reservations" in (await trio.relay.ctl("status")).text


async def test_dial_through_the_relay(trio: Trio) -> None:
    await trio.dialler.ctl("disconnect", trio.listener.peer_id)
    value = await trio.dialler.ctl_json("dial", trio.circuit_address)
    assert value["peer_id"] == trio.listener.peer_id
    assert value["path"] == "relayed"
    assert value["relay"] == trio.relay.peer_id
    assert value["remote_address"].endswith(f"/p2p/{trio.relay.peer_id}/p2p-circuit")
    assert value["rtt_ms"] > 0
    assert value["limits"] is None
    again = await trio.dialler.ctl_json("dial", trio.listener.peer_id, "--policy=relayed")
    assert again["connection_id"] == value["connection_id"]
    assert "relayed" in (await trio.dialler.ctl("dial", trio.circuit_address)).text


async def test_dial_directly(trio: Trio) -> None:
    value = await trio.dialler.ctl_json("dial", trio.relay.address("tcp"), "--policy=direct")
    assert value["path"] == "direct"
    assert value["relay"] is None


async def test_peers_and_connections_list_both(relayed: Trio) -> None:
    peers = {p["peer_id"]: p for p in (await relayed.dialler.ctl_json("peers"))["peers"]}
    assert peers[relayed.listener.peer_id]["path"] == "relayed"
    assert peers[relayed.relay.peer_id]["path"] == "direct"
    one = await relayed.dialler.ctl_json("peers", relayed.listener.peer_id)
    assert one["connected"] is True
    assert ECHO in one["protocols"]
    listed = (await relayed.dialler.ctl_json("connections"))["connections"]
    assert relayed.listener.peer_id in [connection["peer_id"] for connection in listed]
    table = (await relayed.dialler.ctl("connections", relayed.listener.peer_id)).text
    assert table.startswith("ID ")
    assert relayed.listener.peer_id in table
    assert relayed.relay.peer_id in table.splitlines()[1]  # never folded, never cut


async def test_ping_replies_line_by_line_with_a_summary(relayed: Trio) -> None:
    done = await relayed.dialler.ctl(
        "-o", "json", "ping", relayed.listener.peer_id, "--count=3", "--interval=10ms"
    )
    lines = [json.loads(line) for line in done.text.splitlines()]
    assert done.code == 0
    assert [line.get("sequence") for line in lines] == [1, 2, 3, None]
    assert {line["path"] for line in lines[:3]} == {"relayed"}
    assert lines[3]["summary"]["count"] == 3


async def test_a_stream_carries_any_bytes_both_ways(relayed: Trio) -> None:
    done = await relayed.dialler.ctl("stream", relayed.listener.peer_id, ECHO, stdin=ALL_BYTES)
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout == ALL_BYTES


async def test_a_reader_that_has_enough_ends_a_stream_quietly(relayed: Trio) -> None:
    async with relayed.dialler.ctl_running("stream", relayed.listener.peer_id, ECHO) as streaming:
        assert streaming.stdin is not None
        assert streaming.stdout is not None
        streaming.stdin.write(b"x" * 100)
        assert await streaming.stdout.readexactly(100)
        streaming.stdout._transport.close()  # type: ignore[attr-defined]  # a closed pipe
        streaming.stdin.write(b"y" * 100)
        assert await asyncio.wait_for(streaming.wait(), 20) == 0
        assert streaming.stderr is not None
        assert await streaming.stderr.read() == b""


async def test_two_shells_talk_through_listen_and_stream(relayed: Trio) -> None:
    protocol = "/test/talk/1.0.0"
    async with relayed.listener.ctl_running("listen", protocol) as listening:
        assert listening.stderr is not None
        assert await listening.stderr.readline() == f"listening: {protocol}\n".encode()
        async with relayed.dialler.ctl_running(
            "stream", relayed.listener.peer_id, protocol
        ) as dialling:
            assert listening.stdin is not None
            assert listening.stdout is not None
            assert dialling.stdin is not None
            assert dialling.stdout is not None
            dialling.stdin.write(b"question\n")
            assert await listening.stdout.readline() == b"question\n"
            # Half-closed by the dialler, the other half still works.
            dialling.stdin.close()
            assert await listening.stdout.read() == b""
            listening.stdin.write(b"answer\n")
            listening.stdin.close()
            assert await dialling.stdout.read() == b"answer\n"
            assert await dialling.wait() == 0
        assert await listening.wait() == 0
        assert relayed.dialler.peer_id.encode() in await listening.stderr.read()


async def test_listen_echo_serves_stream_after_stream(relayed: Trio) -> None:
    protocol = "/test/echo/1.0.0"
    async with relayed.listener.ctl_running("-o", "json", "listen", protocol, "--echo") as serving:
        assert serving.stdout is not None
        assert json.loads(await serving.stdout.readline())["event"] == "listening"
        for text in (b"one", b"two"):
            done = await relayed.dialler.ctl(
                "stream", relayed.listener.peer_id, protocol, stdin=text
            )
            assert (done.code, done.stdout) == (0, text)
            opened = json.loads(await serving.stdout.readline())
            assert opened["event"] == "stream_opened"
            assert opened["stream"]["connection"]["peer_id"] == relayed.dialler.peer_id
            assert opened["stream"]["protocol"] == protocol
            closed = json.loads(await serving.stdout.readline())
            assert closed["event"] == "stream_closed"
            assert (closed["received_bytes"], closed["sent_bytes"]) == (3, 3)
            assert closed["error"] is None
        serving.send_signal(signal.SIGINT)
        assert await serving.wait() == 130


async def test_listen_exec_runs_a_program_for_each_stream(relayed: Trio) -> None:
    protocol = "/test/exec/1.0.0"
    command = """sh -c 'tr a-z A-Z; echo "$DEP2PCTL_PEER $DEP2PCTL_PATH"'"""
    async with relayed.listener.ctl_running(
        "listen", protocol, "--exec", command, "--allow", relayed.dialler.peer_id
    ) as serving:
        assert serving.stdout is not None
        await serving.stdout.readline()
        done = await relayed.dialler.ctl(
            "stream", relayed.listener.peer_id, protocol, stdin=b"loud\n"
        )
        assert done.text == f"LOUD\n{relayed.dialler.peer_id} relayed\n"
        assert done.code == 0


async def test_a_failing_program_resets_the_stream_and_stream_says_so(relayed: Trio) -> None:
    protocol = "/test/fails/1.0.0"
    async with relayed.listener.ctl_running(
        "listen", protocol, "--exec", "sh -c 'exit 7'", "--allow-any"
    ) as serving:
        assert serving.stdout is not None
        await serving.stdout.readline()
        done = await relayed.dialler.ctl("-o", "json", "stream", relayed.listener.peer_id, protocol)
        assert done.code == 1
        assert json.loads(done.stderr)["error"]["reason"] == "STREAM_RESET"
        await serving.stdout.readline()
        assert b"ended with 7" in await serving.stdout.readline()


async def test_who_is_not_allowed_gets_nothing(relayed: Trio) -> None:
    protocol = "/test/private/1.0.0"
    async with relayed.listener.ctl_running(
        "listen", protocol, "--echo", "--allow", STRANGER
    ) as serving:
        assert serving.stdout is not None
        await serving.stdout.readline()
        done = await relayed.dialler.ctl(
            "stream", relayed.listener.peer_id, protocol, stdin=b"let me in"
        )
        assert done.code == 1
        assert done.stdout == b""


async def test_a_protocol_has_one_server(trio: Trio) -> None:
    protocol = "/test/taken/1.0.0"
    async with trio.listener.ctl_running("listen", protocol, "--echo") as serving:
        assert serving.stdout is not None
        await serving.stdout.readline()
        done = await trio.listener.ctl("listen", protocol, "--echo")
        assert done.code == 1
        assert protocol in done.stderr


async def test_perf_measures_when_the_peer_serves_it(relayed: Trio) -> None:
    refused = await relayed.dialler.ctl("perf", relayed.listener.peer_id)
    assert refused.code == 1
    assert "hint: " in refused.stderr
    server = relayed.start.prepare("perf")
    server.config = "[perf]\nenabled = true\n"
    await server.start()
    done = await relayed.dialler.ctl(
        "-o", "json", "perf", server.address(), "--upload=2MB", "--download=1MB"
    )
    assert done.code == 0, done.stderr
    last = json.loads(done.text.splitlines()[-1])
    assert last["final"] is True
    assert (last["uploaded_bytes"], last["downloaded_bytes"]) == (2_000_000, 1_000_000)
    assert last["upload_bytes_per_second"] > 0
    for_people = await relayed.dialler.ctl("perf", server.peer_id, "--upload=1MB", "--download=0")
    assert "Mbit/s" in for_people.text


async def test_events_begin_with_the_state_and_go_on(trio: Trio) -> None:
    async with trio.relay.ctl_running(
        "-o", "json", "events", "--type", "connection_opened", "--type", "connection_closed"
    ) as watching:
        assert watching.stdout is not None
        first = json.loads(await watching.stdout.readline())
        assert first["schema_version"] == 1
        assert first["type"] == "connection_opened"
        assert first["snapshot"] is True
        newcomer = await trio.start("newcomer")
        await newcomer.ctl("dial", trio.relay.address())
        while (event := json.loads(await watching.stdout.readline()))["snapshot"]:
            pass
        assert event["connection_opened"]["peer_id"] == newcomer.peer_id
        await newcomer.stop()
        event = json.loads(await watching.stdout.readline())
        assert event["type"] == "connection_closed"
        assert event["connection_closed"]["connection"]["peer_id"] == newcomer.peer_id
        watching.send_signal(signal.SIGINT)
        assert await watching.wait() == 130


async def test_a_reader_that_has_enough_ends_events_quietly(trio: Trio) -> None:
    async with trio.relay.ctl_running("events") as watching:
        assert watching.stdout is not None
        await watching.stdout.readline()
        transport = watching.stdout._transport  # type: ignore[attr-defined]  # a closed pipe
        transport.close()
        newcomer = await trio.start("newcomer")
        await newcomer.ctl("dial", trio.relay.address())
        await newcomer.stop()
        assert await asyncio.wait_for(watching.wait(), 20) == 0
        assert watching.stderr is not None
        assert await watching.stderr.read() == b""


async def test_wait_is_0_when_it_holds(relayed: Trio) -> None:
    for condition in (
        ("ready",),
        ("peer", relayed.listener.peer_id),
        ("direct", relayed.relay.peer_id),
    ):
        value = await relayed.dialler.ctl_json("wait", *condition, "--timeout=10s")
        assert value["condition"] == condition[0]
    assert (await relayed.listener.ctl("wait", "relay", relayed.relay.peer_id)).code == 0


async def test_wait_is_4_at_the_deadline_and_says_what_is_missing(relayed: Trio) -> None:
    for condition, why in (
        (("relay",), "no relay is configured"),
        (("peer", STRANGER), "is not connected"),
        (("direct", relayed.listener.peer_id), "is connected through a relay only"),
    ):
        done = await relayed.dialler.ctl("wait", *condition, "--timeout=300ms")
        assert done.code == 4, done.stderr
        assert why in done.stderr


async def test_wait_sees_what_comes_later(trio: Trio) -> None:
    await trio.dialler.ctl("disconnect", trio.listener.peer_id)
    async with trio.dialler.ctl_running("wait", "peer", trio.listener.peer_id) as waiting:
        await trio.dialler.ctl("dial", trio.circuit_address)
        assert await asyncio.wait_for(waiting.wait(), 20) == 0


async def test_relays_come_and_go(trio: Trio) -> None:
    held = await trio.dialler.ctl_json("relay", "connect", trio.relay.address())
    assert held["state"] == "reserved"
    assert held["peer_id"] == trio.relay.peer_id
    assert (
        f"{trio.relay.address()}/p2p-circuit/p2p/{trio.dialler.peer_id}"
        in (held["circuit_addresses"])
    )
    (listed,) = (await trio.dialler.ctl_json("relay", "list"))["relays"]
    assert listed["state"] == "reserved"
    assert "reserved" in (await trio.dialler.ctl("relay", "list")).text
    assert (await trio.dialler.ctl("relay", "disconnect", trio.relay.peer_id)).code == 0
    assert (await trio.dialler.ctl_json("relay", "list"))["relays"] == []


async def test_disconnect_counts_what_it_closed(relayed: Trio) -> None:
    value = await relayed.dialler.ctl_json("disconnect", relayed.listener.peer_id)
    assert value["closed_count"] == 1
    assert (await relayed.dialler.ctl("disconnect", relayed.listener.peer_id)).code in (0, 1)


async def test_the_seeds_wrong_addresses_are_usage_errors_with_the_right_form(trio: Trio) -> None:
    relay = trio.relay.address()
    without_peer_id = relay.removesuffix(f"/p2p/{trio.relay.peer_id}")
    without_circuit = f"{relay}/p2p/{trio.listener.peer_id}"
    for address, right_form in (
        (without_peer_id, f"{without_peer_id}/p2p/"),
        (without_circuit, trio.circuit_address),
    ):
        done = await trio.dialler.ctl("dial", address)
        assert done.code == 2
        assert right_form in done.stderr
        assert "hint: " in done.stderr


async def test_a_target_without_reservation_in_the_seeds_words(trio: Trio) -> None:
    done = await trio.dialler.ctl("dial", f"{trio.relay.address()}/p2p-circuit/p2p/{STRANGER}")
    assert done.code == 1
    assert "target peer not connected to relay" in done.stderr
    assert "hint: " in done.stderr


async def test_a_relay_that_is_not_there_names_address_time_and_what_to_check(trio: Trio) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"/ip4/127.0.0.1/udp/{silent.getsockname()[1]}/quic-v1/p2p/{STRANGER}"
        done = await trio.dialler.ctl("relay", "connect", address, "--timeout=2s")
        assert done.code == 4, done.stderr
        assert address.rpartition("/p2p/")[0] in done.stderr
        assert " s" in done.stderr
        assert "firewall" in done.stderr
        done = await trio.dialler.ctl("dial", address, "--timeout=1s")
        assert done.code == 4, done.stderr
    await trio.dialler.ctl("relay", "disconnect", STRANGER)


async def test_a_full_relay_is_a_refusal_that_names_itself(trio: Trio) -> None:
    full = trio.start.prepare("full", "--preset=relay")
    full.env = {"DEP2P_RELAY_SERVER__MAX_RESERVATIONS": "0"}
    await full.start()
    done = await trio.dialler.ctl("-o", "json", "relay", "connect", full.address())
    assert done.code == 5, done.stderr
    error = json.loads(done.stderr)["error"]
    assert error["exit_code"] == 5
    assert error["reason"] == "RESERVATION_REFUSED"
    assert error["remedy"]
    await trio.dialler.ctl("relay", "disconnect", full.peer_id)


async def test_limits_of_a_relay_are_announced(trio: Trio) -> None:
    limited = trio.start.prepare("limited", "--preset=relay")
    limited.env = {
        "DEP2P_RELAY_SERVER__CIRCUIT_DATA": "1MB",
        "DEP2P_RELAY_SERVER__CIRCUIT_DURATION": "90s",
    }
    await limited.start()
    held = await trio.listener.ctl_json("relay", "connect", limited.address())
    assert held["limits"]["data_bytes"] == 1_000_000
    await trio.dialler.ctl("disconnect", trio.listener.peer_id)
    target = f"{limited.address()}/p2p-circuit/p2p/{trio.listener.peer_id}"
    value = await trio.dialler.ctl_json("dial", target, "--policy=relayed")
    assert value["limits"]["duration_seconds"] == 90
    assert 0 < value["limits"]["remaining_bytes"] <= 1_000_000
    assert "each way" in (await trio.dialler.ctl("dial", target)).text
    await trio.dialler.ctl("disconnect", trio.listener.peer_id)
    await trio.listener.ctl("relay", "disconnect", limited.peer_id)
