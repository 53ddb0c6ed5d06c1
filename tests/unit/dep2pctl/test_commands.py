"""The command tree without a daemon: help, usage, exit codes."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

import dep2p
from dep2pctl.__main__ import main
from dep2pctl.app import COMMANDS, ExampleCommand, cli
from dep2pctl.exit_codes import ExitCode, exit_code_of
from dep2pctl.param_types import DURATION, SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from _pytest.capture import CaptureFixture


def tree(
    group: click.Group, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from tree(command, (*path, name))


ALL = dict(tree(cli))
LEAVES = {path: command for path, command in ALL.items() if not isinstance(command, click.Group)}


def run(*args: str) -> int:
    """Run as the installed script does; returns the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["dep2pctl", *args])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


def test_the_commands_are_those_of_the_contract() -> None:
    assert {" ".join(path) for path in LEAVES} == {
        *("id", "status", "peers", "connections", "dial", "ping", "perf", "disconnect", "events"),
        *("relay connect", "relay disconnect", "relay list", "listen", "stream", "stop"),
        *("wait ready", "wait relay", "wait peer", "wait direct", "completion", "why", "netcheck"),
        "metrics",
    }


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_has_help(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli, [*path, "--help"], prog_name="dep2pctl")
    assert result.exit_code == 0
    assert f"Usage: dep2pctl {' '.join(path)}" in result.output
    assert "..." not in (ALL[path].get_short_help_str(limit=58) or "...")


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_option_says_what_it_does(path: tuple[str, ...]) -> None:
    for parameter in LEAVES[path].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_the_examples_in_the_help_are_right(path: tuple[str, ...]) -> None:
    command = LEAVES[path]
    assert isinstance(command, ExampleCommand)
    assert command.examples
    for line in command.examples.splitlines():
        assert path in [_command_called(words) for words in _calls_in(line)], line


