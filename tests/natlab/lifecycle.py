"""Builds a planned laboratory, and takes one down in whatever state it is."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import time
from collections import Counter
from typing import Final

from tests.natlab import namespaces, plan
from tests.natlab.keeper import Keeper
from tests.natlab.namespaces import NatlabError
from tests.natlab.plan import MAC_NODE, MAC_ROUTER, Node, Plan, Process
from tests.natlab.topology import LAN, is_ipv6

GRACE_SECONDS: Final = 2.0
"""From SIGTERM to SIGKILL."""
CARRIER_SECONDS: Final = 10.0


def build(lab: Plan, owner: Process | None) -> Keeper | None:
    """Make everything in the plan; returns the keeper where one is needed.

    Raises:
        NatlabError: something does not work here; what was made is taken down again.
    """
    plan.DIRECTORY.mkdir(exist_ok=True)
    try:
        lab.directory.mkdir(mode=0o755)  # also the lock on the name
    except FileExistsError:
        raise NatlabError(
            f"lab {lab.name!r} is already up; take it down, or choose another --name"
        ) from None
    keeper = None
    try:
        lab.owner, lab.keeper = owner, None
        lab.save()
        for node in lab.nodes.values():
            namespaces.run(["ip", "netns", "add", node.namespace])
            namespaces.write_sysctls(node.namespace, node.sysctls)
        if owner is not None or any(wire.emulated for wire in lab.wires):
            keeper = Keeper(lab)
            lab.save()
        _lay_cables(lab)
        if keeper is not None:
            keeper.wait_ready()
        for node in lab.nodes.values():
            namespaces.ip_batch(node.namespace, node.ip)
            if node.nft:
                namespaces.run(["nft", "-f", "-"], stdin=node.nft, namespace=node.namespace)
        for router, ports in Counter(wire.router for wire in lab.wires if wire.lan).items():
            _wait_for_bridge(lab.nodes[router], ports)
    except BaseException:
        destroy(lab.name, keeper)
        raise
    return keeper


def _lay_cables(lab: Plan) -> None:
    commands: dict[str, list[str]] = {}
    for wire in lab.wires:
        if not wire.emulated:
            near, far = ("", "") if wire.lan else (f" address {MAC_ROUTER}", f" address {MAC_NODE}")
            commands.setdefault(lab.nodes[wire.router].namespace, []).append(
                f"link add {wire.router_device}{near} type veth "
                f"peer name {wire.device}{far} netns {lab.nodes[wire.node].namespace}"
            )
    for namespace, lines in commands.items():
        namespaces.ip_batch(namespace, lines)


def _wait_for_bridge(node: Node, ports: int) -> None:
    """The kernel tells a bridge of its cables late, and IPv6 of its bridge up to a second."""
    command = ["ip", "-n", node.namespace, "-details", "link", "show"]
    needed = rf"{LAN}: .*state UP" if any(map(is_ipv6, node.addresses)) else ""
    deadline = time.monotonic() + CARRIER_SECONDS
    while True:
        told = namespaces.attempt(command).stdout
        if told.count("bridge_slave state forwarding") == ports and re.search(needed, told):
            return
        if time.monotonic() > deadline:
            raise NatlabError(f"the bridge of {node.namespace} stays down")
        time.sleep(0.02)


def destroy(name: str, keeper: Keeper | None = None) -> bool:
    """Take a laboratory down; False if there was nothing to take down.

    Its processes first, then the keeper (it holds the TUN devices), unless we are it, then the
    namespaces: their interfaces, routes and rules go with them.
    """
    spaces = namespaces.names(f"natlab-{name}-")
    directory = plan.DIRECTORY / name
    if not spaces and not directory.is_dir():
        return False
    _end_processes(spaces)
    if keeper is not None:
        keeper.end()
    else:
        _end_keeper(name)
    for namespace in spaces:
        namespaces.attempt(["ip", "netns", "del", namespace])
    shutil.rmtree(directory, ignore_errors=True)
    return True


def _end_processes(spaces: list[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + GRACE_SECONDS
        while pids := namespaces.processes_in(spaces):
            for pid in pids:
                with contextlib.suppress(OSError):
                    os.kill(pid, number)
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)


def _end_keeper(name: str) -> None:
    with contextlib.suppress(NatlabError, ValueError):
        keeper = plan.load(name).keeper
        if keeper is None or keeper.pid == os.getpid() or not keeper.alive:
            return
        with contextlib.suppress(OSError):
            os.kill(keeper.pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while keeper.alive and time.monotonic() < deadline:
            time.sleep(0.005)


def collect_stale() -> None:
    """Take down laboratories whose owner has died; normally their keeper has done it."""
    for name in plan.names():
        with contextlib.suppress(NatlabError, ValueError):
            owner = plan.load(name).owner
            if owner is not None and not owner.alive:
                destroy(name)
