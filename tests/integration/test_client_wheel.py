"""The client's own wheel: it builds, it needs three packages and no more, and it works alone."""

from __future__ import annotations

import asyncio
import email
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.api_nodes import api_nodes
from tests.requires import unavailable

if TYPE_CHECKING:
    from email.message import Message

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import asyncio, sys
import dep2p

assert "/site-packages/" in dep2p.__file__, dep2p.__file__

async def main():
    async with dep2p.connect(sys.argv[1]) as node:
        try:
            await node.get_peer(sys.argv[2])
        except dep2p.NotFoundError as error:
            assert error.reason == "PEER_NOT_FOUND" and error.remedy, repr(error)
        async with await node.open_stream(sys.argv[3], ["/dep2p/echo/1.0.0"]) as stream:
            await stream.write(b"alone")
            await stream.close_write()
            print((await stream.read_all()).decode())

asyncio.run(main())
"""


def run(*command: str | Path, may_lack_network: bool = False) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, cwd="/"
    )
    if may_lack_network and done.returncode and "No matching distribution" in done.stderr:
        unavailable("PyPI is not reachable")
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    source = ROOT / "clients" / "python"
    # --no-isolation would need hatchling in the venv; the isolated build fetches it.
    run(
        sys.executable,
        *("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", directory, source),
        may_lack_network=True,
    )
    (found,) = directory.glob("dep2p-*.whl")
    return found


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


@pytest.mark.slow
def test_it_needs_three_packages(wheel: Path) -> None:
    needed = {
        str(line).split(">")[0].split("<")[0]
        for line in metadata(wheel).get_all("Requires-Dist", [])
    }
    assert needed == {"grpcio", "protobuf", "googleapis-common-protos"}


@pytest.mark.slow
def test_it_has_the_client_and_nothing_of_the_daemon(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {"dep2p/__init__.py", "dep2p/py.typed", "dep2p/v1/peer_pb2.pyi"} <= set(names)
    assert all(name.startswith(("dep2p/", "dep2p-")) for name in names)


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_program_with_nothing_else_installed(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path, with_pip=True)
    python = tmp_path / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", wheel, may_lack_network=True)
    async with api_nodes() as start:
        a, b = await start(), await start()
        program = await asyncio.create_subprocess_exec(
            *(str(python), "-c", PROGRAM, str(a.config.socket), b.peer_id, b.address()),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd="/",
        )
        out, err = await program.communicate()
        assert (program.returncode, out, err) == (0, b"alone\n", b"")
