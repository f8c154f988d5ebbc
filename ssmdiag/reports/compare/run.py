"""A run on the screen: the verdict first, then a row per layer, the picture, and what each moving layer does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ssmdiag.compare.trend import FEWEST, LEAST_CHANGE, Verdict
from ssmdiag.printable import printable_record
from ssmdiag.reports import words
from ssmdiag.reports.answer import AT_REST
from ssmdiag.reports.compare.words import answer, layer_sentences, reach_note, urgency
from ssmdiag.reports.console import Column, Page
from ssmdiag.reports.folding import join_labels, label_layers
from ssmdiag.reports.pictures import run_picture

if TYPE_CHECKING:
    from ssmdiag.compare.layer_history import LayerHistory
    from ssmdiag.compare.layer_point import LayerPoint
    from ssmdiag.compare.run import RunComparison
    from ssmdiag.reports.answer import Answer
    from ssmdiag.reports.interface import Settings

MOST_ROWS, FEW_ROWS = 12, 5
"""Rows of the table, with `--full` and without; of more layers the least urgent are folded by verdict."""
MOST_PROBLEMS = 2
"""Of what could not be read in a short report."""
LABEL_WIDTH = 14
WIDE = 150
"""Columns from which both tables are one."""
MOST_CURVES, CALM_CURVES = 5, 3
HIGH, LOW, LOWEST = 14, 7, 5
"""Lines of the picture with `--full`, and of a short report's, as few as fit; its caption is one more."""
LETTERS = "abcdefgh"
_STYLES = {Verdict.BROKEN: "red", Verdict.CROSSED: "red", Verdict.CONVERGING: "yellow"}


def report(run: RunComparison, settings: Settings) -> str:
    """Return the report of a run."""
    run = printable_record(run)
    labels = label_layers([layer.name for layer in run.layers])
    page = Page(settings)
    said = answer(run, labels)
    page.paragraph(said.line, said.style)
    page.problems(run.problems, None if settings.full else MOST_PROBLEMS)
    if not settings.quiet:
        page.paragraph(_header(run))
        rows = _rows(run, labels, settings, MOST_ROWS if settings.full else FEW_ROWS - max(page.height - 4, 0))
        for columns in _tables(run, rows, settings):
            page.tables(columns, [_STYLES.get(row.verdict, "") for row in rows])
        always, more = _short_remarks(run, said, rows), [*layer_sentences(run, labels, full=False), *run.notes]
        height = HIGH if settings.full else min(LOW, page.left(always, more) - 2)
        if settings.plots and height >= LOWEST:
            _draw(page, run, labels, height)
        if settings.full:
            page.remarks([*layer_sentences(run, labels), *remarks(run)])
        else:
            page.short_remarks(always, more)
    return page.text()


def _header(run: RunComparison) -> str:
    families = words.families(layer.last.title for layer in run.layers)
    first, last = run.checkpoints[0].step, run.checkpoints[-1].step
    count = words.plural(len(run.checkpoints), "checkpoint")
    span = "in the order given" if run.unit == "checkpoint" else f"{run.unit}s {first:,} to {last:,}"
    return f"{count}, {span}  {families}  {run.device} {run.seconds:.1f} s"


class _RunRow:
    """One or several layers with one verdict."""

    def __init__(self, labels: Sequence[str], layers: Sequence[LayerHistory]) -> None:
        listed = join_labels(labels)
        self.label = listed if len(labels) == 1 or len(listed) <= 10 else f"{len(labels)} others"
        self.layers = layers
        self.shown = min(layers, key=urgency)
        """The layer whose trend the row shows."""

    @property
    def verdict(self) -> Verdict:
        return self.shown.verdict


