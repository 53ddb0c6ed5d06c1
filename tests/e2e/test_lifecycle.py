"""Starts, stops and their failures, with real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
from typing import TYPE_CHECKING

import pytest
from tests.e2e.processes import BIN, NotReadyError, daemons, run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.processes import Daemon

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


async def refused(daemon: Daemon) -> tuple[int, str]:
    """Start a daemon that must not start; returns exit code and what it said."""
    with pytest.raises(NotReadyError):
        await daemon.start()
    code = await daemon.wait_ended()
    errors = [line for line in daemon.lines if line["level"] == "error"]
    return code, "\n".join([*(json.dumps(line) for line in errors), *daemon.unstructured])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_in_order_and_peers_are_told(number: signal.Signals) -> None:
    async with daemons() as start:
        one, other = await start("one"), await start("other")
        assert (await one.ctl("dial", other.address())).code == 0
        assert await one.stop(number) == 0
        assert (await one_line(one, "stopping"))["reason"] == "signal"
        assert one.lines[-1]["message"] == "stopped"
        closed = await other.wait_for_line("connection closed")
        assert closed["peer"] == one.peer_id
        assert "stopping" in closed["error"]
        assert not one.socket.exists()


async def one_line(daemon: Daemon, message: str) -> dict[str, object]:
    (line,) = [line for line in daemon.lines if line["message"] == message]
    return line


async def test_stop_ends_the_daemon_and_waits_for_its_end() -> None:
    async with daemons() as start:
        daemon = await start("daemon")
        async with daemon.ctl_running("-o", "json", "events") as watching:
            assert watching.stdout is not None
            await watching.stdout.readline()
            done = await daemon.ctl("stop")
            assert (done.code, done.text) == (0, "stopped\n")
            lines = [json.loads(line) for line in (await watching.stdout.read()).splitlines()]
            assert lines[-1]["type"] == "stopping"
            assert lines[-1]["stopping"]["reason"] == "request"
        assert await daemon.wait_ended() == 0
        assert (await daemon.ctl("id")).code == 3


async def test_a_second_daemon_is_refused_and_the_first_lives_on() -> None:
    async with daemons() as start:
        first = await start("first")
        second = start.prepare("second")
        second.socket = first.socket
        code, said = await refused(second)
        assert code == 1
        assert str(first.socket) in said
        assert "remedy" in said
        third = start.prepare("third")
        third.data_dir = first.data_dir
        code, said = await refused(third)
        assert code == 1
        assert str(first.data_dir) in said
        assert (await first.ctl_json("id"))["peer_id"] == first.peer_id


async def test_killed_and_started_again_it_is_the_same_node() -> None:
    async with daemons() as start:
        relay = await start("relay", "--preset=relay")
        daemon = await start("daemon", f"--relay={relay.address()}")
        assert (await daemon.ctl("wait", "relay")).code == 0
        peer_id = daemon.peer_id
        await daemon.kill()
        assert daemon.socket.exists()  # left behind, and harmless
        await daemon.start()
        assert daemon.peer_id == peer_id
        assert (await daemon.ctl("wait", "relay")).code == 0
        assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600


async def test_a_relay_killed_and_started_again_is_reserved_at_again() -> None:
    async with daemons() as start:
        relay = await start("relay", "--preset=relay")
        port = relay.address().split("/")[4]
        daemon = await start("daemon", f"--relay={relay.address()}")
        assert (await daemon.ctl("wait", "relay")).code == 0
        await relay.kill()
        relay.flags = ("--preset=relay", f"--port={port}")
        await relay.start()
        async with relay.ctl_running("events", "--type=reservation_changed") as watching:
            assert watching.stdout is not None
            line = await asyncio.wait_for(watching.stdout.readline(), 60)
            assert daemon.peer_id in line.decode()
        assert (await daemon.ctl("wait", "relay", "--timeout=20s")).code == 0


async def test_files_are_for_their_owner_only() -> None:
    async with daemons() as start:
        daemon = await start("daemon")
        modes = {
            path.name: stat.S_IMODE(path.stat().st_mode)
            for path in (daemon.data_dir, daemon.data_dir / "node.key", daemon.socket)
        }
        assert modes == {"data": 0o700, "node.key": 0o600, "s": 0o600}


async def test_a_key_that_others_may_read_is_refused_with_the_command_that_helps() -> None:
    async with daemons() as start:
        daemon = await start("daemon")
        await daemon.stop()
        os.chmod(daemon.data_dir / "node.key", 0o644)
        code, said = await refused(daemon)
        assert code == 1
        assert "chmod" in said


async def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        async with daemons() as start:
            code, said = await refused(start.prepare("late", f"--port={port}"))
            assert code == 1
            assert f"port {port}: Address already in use" in said
            assert "remedy" in said


async def test_a_failed_start_is_one_message_for_people(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = await run(BIN / "dep2pd", f"--data-dir={tmp_path}/file/data", f"--socket={tmp_path}/s")
    assert done.code == 1
    assert done.stderr.startswith("dep2pd: ")
    assert "\n  remedy: " in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_wrong_configuration_is_2(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[node]\nprot = 1\n")
    done = await run(BIN / "dep2pd", f"--config={file}")
    assert done.code == 2
    assert "did you mean node.port?" in done.stderr
    assert (await run(BIN / "dep2pd", "config", "check", f"--config={file}")).code == 2
    assert (await run(BIN / "dep2pd", "--port=none")).code == 2


async def test_a_relay_that_is_down_does_not_stop_the_start() -> None:
    async with daemons() as start:
        gone = await start("gone", "--preset=relay")
        await gone.stop()
        daemon = await start("daemon", f"--relay={gone.address()}")
        done = await daemon.ctl("wait", "relay", "--timeout=1s")
        assert done.code == 4
        assert gone.peer_id in done.stderr
        (relay,) = (await daemon.ctl_json("relay", "list"))["relays"]
        assert relay["state"] in ("backoff", "connecting")


async def test_debug_shows_the_steps_of_a_dial() -> None:
    async with daemons() as start:
        peer = await start("peer")
        daemon = await start("daemon", "--log-level=debug")
        assert (await daemon.ctl("dial", peer.address())).code == 0
        steps = [line for line in daemon.lines if line["level"] == "debug"]
        assert any(peer.address().rpartition("/p2p/")[0] in json.dumps(step) for step in steps)


async def test_python_m_works_for_all_programs() -> None:
    python = BIN / "python"
    for module in ("dep2pd", "dep2pctl", "dep2p_relay_server"):
        done = await run(python, "-m", module, "--help")
        assert done.code == 0
        assert "Usage: " in done.text


@pytest.mark.parametrize(
    ("flags", "env", "ready", "circuit", "traffic"),
    [
        ((), {}, "⚡ Ready to relay", "🔄 Circuit opened", "   Up:"),
        (("--lang=zh",), {}, "⚡ Relay 服务已就绪", "🔄 建立 Circuit", "   上行"),
        ((), {"LC_ALL": "zh_CN.UTF-8"}, "⚡ Relay 服务已就绪", "🔄 建立 Circuit", "   上行"),
    ],
    ids=["en", "zh by flag", "zh by locale"],
)
async def test_the_relays_console_tells_the_seeds_story(
    flags: tuple[str, ...], env: dict[str, str], ready: str, circuit: str, traffic: str
) -> None:
    async with daemons() as start:
        relay = start.prepare("relay", *flags)
        relay.program, relay.env = "dep2p-relay-server", env
        await relay.start()
        await relay.wait_for_output(ready)
        assert any(relay.address() == line.strip() for line in relay.output)
        listener = await start("listener", f"--relay={relay.address()}")
        assert (await listener.ctl("wait", "relay")).code == 0
        await relay.wait_for_output(f"📥 {'New connection' if traffic == '   Up:' else '新连接'}")
        dialler = await start("dialler")
        target = f"{relay.address()}/p2p-circuit/p2p/{listener.peer_id}"
        done = await dialler.ctl("stream", target, "/dep2p/echo/1.0.0", stdin=b"Hello via Relay!")
        assert done.text == "Hello via Relay!"
        line = await relay.wait_for_output(circuit)
        assert f"{dialler.peer_id} → {listener.peer_id}" in line
        await relay.wait_for_output(traffic)
        assert await relay.stop() == 0
        assert relay.output[-1].startswith("👋")
