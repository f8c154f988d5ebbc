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
from ssmdiag.reports.answer import AT_REST, Answer
from ssmdiag.reports.console import Column, Page
from ssmdiag.reports.folding import Row, join_labels, label_layers
from ssmdiag.reports.pictures import time_constant_strip

if TYPE_CHECKING:
    from ssmdiag.assessment.spectrum import LayerDiagnosis
    from ssmdiag.compare.models import Gap, ModelTable
    from ssmdiag.diagnosis import Diagnosis
    from ssmdiag.reports.answer import Status
    from ssmdiag.reports.interface import Settings


def models_report(pair: ModelComparison, settings: Settings) -> str:
    """Return the report of two models side by side."""
    pair = printable_record(pair)
    page = Page(settings)
    said = pair_answer(pair)
    page.paragraph(said.line, said.style)
    page.problems(pair.problems, None if settings.full else MOST_PROBLEMS)
    if not settings.quiet:
        page.paragraph(f"a  {_header(pair.a)}")
        page.paragraph(f"b  {_header(pair.b)}")
        page.tables(_columns(pair, settings))
        _draw(page, [Row("a", pair.a.layers), Row("b", pair.b.layers)], pair.a.context_length)
        if settings.full:
            page.remarks(remarks(pair))
        else:
            page.short_remarks([] if AT_REST in said.text else _nominal((pair.a, pair.b)), pair.notes)
    return page.text()


LETTERS = "abcdefghijklmnopqrstuvwxyz"
FEW_ROWS = 4
"""Rows of relative depth in a short report."""
MOST_PROBLEMS = 2
"""Of what could not be read in a short report."""
NAME_WIDTH = 36
"""Most of a model's name in a table."""
ALIKE = 1.25
"""Factor up to which two models remember equally far."""


def table_report(table: ModelTable, settings: Settings) -> str:
    """Return the report of three models or more, one row each."""
    table = printable_record(table)
    page = Page(settings)
    said = table_answer(table)
    page.paragraph(said.line, said.style)
    page.problems(table.problems, None if settings.full else MOST_PROBLEMS)
    if not settings.quiet:
        rows = [Row(name, side.layers) for name, side in zip(letters(len(table.models)), table.models, strict=True)]
        files = [f"{row.label}  {_ending(side_name(side))}" for row, side in zip(rows, table.models, strict=True)]
        page.tables([
            Column("\nmodel", files, "left"),
            Column("\nlayers", [_layers(side) for side in table.models], "left"),
            Column("half-life\nmedian", [words.steps(row.median_half_life) for row in rows]),
            Column("\nslowest", [words.steps(row.longest("half_life")) for row in rows]),
            Column("\nhorizon", [words.steps(row.longest("horizon")) for row in rows]),
            *[Column("\nlaw", [row.law for row in rows], "left")] * (settings.full or settings.width >= WIDE),
        ])  # fmt: skip
        always = [*([] if AT_REST in said.text else _nominal(table.models)), *_context(table.models[0])]
        if settings.full or len(rows) + 3 <= page.left(always, table.notes):
            _draw(page, rows, table.models[0].context_length)
        if settings.full:
            page.remarks(remarks(table))
        else:
            page.short_remarks(always, table.notes)
    return page.text()


WIDE = 100
"""Columns from which on tables of models have laws."""


def letters(count: int) -> list[str]:
    """Return a letter for each model, numbers where letters end."""
    return [LETTERS[i] if i < len(LETTERS) else str(i + 1) for i in range(count)]


def table_answer(table: ModelTable) -> Answer:
    """Return which models remember longest and shortest, and which are broken."""
    names = letters(len(table.models))
    known = sorted(
        (reach, name) for name, side in zip(names, table.models, strict=True) if (reach := _reach(side)) is not None
    )
    broken = [name for name, side in zip(names, table.models, strict=True) if _broken(side)]
    said = [f"{words.plural(len(table.models), 'model')}, which are not checkpoints of one run"]
    if len(known) > 1:
        (low, first), (high, last) = known[0], known[-1]
        said = [
            f"of {words.plural(len(table.models), 'model')} the layers of {last} remember longest, "
            f"{_at_least(table.models[names.index(last)])}{words.in_steps(high)}, and those of {first} shortest, "
            f"{_at_least(table.models[names.index(first)])}{words.in_steps(low)}{_rest(table.models)}"
        ]
    if broken:
        said.insert(0, f"modes grow or are not finite in {join_labels(broken)}")
    if table.problems:
        said.insert(0, f"only partly read ({words.plural(len(table.problems), 'problem')})")
    wrong = broken or table.problems
    return Answer("problem" if wrong else "ok" if len(known) == len(names) else "undetermined", "; ".join(said))


def _reach(side: Diagnosis) -> float | None:
    return Row("", side.layers).longest("horizon")


