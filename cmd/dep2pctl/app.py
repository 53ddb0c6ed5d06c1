"""The command tree. Command modules are imported when they are used, to start fast."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any, Final

import click
from typing_extensions import override

from dep2pctl.session import Session

HELP_SETTINGS: Final[dict[str, Any]] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
}

EPILOG = """\b
Examples:
  dep2pctl id                                    who am I, where am I reachable
  dep2pctl relay connect /ip4/203.0.113.10/udp/4001/quic-v1/p2p/12D3KooW...
  dep2pctl dial 12D3KooW...                      connect, and tell by which path
  dep2pctl stream 12D3KooW... /my-app/1.0.0      stdin and stdout are the stream
  dep2pctl -o json peers | jq -r '.peers[].peer_id'

\b
Exit codes: 0 done, 1 failed, 2 usage, 3 daemon not reachable, 4 deadline, 5 refused
(a permission or a limit), 130 interrupted. docs/cli.md has the JSON of every command.
"""


def common_options() -> list[click.Parameter]:
    """The options that may stand before or behind a command's name."""
    return [
        click.Option(
            ["-o", "--output"],
            type=click.Choice(["table", "json"]),
            expose_value=False,
            callback=_set("output"),
            help="For people, or for programs. [table]",
        ),
        click.Option(
            ["--socket"],
            type=click.Path(path_type=Path),
            expose_value=False,
            callback=_set("socket"),
            help="The daemon's unix socket. [$DEP2P_SOCKET or the usual place]",
        ),
    ]


def _set(name: str) -> Any:  # noqa: ANN401 - click's type of callbacks
    def callback(ctx: click.Context, _param: click.Parameter, value: object) -> None:
        if value is not None:
            setattr(ctx.ensure_object(Session), name, value)

    return callback


class ExampleCommand(click.Command):
    """A command whose help ends with examples."""

    def __init__(self, *args: Any, examples: str, **kwargs: Any) -> None:  # noqa: ANN401
        kwargs.setdefault("context_settings", HELP_SETTINGS)
        super().__init__(*args, **kwargs)
        self.examples = dedent(examples).strip()

    @override
    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            for line in self.examples.splitlines():
                formatter.write(f"  {line}\n")


class ApiCommand(ExampleCommand):
    """A command that talks to the daemon."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self.params += common_options()


class LazyGroup(click.Group):
    """A group whose commands live in modules that are imported on use."""

    def __init__(self, *args: Any, modules: dict[str, str], **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self._modules = modules

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._modules)

    @override
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = self._modules.get(cmd_name)
        if module is None:
            return None
        name = cmd_name.replace("-", "_")
        command = getattr(import_module(f"dep2pctl.commands.{module}"), name)
        assert isinstance(command, click.Command)
        return command


COMMANDS: Final = {
    "id": "node",
    "status": "node",
    "peers": "peers",
    "connections": "peers",
    "dial": "dial",
    "ping": "ping",
    "perf": "perf",
    "disconnect": "dial",
    "why": "why",
    "events": "events",
    "netcheck": "netcheck",
    "metrics": "metrics",
    "relay": "relay",
    "listen": "listen",
    "stream": "stream",
    "wait": "wait",
    "stop": "node",
    "completion": "completion",
}
"""Command to the module of `dep2pctl.commands` that has it, in the order of the help."""


@click.group(cls=LazyGroup, modules=COMMANDS, epilog=EPILOG, context_settings=HELP_SETTINGS)
@click.version_option(package_name="dep2pd", prog_name="dep2pctl")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Talk to the dep2pd daemon of this machine.

    Everything here is a call of the daemon's gRPC API: what this program can do, yours can.
    """
    ctx.ensure_object(Session)


cli.params += common_options()
