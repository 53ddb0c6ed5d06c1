from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dep2p
from dep2pctl import output

if TYPE_CHECKING:
    from _pytest.capture import CaptureFixture


def test_json_has_the_schemas_version_first(capsys: CaptureFixture[str]) -> None:
    output.write_json({"peer_id": "12D3", "name": "Ünï"})
    text = capsys.readouterr().out
    assert list(json.loads(text)) == ["schema_version", "peer_id", "name"]
    assert "Ünï" in text
    output.write_json({"a": {"b": 1}}, one_line=True)
    assert capsys.readouterr().out == '{"schema_version": 1, "a": {"b": 1}}\n'


def test_fields_are_aligned_and_lists_take_lines(capsys: CaptureFixture[str]) -> None:
    output.write_fields(
        [("peer id", "12D3"), ("addresses", ["/a", "/b"]), ("none", None), ("on", True)]
    )
    assert capsys.readouterr().out == (
        "peer id    12D3\naddresses  /a\n           /b\nnone       -\non         yes\n"
    )


def test_a_table_for_a_program_is_never_folded(capsys: CaptureFixture[str]) -> None:
    long = "/ip4/203.0.113.10/udp/4001/quic-v1/p2p/" + "x" * 200
    output.write_table(["PEER", "ADDRESS"], [("12D3", long), ("16Ui", None)], empty="nothing")
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["PEER", "ADDRESS"]
    assert first.split() == ["12D3", long]
    assert second.split() == ["16Ui", "-"]
    assert first.index("/ip4") == header.index("ADDRESS")


def test_an_empty_table_says_so(capsys: CaptureFixture[str]) -> None:
    output.write_table(["PEER"], [], empty="no peer is connected")
    assert capsys.readouterr().out == "no peer is connected\n"


def test_an_error_is_one_line_and_a_hint(capsys: CaptureFixture[str]) -> None:
    error = dep2p.NoReservationError(
        "target peer not connected to relay",
        reason="NO_RESERVATION",
        remedy="start the target with --relay",
        metadata={"relay": "12D3"},
    )
    output.write_error(error, 1, as_json=False)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "dep2pctl: target peer not connected to relay\nhint: start the target with --relay\n"
    )
    output.write_error(error, 1, as_json=True)
    assert json.loads(capsys.readouterr().err) == {
        "schema_version": 1,
        "error": {
            "message": "target peer not connected to relay",
            "reason": "NO_RESERVATION",
            "remedy": "start the target with --relay",
            "metadata": {"relay": "12D3"},
            "exit_code": 1,
        },
    }


@given(st.text())
def test_no_text_of_a_peer_can_command_the_terminal(text: str) -> None:
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", output.printable(text))


def test_a_peers_text_cannot_break_out_of_its_cell(capsys: CaptureFixture[str]) -> None:
    output.write_table(["AGENT"], [("evil\x1b[2J[bold]x[/bold]",)], empty="")
    assert capsys.readouterr().out.splitlines()[1] == "evil\\x1b[2J[bold]x[/bold]"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1200, "1.2 kB"),
        (5e6, "5.0 MB"),
        (7e9, "7.0 GB"),
        (3e12, "3.0 TB"),
    ],
)
def test_byte_counts(size: float, text: str) -> None:
    assert output.byte_count(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.25, "250ms"),
        (59, "59s"),
        (60, "1m"),
        (3661, "1h1m"),
        (7200, "2h"),
        (90061, "1d1h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert output.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.1234, "0.12 ms"), (12.34, "12.3 ms"), (123.4, "123 ms")]
)
def test_round_trips(value: float | None, text: str) -> None:
    assert output.milliseconds(value) == text