def _at_least(side: Diagnosis) -> str:
    """Return what goes before a horizon that is a bound: of a sample of channels, or not known of every layer."""
    whole = all(layer.horizon and (layer.every_horizon or not layer.time_invariant) for layer in side.layers)
    return "" if whole else "at least " * any(layer.horizon for layer in side.layers)


def _ending(name: str) -> str:
    return name if len(name) <= NAME_WIDTH else f"…{name[1 - NAME_WIDTH :]}"


def _broken(side: Diagnosis) -> bool:
    return any(layer.unstable or layer.nonfinite for layer in side.layers)


def _rest(sides: Sequence[Diagnosis]) -> str:
    """Return what is said of how far models remember where one of them is selective."""
    return "" if all(layer.time_invariant for side in sides for layer in side.layers) else f" {AT_REST}"


def _layers(side: Diagnosis) -> str:
    counts = Counter(layer.title for layer in side.layers)
    return " + ".join(f"{count} {title}" for title, count in counts.items())


def side_name(side: Diagnosis) -> str:
    """Return a model's file with its folder: files of models are often of one name."""
    return f"{printable(Path(side.path).absolute().parent.name)}/{words.checkpoint_name(side.path)}"


def _header(side: Diagnosis) -> str:
    families = words.families(layer.title for layer in side.layers)
    modes = sum(layer.channels * layer.modes for layer in side.layers)
    return f"{side_name(side)}  {families}, {words.plural(modes, 'mode')}"


def pair_answer(pair: ModelComparison) -> Answer:
    """Return what memory one of two models has that the other lacks."""
    a, b = _reach(pair.a), _reach(pair.b)
    reach = [
        "an unknown number of steps" if far is None else f"{_at_least(side)}{words.in_steps(far)}"
        for side, far in ((pair.a, a), (pair.b, b))
    ]
    far = f"layers of a remember {reach[0]}, of b {reach[1]}{_rest((pair.a, pair.b))}"
    said = [_said(gap, pair) for gap in pair.gaps[:2]]
    alike = a is not None and b is not None and max(a, b) <= ALIKE * min(a, b)
    status: Status = "differs" if pair.gaps or (a is not None and b is not None and not alike) else "undetermined"
    if not pair.gaps and alike:
        status, said = "ok", ["neither lacks time constants that the other has"]
    if broken := [name for name, side in (("a", pair.a), ("b", pair.b)) if _broken(side)]:
        status = "problem"
        said.insert(0, f"modes grow or are not finite in {join_labels(broken)}")
    if pair.problems:
        status = "problem"
        said.insert(0, f"only partly read ({words.plural(len(pair.problems), 'problem')})")
    return Answer(status, "; ".join([*said, far]))


def _said(gap: Gap, pair: ModelComparison) -> str:
    other, rich = ("b", pair.b) if gap.lacking == "a" else ("a", pair.a)
    labels = dict(zip((x.name for x in rich.layers), label_layers([x.name for x in rich.layers]), strict=True))
    where = join_labels([labels[x.name] for x in rich.layers if x.name in gap.layers], 3)
    low, high = (words.decade(round(math.log10(end))) if 0 < end < math.inf else "" for end in (gap.low, gap.high))
    span = f"of {low} to {high}" if low and high else f"over {low}" if low else f"under {high}"
    own = "none" if gap.share_lacking == 0 else f"{100 * gap.share_lacking:.1g} %"
    return (
        f"{gap.lacking} lacks time constants {span} steps: {100 * gap.share:.0f} % of {other}'s modes "
        f"(layer{'s' * (len(gap.layers) > 1)} {where}), {own} of its own"
    )


def _columns(pair: ModelComparison, settings: Settings) -> list[Column]:
    rows = pair.by_depth() if settings.full else pair.by_depth(FEW_ROWS)
    columns = [Column("\ndepth", [f"{100 * row.start:.0f}–{100 * row.stop:.0f} %" for row in rows], "left")]
    for name, side in (("a", pair.a), ("b", pair.b)):
        labels = dict(zip((x.name for x in side.layers), label_layers([x.name for x in side.layers]), strict=True))
        beside: list[tuple[LayerDiagnosis, ...]] = [getattr(row, name) for row in rows]
        joint = [Row(join_labels([labels[x.name] for x in layers], 2) or "–", layers) for layers in beside]
        columns += [
            Column(f"{name}:\nlayer", [row.label for row in joint], "left"),
            Column("half-life\nmedian", [words.steps(row.median_half_life) for row in joint]),
            Column("\nslowest", [words.steps(row.longest("half_life")) for row in joint]),
            Column("\nhorizon", [words.steps(row.longest("horizon")) for row in joint]),
        ]
        if settings.full or settings.width >= WIDE:
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
    return [f"where the decay depends on the input, it is read {AT_REST}"]


def _context(side: Diagnosis) -> list[str]:
    if side.context_length is not None:
        return []
    from ssmdiag.assessment.memory import DEFAULT_CONTEXT

    return [f"laws are over {DEFAULT_CONTEXT:,} steps, as no context is stated: --length sets it"]
