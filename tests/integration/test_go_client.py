"""The public protos are language-neutral: Go's generators take them as they are, and it works."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.api_nodes import api_nodes
from tests.requires import require_tool, unavailable

from dep2p_daemon.identity.keys import PrivateKey

if TYPE_CHECKING:
    from tests.api_nodes import ApiNode

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "protos"
GOCODE = Path("/usr/share/gocode")
"""Where Debian's golang-*-dev packages put sources."""


@pytest.fixture(scope="session")
def go_client(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """examples/go, built from freshly generated code."""
    tools = [require_tool(t) for t in ("go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc")]
    for package in ("grpc", "protobuf", "genproto"):
        if not (GOCODE / "src" / "google.golang.org" / package).is_dir():
            unavailable(f"Debian's golang-google-{package}-dev is not installed")
    gopath = tmp_path_factory.mktemp("gopath")
    (gopath / "src").mkdir()
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("dep2p/v1/*.proto"))
    assert request.config.cache is not None
    env = {
        **os.environ,
        "GO111MODULE": "off",
        "GOPATH": f"{gopath}:{GOCODE}",
        "GOCACHE": str(request.config.cache.mkdir("go")),
        "GOFLAGS": "",
    }
    binary = gopath / "client"
    out = gopath / "src"
    for directory, command in (
        (PROTOS, [tools[1], f"--go_out={out}", f"--go-grpc_out={out}", *sources]),
        (ROOT / "examples" / "go", [tools[0], "build", "-o", str(binary), "."]),
    ):
        done = subprocess.run(
            command, cwd=directory, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return binary


async def run(client: Path, node: ApiNode, peer: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        str(client),
        f"-socket={node.config.socket}",
        f"-peer={peer}",
        "-text=from Go",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_a_go_program_talks_to_a_peer_through_a_relay(go_client: Path) -> None:
    async with api_nodes() as start:
        relay = await start(relay_server={"enabled": True})
        a, b = await start(), await start()
        await b.client.connect_relay(relay.address())
        target = f"{relay.address()}/p2p-circuit/p2p/{b.peer_id}"
        code, out, err = await run(go_client, a, target)
        assert (code, err) == (0, "")
        assert out.splitlines() == [
            f"node: {a.peer_id}",
            f"connected: {b.peer_id} PATH_RELAYED",
            "echo: from Go",
        ]


async def test_a_go_program_gets_reason_and_remedy(go_client: Path) -> None:
    stranger = PrivateKey.generate().peer_id
    async with api_nodes() as start:
        relay, a = await start(relay_server={"enabled": True}), await start()
        target = f"{relay.address()}/p2p-circuit/p2p/{stranger}"
        code, _, err = await run(go_client, a, target)
    assert code == 1
    assert err.startswith("NO_RESERVATION: target peer not connected to relay")
    assert "relay connect" in err
