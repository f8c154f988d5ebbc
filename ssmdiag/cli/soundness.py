"""What is wrong with a checkpoint, whatever a report asks of it: then its first line is not OK."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ssmdiag.printable import first_of

if TYPE_CHECKING:
    from ssmdiag.checkpoint import Checkpoint
    from ssmdiag.families.interface import Family
    from ssmdiag.families.recognition import Recognition

RULES = ("SSM101", "SSM401")
"""What the first lines of all reports have in common: modes that grow, values that are NaN or infinite."""


@dataclass(frozen=True)
class Soundness:
    """What `inspect` would begin with."""

    wrong: tuple[str, ...]
    """Parts of a first line, worst first: the layers that could not be read, modes that are NaN or grow."""
    problems: tuple[str, ...]
    """A sentence for everything that could not be read."""


def judge_soundness(
    checkpoint: Checkpoint,
    found: Recognition,
    *,
    assume: dict[str, str],
    families: list[Family],
    device: str,
    only: Collection[str] | None = None,
) -> Soundness:
    """Return what is wrong with a checkpoint; of the recurrences of these names alone where a layer was asked for."""
    from ssmdiag.diagnosis import diagnose
    from ssmdiag.reports.answer import wrong
    from ssmdiag.rules.selection import select_rules

    rules = select_rules(select=RULES)
    whole = diagnose(checkpoint, assume=assume, families=families, device=device, memory=False, rules=rules)
    if only is not None:
        layers = tuple(layer for layer in whole.layers if layer.name in only)
        findings = tuple(finding for finding in whole.findings if finding.layer in only)
        return Soundness(tuple(wrong(replace(whole, layers=layers, findings=findings, problems=()))), ())
    said = wrong(replace(whole, problems=()))
    read = {layer.name.partition(" (")[0] for layer in whole.layers}
    return Soundness((*_unread(found, read, whole.problems), *said), whole.problems)


def _unread(found: Recognition, read: Collection[str], problems: Collection[str]) -> list[str]:
    """Return which layers are missing from a report; where none is, that something else could not be read."""
    from ssmdiag.reports import words
    from ssmdiag.reports.folding import label_layers

    missing = [*(layer.path for layer in found.layers if layer.path not in read), *(m.path for m in found.incomplete)]
    paths = [*(layer.path for layer in found.layers), *(miss.path for miss in found.incomplete)]
    labels = dict(zip(paths, label_layers(paths), strict=True))
    if missing:
        names = first_of([labels[path] for path in missing], 4)
        return [f"layer{'s' * (len(missing) > 1)} {names} could not be read"]
    return [f"only partly read ({words.plural(len(problems), 'problem')})"] if problems else []
