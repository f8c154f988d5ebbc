"""Which rules run, with which thresholds, on which layers; and running them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ssmdiag.assessment.evidence import CheckpointEvidence, LayerEvidence
from ssmdiag.errors import ConfigurationError, SsmdiagError, meant
from ssmdiag.guard import guard
from ssmdiag.rules import known_rules
from ssmdiag.rules.finding import Finding
from ssmdiag.rules.interface import Observation, Rule

if TYPE_CHECKING:
    from ssmdiag.probing.saved import SavedProbe


@dataclass(frozen=True)
class Selection:
    """The rules of one run. Make it with `select_rules`."""

    rules: tuple[Rule, ...]
    limits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """All thresholds, by code."""
    layer_ignores: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Codes left out, by glob pattern of the layer's path."""

    def examine_layer(self, evidence: LayerEvidence, problems: list[str]) -> Iterator[Finding]:
        """Yield what the layer rules find in one layer; `problems` names each rule that fails on it."""
        recurrence = evidence.recurrence
        for rule, seen in self._observations("layer", evidence, recurrence.layer, problems):
            yield from self._found(rule, seen, recurrence.layer, recurrence.family)

    def examine_checkpoint(self, evidence: CheckpointEvidence, problems: list[str]) -> Iterator[Finding]:
        """Yield what the rules for checkpoints and for probes find; `problems` names each rule that fails."""
        families: dict[str | None, str] = {layer.path: layer.family.name for layer in evidence.recognition.layers}
        for kind in ("checkpoint", "probe"):
            for rule, seen in self._observations(kind, evidence, evidence.checkpoint.path.name, problems):
                yield from self._found(rule, seen, seen.layer, seen.family or families.get(seen.layer))

    def with_probe(self, probe: SavedProbe | None) -> Selection:
        """Return the rules that can be run with or without a probe; rules for probes alone are kept, to be named."""
        others = tuple(rule for rule in self.rules if rule.looks_at != "probe")
        return self if probe is not None or not others else replace(self, rules=others)

    def not_judged(self, evidence: CheckpointEvidence) -> dict[str, str]:
        """Return what the checkpoint lacks, by the code of each rule that could not judge it."""
        return {rule.code: lack for rule in self.rules if (lack := rule.lacks(evidence))}

    def _observations(
        self, looks_at: str, evidence: LayerEvidence | CheckpointEvidence, name: str, problems: list[str]
    ) -> Iterator[tuple[Rule, Observation]]:
        for rule in self.rules:
            if rule.looks_at == looks_at:
                try:
                    with guard(name, f"rule {rule.code} ({rule.name})"):
                        found = list(rule.examine(evidence, self.limits[rule.code]))
                except SsmdiagError as error:
                    problems.append(error.sentence)
                else:
                    yield from ((rule, seen) for seen in found)

    def _found(self, rule: Rule, seen: Observation, layer: str | None, family: str | None) -> Iterator[Finding]:
        if any(rule.code in codes and fnmatchcase(layer or "", glob) for glob, codes in self.layer_ignores.items()):
            return
        own = {"layer": layer, "family": family, "severity": seen.severity or rule.severity}
        yield Finding(code=rule.code, rule=rule.name, **{**vars(seen), **own, "advice": seen.advice or rule.advice})


def select_rules(
    *,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
    layer_ignores: Mapping[str, Sequence[str]] | None = None,
) -> Selection:
    """Return the rules to run: all, or those selected, less those ignored.

    Rules are named by code (`SSM205`), by the start of one (`SSM2`) or by name (`unstable-mode`).
    Raises ConfigurationError for a rule or a threshold that does not exist.
    """
    rules = known_rules()
    chosen = codes_of(select) if select else {rule.code for rule in rules}
    chosen -= codes_of(ignore)
    limits = {rule.code: rule.limits for rule in rules}
    for key, values in (thresholds or {}).items():
        for code in codes_of([key]):
            if unknown := set(values) - set(limits[code]):
                raise ConfigurationError(
                    f"threshold {min(unknown)} of {code}: no such threshold.",
                    expected=f"one of {', '.join(limits[code]) or 'none: it has no threshold'}",
                )
            limits[code] |= values
    return Selection(
        rules=tuple(rule for rule in rules if rule.code in chosen),
        limits=limits,
        layer_ignores={glob: tuple(sorted(codes_of(keys))) for glob, keys in (layer_ignores or {}).items()},
    )


def codes_of(keys: Iterable[str]) -> set[str]:
    """Return the codes of rules given by code, prefix or name, several with commas between them.

    Raises ConfigurationError for an unknown rule.
    """
    found: set[str] = set()
    for key in (
        part for given in keys for part in [each.strip() for each in given.split(",") if each.strip()] or [given]
    ):
        code = f"SSM{key}" if re.fullmatch(r"[1-9][0-9]{0,2}", key) else key.upper()
        codes = {rule.code for rule in known_rules() if key == rule.name or rule.code.startswith(code)}
        if not codes or not key:
            raise ConfigurationError(
                f"{key!r} is not a rule.", expected="a code such as SSM101, the start of one such as SSM1, or a name",
                advice="`ssmdiag rules` lists them.", instead=meant(key, [rule.name for rule in known_rules()]),
            )  # fmt: skip
        found |= codes
    return found
