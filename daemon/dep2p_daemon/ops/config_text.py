"""The effective configuration as TOML, with the source of every value (`dep2pd config show`)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, get_args

from dep2p_daemon.ops.config_load import fields
from dep2p_daemon.ops.config_units import format_duration, format_size
from dep2p_daemon.ops.config_values import Bytes, Seconds

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from dep2p_daemon.ops.config import Config

_DURATION = get_args(Seconds)[1]
_SIZE = get_args(Bytes)[1]


def to_toml(config: Config) -> str:
    """A file that `load_config` reads back to the same values."""
    lines: list[str] = []
    table = ""
    for key, field in fields().items():
        section, _, name = key.rpartition(".")
        if section != table:
            lines += ["", f"[{section}]"]
            table = section
        value: object = config
        for part in key.split("."):
            value = getattr(value, part)
        text = f"{name} = {_toml_value(value_as_text(field, value))}"
        lines.append(f"{text:<48}  # {config.source(key)}")
    return "\n".join(lines) + "\n"


def value_as_text(field: FieldInfo, value: object) -> object:
    """A value as a person writes it: with its unit where it has one."""
    if _DURATION in field.metadata and isinstance(value, int | float):
        return format_duration(value) if value else 0
    if _SIZE in field.metadata and isinstance(value, int):
        return format_size(value) if value else 0
    return "" if value is None else value


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, tuple):
        return f"[{', '.join(_toml_value(item) for item in value)}]"
    # A JSON string is a TOML basic string, but for DEL, which JSON leaves as it is.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
