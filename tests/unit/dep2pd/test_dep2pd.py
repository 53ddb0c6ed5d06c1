from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from dep2p_daemon import __version__
from dep2p_daemon.errors import ConfigError, PreconditionError
from dep2p_daemon.ops.config_load import fields
from dep2p_relay_server.__main__ import cli as relay_server
from dep2pd.__main__ import cli
from dep2pd.options import FLAGS
from dep2pd.start import describe, first_cause

if TYPE_CHECKING:
    from pathlib import Path

PROGRAMS = (("daemon", cli), ("relay", relay_server))


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("DEP2P_SOCKET", "DEP2P_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def dep2pd(*args: str) -> Result:
    return CliRunner().invoke(cli, args, prog_name="dep2pd")


def test_every_flag_is_a_setting() -> None:
    assert set(FLAGS.values()) <= fields().keys()
    run = cli.commands["run"]
    assert {parameter.name for parameter in run.params} == FLAGS.keys() | {"config"}


def test_help_of_the_group_shows_the_flags_of_run() -> None:
    for args in (["--help"], ["-h"], ["run", "--help"]):
        result = dep2pd(*args)
        assert result.exit_code == 0
        for flag in ("--preset", "--relay", "--log-level", "Examples:"):
            assert flag in result.output


def test_a_flag_without_a_command_goes_to_run() -> None:
    result = dep2pd("--port", "none")
    assert result.exit_code == 2
    assert "Usage: dep2pd run" in result.output


@pytest.mark.parametrize(
    "args",
    [
        ("--preset", "relay", "config", "check"),
        ("--preset=relay", "--port", "4002", "config", "check", "--log-level", "debug"),
    ],
)
def test_flags_may_stand_before_the_command(args: tuple[str, ...]) -> None:
    result = dep2pd(*args)
    assert (result.exit_code, result.output) == (0, "the configuration is right\n")


def test_flags_before_the_command_count() -> None:
    result = dep2pd("--port", "4002", "config", "show", "--preset", "relay")
    assert "port = 4002" in result.output
    assert dep2pd("--relay", "nonsense", "config", "check").exit_code == 2


def test_every_program_tells_its_own_defaults_and_version() -> None:
    helps = {name: CliRunner().invoke(program, ["--help"]).output for name, program in PROGRAMS}
    relay, daemon = (" ".join(helps[name].split()) for name in ("relay", "daemon"))
    assert "any free one. [4001; desktop: 0]" in daemon
    assert "any free one. [4001]" in relay
    assert "each step of a dial. [info]" in daemon
    assert "each step of a dial. [warning]" in relay
    for _, program in PROGRAMS:
        assert __version__ in CliRunner().invoke(program, ["--version"]).output


def test_an_unknown_command_is_a_usage_error() -> None:
    result = dep2pd("walk")
    assert result.exit_code == 2
    assert "No such command 'walk'" in result.output


def test_check_tells_every_problem_and_exits_with_2(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[node]\nprot = 1\n[log]\nlevel = 'x'\n")
    result = dep2pd("config", "check", "--config", str(file))
    assert result.exit_code == 2
    assert "2 problems" in result.output
    assert "did you mean node.port?" in result.output


def test_run_refuses_a_wrong_configuration_before_it_starts() -> None:
    result = dep2pd("--relay", "/ip4/203.0.113.10/udp/4001/quic-v1")
    assert result.exit_code == 2
    assert "quic-v1/p2p/" in result.output
    assert "remedy" in result.output


def test_check_is_content_with_a_right_one() -> None:
    result = dep2pd("config", "check", "--preset", "relay")
    assert (result.exit_code, result.output) == (0, "the configuration is right\n")


def test_show_prints_values_with_their_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEP2P_LOG__FORMAT", "json")
    result = dep2pd("config", "show", "--preset", "relay", "--port", "5001")
    assert result.exit_code == 0
    lines = {line.split("#")[0].strip(): line.split("# ")[-1] for line in result.output.split("\n")}
    assert lines["port = 5001"] == "flag --port"
    assert lines["enabled = true"] == "preset relay"
    assert lines['format = "json"'] == "environment DEP2P_LOG__FORMAT"
    assert lines['level = "info"'] == "default"


def test_relative_paths_of_flags_are_from_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    result = dep2pd("config", "show", "--data-dir", "state", "--socket", "s")
    assert f'data_dir = "{tmp_path}/state"' in result.output
    assert f'socket = "{tmp_path}/s"' in result.output


@pytest.mark.parametrize(
    ("error", "message", "reason", "remedy"),
    [
        (ConfigError("no", remedy="do"), "no", "CONFIG_INVALID", "do"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            "/x: Permission denied",
            "EACCES",
            "run as a user",
        ),
        (OSError(errno.ENOSPC, "No space left"), "No space left", "ENOSPC", "make room"),
        (KeyError("k"), "a mistake in dep2pd: KeyError: 'k'", "INTERNAL", "report"),
    ],
)
def test_whatever_ends_the_start_is_said_with_a_remedy(
    error: Exception, message: str, reason: str, remedy: str
) -> None:
    told = describe(error)
    assert told[:2] == (message, reason)
    assert remedy in told[2]


def test_the_cause_is_found_inside_groups() -> None:
    cause = PreconditionError("x")
    group = ExceptionGroup("a", [ExceptionGroup("b", [cause]), ValueError()])
    assert first_cause(group) is cause


def test_a_data_directory_that_cannot_be_made_is_a_failed_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    common = ["--data-dir", str(tmp_path / "file" / "x"), "--socket", str(tmp_path / "s")]
    result = dep2pd(*common)
    assert result.exit_code == 1
    assert "dep2pd: " in result.output
    assert "remedy: " in result.output
    assert "Traceback" not in result.output
    result = dep2pd(*common, "--log-format", "json")
    line = json.loads(result.output.splitlines()[-1])
    assert line["level"] == "error"
    assert line["remedy"]
