"""A comparison of arms on the screen: verdict, losses, memory before and after, loss curves."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssmdiag.reports import words
from ssmdiag.reports.pictures import run_picture
from ssmdiag.reports.retrain_words import answer, loss, memory_of, settings_of
from ssmdiag.retrain.verdict import Summary, learning_rate_windows, summarise_arms

if TYPE_CHECKING:
    from ssmdiag.reports.interface import Settings
    from ssmdiag.retrain.arms import Arm
    from ssmdiag.retrain.results import RetrainResult

    Names = dict[Arm, str]

MOST_CURVES = 6
MOST_ROWS = 24
"""Rows of the table of arms; a sweep is shown as a grid of losses instead."""


def report(result: RetrainResult, settings: Settings) -> str:
    """Return the comparison as text."""
    out = Console(
        file=io.StringIO(),
        width=settings.width,
        force_terminal=settings.colour,
        color_system="standard" if settings.colour else None,
        highlight=False,
        legacy_windows=False,
        emoji=False,
    )
    budget = result.budget
    head = (
        f"{result.task}  {result.model}  {budget.steps:,} steps × {budget.batch}  "
        f"{words.plural(len(result.arms), 'run')}  {result.device} {result.seconds:,.0f} s"
    )
    _paragraph(out, head, "bold")
    _paragraph(out, answer(result), "bold green")
    if not settings.quiet:
        summaries = summarise_arms(result)
        names = settings_of([summary.arm for summary in summaries])
        rates = sorted({summary.arm.lr for summary in summaries})
        if len(rates) > 1:
            out.print()
            out.print(_grid(result, names, rates))
        shown = _shown(result, summaries)
        out.print()
        out.print(_losses(shown, names, len(rates) > 1))
        out.print()
        out.print(_memory(shown, names))
        if settings.plots:
            _curves(out, shown, names, settings)
        if result.notes:
            out.print()
        for note in result.notes:
            _paragraph(out, f"  {note}", "")
    assert isinstance(out.file, io.StringIO)
    text = "\n".join(line.rstrip() for line in out.file.getvalue().splitlines()) + "\n"
    return text if settings.unicode else text.translate(words.ASCII).encode("ascii", "replace").decode()


def _shown(result: RetrainResult, summaries: Sequence[Summary]) -> list[Summary]:
    """Return the rows worth a line: all of a few, of a sweep each setting at its best learning rate."""
    if len(summaries) <= MOST_ROWS and len({summary.arm.lr for summary in summaries}) == 1:
        return list(summaries)
    best = {_key(window.arm): window.best_rate for window in learning_rate_windows(result)}
    shown = [summary for summary in summaries if best[_key(summary.arm)] in (summary.arm.lr, None)]
    return sorted(shown, key=lambda summary: summary.final or math.inf)[:MOST_ROWS]


def _grid(result: RetrainResult, names: Names, rates: Sequence[float]) -> Table:
    """Return final losses by setting and learning rate; `×` where a seed diverged."""
    table = _table()
    table.add_column("final loss at lr", no_wrap=True)
    for rate in rates:
        table.add_column(f"{rate:.2g}".replace("e-0", "e-"), justify="right", no_wrap=True)
    table.add_column("decades", justify="right", no_wrap=True)
    windows = {_key(window.arm): window for window in learning_rate_windows(result)}
    rows: dict[tuple[object, ...], dict[float, Summary]] = {}
    for summary in summarise_arms(result):
        rows.setdefault(_key(summary.arm), {})[summary.arm.lr] = summary
    for key, cells in rows.items():
        name = names[next(iter(cells.values())).arm]
        losses = [_cell(cells.get(rate)) for rate in rates]
        decades = windows[key].decades
        table.add_row(name, *losses, "–" if decades is None else f"{decades:.1f}")
    return table


def _cell(summary: Summary | None) -> str:
    if summary is None:
        return ""
    return "×" if summary.final is None else loss(summary.final) + "×" * bool(summary.diverged)


def _losses(summaries: Sequence[Summary], names: Names, sweep: bool) -> Table:
    """Return the losses of each setting; columns that say nothing new are left out."""
    table = _table()
    table.add_column("setting", no_wrap=True)
    levels = list(summaries[0].steps_to)[-2:] if summaries else []
    columns: list[tuple[str, Callable[[Summary], str]]] = []
    if sweep:
        columns.append(("best lr", lambda s: f"{s.arm.lr:.2g}"))
    columns.append(("final loss", lambda s: loss(s.final)))
    if any(summary.spread for summary in summaries):
        columns.append(("over seeds", lambda s: f"{loss(s.spread[0])} … {loss(s.spread[1])}" if s.spread else "–"))
    if any(loss(summary.best) != loss(summary.final) for summary in summaries):
        columns.append(("best", lambda s: loss(s.best)))
    if any(summary.accuracy is not None for summary in summaries):
        columns.append(("accuracy", lambda s: "–" if s.accuracy is None else f"{100 * s.accuracy:.1f} %"))
    for level in levels:
        columns.append((f"steps to\n{loss(level)}", partial(_steps_to, level)))
    if any(summary.diverged for summary in summaries):
        columns.append(("diverged", lambda s: ", ".join(f"step {at:,}" for at in s.diverged) or "no"))
    columns.append(("ms/step", lambda s: f"{1e3 * s.seconds_per_step:.1f}"))
    for heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for summary in summaries:
        cells = [cell(summary) for _, cell in columns]
        table.add_row(names[summary.arm], *cells, style="red" if summary.diverged else "")
    return table


def _steps_to(level: float, summary: Summary) -> str:
    at = summary.steps_to[level]
    return words.steps(None if at is None else float(at))


def _memory(summaries: Sequence[Summary], names: Names) -> Table:
    """Return what the first seed's layers remember before and after, slowest of them first."""
    table = _table()
    table.add_column("memory", no_wrap=True)
    for heading in ("horizon", "slowest half-life", "margin"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("law", no_wrap=True)
    for summary in summaries:
        run = summary.runs[0]
        (h0, t0, m0, l0), (h1, t1, m1, l1) = memory_of(run.before), memory_of(run.after)
        table.add_row(
            names[summary.arm],
            f"{words.steps(h0)} → {words.steps(h1)}",
            f"{words.steps(t0)} → {words.steps(t1)}",
            f"{words.margin(m0)} → {words.margin(m1)}",
            l0 if l0 == l1 else f"{l0} → {l1}",
        )
    return table


def _curves(out: Console, summaries: Sequence[Summary], names: Names, settings: Settings) -> None:
    histories = {
        names[summary.arm]: [(point.step, point.loss) for point in summary.runs[0].history if point.loss > 0]
        for summary in summaries[:MOST_CURVES]
    }
    histories = {name: points for name, points in histories.items() if len(points) > 1}
    if histories:
        letters = dict(zip("abcdefgh", histories, strict=False))
        out.print()
        _paragraph(out, f" validation loss: {', '.join(f'{letter} {name}' for letter, name in letters.items())}", "")
        curves = {letter: histories[name] for letter, name in letters.items()}
        for line in run_picture(curves, {}, settings, loss):
            out.print(Text.from_ansi(line), no_wrap=True, overflow="crop")


def _key(arm: Arm) -> tuple[object, ...]:
    return (arm.param, arm.freeze, arm.init, arm.recurrence_lr, arm.weight_decay)


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 1), collapse_padding=False)


def _paragraph(out: Console, text: str, style: str) -> None:
    lead = text[: len(text) - len(text.lstrip())]
    hanging = lead + "  " * bool(lead)
    for line in textwrap.wrap(text.strip(), out.width - 1, initial_indent=lead, subsequent_indent=hanging):
        out.print(Text(line, style=style), no_wrap=True, overflow="ignore", crop=False)
