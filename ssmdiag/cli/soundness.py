"""What is wrong with a checkpoint, whatever a report asks of it: then its first line is not OK."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ssmdiag.printable import first_of, printable_record

if TYPE_CHECKING:
    from ssmdiag.checkpoint import Checkpoint
    from ssmdiag.families.layer import Layer
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
    checkpoint: Checkpoint, found: Recognition, *, device: str, only: Sequence[Layer] | None = None
) -> Soundness:
    """Return what is wrong with a checkpoint; with `only` some layers, what is wrong with them: no other is read."""
    from ssmdiag.diagnosis import diagnose_layers
    from ssmdiag.reports.answer import wrong
    from ssmdiag.rules.selection import select_rules

    asked = found if only is None else replace(found, layers=tuple(only), near_misses=())
    whole = diagnose_layers(checkpoint, asked, device=device, memory=False, rules=select_rules(select=RULES))
    others = () if only is None else (*checkpoint.problems, *found.problems)
    problems = tuple(problem for problem in whole.problems if problem not in others)
    read = {layer.name.partition(" (")[0] for layer in whole.layers}
    missing = [layer.path for layer in asked.layers if layer.path not in read]
    missing += [miss.path for miss in asked.incomplete]
    said = (*_unread(found, missing, problems), *wrong(replace(whole, problems=())))
    return printable_record(Soundness(said, problems))


def _unread(found: Recognition, missing: Sequence[str], problems: Collection[str]) -> list[str]:
    """Return which layers are missing from a report; where none is, that something else could not be read."""
    from ssmdiag.reports import words
    from ssmdiag.reports.folding import label_layers

    paths = [*(layer.path for layer in found.layers), *(miss.path for miss in found.incomplete)]
    labels = dict(zip(paths, label_layers(paths), strict=True))
    if missing:
        names = first_of([labels[path] for path in missing], 4)
        return [f"layer{'s' * (len(missing) > 1)} {names} could not be read"]
    return [f"only partly read ({words.plural(len(problems), 'problem')})"] if problems else []
