"""A click group that runs one of its commands when none is named."""

from __future__ import annotations

from typing import Any

import click
from typing_extensions import override


class DefaultCommandGroup(click.Group):
    """`prog --flag` means `prog DEFAULT --flag`; the group's help shows the default's options."""

    def __init__(self, *args: Any, default_command: str, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self.default_command = default_command

    @override
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if not args or (args[0].startswith("-") and args[0] not in own):
            args = self._command_first(ctx, args)
        return super().parse_args(ctx, args)

    def _command_first(self, ctx: click.Context, args: list[str]) -> list[str]:
        """`--flag VALUE config check` means `config check --flag VALUE`."""
        with_value = {
            name
            for parameter in self.commands[self.default_command].get_params(ctx)
            if isinstance(parameter, click.Option) and not parameter.is_flag
            for name in parameter.opts
        }
        at = 0
        while at < len(args) and args[at].startswith("-"):
            at += 2 if args[at] in with_value else 1
        words: list[str] = []
        group: click.Command = self
        while isinstance(group, click.Group) and args[at : at + 1] and args[at] in group.commands:
            group = group.commands[args[at]]
            words.append(args.pop(at))
        return [*(words or [self.default_command]), *args]

    @override
    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        default = self.commands[self.default_command]
        rows = [
            row
            for parameter in default.get_params(ctx)
            if not isinstance(parameter, click.Argument)
            and (row := parameter.get_help_record(ctx)) is not None
        ]
        with formatter.section(f"Options of {self.default_command}"):
            formatter.write_dl(rows)
        self.format_commands(ctx, formatter)
