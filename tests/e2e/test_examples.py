"""The relay example, in Python and in Node, its README's commands, and the demo."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.e2e.processes import BIN, daemons, environment, run
from tests.e2e.readme_commands import Block, Terminal, blocks, shown
from tests.node_packages import node_with_packages
from tests.requires import require_tool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "relay"
NODE_EXAMPLE = EXAMPLE / "node"
PYTHON = (sys.executable, EXAMPLE / "relay_example.py")
STEP_SECONDS = 30.0
END_SECONDS = 15.0
PEER_ID = r"12D3KooW\w+"

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def node() -> str:
    return node_with_packages(NODE_EXAMPLE)


@contextlib.asynccontextmanager
async def terminal(command: str, env: dict[str, str], directory: Path) -> AsyncIterator[Terminal]:
    opened = Terminal(command)
    await opened.start(env, directory)
    try:
        yield opened
    finally:
        await opened.end(END_SECONDS)


# --------------------------------------------------------------- the programs


@pytest.mark.parametrize(("listens", "dials"), [("python", "node"), ("node", "python")])
async def test_the_examples_talk_to_each_other(listens: str, dials: str, node: str) -> None:
    programs: dict[str, tuple[str | Path, ...]] = {
        "python": PYTHON,
        "node": (node, NODE_EXAMPLE / "relay_example.mjs"),
    }
    async with daemons() as start:
        relay = await start("relay", "--preset=relay")
        a, b = await start("a"), await start("b")
        address = relay.address()
        command = [*programs[listens], "--mode", "listen", "--relay", address]
        listening = " ".join(map(str, [*command, "--socket", a.socket, "--lang", "en"]))
        async with terminal(listening, environment(), ROOT) as listener:
            await listener.wait_for("Keep this program running", STEP_SECONDS)
            assert f"Node ID: {a.peer_id}" in listener.output
            assert f"Connected to the relay: {relay.peer_id}" in listener.output

            command = [*programs[dials], "--mode", "dial", "--relay", address]
            done = await run(*command, "--target", a.peer_id, "--socket", b.socket, "--lang", "zh")
            assert done.code == 0, done.text + done.stderr
            assert f"节点 ID: {b.peer_id}" in done.text
            assert "成功建立 Circuit Relay 连接" in done.text
            assert "发送: Hello via Relay!" in done.text
            assert "收到: Hello via Relay!" in done.text
            assert "Relay 通信测试成功" in done.text
            await listener.wait_for(f"{b.peer_id} says: Hello via Relay!", STEP_SECONDS)


@pytest.mark.parametrize("language", ["python", "node"])
async def test_an_example_says_what_is_wrong(
    language: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    program: tuple[str | Path, ...] = PYTHON
    if language == "node":
        program = (request.getfixturevalue("node"), NODE_EXAMPLE / "relay_example.mjs")
    address = (
        "/ip4/127.0.0.1/udp/9/quic-v1/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
    )

    done = await run(*program, "--mode", "dial", "--relay", address)
    assert done.code == 2
    assert "--target" in done.stderr

    nobody = tmp_path / "nobody.sock"
    done = await run(*program, "--mode", "listen", "--relay", address, "--socket", nobody)
    assert done.code == 1
    assert str(nobody) in done.stderr

    async with daemons() as start:
        relay, a = await start("relay", "--preset=relay"), await start("a")
        options = ("--relay", relay.address(), "--target", a.peer_id, "--socket", a.socket)
        unreserved = options[3].replace(a.peer_id, address.rpartition("/")[2])
        done = await run(*program, "--mode", "dial", *options[:3], unreserved, *options[4:])
        assert done.code == 1
        assert "target peer not connected to relay" in done.stderr

        without_id = relay.address().partition("/p2p/")[0]
        done = await run(*program, "--mode", "listen", "--relay", without_id, "--socket", a.socket)
        assert done.code == 1
        assert "is missing the relay's peer id" in done.stderr


# ------------------------------------------------------------------- the demo


async def test_make_demo() -> None:
    # What `make demo` runs once `.venv` is there.
    done = await run(require_tool("make"), "-s", "-C", ROOT, "demo", timeout=90)
    assert done.code == 0, done.text + done.stderr
    expected = """
── 1. The relay ──
Node ID: 12D3KooW…
  /ip4/127.0.0.1/udp/4001/quic-v1/p2p/12D3KooW…
── 2. The listener ──
✅ Connected to the relay: 12D3KooW…
🔊 Listening
── 3. The dialler ──
🎉 The circuit is open (relayed).
   Sent: Hello via Relay!
   Received: Hello via Relay!
