"""A baseline: findings a project lives with for now. Only what is new or has got worse fails a check.

A finding is matched by rule, tensor (or layer, where it has no tensor) and family; never by the checkpoint's path
nor by its number, so `step-200` is compared with what `step-100` put in the baseline. One baseline is for one model:
where several checkpoints are checked together, the worst of each finding goes into the baseline, and an entry is gone
only when none of the checkpoints shows it any more.

Nothing here reads or writes a file; `baseline_file` does.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from ssmdiag.errors import Failure
from ssmdiag.rules import known_rules
from ssmdiag.rules.finding import SEVERITIES, Finding, Key, key_of

if TYPE_CHECKING:
    from ssmdiag.diagnosis import Diagnosis

TOLERANCE = 0.1
"""Tolerance: a share of the count, and of the distance from the healthy value to the baseline's value."""
ROUNDING = 1e-9
"""Relative; smaller differences come from the machine that computed the values."""


@dataclass(frozen=True)
class Entry:
    """One finding in the baseline."""

    code: str
    rule: str
    layer: str | None
    tensor: str | None
    family: str | None
    severity: str
    count: int
    of: int | None
    value: float | None
    tolerance: float | None = None
    """Replaces the baseline's tolerance for this entry; set by hand."""

    @property
    def key(self) -> Key:
        """The key by which findings are matched."""
        return key_of(self.code, self.layer, self.tensor, self.family)


@dataclass(frozen=True)
class Baseline:
    """No two entries have the same key."""

    entries: tuple[Entry, ...] = ()
    tolerance: float = TOLERANCE


@dataclass(frozen=True)
class BaselineComparison:
    """The findings of a run compared with a baseline; `Finding.baseline` holds the state of each."""

    new: tuple[Finding, ...]
    worse: tuple[Finding, ...]
    """Their messages end with what the baseline holds."""
    known: tuple[Finding, ...]
    gone: tuple[Entry, ...]
    """Entries not found again, although their rule ran and their layer was read."""
    observed: tuple[Entry, ...]
    """Entries for `new` and `worse`, as accepting them would write them."""
    baseline: Baseline

    @property
    def failing(self) -> tuple[Finding, ...]:
        """New and worse findings, worst first."""
        return tuple(sorted(self.new + self.worse, key=lambda finding: (-finding.rank, finding.code)))

    def updated(self, *, accept: bool) -> Baseline:
        """Return the baseline without what is gone and, with `accept`, with what is new or worse.

        Other entries stay as they are, so that the file changes only where a finding did.
        """
        entries = {entry.key: entry for entry in self.baseline.entries if entry not in self.gone}
        if accept:
            for entry in self.observed:
                old = entries.get(entry.key)
                entries[entry.key] = replace(entry, tolerance=old.tolerance if old else None)
        return replace(self.baseline, entries=tuple(entries.values()))


def compare(
    findings: Iterable[Finding],
    baseline: Baseline,
    *,
    rules: Collection[str] | None = None,
    layers: Collection[str] | None = None,
) -> BaselineComparison:
    """Return one checkpoint's findings compared with a baseline.

    Parameters
    ----------
    rules
        Codes of the rules that were run; all where None. Entries of other rules are not gone.
    layers
        Paths of the layers that were read; all where None.
    """
    entries = {entry.key: entry for entry in baseline.entries}
    together: dict[Key, list[Finding]] = {}
    for finding in findings:
        together.setdefault(finding.key, []).append(finding)
    state: dict[str, list[Finding]] = {"new": [], "worse": [], "known": []}
    observed = []
    for key, some in together.items():
        now, before = _sum([_entry(finding) for finding in some]), entries.get(key)
        reason = _worse(now, before, baseline.tolerance) if before else ""
        kind = "new" if before is None else "worse" if reason else "known"
        ending = f" (worse than the baseline: {reason})" if reason else ""
        state[kind] += [replace(f, baseline=kind, message=f.message + ending) for f in some]
        if kind != "known":
            observed.append(now)
    gone = tuple(
        entry
        for entry in baseline.entries
        if entry.key not in together
        and (rules is None or entry.code in rules)
        and (layers is None or entry.layer is None or entry.layer in layers)
    )
    return BaselineComparison(
        tuple(state["new"]), tuple(state["worse"]), tuple(state["known"]), gone, tuple(observed), baseline
    )


