"""`dep2p-relay-server`: `dep2pd --preset relay` with a console that tells what happens."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from dep2p_relay_server.texts import TEXTS, Language, language_of
from dep2pd.options import daemon_options, has_defaults, settings_given

if TYPE_CHECKING:
    from pathlib import Path

EPILOG = """\b
Examples:
  dep2p-relay-server --port 4001
  dep2p-relay-server --announce /ip4/203.0.113.10/udp/4001/quic-v1     behind a cloud's 1:1 NAT
  dep2p-relay-server --config /etc/dep2p/relay.toml --log-format json --log-level info

\b
Open the port for UDP and TCP in every firewall. Limits (reservations, circuits, rate) are
settings: docs/configuration.md, section relay_server. Exit codes are those of dep2pd.
"""


@click.command(
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@daemon_options
@click.option(
    "--lang",
    type=click.Choice(list(TEXTS)),
    help="Language of the console. [from the locale: zh for zh_*, else en]",
)
@click.version_option(package_name="dep2pd", prog_name="dep2p-relay-server")
@click.pass_context
def cli(
    context: click.Context, /, config: Path | None, lang: Language | None, **flags: object
) -> None:
    """Run a relay: peers behind NATs reach each other through it.

    The same as `dep2pd --preset relay`, with a console on standard output that shows connections,
    circuits and traffic as they happen. The relay forwards ciphertext: it can read nothing.
    """
    from dep2p_relay_server.console import RelayConsole
    from dep2pd.start import run_daemon

    if not sys.stdout.encoding.lower().startswith("utf"):
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # always a TextIOWrapper
    texts = TEXTS[lang or language_of(os.environ)]
    context.exit(
        run_daemon(
            "dep2p-relay-server",
            config,
            {**settings_given(flags), "node.preset": "relay"},
            # The console tells what happens; the log is for what goes wrong.
            defaults={"log.level": "warning"},
            console=RelayConsole(texts),
        )
    )


has_defaults(cli, port="4001", log_level="warning")


def main() -> None:
    """Entry of the script `dep2p-relay-server`."""
    cli(prog_name="dep2p-relay-server")


if __name__ == "__main__":
    main()