def _rows(run: RunComparison, labels: Sequence[str], settings: Settings, most: int) -> list[_RunRow]:
    """Return the rows of the table in layer order; of too many, the calmest layers are one row per verdict."""
    pairs = list(zip(labels, run.layers, strict=True))
    if settings.all_layers or len(pairs) <= most:
        return [_RunRow([label], [layer]) for label, layer in pairs]
    kinds = len({layer.verdict for layer in run.layers})
    alone = sorted(range(len(pairs)), key=lambda i: urgency(pairs[i][1]))[: max(most - kinds, 1)]
    alone = [i for i in alone if pairs[i][1].verdict not in (Verdict.STEADY, Verdict.SETTLED)]
    groups: dict[Verdict, list[int]] = {}
    for i in range(len(pairs)):
        if i not in alone:
            groups.setdefault(pairs[i][1].verdict, []).append(i)
    members = sorted([*([i] for i in alone), *groups.values()])
    return [_RunRow([pairs[i][0] for i in group], [pairs[i][1] for i in group]) for group in members]


def _tables(run: RunComparison, rows: Sequence[_RunRow], settings: Settings) -> list[list[Column]]:
    """Return the trend and the memory of every row, side by side where there is room."""
    label = Column("layer", [row.label for row in rows], "left", wraps=True, overflow="fold", most=LABEL_WIDTH)
    first = Column(f"margin {words.margin_symbol(settings)}\nfirst", [_margin(row, "first") for row in rows])
    last = Column("\nlast", [_margin(row, "last") for row in rows])
    slowest = Column("slowest τ\nin steps", [_ends(row, _slowest, same=False) for row in rows])
    verdict = Column("\nverdict", [row.verdict.value + " (slow 5 %)" * row.shown.by_tail for row in rows], "left")
    known = any(layer.last.horizon for row in rows for layer in row.layers)
    horizon = [Column("horizon\nlongest", [_ends(row, _horizon, same=False) for row in rows])] * known
    if not settings.full:
        return [[label, verdict, first, last, slowest, *horizon]]
    interval = Column("95 % of\nthe trend", [_interval(row) for row in rows])
    trend = [
        verdict,
        first,
        last,
        Column("slowest τ\ngrows by", [_factor(row) for row in rows]),
        *[interval] * (len(run.checkpoints) >= FEWEST),
    ]
    law = Column("decay law\nof the layer", [_ends(row, _law) for row in rows], "left")
    rounded = Column("modes that round\nto 1 in bf16", [_ends(row, _rounded) for row in rows])
    moved = Column("modes\nmoved", [_moved(row) for row in rows])
    memory = [slowest, *horizon, *[law] * known, moved, rounded]
    return [[label, *trend, *memory]] if settings.width >= WIDE else [[label, *trend], [label, *memory]]


def _ends(row: _RunRow, say: Callable[[Sequence[LayerPoint]], str], *, same: bool = True) -> str:
    """Return `first → last` of what is said of a row's layers; `same`: once where both are the same."""
    ends = [say([layer.first for layer in row.layers]), say([layer.last for layer in row.layers])]
    return ends[0] if same and ends[0] == ends[1] else " → ".join(ends)


def _margin(row: _RunRow, end: str) -> str:
    values = [getattr(layer, end).margin for layer in row.layers]
    return words.margin(min((value for value in values if value is not None), default=None))


def _slowest(points: Sequence[LayerPoint]) -> str:
    return words.steps(max((point.slowest for point in points if point.slowest is not None), default=None))


def _factor(row: _RunRow) -> str:
    factors = sorted(math.exp(min(-layer.trend.change, 700.0)) for layer in row.layers if layer.trend)
    if not factors:
        return "–"
    return f"× {_times(factors[0])}" if len(row.layers) == 1 else f"{_times(factors[0])} – {_times(factors[-1])}"


def _interval(row: _RunRow) -> str:
    trend = row.shown.trend
    if trend is None or len(row.layers) > 1 or not math.isfinite(trend.slope.low):
        return "–"
    low, high = (math.exp(max(min(-s * trend.span, 700.0), -700.0)) for s in (trend.slope.high, trend.slope.low))
    return f"{_times(low)} – {_times(high)}"


def _times(factor: float) -> str:
    return words.steps(factor) if factor >= 9.95 else f"{factor:.2f}" if factor >= 0.0995 else f"{factor:.1g}"


