"""Every rule ssmdiag knows, discovered: one module each, plus entry points of other packages."""

from __future__ import annotations

from functools import cache

from ssmdiag.assessment.evidence import CheckpointEvidence, LayerEvidence
from ssmdiag.errors import SsmdiagError
from ssmdiag.guard import discover
from ssmdiag.rules.interface import Limits, Observation, Rule, Threshold

__all__ = ["CheckpointEvidence", "LayerEvidence", "Limits", "Observation", "Rule", "Threshold", "known_rules"]

MACHINERY = frozenset({"finding", "interface", "selection", "uniformity"})
"""Modules of this package that are not rules."""


@cache
def known_rules() -> tuple[Rule, ...]:
    """Return all rules, by code. Imports no torch.

    Raises SsmdiagError where another package's entry point cannot be loaded, is no `Rule`, or takes a code or name in
    use.
    """
    found = discover(__name__, __path__, MACHINERY, "RULE", Rule)
    by_code: dict[str, Rule] = {}
    for rule in found:
        if by_code.setdefault(rule.code, rule) is not rule:
            raise SsmdiagError(
                f"the rules {by_code[rule.code].name} and {rule.name} both have the code {rule.code}.",
                advice="give one another code, or uninstall the package that brings it.",
            )
    return tuple(sorted(found, key=lambda rule: rule.code))
