"""Every family ssmdiag knows, discovered: one module each, plus entry points of other packages."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points

from ssmdiag.families.interface import Family, Option, Spelling

__all__ = ["Family", "Option", "Spelling", "known_families"]

MACHINERY = frozenset({"interface", "layer", "recognition", "mapfile", "map_template"})
"""Modules of this package that are not families."""


@cache
def known_families() -> tuple[Family, ...]:
    """Return all families, by name. Imports no torch.

    Raises TypeError where an entry point does not lead to a `Family`.
    """
    found: dict[str, Family] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name not in MACHINERY:
            family = importlib.import_module(f"{__name__}.{module.name}").FAMILY
            found[family.name] = family
    for entry in entry_points(group="ssmdiag.families"):
        family = entry.load()
        if not isinstance(family, Family):
            raise TypeError(
                f"entry point {entry.name} = {entry.value} is not a ssmdiag Family but {type(family).__name__}"
            )
        found[family.name] = family
    return tuple(found[name] for name in sorted(found))
