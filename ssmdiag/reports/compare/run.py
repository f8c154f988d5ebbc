"""A run on the screen: the verdict first, then a row per layer, the picture, and what each moving layer does."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssmdiag.compare.trend import FEWEST, LEAST_CHANGE, Verdict
from ssmdiag.printable import printable_record
from ssmdiag.reports import words
from ssmdiag.reports.compare.words import answer, layer_sentences, reach_note, urgency
from ssmdiag.reports.console import close_console, open_console
from ssmdiag.reports.folding import join_labels, label_layers
from ssmdiag.reports.pictures import run_picture

if TYPE_CHECKING:
    from ssmdiag.compare.layer_history import LayerHistory
    from ssmdiag.compare.layer_point import LayerPoint
    from ssmdiag.compare.run import RunComparison
    from ssmdiag.reports.interface import Settings

MOST_ROWS = 12
"""Rows of the table; of more layers the least urgent are folded by verdict."""
LABEL_WIDTH = 14
WIDE = 150
"""Columns from which both tables are one."""
MOST_CURVES, CALM_CURVES = 5, 3
LETTERS = "abcdefgh"
_STYLES = {Verdict.BROKEN: "red", Verdict.CROSSED: "red", Verdict.CONVERGING: "yellow"}


def report(run: RunComparison, settings: Settings) -> str:
    """Return the report of a run."""
    run = printable_record(run)
    labels = label_layers([layer.name for layer in run.layers])
    out = open_console(settings)
    write(out, _header(run), "bold")
    write(out, answer(run, labels), f"bold {_STYLES.get(run.verdict, 'green')}")
    for problem in run.problems:
        write(out, f"not read: {problem}", "red", indent=2)
    if not settings.quiet:
        rows = _rows(run, labels, settings)
        for table in _tables(run, rows, settings):
            out.print()
            out.print(table)
        if settings.plots:
            _draw(out, run, labels, settings)
        remarks = [*layer_sentences(run, labels), *_remarks(run)]
        if remarks:
            out.print()
        for remark in remarks:
            write(out, remark, "", indent=2)
    return close_console(out, settings)


def write(out: Console, text: str, style: str, indent: int = 0) -> None:
    """Write a paragraph with a hanging indent; brackets are printed literally."""
    margin = " " * indent
    hanging = margin + ("  " if indent else "")
    lines = textwrap.wrap(text, out.width - 1, initial_indent=margin, subsequent_indent=hanging, break_on_hyphens=False)
    for line in lines or [""]:
        out.print(Text(line, style=style), no_wrap=True, overflow="ignore", crop=False)


def plain_table() -> Table:
    """Return an empty table without lines."""
    return Table(box=None, pad_edge=False, padding=(0, 1), collapse_padding=False)


def _header(run: RunComparison) -> str:
    titles: dict[str, int] = {}
    for layer in run.layers:
        titles[layer.last.title] = titles.get(layer.last.title, 0) + 1
    families = " + ".join(f"{title}, {words.plural(count, 'layer')}" for title, count in titles.items())
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


def _rows(run: RunComparison, labels: Sequence[str], settings: Settings) -> list[_RunRow]:
    """Return the rows of the table in layer order; beyond twelve, the calmest layers are one row per verdict."""
    pairs = list(zip(labels, run.layers, strict=True))
    if settings.all_layers or len(pairs) <= MOST_ROWS:
        return [_RunRow([label], [layer]) for label, layer in pairs]
    alone = sorted(range(len(pairs)), key=lambda i: urgency(pairs[i][1]))[: MOST_ROWS - len(Verdict) + 1]
    alone = [i for i in alone if pairs[i][1].verdict not in (Verdict.STEADY, Verdict.SETTLED)]
    groups: dict[Verdict, list[int]] = {}
    for i in range(len(pairs)):
        if i not in alone:
            groups.setdefault(pairs[i][1].verdict, []).append(i)
    members = sorted([*([i] for i in alone), *groups.values()])
    return [_RunRow([pairs[i][0] for i in group], [pairs[i][1] for i in group]) for group in members]


def _tables(run: RunComparison, rows: Sequence[_RunRow], settings: Settings) -> list[Table]:
    """Return the trend and the memory of every row, side by side where there is room."""
    tau, one = ("τ", "1−|λ̄|") if settings.unicode else ("tau", "1-|l|")
    columns = [
        ("layer", "left", [row.label for row in rows]),
        (f"margin {one}\nfirst", "right", [_margin(row, "first") for row in rows]),
        ("\nlast", "right", [_margin(row, "last") for row in rows]),
        (f"slowest {tau}\ngrows by", "right", [_factor(row) for row in rows]),
    ]
    if len(run.checkpoints) >= FEWEST:
        columns.append(("95 % of\nthe trend", "right", [_interval(row) for row in rows]))
    columns.append(("modes\nmoved", "right", [_moved(row) for row in rows]))
    columns.append(("\nverdict", "left", [_verdict(row) for row in rows]))
    arrow = " → " if settings.unicode else " -> "
    slow = [arrow.join(words.steps(_slowest(row, end)) for end in ("first", "last")) for row in rows]
    memory = [(f"slowest {tau}\nin steps", "right", slow)]
    if any(layer.last.horizon for row in rows for layer in row.layers):
        memory.append(("horizon\nlongest", "right", [_horizons(row, arrow) for row in rows]))
        memory.append(("decay law\nof the layer", "left", [_laws(row, arrow) for row in rows]))
    memory.append(("modes that round\nto 1 in bf16", "right", [_rounded(row, arrow) for row in rows]))
    styles = [_STYLES.get(row.verdict, "") for row in rows]
    if settings.width >= WIDE:
        return [_table([*columns, *memory], styles)]
    return [_table(columns, styles), _table([columns[0], *memory], styles)]


def _table(columns: Sequence[tuple[str, str, list[str]]], styles: Sequence[str]) -> Table:
    table = plain_table()
    for head, side, cells in columns:
        label = head == "layer"
        table.add_column(
            head,
            justify="right" if side == "right" else "left",
            no_wrap=not label,
            overflow="fold",
            min_width=min(max(map(len, [head, *cells])), LABEL_WIDTH) if label else None,
            max_width=LABEL_WIDTH if label else None,
        )
    for row, style in zip(zip(*(column for _, _, column in columns), strict=True), styles, strict=True):
        table.add_row(*(Text(cell) for cell in row), style=style)
    return table


def _margin(row: _RunRow, end: str) -> str:
    values = [getattr(layer, end).margin for layer in row.layers]
    return words.margin(min((value for value in values if value is not None), default=None))


def _slowest(row: _RunRow, end: str) -> float | None:
    values = [getattr(layer, end).slowest for layer in row.layers]
    return max((value for value in values if value is not None), default=None)


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


def _verdict(row: _RunRow) -> str:
    return row.verdict.value + (" (slow 5 %)" if row.shown.by_tail else "")


def _horizons(row: _RunRow, arrow: str) -> str:
    ends = []
    for end in ("first", "last"):
        horizons = [getattr(layer, end).horizon for layer in row.layers]
        ends.append(words.steps(max((h.max for h in horizons if h), default=None)))
    return arrow.join(ends)


def _laws(row: _RunRow, arrow: str) -> str:
    ends = []
    for end in ("first", "last"):
        laws = {decay.law_word for layer in row.layers if (decay := getattr(layer, end).decay)}
        ends.append(laws.pop() if len(laws) == 1 else "mixed" if laws else "–")
    return ends[0] if ends[0] == ends[1] else arrow.join(ends)


def _rounded(row: _RunRow, arrow: str) -> str:
    shares = []
    for end in ("first", "last"):
        points: list[LayerPoint] = [getattr(layer, end) for layer in row.layers]
        shares.append(_share(sum(p.rounded["bfloat16"] for p in points) / sum(p.channels * p.modes for p in points)))
    return shares[0] if shares[0] == shares[1] else arrow.join(shares)


def _moved(row: _RunRow) -> str:
    points = [layer.last for layer in row.layers if layer.last.moved is not None]
    if not points:
        return "–"
    return _share(sum(p.moved or 0 for p in points) / sum(p.channels * p.modes for p in points))


def _share(share: float) -> str:
    return f"{100 * share:.0f} %" if 100 * share >= 9.95 or share == 0 else f"{100 * share:.2g} %"


def _draw(out: Console, run: RunComparison, labels: Sequence[str], settings: Settings) -> None:
    named = dict(zip((layer.name for layer in run.layers), labels, strict=True))
    curves: dict[str, list[tuple[float, float]]] = {}
    captions = []
    for layer in sorted(run.layers, key=urgency):
        points = [(p.step, p.slowest) for p in layer.points if p.slowest and math.isfinite(p.slowest)]
        most = CALM_CURVES if layer.verdict is Verdict.STEADY else MOST_CURVES
        if len(points) > 1 and len(curves) < most:
            letter = LETTERS[len(curves)]
            curves[letter] = [(float(step), float(tau)) for step, tau in points]
            captions.append(f"{letter} layer {named[layer.name]} {layer.verdict.value}")
    if not curves:
        return
    limits = {"bf16": 511.5, "fp16": 4095.5}
    if run.context_length:
        limits["context"] = float(run.context_length)
    left = len(run.layers) - len(curves)
    caption = f"slowest time constant in time steps over train {run.unit}s: " + ", ".join(captions)
    caption += f" ({left} calmer layers not drawn)" if left else ""
    out.print()
    write(out, caption, "", indent=1)
    for line in run_picture(curves, limits, settings):
        out.print(Text.from_ansi(line), no_wrap=True, overflow="crop")


def _remarks(run: RunComparison) -> list[str]:
    remarks = [f"order: {run.order.value}"]
    if any(layer.last.moved for layer in run.layers):
        remarks.append(f"modes moved: those whose rate changed by over {100 * math.expm1(LEAST_CHANGE):.0f} %")
    if any(layer.by_tail for layer in run.layers):
        remarks.append("slow modes, or slow 5 %: the rate that one mode in twenty stays below")
    if any(limit.projection for layer in run.layers for limit in layer.limits):
        remarks.append(reach_note(run))
    nominal = dict.fromkeys(layer.last.title for layer in run.layers if not layer.last.time_invariant)
    if nominal:
        remarks.append(f"nominal: the decay of {', '.join(nominal)} depends on the input; read with its gates at rest")
    return [*remarks, *run.notes]
