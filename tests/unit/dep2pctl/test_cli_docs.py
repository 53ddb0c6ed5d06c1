"""docs/cli.md says what the programs do: commands, options, exit codes, fields."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from dep2p.v1.event_pb2 import Circuit, ConnectionClosed, Event, ReservationChanged
from dep2p.v1.explanation_pb2 import DialTrail, PeerExplanation, PunchTrail
from dep2p.v1.network_pb2 import Filtering, Mapping, NetworkReport, Reachability, TransportCheck
from dep2p.v1.node_service_pb2 import Node
from dep2p.v1.peer_pb2 import Connection, Limits, Peer
from dep2p.v1.peer_service_pb2 import MeasureThroughputResponse, PingResponse
from dep2p.v1.relay_pb2 import Relay
from dep2pctl.app import cli, common_options
from dep2pctl.as_json import SCHEMA_VERSION, enum_name
from dep2pctl.exit_codes import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import EnumDescriptor
    from google.protobuf.message import Message

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "cli.md").read_text()
OBJECTS: list[type[Message]] = [
    Node,
    Peer,
    Connection,
    Limits,
    Relay,
    PeerExplanation,
    DialTrail,
    PunchTrail,
    PingResponse,
    MeasureThroughputResponse,
    NetworkReport,
    TransportCheck,
    Event,
]


def rows(section: str) -> list[list[str]]:
    """The cells of a section's table, but for its head."""
    text = re.search(rf"^#+ {section}\n(.*?)(?=^#+ |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE)
    assert text is not None, f"docs/cli.md has no section {section}"
    lines = [line for line in text[1].splitlines() if line.startswith("|")]
    return [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines[2:]
    ]


def leaves(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaves(command, f"{path}{name} ")
        else:
            yield path + name, command


def described(cell: str) -> str:
    return cell.strip("`")


DOCUMENTED: dict[str, tuple[str, str]] = {}
for cells in rows("Commands"):
    call, options = described(cells[0]), cells[1]
    name = re.match(r"(?:relay \w+|wait \w+|\w+)", call)
    assert name is not None
    before = DOCUMENTED.get(name[0], ("", ""))
    DOCUMENTED[name[0]] = (f"{before[0]} {call}", f"{before[1]} {options}")


def test_the_commands_are_all_there() -> None:
    assert DOCUMENTED.keys() == {name for name, _ in leaves(cli)}


@pytest.mark.parametrize(("name", "command"), list(leaves(cli)))
def test_options_and_arguments_of_a_command(name: str, command: click.Command) -> None:
    call, options = DOCUMENTED[name]
    common = {option for parameter in common_options() for option in parameter.opts}
    real = {option for p in command.params if isinstance(p, click.Option) for option in p.opts}
    written = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", options))
    assert written == real - common
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            if isinstance(parameter.type, click.Choice):
                assert "|".join(parameter.type.choices) in call
            else:
                assert str(parameter.name).upper() in call
        elif isinstance(parameter, click.Option) and isinstance(parameter.default, str):
            # As it was written: 30s, 100MB.
            assert not parameter.default or parameter.default in options


def test_exit_codes() -> None:
    assert {int(code) for code, _ in rows("Exit codes") if code.isdigit()} == {*ExitCode}


def test_the_schemas_version() -> None:
    assert f"every JSON object is **{SCHEMA_VERSION}**" in PAGE


@pytest.mark.parametrize("kind", OBJECTS, ids=lambda kind: kind.DESCRIPTOR.name)
def test_fields_of_an_object(kind: type[Message]) -> None:
    written = [field for cells in rows(kind.DESCRIPTOR.name) for field in _names(cells[0])]
    assert sorted(written) == sorted(kind.DESCRIPTOR.fields_by_name)


def _names(cell: str) -> list[str]:
    return re.findall(r"`([a-z0-9_]+)`", cell)


def test_members_of_events() -> None:
    members = {name: cells[1] for cells in rows("Event") for name in _names(cells[0])}
    for name, kind in (
        ("circuit_closed", Circuit),
        ("reservation_changed", ReservationChanged),
        ("connection_closed", ConnectionClosed),
    ):
        assert set(kind.DESCRIPTOR.fields_by_name) <= set(_names(members[name]))


@pytest.mark.parametrize(
    "enum",
    [
        Relay.DESCRIPTOR.enum_types_by_name["State"],
        ReservationChanged.DESCRIPTOR.enum_types_by_name["Change"],
        NetworkReport.DESCRIPTOR.enum_types_by_name["Verdict"],
        Mapping.DESCRIPTOR,
        Filtering.DESCRIPTOR,
        Reachability.DESCRIPTOR,
    ],
    ids=lambda enum: enum.full_name,
)
def test_values_of_enums(enum: EnumDescriptor) -> None:
    for number in enum.values_by_number:
        if number:
            assert f'`"{enum_name(enum, number)}"`' in PAGE


def test_links_inside_the_page_lead_somewhere() -> None:
    headings = {h.lower().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= headings
