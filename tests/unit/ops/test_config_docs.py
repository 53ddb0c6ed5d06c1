"""docs/configuration.md has every key with its default, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest

from dep2p_daemon.ops.config import Config
from dep2p_daemon.ops.config_layers import PRESETS
from dep2p_daemon.ops.config_load import ENV_PREFIX, NOT_SETTINGS, fields, load_config
from dep2p_daemon.ops.config_text import value_as_text
from dep2p_daemon.ops.config_values import Bytes, Seconds
from dep2pd.options import FLAGS

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "configuration.md").read_text()
PLACES = {
    "socket": "`$XDG_RUNTIME_DIR/dep2p/dep2pd.sock`, root: `/run/dep2p/dep2pd.sock`",
    "node.data_dir": "`$XDG_STATE_HOME/dep2p` (`~/.local/state/dep2p`), root: `/var/lib/dep2p`",
}
"""Defaults that depend on the user."""


def kind(field: FieldInfo) -> str:
    """What is written there."""
    if get_args(Seconds)[1] in field.metadata:
        return "duration"
    if get_args(Bytes)[1] in field.metadata:
        return "size"
    text = str(field.annotation)
    if "tuple" in text:
        return "list"
    if "Literal" in text:
        return ", ".join(f"`{choice}`" for choice in re.findall(r"'(\w+)'", text))
    if "Path" in text:
        return "path"
    if "IpEndpoint" in text:
        return "IP:PORT"
    return {"<class 'int'>": "number", "<class 'bool'>": "true or false"}[text]


def default(key: str, field: FieldInfo) -> str:
    """The default as a person writes it, with those of the presets."""
    if key in PLACES:
        return PLACES[key]
    section, _, name = key.rpartition(".")
    value: object = Config()
    for part in key.split("."):
        value = getattr(value, part)
    presets = {p: v[section][name] for p, v in PRESETS.items() if name in v.get(section, {})}
    if presets:
        return ", ".join(f"{preset}: `{_toml(v)}`" for preset, v in presets.items())
    return f"`{_toml(value_as_text(field, value))}`"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value == "":
        return '""'
    return "[]" if value == () else str(value)


def row(key: str, field: FieldInfo) -> str:
    return f"| `{key}` | {kind(field)} | {default(key, field)} | {field.description} |"


def test_every_key_has_its_row() -> None:
    missing = [line for key, field in fields().items() if (line := row(key, field)) not in PAGE]
    assert missing == [], "write these rows into docs/configuration.md"


def test_no_key_is_documented_that_does_not_exist() -> None:
    documented = re.findall(r"^\| `([a-z_.]+)` \|", PAGE, flags=re.MULTILINE)
    assert sorted(documented) == sorted(fields())


def test_the_variables_it_names_exist() -> None:
    known = {f"{ENV_PREFIX}{key.replace('.', '__')}".upper() for key in fields()}
    named = set(re.findall(r"`(DEP2P_[A-Z_]+)(?:=[^`]*)?`", PAGE))
    assert len(named) > 3
    assert named - NOT_SETTINGS - {"DEP2P_SECTION__KEY"} <= known


def test_the_flags_it_names_are_those_of_the_programs() -> None:
    table = dict(re.findall(r"^\| `--([a-z-]+)` \| `([a-z_.]+)` \|$", PAGE, flags=re.MULTILINE))
    assert {name.replace("-", "_"): key for name, key in table.items()} == FLAGS


@pytest.mark.parametrize("text", re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL))
def test_the_examples_are_right(text: str, tmp_path: Path) -> None:
    file = tmp_path / "dep2pd.toml"
    file.write_text(text)
    load_config(path=file, env={})