def compare_results(
    results: Sequence[Diagnosis | Failure], baseline: Baseline
) -> tuple[list[Diagnosis | Failure], BaselineComparison]:
    """Return the diagnoses with what the baseline knows moved from `findings` to `known`, and the whole comparison."""
    marked: list[Diagnosis | Failure] = []
    comparisons: list[BaselineComparison] = []
    for result in results:
        if isinstance(result, Failure):
            marked.append(result)
            continue
        layers = {layer.name for layer in result.layers}
        comparison = compare(result.findings, baseline, rules=result.rules, layers=layers)
        comparisons.append(comparison)
        marked.append(replace(result, findings=comparison.failing, known=comparison.known))
    met = {f.key for comparison in comparisons for f in (*comparison.worse, *comparison.known)}
    gone = {entry.key: entry for comparison in comparisons for entry in comparison.gone if entry.key not in met}
    worst: dict[Key, Entry] = {}
    for entry in (entry for comparison in comparisons for entry in comparison.observed):
        worst[entry.key] = _worst(worst[entry.key], entry) if entry.key in worst else entry
    return marked, BaselineComparison(
        new=tuple(f for comparison in comparisons for f in comparison.new),
        worse=tuple(f for comparison in comparisons for f in comparison.worse),
        known=tuple(f for comparison in comparisons for f in comparison.known),
        gone=tuple(gone.values()),
        observed=tuple(worst.values()),
        baseline=baseline,
    )


def _entry(finding: Finding) -> Entry:
    return Entry(**{field.name: getattr(finding, field.name) for field in fields(Entry) if field.name != "tolerance"})


def _sum(entries: Sequence[Entry]) -> Entry:
    """Return one entry for findings of one key, such as the two scans of a layer that share a tensor."""
    total = entries[0]
    for entry in entries[1:]:
        of = None if total.of is None or entry.of is None else total.of + entry.of
        total = replace(_worst(total, entry), layer=total.layer, count=total.count + entry.count, of=of)
    return total


def _worst(a: Entry, b: Entry) -> Entry:
    """Return the worst of two entries of one key, field by field."""
    severity = max(a.severity, b.severity, key=SEVERITIES.index)
    amount = max(a, b, key=lambda entry: (_amount(entry, a, b), entry.count))
    value = max(a, b, key=_badness).value
    return replace(a, severity=severity, count=amount.count, of=amount.of, value=value)


def _worse(now: Entry, before: Entry, tolerance: float) -> str:
    """Say what has got worse by more than the tolerance; empty if nothing has."""
    tolerance = tolerance if before.tolerance is None else before.tolerance
    reasons = []
    if SEVERITIES.index(now.severity) > SEVERITIES.index(before.severity):
        reasons.append(f"was {before.severity}")
    if _amount(now, now, before) > _amount(before, now, before) * (1 + tolerance + ROUNDING):
        reasons.append(f"was {before.count:,}{f' of {before.of:,}' if before.of else ''}")
    if before.value is not None and now.value is not None and _badness(now) > _allowed(before, tolerance):
        reasons.append(f"value {now.value:.6g}, was {before.value:.6g}")
    return "; ".join(reasons)


def _amount(entry: Entry, a: Entry, b: Entry) -> float:
    """Return how much is affected: a share where the model's size has changed, else the count."""
    return entry.count / entry.of if a.of and b.of and a.of != b.of and entry.of else float(entry.count)


def _allowed(entry: Entry, tolerance: float) -> float:
    """Return the largest badness that counts as no worse than the entry's."""
    origin = _direction(entry.code)[1]
    bad = _badness(entry)
    if not math.isfinite(bad):
        return bad
    assert entry.value is not None
    return bad + tolerance * abs(entry.value - origin) + ROUNDING * abs(entry.value)


def _badness(entry: Entry) -> float:
    """Return the value, signed so that more is worse; NaN is worst, no value least."""
    if entry.value is None:
        return -math.inf
    return math.inf if math.isnan(entry.value) else _direction(entry.code)[0] * entry.value


def _direction(code: str) -> tuple[float, float]:
    rule = next((rule for rule in known_rules() if rule.code == code), None)
    return (1.0, 0.0) if rule is None else (1.0 if rule.worse == "higher" else -1.0, rule.origin)
