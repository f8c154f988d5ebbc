"""Diagnoses as one page of HTML: of several checkpoints a table first, then each, as many as a page holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssmdiag.errors import Failure
from ssmdiag.reports import words
from ssmdiag.reports.answer import answer
from ssmdiag.reports.folding import label_layers
from ssmdiag.reports.grouping import count_findings
from ssmdiag.reports.interface import Settings
from ssmdiag.reports.json import document
from ssmdiag.reports.page.diagnosis import fill, page, settings_of, state_of, versions
from ssmdiag.reports.page.page import Page, State, in_references
from ssmdiag.reports.several import Several

if TYPE_CHECKING:
    from ssmdiag.diagnosis import Diagnosis

TAILS = True
MOST_BYTES = 900_000
"""Of several checkpoints, those beyond are in the table alone."""
_WORST: tuple[State, ...] = ("error", "warning", "note", "ok", "plain")


def render_all(results: Sequence[Diagnosis | Failure], settings: Settings) -> str:
    """Return the page of all results."""
    only = results[0] if len(results) == 1 else None
    if only is None:
        made = _several(results, settings)
    elif isinstance(only, Failure):
        made = _failed(only, settings)
    else:
        made = page(only, command=settings.command)
    return made.document() if settings.unicode else in_references(made.document())


def _several(results: Sequence[Diagnosis | Failure], settings: Settings) -> Page:
    states: list[State] = ["error" if isinstance(result, Failure) else state_of(result) for result in results]
    read = [result for result in results if not isinstance(result, Failure)]
    table = Several(settings)
    for result in results:
        table.row(result)
    verdict = f"{table.overall()}."
    made = Page(
        f"{words.plural(len(results), 'checkpoint')}: memory", verdict, min(states, key=_WORST.index, default="plain")
    )
    rows = [[result.path, *_said(result)] for result in results]
    heads = ["checkpoint", "findings", "answer"]
    made.heading("Checkpoints")
    made.table(
        "Every checkpoint, in the order given", heads, rows, [s if s in ("error", "warning") else "" for s in states]
    )
    room = MOST_BYTES
    for number, result in enumerate(results):
        section = _section(result, number)
        room -= sum(len(part.encode()) for part in section.parts)
        if number and room < 0:
            made.paragraph(
                f"{words.plural(len(results) - number, 'checkpoint')} more in the table alone: a page holds no more."
            )
            break
        made.parts += section.parts
    first = document(read[0]) if read else {}
    made.settings(
        settings.command, {"checkpoints": len(results), **versions({k: v for k, v in first.items() if k != "seconds"})}
    )
    return made


def _said(result: Diagnosis | Failure) -> list[str]:
    if isinstance(result, Failure):
        return ["not diagnosed", result.seen]
    return [count_findings(result), answer(result).line]


def _section(result: Diagnosis | Failure, number: int) -> Page:
    made = Page("", "", place=str(number))
    made.heading(result.path)
    if isinstance(result, Failure):
        _why(made, result)
        return made
    labels = label_layers([layer.name for layer in result.layers])
    made.answer(answer(result))
    data = document(result)
    fill(made, result, data, labels, level=3)
    made.heading("Read", 3)
    settings = {name: value for name, value in settings_of(data).items() if name not in ("ssmdiag", "torch")}
    made.table("What was read", ["setting", "value"], [[name, value] for name, value in settings.items()])
    return made


def _failed(failure: Failure, settings: Settings) -> Page:
    made = Page(f"{words.checkpoint_name(failure.path)}: not diagnosed", failure.seen, "error")
    _why(made, failure)
    made.settings(settings.command, {"checkpoint": failure.path})
    return made


def _why(made: Page, failure: Failure) -> None:
    parts = [failure.seen, *failure.details]
    parts += [f"Expected: {failure.expected}"] * bool(failure.expected) + [f"Next: {failure.advice}"] * bool(
        failure.advice
    )
    made.remarks(parts)
