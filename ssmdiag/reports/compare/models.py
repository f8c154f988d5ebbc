"""Models on the screen: of two, what memory one has that the other lacks, then both by depth; of more, a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssmdiag.assessment.spectrum import BINS_PER_DECADE, FIRST_DECADE
from ssmdiag.compare.models import ModelComparison
from ssmdiag.printable import printable, printable_record
from ssmdiag.reports import words
from ssmdiag.reports.console import Column, Page
from ssmdiag.reports.folding import Row, join_labels, label_layers
from ssmdiag.reports.pictures import time_constant_strip

if TYPE_CHECKING:
    from ssmdiag.assessment.spectrum import LayerDiagnosis
    from ssmdiag.compare.models import Gap, ModelTable
    from ssmdiag.diagnosis import Diagnosis
    from ssmdiag.reports.interface import Settings


def models_report(pair: ModelComparison, settings: Settings) -> str:
    """Return the report of two models side by side."""
    pair = printable_record(pair)
    page = Page(settings)
    page.paragraph(f"a  {_header(pair.a)}", "bold")
    page.paragraph(f"b  {_header(pair.b)}", "bold")
    page.paragraph(pair_answer(pair), "bold green" if not pair.problems else "bold red")
    page.problems(pair.problems)
    if not settings.quiet:
        page.table(_columns(pair, settings))
        _draw(page, [Row("a", pair.a.layers), Row("b", pair.b.layers)], pair.a.context_length)
        page.remarks(remarks(pair))
    return page.text()


LETTERS = "abcdefghijklmnopqrstuvwxyz"


def table_report(table: ModelTable, settings: Settings) -> str:
    """Return the report of three models or more, one row each."""
    table = printable_record(table)
    page = Page(settings)
    names = letters(len(table.models))
    width = max(map(len, names))
    for name, side in zip(names, table.models, strict=True):
        page.paragraph(f"{name:<{width}}  {_header(side)}", "bold")
    page.paragraph(table_answer(table, names), "bold green" if not table.problems else "bold red")
    page.problems(table.problems)
    if not settings.quiet:
        rows = [Row(name, side.layers) for name, side in zip(names, table.models, strict=True)]
        page.table([
            Column("\nmodel", names, "left"),
            Column("\nlayers", [str(len(row.layers)) for row in rows]),
            Column("half in\nmedian", [words.steps(row.median_half_life) for row in rows]),
            Column("steps\nslowest", [words.steps(row.longest("half_life")) for row in rows]),
            Column("\nhorizon", [words.steps(row.longest("horizon")) for row in rows]),
            Column("\nlaw", [row.law for row in rows], "left"),
        ])  # fmt: skip
        _draw(page, rows, table.models[0].context_length)
        page.remarks(remarks(table))
    return page.text()


def letters(count: int) -> list[str]:
    """Return a letter for each model, numbers where letters end."""
    return [LETTERS[i] if i < len(LETTERS) else str(i + 1) for i in range(count)]


def table_answer(table: ModelTable, names: Sequence[str]) -> str:
    """Return which models remember longest and shortest."""
    reach = [Row("", side.layers).longest("horizon") for side in table.models]
    known = sorted((value, name) for value, name in zip(reach, names, strict=True) if value is not None)
    count = words.plural(len(table.models), "model")
    if len(known) < 2:
        return f"{count}, which are not checkpoints of one run."
    (low, first), (high, last) = known[0], known[-1]
    return (
        f"{count}, not one run. 99 % of the energy has passed after {words.steps(high)} steps in {last}, the latest, "
        f"and after {words.steps(low)} in {first}, the earliest."
    )


def _header(side: Diagnosis) -> str:
    families = words.families(layer.title for layer in side.layers)
    modes = sum(layer.channels * layer.modes for layer in side.layers)
    return f"{side_name(side)}  {families}, {modes:,} modes"


def side_name(side: Diagnosis) -> str:
    """Return a model's file with its folder: files of models are often of one name."""
    return f"{printable(Path(side.path).absolute().parent.name)}/{words.checkpoint_name(side.path)}"


