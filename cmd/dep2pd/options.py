"""The flags of the daemon's programs, and which setting each one is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

F = TypeVar("F", bound="Callable[..., Any]")

FLAGS: Final = {
    "preset": "node.preset",
    "port": "node.port",
    "listen": "node.listen",
    "announce": "node.announce",
    "relay": "relays",
    "bootstrap": "node.bootstrap",
    "data_dir": "node.data_dir",
    "socket": "socket",
    "metrics": "metrics.listen",
    "log_format": "log.format",
    "log_level": "log.level",
}
"""Parameter name to dotted configuration key."""

PRESET_OPTION: Final = click.option(
    "--preset",
    type=click.Choice(["desktop", "server", "relay"]),
    help="What this machine is: behind a NAT, reachable on a fixed port, or a relay for others. "
    "[desktop]",
)

_OPTIONS: Final = (
    click.option(
        "--port",
        type=click.IntRange(0, 65535),
        help="UDP and TCP port; 0: any free one. [4001; desktop: 0]",
    ),
    click.option(
        "--listen",
        multiple=True,
        metavar="ADDR",
        help="IP address or multiaddr to listen on; may be repeated. [all interfaces]",
    ),
    click.option(
        "--announce",
        multiple=True,
        metavar="ADDR",
        help="Public multiaddr to tell peers, where the machine cannot know it (1:1 NAT of a "
        "cloud); may be repeated.",
    ),
    click.option(
        "--relay",
        multiple=True,
        metavar="ADDR",
        help="Relay to be reachable through: a multiaddr with /p2p/PEER_ID, or HOST:PORT; may be "
        "repeated.",
    ),
    click.option(
        "--bootstrap",
        multiple=True,
        metavar="ADDR",
        help="Peer to connect to at start; may be repeated.",
    ),
    click.option(
        "--data-dir",
        type=click.Path(path_type=Path, resolve_path=True),
        help="Directory of the node key and the state. [~/.local/state/dep2p; root: "
        "/var/lib/dep2p]",
    ),
    click.option(
        "--socket",
        type=click.Path(path_type=Path, resolve_path=True),
        help="Unix socket of the API. [$XDG_RUNTIME_DIR/dep2p/dep2pd.sock; root: "
        "/run/dep2p/dep2pd.sock]",
    ),
    click.option(
        "--config",
        type=click.Path(path_type=Path, resolve_path=True),
        envvar="DEP2P_CONFIG",
        help="TOML file with settings. [~/.config/dep2p/dep2pd.toml; root: /etc/dep2p/dep2pd.toml]",
    ),
    click.option(
        "--metrics",
        metavar="HOST:PORT",
        help="Serve counters and gauges to a Prometheus server at http://HOST:PORT/metrics. "
        "[nowhere]",
    ),
    click.option(
        "--log-format",
        type=click.Choice(["console", "json"]),
        help="Form of the log lines on standard error. [console]",
    ),
    click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        help="debug shows each step of a dial. [info]",
    ),
)


def daemon_options(command: F) -> F:
    """Decorate a click command with the flags that all programs share."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def has_defaults(command: click.Command, **defaults: str) -> None:
    """Have the help of a program's options tell its own defaults, by parameter name."""
    for option in command.params:
        if isinstance(option, click.Option) and option.name in defaults and option.help:
            option.help = f"{option.help.rpartition(' [')[0]} [{defaults[option.name]}]"


def settings_given(params: Mapping[str, object]) -> dict[str, object]:
    """Dotted keys and values of the flags that were given."""
    return {
        key: params[name]
        for name, key in FLAGS.items()
        if params.get(name) is not None and params[name] != ()
    }
