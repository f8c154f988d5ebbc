"""Findings → groups: one rule's findings over several layers are one entry, led by the worst."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssmdiag.reports.folding import join_labels, label_layers
from ssmdiag.reports.words import plural
from ssmdiag.rules import known_rules
from ssmdiag.rules.finding import SEVERITIES, Finding

if TYPE_CHECKING:
    from ssmdiag.diagnosis import Diagnosis


@dataclass(frozen=True)
class Group:
    """Findings of one rule and severity in one checkpoint."""

    worst: Finding
    findings: tuple[Finding, ...]
    where: str
    """`layer 3`, `layers 0-5`, `all 6 layers`; empty where the finding concerns the whole checkpoint."""
    badness: tuple[float, int]
    """Sorts groups of one rule over several checkpoints: the worst has the largest."""
    worst_label: str
    """Label of the worst finding's layer where there are several, else empty."""

    @property
    def text(self) -> str:
        """The finding as one sentence without a full stop: where, and what was seen."""
        alike = len({finding.message for finding in self.findings}) == 1
        several = f" (worst: {self.worst_label})" if self.worst_label and not alike else ""
        return f"{self.where}{several}: {self.worst.message}" if self.where else self.worst.message


def group_findings(diagnosis: Diagnosis) -> list[Group]:
    """Return the findings of a checkpoint by rule and severity, worst first."""
    names = [layer.name for layer in diagnosis.layers]
    labels = dict(zip(names, label_layers(names), strict=True))
    sign = {rule.code: 1.0 if rule.worse == "higher" else -1.0 for rule in known_rules()}
    together: dict[tuple[int, str], list[Finding]] = {}
    for finding in diagnosis.findings:
        together.setdefault((-finding.rank, finding.code), []).append(finding)
    groups = []
    for _, findings in sorted(together.items()):
        worst = max(findings, key=lambda finding: _badness(finding, sign.get(finding.code, 1.0)))
        layers = list(dict.fromkeys(finding.layer for finding in findings if finding.layer is not None))
        known = [labels.get(name, name) for name in layers]
        several = len(layers) > 1
        groups.append(
            Group(
                worst=worst,
                badness=_badness(worst, sign.get(worst.code, 1.0)),
                findings=tuple(findings),
                where=_where(known, len(names), all(name in labels for name in layers)),
                worst_label=labels.get(worst.layer or "", worst.layer or "") if several else "",
            )
        )
    return groups


def count_findings(diagnosis: Diagnosis) -> str:
    """Return `1 error, 2 warnings`, worst first; what one rule finds in several layers counts once."""
    found = Counter(severity for severity, _ in {(one.severity, one.code) for one in diagnosis.findings})
    said = [plural(found[severity], severity) for severity in reversed(SEVERITIES) if found[severity]]
    return ", ".join(said) or "no findings"


def _badness(finding: Finding, sign: float) -> tuple[float, int]:
    value = finding.value
    return (-math.inf if value is None or math.isnan(value) else sign * value), finding.count


def _where(labels: Sequence[str], layers: int, known: bool) -> str:
    if not labels:
        return ""
    if len(labels) == layers > 1 and known:
        return "both layers" if layers == 2 else f"all {layers} layers"
    return f"layer{'s' * (len(labels) > 1)} {join_labels(labels) if known else ', '.join(labels)}"
