"""`completion`: scripts that complete commands and options in a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from dep2pctl.app import ExampleCommand


@click.command(
    cls=ExampleCommand,
    examples="""
    source <(dep2pctl completion bash)                            # for this shell
    dep2pctl completion bash > ~/.local/share/bash-completion/completions/dep2pctl
    dep2pctl completion zsh > "${fpath[1]}/_dep2pctl"
    dep2pctl completion fish > ~/.config/fish/completions/dep2pctl.fish
    """,
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell."""
    complete = get_completion_class(shell)
    assert complete is not None, "click knows the three"
    root = ctx.find_root().command
    click.echo(complete(root, {}, "dep2pctl", "_DEP2PCTL_COMPLETE").source())
