"""Every rule ssmdiag knows, discovered: one module each, plus entry points of other packages."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points

from ssmdiag.assessment.evidence import CheckpointEvidence, LayerEvidence
from ssmdiag.errors import SsmdiagError
from ssmdiag.rules.interface import Limits, Observation, Rule, Threshold

__all__ = ["CheckpointEvidence", "LayerEvidence", "Limits", "Observation", "Rule", "Threshold", "known_rules"]

MACHINERY = frozenset({"finding", "interface", "selection", "uniformity"})
"""Modules of this package that are not rules."""


@cache
def known_rules() -> tuple[Rule, ...]:
    """Return all rules, by code. Imports no torch.

    Raises SsmdiagError where another package's entry point is no `Rule` or takes a code or name in use.
    """
    found = [
        importlib.import_module(f"{__name__}.{module.name}").RULE
        for module in pkgutil.iter_modules(__path__)
        if module.name not in MACHINERY
    ]
    taken = {key for rule in found for key in (rule.code, rule.name)}
    for entry in entry_points(group="ssmdiag.rules"):
        rule = entry.load()
        if not isinstance(rule, Rule):
            raise SsmdiagError(
                f"entry point {entry.name} ({entry.value}) is a {type(rule).__name__}.", expected="a ssmdiag.Rule"
            )
        if taken & {rule.code, rule.name}:
            raise SsmdiagError(
                f"entry point {entry.name} ({entry.value}) repeats a code or name in use: {rule.code} {rule.name}.",
                advice="give it another code and name, or uninstall the package.",
            )
        found.append(rule)
    return tuple(sorted(found, key=lambda rule: rule.code))
