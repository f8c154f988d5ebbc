"""Settings that change what a layer remembers although its weights are the same, in two checkpoints.

Weights do not show a limit on Δ, the activation behind a convolution or how many groups share B and C. Each family
names such settings (`Family.forward`), with the names and the defaults of the code that runs it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ssmdiag.families.interface import ForwardSetting
from ssmdiag.families.layer import Layer

_CONFIG = ("model_type", "architectures", "general.architecture")
"""Keys that only a model's settings have."""
_SAME = {"swish": "silu"}


@dataclass(frozen=True)
class SettingDifference:
    """A setting that differs between two checkpoints; None where one of them has no settings that show it."""

    name: str
    meaning: str
    a: Any
    b: Any

    @property
    def sentence(self) -> str:
        if self.a is not None and self.b is not None:
            return f"{self.name} is {_written(self.a)} in a, {_written(self.b)} in b: {self.meaning}"
        known, value, other = ("a", self.a, "b") if self.b is None else ("b", self.b, "a")
        return f"{self.name} is {_written(value)} in {known}, and no setting of {other} says: {self.meaning}"


def differing_settings(a: Layer, b: Layer) -> tuple[SettingDifference, ...]:
    """Return the family's settings that differ between two layers.

    A setting that a configuration leaves out has its default. Without a configuration nothing is known, which counts
    where the other side departs from the default.
    """
    found = []
    for setting in a.family.forward if a.family is b.family else ():
        first, second = _values(a, setting), _values(b, setting)
        if first and second:
            if not any(one in second for one in first):
                found.append((setting, first[0], second[0]))
        elif first or second:
            value = (first or second)[0]
            if setting.usual is not None and value != _plain(setting.usual):
                found.append((setting, value if first else None, value if second else None))
    return tuple(SettingDifference(s.names[0], s.meaning, one, other) for s, one, other in found)


def _values(layer: Layer, setting: ForwardSetting) -> list[Any]:
    """Return the values in a layer's settings: several for a model of several parts, none where unknown."""
    checkpoint = layer.checkpoint
    models = {str(model) for model in checkpoint.settings_named("model_type")}
    if setting.only and not models & set(setting.only):
        return []
    for name in setting.names:
        stated = [_plain(value) for value in checkpoint.settings_named(name) if value is not None]
        if stated:
            return stated
    implied = [_plain(value) for model, value in setting.implied.items() if model in models]
    if implied or setting.usual is None:
        return implied
    return [_plain(setting.usual)] if any(checkpoint.settings_named(name) for name in _CONFIG) else []


def _plain(value: Any) -> Any:
    """Return a value that can be compared: JSON spells infinity null or {"__float__": "Infinity"}."""
    if isinstance(value, Mapping) and "__float__" in value:
        value = value["__float__"]
    if isinstance(value, (list, tuple)):
        return tuple(math.inf if item is None else _plain(item) for item in value)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return _SAME.get(value.lower(), value.lower())
    return "nan" if isinstance(value, float) and math.isnan(value) else value


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
