"""Models on the screen: of two, what one remembers and the other does not, then both by depth; of more, a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from ssmdiag.assessment.spectrum import BINS_PER_DECADE, FIRST_DECADE
from ssmdiag.printable import printable, printable_record
from ssmdiag.reports import words
from ssmdiag.reports.compare.run import plain_table, write
from ssmdiag.reports.console import close_console, open_console
from ssmdiag.reports.folding import Row, join_labels, label_layers
from ssmdiag.reports.pictures import time_constant_strip

if TYPE_CHECKING:
    from rich.console import Console

    from ssmdiag.assessment.spectrum import LayerDiagnosis
    from ssmdiag.compare.models import Gap, ModelComparison, ModelTable
    from ssmdiag.diagnosis import Diagnosis
    from ssmdiag.reports.interface import Settings


def models_report(pair: ModelComparison, settings: Settings) -> str:
    """Return the report of two models side by side."""
    pair = printable_record(pair)
    out = open_console(settings)
    write(out, f"a  {_header(pair.a)}", "bold")
    write(out, f"b  {_header(pair.b)}", "bold")
    write(out, _answer(pair), "bold green" if not pair.problems else "bold red")
    for problem in pair.problems:
        write(out, f"not read: {problem}", "red", indent=2)
    if not settings.quiet:
        out.print()
        out.print(_table(pair, settings))
        if settings.plots:
            _draw(out, [Row("a", pair.a.layers), Row("b", pair.b.layers)], pair.a.context_length, settings)
        out.print()
        for remark in _remarks(pair):
            write(out, remark, "", indent=2)
    return close_console(out, settings)


LETTERS = "abcdefghijklmnopqrstuvwxyz"


def table_report(table: ModelTable, settings: Settings) -> str:
    """Return the report of three models or more, one row each."""
    table = printable_record(table)
    out = open_console(settings)
    names = [LETTERS[i] if i < len(LETTERS) else str(i + 1) for i in range(len(table.models))]
    width = max(map(len, names))
    for name, side in zip(names, table.models, strict=True):
        write(out, f"{name:<{width}}  {_header(side)}", "bold")
    write(out, _longest(table, names), "bold green" if not table.problems else "bold red")
    for problem in table.problems:
        write(out, f"not read: {problem}", "red", indent=2)
    if not settings.quiet:
        rows = [Row(name, side.layers) for name, side in zip(names, table.models, strict=True)]
        grid = plain_table()
        heads = ("\nmodel", "\nlayers", "half in\nmedian", "steps\nslowest", "\nhorizon", "\nlaw")
        for position, head in enumerate(heads):
            grid.add_column(head, justify="left" if position in (0, 5) else "right", no_wrap=True)
        for row in rows:
            steps = map(words.steps, (row.median_half_life, row.longest_half_life, row.longest_horizon))
            grid.add_row(*(Text(cell) for cell in (row.label, str(len(row.layers)), *steps, row.law)))
        out.print()
        out.print(grid)
        if settings.plots:
            _draw(out, rows, table.models[0].context_length, settings)
        out.print()
        for remark in [*table.notes, *_nominal(table.models), *_context(table.models[0])]:
            write(out, remark, "", indent=2)
    return close_console(out, settings)


def _longest(table: ModelTable, names: Sequence[str]) -> str:
    """Return which models remember longest and shortest."""
    reach = [(max((x.horizon.max for x in side.layers if x.horizon), default=None)) for side in table.models]
    known = sorted((value, name) for value, name in zip(reach, names, strict=True) if value is not None)
    count = words.plural(len(table.models), "model")
    if len(known) < 2:
        return f"{count}, which are not checkpoints of one run."
    (low, first), (high, last) = known[0], known[-1]
    return (
        f"{count}, not one run. 99 % of the energy has passed latest in {last}, after {words.steps(high)} steps, "
        f"earliest in {first}, after {words.steps(low)}."
    )


def _header(side: Diagnosis) -> str:
    titles: dict[str, int] = {}
    for layer in side.layers:
        titles[layer.title] = titles.get(layer.title, 0) + 1
    families = " + ".join(f"{title}, {words.plural(count, 'layer')}" for title, count in titles.items())
    modes = sum(layer.channels * layer.modes for layer in side.layers)
    folder = printable(Path(side.path).absolute().parent.name)
    return f"{folder}/{words.checkpoint_name(side.path)}  {families}, {modes:,} modes"


def _answer(pair: ModelComparison) -> str:
    sentences = [_said(gap, pair) for gap in pair.gaps[:3]]
    if not sentences:
        return f"Neither lacks time constants that the other has. {_reach(pair)}"
    return f"{' '.join(sentences)} {_reach(pair)}"


def _said(gap: Gap, pair: ModelComparison) -> str:
    rich = pair.b if gap.lacking == "a" else pair.a
    other = "b" if gap.lacking == "a" else "a"
    labels = dict(zip((x.name for x in rich.layers), label_layers([x.name for x in rich.layers]), strict=True))
    where = join_labels([labels[x.name] for x in rich.layers if x.name in gap.layers], 3)
    if gap.low == 0:
        span = f"under {_tick(gap.high)} steps"
    elif math.isinf(gap.high):
        span = f"over {_tick(gap.low)} steps"
    else:
        span = f"of {_tick(gap.low)} to {_tick(gap.high)} steps"
    own = "none" if gap.share_lacking == 0 else f"{100 * gap.share_lacking:.1g} %"
    return (
        f"{gap.lacking} lacks time constants {span}: {100 * gap.share:.0f} % of {other}'s modes "
        f"(layer{'s' * (len(gap.layers) > 1)} {where}), {own} of its own."
    )


def _tick(power: float) -> str:
    return words.decade(round(math.log10(power)))


def _reach(pair: ModelComparison) -> str:
    horizons = [max((x.horizon.max for x in side.layers if x.horizon), default=None) for side in (pair.a, pair.b)]
    return (
        f"99 % of the energy has passed after {words.steps(horizons[0])} steps in a, {words.steps(horizons[1])} in b."
    )


def _table(pair: ModelComparison, settings: Settings) -> object:
    wide = settings.width >= 100
    table = plain_table()
    table.add_column("\ndepth", no_wrap=True)
    for side in "ab":
        table.add_column(f"{side}:\nlayer", no_wrap=True)
        table.add_column("half in\nmedian", justify="right", no_wrap=True)
        table.add_column("steps\nslowest", justify="right", no_wrap=True)
        table.add_column("\nhorizon", justify="right", no_wrap=True)
        if wide:
            table.add_column("\nlaw", no_wrap=True)
    labels = [
        dict(zip((x.name for x in side.layers), label_layers([x.name for x in side.layers]), strict=True))
        for side in (pair.a, pair.b)
    ]
    for row in pair.by_depth():
        cells = [f"{100 * row.start:.0f}–{100 * row.stop:.0f} %"]
        for layers, named in zip((row.a, row.b), labels, strict=True):
            cells += _cells(layers, [named[x.name] for x in layers], wide)
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _draw(out: Console, rows: Sequence[Row], context: int | None, settings: Settings) -> None:
    strip = time_constant_strip(rows, context, FIRST_DECADE, BINS_PER_DECADE, settings)
    if strip:
        out.print()
        write(out, "time constants τ in steps: share of a model's modes per quarter decade", "", indent=1)
    for line in strip:
        out.print(Text(line.replace(" layer", " model", 1)), no_wrap=True, overflow="crop")


def _cells(layers: Sequence[LayerDiagnosis], labels: Sequence[str], wide: bool) -> list[str]:
    if not layers:
        return ["–"] * (5 if wide else 4)
    row = Row(join_labels(labels, 2), tuple(layers))
    cells = [row.label, *map(words.steps, (row.median_half_life, row.longest_half_life, row.longest_horizon))]
    return [*cells, row.law] if wide else cells


def _remarks(pair: ModelComparison) -> list[str]:
    remarks = list(pair.notes)
    laws = [
        f"{name}: "
        + ", ".join(f"{count} {law}" for law, count in sorted(_count_laws(side).items(), key=lambda item: -item[1]))
        for name, side in (("a", pair.a), ("b", pair.b))
    ]
    remarks.append(f"decay laws of layers; {'; '.join(laws)}")
    return [*remarks, *_nominal((pair.a, pair.b)), *_context(pair.a)]


def _nominal(sides: Sequence[Diagnosis]) -> list[str]:
    if all(layer.time_invariant for side in sides for layer in side.layers):
        return []
    return ["nominal: where the decay depends on the input, it is read with the gates at rest"]


def _context(side: Diagnosis) -> list[str]:
    if side.context_length is not None:
        return []
    from ssmdiag.assessment.memory import DEFAULT_CONTEXT

    return [f"laws are over {DEFAULT_CONTEXT:,} steps, as no context is stated: --length sets it"]


def _count_laws(side: Diagnosis) -> dict[str, int]:
    counts: dict[str, int] = {}
    for layer in side.layers:
        if layer.decay:
            counts[layer.decay.law_word] = counts.get(layer.decay.law_word, 0) + 1
    return counts
