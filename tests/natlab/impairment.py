"""What an access link does to packets, and how that is written: `delay=80ms,loss=2%`."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from tests.natlab.namespaces import NatlabError

MTU: Final = 1500
_EXAMPLES: Final = {
    "delay": "20ms or 0.02s",
    "loss": "1%",
    "rate": "10mbit or 2mbit/20mbit (up/down)",
    "mtu": "1400",
}
_TIME: Final = {"ms": 1.0, "s": 1000.0, "us": 0.001, "": 1.0}
_RATE: Final = {"mbit": 1.0, "kbit": 0.001, "gbit": 1000.0, "": 1.0}
OPTIONS: Final = ("delay", "jitter", "loss", "reorder", "rate", "queue", "mtu")


@dataclass(frozen=True, kw_only=True)
class Impairment:
    """In each direction of one link. None: not asked for; 0 makes an emulated link too."""

    delay_ms: float | None = None
    jitter_ms: float | None = None
    """More or less delay, with the order kept."""
    loss_pct: float | None = None
    reorder_pct: float | None = None
    """Share of packets that overtake all others."""
    rate_mbit: tuple[float, float] | None = None
    """Up and down; 0: no limit."""
    queue_ms: float | None = None
    """A packet that would wait longer for the rate is dropped; default 100."""
    mtu: int | None = None

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            values = value if isinstance(value, tuple) else (value,)
            if min(values) < 0 or (name.endswith("_pct") and max(values) > 100):
                raise NatlabError(f"bad value for {name}: {value!r}")

    @property
    def emulated(self) -> bool:
        """Whether a plain wire does not do."""
        return bool(self.given().keys() - {"mtu"})

    def given(self) -> dict[str, Any]:
        """What is not None."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def over(self, other: Impairment) -> Impairment:
        """This one where it says something, else the other."""
        return replace(other, **self.given())

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Impairment:
        """Read what `given` was written to JSON as."""
        rate = values.get("rate_mbit")
        return cls(**(values | ({"rate_mbit": tuple(rate)} if rate else {})))

    @classmethod
    def parse(cls, text: str) -> Impairment:
        """Read `delay=80ms,loss=2%,rate=2mbit/20mbit`.

        Raises:
            NatlabError: what is wrong, and an example of the right form.
        """
        values: dict[str, Any] = {}
        for item in filter(None, text.split(",")):
            key, equals, value = item.partition("=")
            if not equals:
                raise NatlabError(
                    f"bad link option {item!r}; write key=value, for example delay=20ms"
                )
            values |= _option(key, value)
        return cls(**values)


def _option(key: str, text: str) -> dict[str, Any]:
    if key in ("delay", "jitter", "queue"):
        return {f"{key}_ms": _number(text, _TIME, "delay")}
    if key in ("loss", "reorder"):
        return {f"{key}_pct": _number(text, {"%": 1.0}, "loss")}
    if key == "mtu":
        return {"mtu": int(_number(text, {"": 1.0}, "mtu"))}
    if key != "rate":
        raise NatlabError(f"unknown link option {key!r}; known: {' '.join(OPTIONS)}")
    rates = [_number(part, _RATE, "rate") for part in text.split("/")]
    if len(rates) > 2:
        raise NatlabError(f"bad rate {text!r}; write it like {_EXAMPLES['rate']}")
    return {"rate_mbit": (rates[0], rates[-1])}


def _number(text: str, units: dict[str, float], what: str) -> float:
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)([a-zA-Z%]*)", text)
    if match is None or match[2].lower() not in units:
        raise NatlabError(f"bad {what} {text!r}; write it like {_EXAMPLES[what]}")
    return float(match[1]) * units[match[2].lower()]
