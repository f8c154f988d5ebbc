"""Discovers every family: one module each, plus entry points of other packages."""

from __future__ import annotations

from functools import cache

from ssmdiag.families.interface import Family, ForwardSetting, Option, Spelling, Steering
from ssmdiag.guard import discover

__all__ = ["Family", "ForwardSetting", "Option", "Spelling", "Steering", "has_fixed_decay", "known_families"]

MACHINERY = frozenset({
    "adapters", "coverage", "forward", "initial_spectra", "initialisations", "interface", "layer", "layouts",
    "map_template", "mapfile", "mlx_packed", "packed", "reading_ahead", "recognition", "stacked", "submodules",
    "unknown_decay",
})  # fmt: skip
"""Modules of this package that are not families."""


@cache
def known_families() -> tuple[Family, ...]:
    """Return all families, by name. Imports no torch.

    Raises SsmdiagError where another package's entry point cannot be loaded, is not a `Family` or has
    a name in use.
    """
    return tuple(sorted(discover(__name__, __path__, MACHINERY, "FAMILY", Family), key=lambda family: family.name))


def has_fixed_decay(name: str) -> bool:
    """Whether the decay of the family with this name is chosen by design, so that no training moves it."""
    return any("fixed decay" in family.traits for family in known_families() if family.name == name)