def pair_answer(pair: ModelComparison) -> str:
    """Return what memory one of two models has that the other lacks."""
    sentences = [_said(gap, pair) for gap in pair.gaps[:3]] or ["Neither lacks time constants that the other has."]
    a, b = (words.steps(Row("", side.layers).longest("horizon")) for side in (pair.a, pair.b))
    return " ".join([*sentences, f"99 % of the energy has passed after {a} steps in a, {b} in b."])


def _said(gap: Gap, pair: ModelComparison) -> str:
    other, rich = ("b", pair.b) if gap.lacking == "a" else ("a", pair.a)
    labels = dict(zip((x.name for x in rich.layers), label_layers([x.name for x in rich.layers]), strict=True))
    where = join_labels([labels[x.name] for x in rich.layers if x.name in gap.layers], 3)
    low, high = (words.decade(round(math.log10(end))) if 0 < end < math.inf else "" for end in (gap.low, gap.high))
    span = f"of {low} to {high}" if low and high else f"over {low}" if low else f"under {high}"
    own = "none" if gap.share_lacking == 0 else f"{100 * gap.share_lacking:.1g} %"
    return (
        f"{gap.lacking} lacks time constants {span} steps: {100 * gap.share:.0f} % of {other}'s modes "
        f"(layer{'s' * (len(gap.layers) > 1)} {where}), {own} of its own."
    )


def _columns(pair: ModelComparison, settings: Settings) -> list[Column]:
    rows = pair.by_depth()
    columns = [Column("\ndepth", [f"{100 * row.start:.0f}–{100 * row.stop:.0f} %" for row in rows], "left")]
    for name, side in (("a", pair.a), ("b", pair.b)):
        labels = dict(zip((x.name for x in side.layers), label_layers([x.name for x in side.layers]), strict=True))
        beside: list[tuple[LayerDiagnosis, ...]] = [getattr(row, name) for row in rows]
        joint = [Row(join_labels([labels[x.name] for x in layers], 2) or "–", layers) for layers in beside]
        columns += [
            Column(f"{name}:\nlayer", [row.label for row in joint], "left"),
            Column("half in\nmedian", [words.steps(row.median_half_life) for row in joint]),
            Column("steps\nslowest", [words.steps(row.longest("half_life")) for row in joint]),
            Column("\nhorizon", [words.steps(row.longest("horizon")) for row in joint]),
        ]
        if settings.width >= 100:
            columns.append(Column("\nlaw", [row.law for row in joint], "left"))
    return columns


def _draw(page: Page, rows: Sequence[Row], context: int | None) -> None:
    if page.settings.plots:
        strip = time_constant_strip(rows, context, FIRST_DECADE, BINS_PER_DECADE, page.settings)
        caption = "time constants τ in steps: share of a model's modes per quarter decade"
        page.picture([line.replace(" layer", " model", 1) for line in strip], caption)


def remarks(compared: ModelComparison | ModelTable) -> list[str]:
    """Return what a reader must know of how the models were read."""
    if isinstance(compared, ModelComparison):
        return _of_pair(compared)
    return [*compared.notes, *_nominal(compared.models), *_context(compared.models[0])]


def _of_pair(pair: ModelComparison) -> list[str]:
    notes = list(pair.notes)
    laws = [
        f"{name}: "
        + ", ".join(f"{n} {law}" for law, n in Counter(x.decay.law[0] for x in side.layers if x.decay).most_common())
        for name, side in (("a", pair.a), ("b", pair.b))
    ]
    notes.append(f"decay laws of layers; {'; '.join(laws)}")
    return [*notes, *_nominal((pair.a, pair.b)), *_context(pair.a)]


def _nominal(sides: Sequence[Diagnosis]) -> list[str]:
    if all(layer.time_invariant for side in sides for layer in side.layers):
        return []
    return ["nominal: where the decay depends on the input, it is read with the gates at rest"]


def _context(side: Diagnosis) -> list[str]:
    if side.context_length is not None:
        return []
    from ssmdiag.assessment.memory import DEFAULT_CONTEXT

    return [f"laws are over {DEFAULT_CONTEXT:,} steps, as no context is stated: --length sets it"]
