"""`dep2pctl`: see `dep2pctl --help` and docs/cli.md."""

from __future__ import annotations

import os
import sys

import click

# gRPC's core writes lines of its own to standard error; what matters reaches us as errors.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from dep2pctl.app import cli
from dep2pctl.exit_codes import ExitCode
from dep2pctl.output import write_json
from dep2pctl.session import Session


def main() -> None:
    """Entry of the script `dep2pctl`."""
    try:
        sys.exit(cli(prog_name="dep2pctl", standalone_mode=False))
    except click.ClickException as error:
        session = (
            error.ctx.find_object(Session)
            if isinstance(error, click.UsageError) and error.ctx
            else None
        )
        if session is not None and session.json:
            details = {
                "message": error.format_message(),
                "reason": "USAGE",
                "remedy": "see dep2pctl --help",
                "metadata": {},
                "exit_code": error.exit_code,
            }
            write_json({"error": details}, one_line=True, err=True)
        else:
            error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(ExitCode.INTERRUPTED)


if __name__ == "__main__":
    main()