def _calls_in(line: str) -> list[list[str]]:
    """The arguments of every call of dep2pctl in a line of shell."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&<>()")
    lexer.whitespace_split = True
    calls: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("|&<>()"):
            calls.append([])
        else:
            calls[-1].append(word)
    return [call[1:] for call in calls if call[:1] == ["dep2pctl"]]


def _command_called(args: list[str]) -> tuple[str, ...]:
    """Parse as the program would; a wrong option or argument raises UsageError."""
    command: click.Command = cli
    context = click.Context(cli, info_name="dep2pctl")
    _, rest, _ = cli.make_parser(context).parse_args(args)
    path: list[str] = []
    while isinstance(command, click.Group):
        name, *rest = rest
        path.append(name)
        found = command.get_command(context, name)
        assert found is not None, name
        command = found
    command.make_context(path[-1], rest, parent=context)
    return tuple(path)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (dep2p.DaemonNotReachableError("x"), ExitCode.NOT_REACHABLE),
        (dep2p.DaemonStoppingError("x"), ExitCode.NOT_REACHABLE),
        (dep2p.DeadlineError("x"), ExitCode.DEADLINE),
        (dep2p.PermissionDeniedError("x"), ExitCode.REFUSED),
        (dep2p.LimitError("x"), ExitCode.REFUSED),
        (dep2p.InvalidArgumentError("x"), ExitCode.USAGE),
        (dep2p.NoReservationError("x"), ExitCode.FAILED),
        (dep2p.UnreachableError("x"), ExitCode.FAILED),
        (dep2p.StreamResetError("x"), ExitCode.FAILED),
        (dep2p.NotFoundError("x"), ExitCode.FAILED),
        (dep2p.AlreadyExistsError("x"), ExitCode.FAILED),
        (dep2p.DaemonError("x"), ExitCode.FAILED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_exit_codes(error: dep2p.Dep2pError, code: ExitCode) -> None:
    assert exit_code_of(error) is code


@pytest.mark.parametrize(
    "args",
    [
        ("dial",),
        ("dial", "x", "--policy", "fast"),
        ("ping", "x", "--count", "-1"),
        ("ping", "x", "--interval", "soon"),
        ("nonsense",),
        ("wait",),
        ("listen", "/x", "--echo", "--exec", "cat", "--allow-any"),
        ("listen", "/x", "--allow", "12D3", "--allow-any"),
        ("listen", "/x", "--allow-any", "--exec", ""),
        ("listen", "/x", "--allow-any", "--exec", "there-is-no-such-program -v"),
        ("listen", "/x", "--allow-any", "--exec", "sh -c 'unclosed"),
        ("completion", "tcsh"),
    ],
    ids=" ".join,
)
def test_usage_errors_exit_with_2(args: tuple[str, ...], capsys: CaptureFixture[str]) -> None:
    assert run(*args) == ExitCode.USAGE
    assert capsys.readouterr().err


def test_exec_wants_to_know_who_may(capsys: CaptureFixture[str]) -> None:
    assert run("listen", "/x/1.0.0", "--exec", "sh") == ExitCode.USAGE
    assert "--allow PEER, or --allow-any" in capsys.readouterr().err.replace("\n", " ")


def test_usage_errors_are_json_where_json_was_asked_for(capsys: CaptureFixture[str]) -> None:
    assert run("dial", "-o", "json", "x", "--policy", "fast") == ExitCode.USAGE
    error = json.loads(capsys.readouterr().err)["error"]
    assert error["reason"] == "USAGE"
    assert error["exit_code"] == 2


@pytest.mark.parametrize("args", [("id",), ("peers",), ("stop",), ("relay", "list"), ("events",)])
def test_without_a_daemon_it_is_3_with_a_hint(
    args: tuple[str, ...], tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    assert run(f"--socket={tmp_path}/s", *args) == ExitCode.NOT_REACHABLE
    error = capsys.readouterr().err
    assert f"dep2pctl: no daemon at {tmp_path}/s" in error
    assert "hint: start the daemon: dep2pd" in error


def test_common_options_stand_before_or_behind_the_command(
    tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    for args in (
        ("-o", "json", f"--socket={tmp_path}/s", "id"),
        ("id", "-o", "json", "--socket", f"{tmp_path}/s"),
    ):
        assert run(*args) == ExitCode.NOT_REACHABLE
        assert json.loads(capsys.readouterr().err)["error"]["reason"] == "DAEMON_NOT_REACHABLE"


def test_waiting_for_a_daemon_that_never_comes_is_4(
    tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    for condition in (("ready",), ("relay",), ("peer", "12D3"), ("direct", "12D3")):
        args = ("wait", *condition, "--timeout", "20ms", f"--socket={tmp_path}/s")
        assert run(*args) == ExitCode.DEADLINE
        assert "waited 20ms in vain: no daemon at" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: CaptureFixture[str]) -> None:
    assert run("completion", shell) == ExitCode.DONE
    assert "_DEP2PCTL_COMPLETE" in capsys.readouterr().out


def test_completion_knows_commands_and_options() -> None:
    from click.shell_completion import ShellComplete

    complete = ShellComplete(cli, {}, "dep2pctl", "_DEP2PCTL_COMPLETE")
    assert {item.value for item in complete.get_completions([], "d")} == {"dial", "disconnect"}
    assert "--policy" in {item.value for item in complete.get_completions(["dial"], "--")}


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("10s", 10), ("2m", 120), ("1h", 3600), ("3", 3)]
)
def test_durations(text: str, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == pytest.approx(seconds)


@pytest.mark.parametrize(("text", "size"), [("100MB", 1e8), ("64KiB", 65536), ("7", 7)])
def test_sizes(text: str, size: float) -> None:
    assert SIZE.convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "10 parsecs", "-1s", "s"])
def test_what_is_no_value_with_a_unit(text: str) -> None:
    for kind in (DURATION, SIZE):
        with pytest.raises(click.BadParameter, match="write"):
            kind.convert(text, None, None)


def test_the_table_of_modules_has_no_command_that_is_not_there() -> None:
    assert {path[0] for path in ALL} == COMMANDS.keys()


def test_version() -> None:
    result = CliRunner().invoke(cli, ["--version"])
    assert result.output.startswith("dep2pctl, version ")
