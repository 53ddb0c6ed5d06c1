"""Generate the committed stubs from protos/.

The public API goes to clients/python/dep2p/v1, libp2p's messages to
daemon/dep2p_daemon/wire/libp2p. Run with no argument to write, with --check to
fail when the committed stubs differ from what the pinned tools would write.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
TARGETS = (
    # (proto package, source root of the stubs, with gRPC)
    (Path("dep2p/v1"), ROOT / "clients" / "python", True),
    (Path("libp2p"), ROOT / "daemon" / "dep2p_daemon" / "wire", False),
)


def generate(package: Path, out: Path, *, with_grpc: bool) -> None:
    sources = sorted(str(p.relative_to(PROTOS)) for p in (PROTOS / package).glob("*.proto"))
    options = [f"--python_out={out}", f"--mypy_out=quiet:{out}"]
    if with_grpc:
        options += [f"--grpc_python_out={out}", f"--mypy_grpc_out=only_async,quiet:{out}"]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}", *options, *sources],
        cwd=PROTOS,
        check=True,
        # protoc finds its plugins (mypy-protobuf's) on PATH: the venv need not be activated.
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
    )
    for stub in (out / package).glob("*_pb2_grpc.py"):
        if "Servicer" not in stub.read_text():  # a .proto with no service
            stub.unlink()
            stub.with_suffix(".pyi").unlink(missing_ok=True)
    header = f'"""Generated from protos/{package} by tools/gen_protos.py; do not edit."""\n'
    (out / package / "__init__.py").write_text(header)


def stale_stubs(have: Path, want: Path) -> list[str]:
    names = {p.name for d in (have, want) if d.is_dir() for p in d.iterdir() if p.is_file()}
    _, differ, missing = filecmp.cmpfiles(have, want, names, shallow=False)
    return sorted(differ + missing)


def main() -> int:
    status = 0
    for package, root, with_grpc in TARGETS:
        with tempfile.TemporaryDirectory() as temp:
            fresh = Path(temp)
            generate(package, fresh, with_grpc=with_grpc)
            have, want = root / package, fresh / package
            if "--check" in sys.argv[1:]:
                for name in stale_stubs(have, want):
                    print(f"{have / name} is not what the pinned tools write", file=sys.stderr)
                    status = 1
            else:
                shutil.rmtree(have, ignore_errors=True)
                shutil.copytree(want, have)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
