"""What a laboratory is made of, as data: made by `topology`, built by `lifecycle`, kept as JSON."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.natlab.impairment import Impairment
from tests.natlab.namespaces import NatlabError

DIRECTORY: Final = Path("/run/natlab")
"""Holds one directory for each laboratory that is up."""

MAC_ROUTER: Final = "02:00:00:00:00:01"
MAC_NODE: Final = "02:00:00:00:00:02"


@dataclass(kw_only=True)
class Node:
    """One network namespace and how it is set up."""

    namespace: str
    role: str
    """router, nat or host."""
    kind: str = ""
    """Of a NAT or firewall."""
    addresses: list[str] = field(default_factory=list)
    """Its own: IPv4 first."""
    public: list[str] = field(default_factory=list)
    """Those the internet sees for it."""
    boxes: list[str] = field(default_factory=list)
    """The NATs and firewalls between a host and the internet, from the host outwards."""
    link: str = ""
    """The host whose name its access link has."""
    ip: list[str] = field(default_factory=list)
    """Commands of `ip -batch`."""
    nft: str = ""
    sysctls: dict[str, int] = field(default_factory=dict)


@dataclass(kw_only=True)
class Wire:
    """A cable between two nodes: a veth pair, or two TUN devices that the keeper joins."""

    router: str
    router_device: str
    node: str
    device: str
    link: str = ""
    """The access link it is; empty for the cables inside."""
    emulated: bool = False
    lan: bool = False
    mtu: int = 1500


@dataclass(frozen=True)
class Process:
    """A pid together with what tells it from a later process of the same pid."""

    pid: int
    start_time: int
    """In clock ticks since boot."""

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process with this pid; None if it is gone or a zombie."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]))

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return Process.of(self.pid) == self


@dataclass(kw_only=True)
class Plan:
    """A laboratory."""

    name: str
    places: dict[str, str]
    """What was asked for, by host; "server" for relay and carol."""
    seed: int | None = None
    nodes: dict[str, Node] = field(default_factory=dict)
    wires: list[Wire] = field(default_factory=list)
    links: dict[str, Impairment] = field(default_factory=dict)
    """Access links by host."""
    owner: Process | None = None
    """The process with which the laboratory ends."""
    keeper: Process | None = None

    @property
    def directory(self) -> Path:
        """Where it is kept while it is up."""
        return DIRECTORY / self.name

    def node(self, name: str) -> Node:
        """The node of that name.

        Raises:
            NatlabError: there is none; names those that are.
        """
        try:
            return self.nodes[name]
        except KeyError:
            raise NatlabError(
                f"no node {name!r} in lab {self.name!r}; it has {', '.join(self.nodes)}"
            ) from None

    def boxes_of(self, name: str) -> list[str]:
        """The NATs and firewalls on the way out from a host, or that box itself."""
        node = self.node(name)
        return node.boxes or ([name] if node.role == "nat" else [])

    def save(self) -> None:
        """Write it where `load` finds it, in one step."""
        new = self.directory / "state.json.new"
        new.write_text(json.dumps(self, default=_plain))
        new.rename(self.directory / "state.json")


def _plain(value: Any) -> Any:
    if isinstance(value, Impairment):
        return value.given()
    return vars(value)


def load(name: str) -> Plan:
    """Return the laboratory of that name, which is up.

    Raises:
        NatlabError: it is not.
    """
    try:
        state = json.loads((DIRECTORY / name / "state.json").read_text())
    except FileNotFoundError:
        raise NatlabError(f"no lab named {name!r} is up (see: natlab list)") from None
    return Plan(
        **state
        | {
            "nodes": {node: Node(**values) for node, values in state["nodes"].items()},
            "wires": [Wire(**values) for values in state["wires"]],
            "links": {
                host: Impairment.from_json(values) for host, values in state["links"].items()
            },
            "owner": state["owner"] and Process(**state["owner"]),
            "keeper": state["keeper"] and Process(**state["keeper"]),
        }
    )


def names() -> list[str]:
    """Names of the laboratories that are up."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(
            entry.name for entry in os.scandir(DIRECTORY) if Path(entry, "state.json").exists()
        )
    return []
