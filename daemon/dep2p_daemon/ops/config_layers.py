"""The layers a configuration is made of, as pydantic-settings sources.

A layer maps dotted keys to raw values and remembers where each one was written, so that a
complaint and `dep2pd config show` can name it. Under all layers lie the preset's values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic.fields import FieldInfo

DEFAULT_PORT: Final = 4001
"""Port of the presets server and relay: libp2p's usual one."""

PRESETS: Final[Mapping[str, Mapping[str, Mapping[str, object]]]] = {
    "desktop": {
        "node": {"port": 0},
        "relay_server": {"enabled": False},
        "nat": {"port_mapping": True},
        "relay_client": {"wanted": 2},
        "discovery": {"mdns": True},
    },
    "server": {
        "node": {"port": DEFAULT_PORT},
        "relay_server": {"enabled": False},
        "nat": {"port_mapping": True},
        "relay_client": {"wanted": 2},
        # On a hoster's network the neighbours are strangers.
        "discovery": {"mdns": False},
    },
    "relay": {
        "node": {"port": DEFAULT_PORT},
        "relay_server": {"enabled": True},
        # It has a public address; a gateway that forwards to it is its owner's to set up.
        "nat": {"port_mapping": False},
        # Whoever relays for others can be reached without a relay.
        "relay_client": {"wanted": 0},
        "discovery": {"mdns": False},
    },
}
"""What a preset sets: section, name, value."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A raw value and where it was written."""

    value: object
    source: str


Layer = dict[str, Origin]


def origins(layers: Sequence[Layer], preset: str) -> dict[str, str]:
    """Dotted key to the source that decides it; the first layer wins."""
    decided = {
        f"{section}.{name}": f"preset {preset}"
        for section, values in PRESETS[preset].items()
        for name in values
    }
    for layer in reversed(layers):
        decided.update({key: origin.source for key, origin in layer.items()})
    return decided


def sources_of(
    settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource
) -> tuple[PydanticBaseSettingsSource, ...]:
    """The sources of a `Config`: its keyword arguments, or the argument `layers`; the preset."""
    given = init_settings()
    layers: Sequence[Layer] = given.get("layers") or [_layer(given)]
    sources = (_LayerSource(settings_cls, layer) for layer in layers)
    return (*sources, _PresetSource(settings_cls))


def _layer(given: Mapping[str, object]) -> Layer:
    """Keyword arguments as a layer: of a section, mapping or object, what was set in it."""
    layer: Layer = {}
    for name, value in given.items():
        if isinstance(value, BaseModel):
            value = {field: getattr(value, field) for field in value.model_fields_set}
        if isinstance(value, dict):
            layer.update({f"{name}.{inner}": Origin(v, "code") for inner, v in value.items()})
        else:
            layer[name] = Origin(value, "code")
    return layer


class _LayerSource(PydanticBaseSettingsSource):
    """One layer, nested as the classes are."""

    def __init__(self, settings_cls: type[BaseSettings], layer: Layer) -> None:
        super().__init__(settings_cls)
        self._layer = layer

    @override
    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    @override
    def __call__(self) -> dict[str, Any]:
        nested: dict[str, Any] = {}
        for key, origin in self._layer.items():
            section, _, name = key.rpartition(".")
            (nested.setdefault(section, {}) if section else nested)[name] = origin.value
        return nested


class _PresetSource(PydanticBaseSettingsSource):
    """The values of the preset that the sources above chose."""

    @override
    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    @override
    def __call__(self) -> dict[str, Any]:
        preset = self.current_state.get("node", {}).get("preset", "desktop")
        return {section: dict(values) for section, values in PRESETS.get(preset, {}).items()}