✅ The relay works.
── 4. What the relay saw ──
📥 New connection: 12D3KooW… (the listener)
📥 New connection: 12D3KooW… (the dialler)
🔄 Circuit: 12D3KooW… → 12D3KooW…
📊 Relayed
"""
    assert shown(expected, done.text) is None, done.text
    up, down = map(int, re.findall(r"(?:up|down): (\d+) bytes", done.text))
    assert min(up, down) > len("Hello via Relay!")


async def test_the_demo_in_chinese() -> None:
    done = await run(sys.executable, EXAMPLE / "demo.py", "--lang", "zh", timeout=90)
    assert done.code == 0, done.text + done.stderr
    assert (
        shown("第一步\n第二步\n第三步\n收到: Hello via Relay!\n第四步\n🔄 建立 Circuit", done.text)
        is None
    )


async def test_a_demo_that_fails_says_why_and_shows_the_logs(tmp_path: Path) -> None:
    # No socket can have a path this long: the daemons refuse to start.
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    done = await run(
        sys.executable, EXAMPLE / "demo.py", "--lang", "en", env={"TMPDIR": str(deep)}, timeout=90
    )
    assert done.code == 1
    assert "The demo failed" in done.text
    assert "The end of the log of" in done.text
    assert "107" in done.text, "the daemon's own words are in its log"
    assert list(deep.iterdir()) == []


# ----------------------------------------------------------------- the README


@dataclass
class Reader:
    """Somebody with three machines who follows the page."""

    directory: Path
    locale: str
    values: dict[str, str] = field(default_factory=dict)
    terminals: dict[str, Terminal] = field(default_factory=dict)
    last: Terminal | None = None
    saved: str = ""

    def machine(self, name: str) -> dict[str, str]:
        """The environment of a machine: its own daemon, on loopback, found by itself."""
        home = self.directory / name
        home.mkdir(exist_ok=True)
        return environment(
            LC_ALL="",
            LANG=self.locale,
            HOME=str(home),
            XDG_CONFIG_HOME=str(home),
            PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}",
            DEP2P_SOCKET=str(home / "s"),
            DEP2P_NODE__DATA_DIR=str(home / "data"),
            DEP2P_NODE__LISTEN="127.0.0.1",
            **self.values,
        )

    async def follow(self, block: Block) -> None:
        """Do what a block says."""
        marks = block.marks
        if "shows" in marks:
            shower = self.terminals[marks["shows"]] if marks["shows"] else self.last
            if shower is None:
                return
            lines = block.body.splitlines()
            if "not here" in marks:
                lines = [line for line in lines if marks["not here"] not in line]
            await shower.wait_for("\n".join(lines), STEP_SECONDS)
        elif "value" in marks:
            name = marks["value"]
            assert block.body.startswith(f"export {name}="), block
            self.values[name] = self._copied(name)
        elif "on" in marks:
            await self._run(block)
        elif block.kind == "toml":
            self.saved = block.body
        else:
            assert "not run" in marks, f"line {block.line}: who runs this, and why not the test?"

    async def _run(self, block: Block) -> None:
        marks = block.marks
        if "needs" in marks:
            try:
                node_with_packages(NODE_EXAMPLE)
            except pytest.skip.Exception:
                # The reader has no Node either, and goes on with the rest of the page.
                self.last = None
                return
        env = self.machine(marks["on"])
        directory = EXAMPLE
        if "file" in marks:
            directory = self.directory / marks["on"]
            (directory / marks["file"]).write_text(self.saved)
        opened = Terminal(block.body.strip())
        await opened.start(env, directory)
        self.terminals[marks.get("as", f"line {block.line}")] = opened
        self.last = opened
        if "until" in marks:
            await opened.wait_for(marks["until"], STEP_SECONDS)
            return
        code = await opened.wait(STEP_SECONDS)
        expected = int(marks.get("exit", "0"))
        assert code == expected, f"$ {opened.command}\nended with {code}:\n{opened.output}"

    def _copied(self, name: str) -> str:
        """What the reader copies from a terminal."""
        source, pattern = {
            "RELAY": ("relay-server", rf"/ip4/127\.0\.0\.1/udp/\d+/quic-v1/p2p/{PEER_ID}"),
            "LISTENER": ("listener-program", rf"(?<=ID: ){PEER_ID}"),
        }[name]
        found = re.search(pattern, self.terminals[source].output)
        assert found is not None, self.terminals[source].output
        return found[0]

    async def leave(self) -> None:
        """Close every terminal, the last one first."""
        for opened in reversed(self.terminals.values()):
            await opened.end(END_SECONDS)


def free_port() -> int:
    """A port that is free for UDP and TCP now."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        tcp.bind(("127.0.0.1", 0))
        port: int = tcp.getsockname()[1]
        udp.bind(("127.0.0.1", port))
        return port


@pytest.mark.parametrize(
    ("name", "locale"), [("README.md", "C.UTF-8"), ("README.zh.md", "zh_CN.UTF-8")]
)
async def test_a_reader_of_the_readme_gets_what_it_says(name: str, locale: str) -> None:
    page = (EXAMPLE / name).read_text()
    port = free_port()
    # Not pytest's tmp_path: sockets have short paths.
    with tempfile.TemporaryDirectory(prefix="d2-", dir="/tmp") as directory:
        reader = Reader(Path(directory), locale)
        try:
            for block in blocks(page):
                if block.kind in ("bash", "text", "toml"):
                    own = block.body.replace("--port 4001", f"--port {port}")
                    await reader.follow(replace(block, body=own))
        finally:
            await reader.leave()


def test_the_chinese_readme_has_the_same_commands() -> None:
    def commands(name: str) -> list[tuple[str, str, dict[str, str]]]:
        page = (EXAMPLE / name).read_text()
        return [
            (block.kind, block.body, {**block.marks, "until": ""})
            for block in blocks(page)
            if block.kind in ("bash", "toml")
        ]

    english = commands("README.md")
    assert english
    assert commands("README.zh.md") == english


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_links_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (EXAMPLE / name).read_text())
    assert len(links) > 3
    assert [link for link in links if not (EXAMPLE / link).exists()] == []


def test_what_is_not_shown_is_noticed() -> None:
    assert shown("a…c\nd", "abc\nd") is None
    assert shown("d\nabc", "abc\nd") == "abc"
    assert shown("a…c", "ab") == "a…c"
    assert shown("port 4001 of 203.0.113.10", "port 51234 of 127.0.0.1") is None
