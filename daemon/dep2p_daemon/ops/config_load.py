"""Reading the configuration: flags over environment over file, every problem told at once."""

from __future__ import annotations

import difflib
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ValidationError
from typing_extensions import override

from dep2p_daemon.errors import ConfigError
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.ops.config import Config, default_data_dir, default_socket
from dep2p_daemon.ops.config_layers import Layer, Origin, origins

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

ENV_PREFIX: Final = "DEP2P_"
NOT_SETTINGS: Final = frozenset({"DEP2P_CI", "DEP2P_CONFIG"})
"""Variables with our prefix that are no settings: CI's strictness, the file's path."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, in words for the person who can put it right."""

    key: str
    message: str
    remedy: str

    @override
    def __str__(self) -> str:
        return f"{self.key}: {self.message}\n    remedy: {self.remedy}"


def default_file(env: Mapping[str, str], uid: int) -> Path:
    """`/etc/dep2p/dep2pd.toml` for root, else `$XDG_CONFIG_HOME/dep2p/dep2pd.toml`."""
    if uid == 0:
        return Path("/etc/dep2p/dep2pd.toml")
    home = env.get("XDG_CONFIG_HOME") or f"{env.get('HOME', '')}/.config"
    return Path(home) / "dep2p" / "dep2pd.toml"


def fields() -> dict[str, FieldInfo]:
    """Every key of the configuration, dotted, in the order of the classes."""
    return dict(_fields(Config, ""))


def _fields(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _fields(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def load_config(
    *,
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
    defaults: Mapping[str, object] | None = None,
) -> Config:
    """Read file, environment and flags and validate the whole.

    Args:
        path: the TOML file; None means the default one, which may be absent.
        env: the environment; None means the process'.
        flags: dotted key to value, for what was given on the command line.
        defaults: the same, for what the program prefers to the usual defaults.

    Raises:
        ConfigError: names every problem: key, value, source and remedy.
    """
    env = os.environ if env is None else env
    flags = flags or {}
    uid = os.getuid()
    problems: list[Problem] = []
    layers = [
        {key: Origin(value, f"flag {_flag(key)}") for key, value in flags.items()},
        _env_layer(env, problems),
        _file_layer(path, env, uid, problems),
        {key: Origin(value, "default") for key, value in (defaults or {}).items()},
        {
            "node.data_dir": Origin(default_data_dir(env, uid), "default"),
            "socket": Origin(default_socket(env, uid), "default"),
        },
    ]
    config: Config | None = None
    try:
        config = Config.from_layers(layers)
    except ValidationError as error:
        problems.extend(_problem(details, layers) for details in error.errors())
    if config is not None:
        problems.extend(_contradictions(config, layers))
    if config is None or problems:
        raise _config_error(problems)
    config.set_sources(origins(layers, config.node.preset))
    return config


def _file_layer(
    path: Path | None, env: Mapping[str, str], uid: int, problems: list[Problem]
) -> Layer:
    explicit = path or (Path(env["DEP2P_CONFIG"]) if env.get("DEP2P_CONFIG") else None)
    file = explicit or default_file(env, uid)
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if explicit is not None:
            problems.append(
                Problem(f"the file {file}", "does not exist", "check --config, or leave it out")
            )
        return {}
    except OSError as error:
        problems.append(
            Problem(
                f"the file {file}",
                f"cannot be read: {error.strerror}",
                "make it readable for the user who runs dep2pd",
            )
        )
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(
            Problem(f"the file {file}", f"is not TOML: {error}", "correct the line it names")
        )
        return {}
    return _known(_flattened(tree, str(file)), problems)


def _flattened(tree: Mapping[str, Any], source: str) -> Layer:
    layer: Layer = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            layer.update({f"{name}.{inner}": Origin(v, source) for inner, v in value.items()})
        else:
            layer[name] = Origin(value, source)
    return layer


def _env_layer(env: Mapping[str, str], problems: list[Problem]) -> Layer:
    layer: Layer = {}
    known = fields()
    for variable, text in env.items():
        if not variable.startswith(ENV_PREFIX) or variable in NOT_SETTINGS:
            continue
        key = variable.removeprefix(ENV_PREFIX).lower().replace("__", ".", 1)
        is_list = key in known and "tuple" in str(known[key].annotation)
        value = [part.strip() for part in text.split(",") if part.strip()] if is_list else text
        layer[key] = Origin(value, f"environment {variable}")
    return _known(layer, problems)


def _known(layer: Layer, problems: list[Problem]) -> Layer:
    """The layer without keys that do not exist; those become problems."""
    known = fields()
    for key in sorted(layer.keys() - known.keys()):
        like = difflib.get_close_matches(key, known, n=1)
        problems.append(
            Problem(
                f"{key} ({layer[key].source})",
                "is not a setting",
                f"did you mean {like[0]}?" if like else "see docs/configuration.md for all keys",
            )
        )
    return {key: origin for key, origin in layer.items() if key in known}


def _flag(key: str) -> str:
    name = key.rpartition(".")[2]
    return "--" + {"relays": "relay", "format": "log-format", "level": "log-level"}.get(
        name, name
    ).replace("_", "-")


def _problem(details: ErrorDetails, layers: Sequence[Layer]) -> Problem:
    path = [str(part) for part in details["loc"]]
    known = fields()
    key = next(
        (dotted for end in (2, 1) if (dotted := ".".join(path[:end])) in known), ".".join(path)
    )
    origin = next((layer[key] for layer in layers if key in layer), None)
    where = f" ({origin.source})" if origin else ""
    context = details.get("ctx", {})
    message, remedy = details["msg"], context.get("remedy")
    if remedy is None:
        message, remedy = "is not allowed", _instruction(message)
    return Problem(f"{key} = {details['input']!r}{where}", message, remedy)


def _instruction(message: str) -> str:
    """Pydantic's "Input should be ..." as what to do."""
    wanted = message.removeprefix("Input should be ").partition(",")[0]
    if wanted.startswith(("greater", "less")):
        return f"write a number {wanted}"
    if wanted == "a valid tuple":
        return 'write a list: ["...", "..."]'
    if wanted == "a valid boolean":
        return "write true or false"
    return f"write {message.removeprefix('Input should be ')}"


def _contradictions(config: Config, layers: Sequence[Layer]) -> Iterator[Problem]:
    """Settings that are right by themselves and not together."""
    given: Layer = {}
    for layer in reversed(layers):
        given.update(layer)
    exact = [isinstance(entry, Multiaddr) for entry in config.node.listen]
    if exact and all(exact) and "node.port" in given:
        yield Problem(
            f"node.port = {given['node.port'].value!r} ({given['node.port'].source})",
            f"has no effect beside node.listen ({given['node.listen'].source})",
            "leave it out (the addresses have ports of their own), or listen on IP addresses",
        )
    if config.limits.max_inbound_connections > config.limits.max_connections:
        yield Problem(
            f"limits.max_inbound_connections = {config.limits.max_inbound_connections}",
            f"is more than limits.max_connections = {config.limits.max_connections}",
            "raise limits.max_connections too, or lower this one",
        )


def _config_error(problems: Sequence[Problem]) -> ConfigError:
    count = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = "\n".join(f"  {problem}" for problem in problems)
    return ConfigError(
        f"the configuration has {count}:\n{lines}",
        keys=",".join(problem.key.split(" ")[0] for problem in problems),
    )
