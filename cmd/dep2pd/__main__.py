"""`dep2pd`: runs the daemon in the foreground; `dep2pd config` looks at its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dep2pd.default_command import DefaultCommandGroup
from dep2pd.options import PRESET_OPTION, daemon_options, settings_given

if TYPE_CHECKING:
    from pathlib import Path

EPILOG = """\b
Examples:
  dep2pd                                                any free port, no relay
  dep2pd --relay /ip4/203.0.113.10/udp/4001/quic-v1/p2p/12D3KooW...
  dep2pd --preset relay --port 4001                     be a relay for others
  dep2pd --config /etc/dep2p/dep2pd.toml --log-format json
  dep2pd config check                                   is the configuration right?
  DEP2P_NODE__PORT=4001 dep2pd                          settings from the environment

\b
Settings come from the TOML file, then DEP2P_SECTION__KEY variables, then flags.
docs/configuration.md lists them all. Exit codes: 0 ended in order, 1 failed, 2 usage or
configuration. SIGTERM or SIGINT ends it in order; a second one at once.
"""


@click.group(
    cls=DefaultCommandGroup,
    default_command="run",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="dep2pd", prog_name="dep2pd")
def cli() -> None:
    """Connect this machine's programs with peers, also with those behind NATs.

    Without a command, `run`. Programs talk to the daemon over its unix socket: see dep2pctl.
    """


@cli.command(epilog=EPILOG, short_help="Run the daemon in the foreground.")
@PRESET_OPTION
@daemon_options
@click.pass_context
def run(context: click.Context, /, config: Path | None, **flags: object) -> None:
    """Run the daemon in the foreground until SIGTERM, SIGINT or `dep2pctl stop`."""
    from dep2pd.start import run_daemon

    context.exit(run_daemon("dep2pd", config, settings_given(flags)))


@cli.group(name="config")
def config_group() -> None:
    """Look at the configuration without starting anything."""


@config_group.command(short_help="Read all settings; exit 0 if they are right, else 2.")
@PRESET_OPTION
@daemon_options
@click.pass_context
def check(context: click.Context, /, config: Path | None, **flags: object) -> None:
    """Read file, environment and flags; exit 0 if all is right, else 2 with every problem."""
    from dep2pd.start import load_or_explain

    if load_or_explain("dep2pd", config, settings_given(flags)) is None:
        context.exit(2)
    click.echo("the configuration is right")


@config_group.command(short_help="Print the effective settings as TOML.")
@PRESET_OPTION
@daemon_options
@click.pass_context
def show(context: click.Context, /, config: Path | None, **flags: object) -> None:
    """Print the effective configuration as TOML, with the source of each value."""
    from dep2pd.start import load_or_explain

    loaded = load_or_explain("dep2pd", config, settings_given(flags))
    if loaded is None:
        context.exit(2)
    from dep2p_daemon.ops.config_text import to_toml

    click.echo(to_toml(loaded), nl=False)


def main() -> None:
    """Entry of the script `dep2pd`."""
    cli(prog_name="dep2pd")


if __name__ == "__main__":
    main()
