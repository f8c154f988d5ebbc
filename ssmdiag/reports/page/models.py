"""Models beside each other as a page: what one has that another lacks, a row each, time constants, their layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssmdiag.compare.models import ModelComparison
from ssmdiag.reports import words
from ssmdiag.reports.compare.json import models_document, table_document
from ssmdiag.reports.compare.models import letters, pair_answer, remarks, side_name, table_answer
from ssmdiag.reports.folding import Row, label_layers
from ssmdiag.reports.json import plain
from ssmdiag.reports.page.diagnosis import COLUMNS, layer_row, strip, versions
from ssmdiag.reports.page.page import Page, margin, steps

if TYPE_CHECKING:
    from ssmdiag.compare.models import ModelTable
    from ssmdiag.diagnosis import Diagnosis
    from ssmdiag.reports.drawing.picture import Picture


def page(compared: ModelComparison | ModelTable, *, command: str = "") -> Page:
    """Return the page of two models or more."""
    sides = _sides(compared)
    names = letters(len(sides))
    two = isinstance(compared, ModelComparison)
    verdict = pair_answer(compared) if isinstance(compared, ModelComparison) else table_answer(compared)
    data = plain(models_document(compared) if isinstance(compared, ModelComparison) else table_document(compared))
    documents = [data["a"], data["b"]] if two else data["models"]
    made = Page(f"{words.plural(len(sides), 'model')} compared: memory", verdict)
    if compared.problems:
        made.heading("Not read")
        made.remarks(compared.problems)
    made.heading("Models")
    rows = []
    for name, side in zip(names, sides, strict=True):
        whole = Row(name, side.layers)
        count = sum(layer.channels * layer.modes for layer in side.layers if layer.taps is None)
        modes = f"{count:,}" if count else None
        rows.append([
            name, side_name(side), words.families(layer.title for layer in side.layers), modes,
            steps(whole.median_half_life), steps(whole.longest("half_life")), margin(whole.margin),
            steps(whole.longest("horizon")), whole.law,
        ])  # fmt: skip
    heads = [
        "model",
        "file",
        "layers",
        "modes",
        "half-life, median",
        "half-life, slowest",
        "margin",
        "horizon",
        "law",
    ]
    made.table(
        "One row for each model; half-lives and horizons in steps, margin 1−|λ̄| from the stability boundary",
        heads,
        rows,
    )
    made.remarks(remarks(compared))
    made.heading("Pictures")
    made.gallery([_time_constants(sides)])
    for name, side, document in zip(names, sides, documents, strict=True):
        made.heading(f"Layers of {name}, {side_name(side)}")
        labels = label_layers([layer.name for layer in side.layers])
        made.table(f"Model {name}", COLUMNS, map(layer_row, document["layers"], labels, side.layers))
    settings = {f"model {name}": side.path for name, side in zip(names, sides, strict=True)}
    made.settings(command, {**settings, "context length": data["context_length"], **versions(data)})
    return made


def main_picture(compared: ModelComparison | ModelTable) -> Picture | None:
    """Return the time constants of the models."""
    return _time_constants(_sides(compared))


def _sides(compared: ModelComparison | ModelTable) -> Sequence[Diagnosis]:
    return (compared.a, compared.b) if isinstance(compared, ModelComparison) else compared.models


def _time_constants(sides: Sequence[Diagnosis]) -> Picture | None:
    """Return the strip of time constants, a row for each model: shares, as models differ in size."""
    rows = [Row("", side.layers).histogram for side in sides]
    shares = [[count / max(sum(row), 1) for count in row] for row in rows]
    return strip(letters(len(sides)), shares, sides[0].context_length, what="model", shade="share of modes")
