"""Discovers every family: one module each, plus entry points of other packages."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from ssmdiag.errors import SsmdiagError
from ssmdiag.families.interface import Family, ForwardSetting, Option, Spelling, Steering

__all__ = ["Family", "ForwardSetting", "Option", "Spelling", "Steering", "known_families"]

MACHINERY = frozenset({
    "forward", "initial_spectra", "initialisations", "interface", "layer", "layouts", "map_template", "mapfile",
    "packed", "recognition", "unknown_decay",
})  # fmt: skip
"""Modules of this package that are not families."""


@cache
def known_families() -> tuple[Family, ...]:
    """Return all families, by name. Imports no torch.

    Raises SsmdiagError where another package's entry point cannot be loaded, is not a `Family` or has
    a name in use.
    """
    found: dict[str, Family] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name not in MACHINERY:
            family = importlib.import_module(f"{__name__}.{module.name}").FAMILY
            found[family.name] = family
    for entry in entry_points(group="ssmdiag.families"):
        family = _load(entry)
        if family.name in found:
            raise SsmdiagError(
                f"entry point {entry.name} ({entry.value}) brings a family {family.name}, and there is one already.",
                advice="give it another name, or uninstall the package.",
            )
        found[family.name] = family
    return tuple(found[name] for name in sorted(found))


def _load(entry: EntryPoint) -> Family:
    try:
        family = entry.load()
    except Exception as error:  # another package may raise anything at import
        raise SsmdiagError(
            f"entry point {entry.name} ({entry.value}) cannot be loaded: {type(error).__name__}: {error}.",
            advice="mend or uninstall the package that brings it.",
        ) from error
    if not isinstance(family, Family):
        raise SsmdiagError(
            f"entry point {entry.name} ({entry.value}) is a {type(family).__name__}.", expected="a ssmdiag.Family"
        )
    return family
