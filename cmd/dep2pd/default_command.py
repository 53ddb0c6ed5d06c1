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
            args.insert(0, self.default_command)
        return super().parse_args(ctx, args)

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
