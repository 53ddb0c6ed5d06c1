"""The process of a laboratory that emulates its links, and takes it down if its owner dies.

`start` and `ask` are the laboratory's side; `python -m tests.natlab.keeper` is the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from tests.natlab.emulator import Emulator
from tests.natlab.impairment import Impairment
from tests.natlab.namespaces import LIBC, NatlabError, open_tun
from tests.natlab.plan import Plan, Process, load

ROOT: Final = Path(__file__).parent.parent.parent
_PR_SET_TIMERSLACK: Final = 29
_READY: Final = "ok"
_MAX_REQUEST: Final = 65536


class Keeper:
    """A keeper that was started, as its starter sees it."""

    def __init__(self, plan: Plan) -> None:
        self._ready, far = os.pipe()
        with (plan.directory / "keeper.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-SEs", "-m", "tests.natlab.keeper", plan.name, str(far)],
                pass_fds=[far],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
            )
        os.close(far)
        plan.keeper = Process.of(self.process.pid)

    def wait_ready(self) -> None:
        """Return when all TUN devices are there.

        Raises:
            NatlabError: why they are not.
        """
        with open(self._ready, "rb") as pipe:
            said = pipe.read().decode()
        if said != _READY:
            raise NatlabError(said or "the keeper process died at start; see its keeper.log")

    def end(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait()


def ask(plan: Plan, **request: object) -> Any:
    """Send a request to the keeper of a laboratory that is up; returns the links' counters.

    Raises:
        NatlabError: it does not answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(5)
        try:
            connection.connect(str(plan.directory / "ctl"))
            connection.sendall(json.dumps(request).encode())
            return json.loads(connection.makefile().read())
        except (OSError, ValueError) as error:
            raise NatlabError(f"the keeper of lab {plan.name!r} does not answer: {error}") from None


def _answer(control: socket.socket, emulator: Emulator) -> None:
    # A client that went away, or speaks nonsense, ends its own request only.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, NatlabError):
        connection, _ = control.accept()
        with connection:
            connection.settimeout(1)
            request = json.loads(connection.recv(_MAX_REQUEST))
            if "link" in request:
                impairment = Impairment.from_json(request["impairment"])
                for direction in emulator.links[request["link"]]:
                    direction.configure(impairment)
            counters = {
                host: {
                    side: {
                        "sent": direction.sent,
                        "lost": direction.lost,
                        "overflowed": direction.overflowed,
                        "queued": len(direction.queue),
                    }
                    for side, direction in zip(("up", "down"), directions, strict=True)
                }
                for host, directions in emulator.links.items()
            }
            connection.sendall(json.dumps(counters).encode())


def _prepare(plan: Plan) -> Emulator:
    emulator = Emulator(random.Random(plan.seed))
    if plan.owner is not None:
        with contextlib.suppress(ProcessLookupError):
            emulator.watch(os.pidfd_open(plan.owner.pid), emulator.end)
        if not plan.owner.alive:
            raise NatlabError("the owner process is gone")
    for wire in plan.wires:
        if wire.emulated:
            up = open_tun(plan.nodes[wire.node].namespace, wire.device)
            down = open_tun(plan.nodes[wire.router].namespace, wire.router_device)
            emulator.add(wire.link, up, down, plan.links[wire.link], wire.mtu)
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    control.bind(str(plan.directory / "ctl"))
    control.listen(8)
    emulator.watch(control.fileno(), lambda: _answer(control, emulator))
    return emulator


def main(name: str, ready: int) -> None:
    """Be the keeper of a laboratory that is being built."""
    try:
        emulator = _prepare(load(name))
    except (NatlabError, OSError) as error:
        os.write(ready, str(error).encode())
        sys.exit(1)
    LIBC.prctl(_PR_SET_TIMERSLACK, 1)
    os.write(ready, _READY.encode())
    os.close(ready)
    emulator.run()
    from tests.natlab.lifecycle import destroy

    destroy(name)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main(sys.argv[1], int(sys.argv[2]))