def _horizon(points: Sequence[LayerPoint]) -> str:
    return words.steps(max((point.horizon.max for point in points if point.horizon), default=None))


def _law(points: Sequence[LayerPoint]) -> str:
    laws = {point.decay.law[0] for point in points if point.decay}
    return laws.pop() if len(laws) == 1 else "mixed" if laws else "–"


def _rounded(points: Sequence[LayerPoint]) -> str:
    return _share(sum(p.rounded["bfloat16"] for p in points) / sum(p.channels * p.modes for p in points))


def _moved(row: _RunRow) -> str:
    points = [layer.last for layer in row.layers if layer.last.moved is not None]
    if not points:
        return "–"
    return _share(sum(p.moved or 0 for p in points) / sum(p.channels * p.modes for p in points))


def _share(share: float) -> str:
    return f"{100 * share:.0f} %" if 100 * share >= 9.95 or share == 0 else f"{100 * share:.2g} %"


def _draw(page: Page, run: RunComparison, labels: Sequence[str], height: int) -> None:
    named = dict(zip((layer.name for layer in run.layers), labels, strict=True))
    curves: dict[str, list[tuple[float, float]]] = {}
    captions: list[str] = []
    full = page.settings.full
    for layer in sorted(run.layers, key=urgency):
        points = [(p.step, p.slowest) for p in layer.points if p.slowest and math.isfinite(p.slowest)]
        most = CALM_CURVES if layer.verdict is Verdict.STEADY else MOST_CURVES
        if len(points) > 1 and len(curves) < most:
            letter = LETTERS[len(curves)]
            curves[letter] = [(float(step), float(tau)) for step, tau in points]
            what = f"{letter} layer {named[layer.name]} {layer.verdict.value}"
            captions.append(what if full else f"{letter} {named[layer.name]}")
    if not curves:
        return
    limits = {"bf16": 511.5, "fp16": 4095.5} | ({"context": float(run.context_length)} if run.context_length else {})
    left = len(run.layers) - len(curves)
    caption = f"slowest time constant in time steps over {_axis(run)}: " + ", ".join(captions)
    caption += f" ({words.plural(left, 'other layer')} not drawn)" if left else ""
    if not full:
        caption = f"slowest τ in steps over {_axis(run)}; layer {', '.join(captions)}"
        caption = words.shortened(caption, page.settings.width - 2)
    page.picture(run_picture(curves, limits, page.settings, height=height), caption)


def _axis(run: RunComparison) -> str:
    """Return what a run's pictures are drawn over."""
    return f"train {run.unit}s" if run.unit == "step" else f"{run.unit}s"


def _short_remarks(run: RunComparison, said: Answer, rows: Sequence[_RunRow]) -> list[str]:
    """Return what a reader of the short report has to know, and the answer does not say."""
    nominal = dict.fromkeys(layer.last.title for layer in run.layers if not layer.last.time_invariant)
    applying = {
        f"{', '.join(nominal)}: read {AT_REST}": nominal and AT_REST not in said.text,
        "slow 5 %: the rate that one mode in twenty stays below": any(row.shown.by_tail for row in rows),
    }
    return [remark for remark, applies in applying.items() if applies]


def remarks(run: RunComparison) -> list[str]:
    """Return what a reader must know of how the run was judged."""
    nominal = dict.fromkeys(layer.last.title for layer in run.layers if not layer.last.time_invariant)
    applying = {
        f"order: {run.order.value}": True,
        f"modes moved: those whose rate changed by over {100 * math.expm1(LEAST_CHANGE):.0f} %": any(
            layer.last.moved for layer in run.layers
        ),
        "slow modes, or slow 5 %: the rate that one mode in twenty stays below": any(
            layer.by_tail for layer in run.layers
        ),
        reach_note(run): any(limit.projection for layer in run.layers for limit in layer.limits),
        f"the decay of {', '.join(nominal)} depends on the input; read {AT_REST}": nominal,
    }
    return [*(remark for remark, applies in applying.items() if applies), *run.notes]
