"""A comparison of arms on the screen: verdict, losses, memory before and after, curves."""

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
from ssmdiag.reports.retrain.pictures import kernel_picture, noise_picture
from ssmdiag.reports.retrain.words import answer, kernel_error, loss, memory_columns, noise_borne, settings_of
from ssmdiag.retrain.verdict import Summary, learning_rate_windows, summarise_arms

if TYPE_CHECKING:
    from ssmdiag.reports.interface import Settings
    from ssmdiag.retrain.arms import Arm
    from ssmdiag.retrain.results import RetrainResult

MOST_CURVES = 6
MOST_ROWS = 24
"""Rows of the table of arms; a sweep is shown as a grid of losses instead."""
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


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
        shown = _shown(result, summaries)
        names = _Names(summaries, settings.width)
        rates = sorted({summary.arm.lr for summary in summaries})
        names.print_key(out)
        if len(rates) > 1:
            out.print()
            out.print(_grid(result, summaries, names, rates))
        _table(out, "setting", shown, names, _loss_columns(shown, len(rates) > 1))
        memory = memory_columns([summary.runs[0] for summary in shown])
        same = {cell for heading, cells in memory if heading == "law" for cell in cells}
        if len(same) == 1:  # a column that says one thing is a line
            memory = [column for column in memory if column[0] != "law"]
        _table(out, "memory", shown, names, memory)
        if len(same) == 1 and not same & {"–"}:
            _paragraph(out, f"  law of the kernels, in every setting: {same.pop()}", "")
        if settings.plots:
            _curves(out, result, shown, names, settings)
        notes = [*result.notes]
        if any(summary.seeds > 1 for summary in shown):
            notes.append("memory and curves are those of the first seed")
        if notes:
            out.print()
        for note in notes:
            _paragraph(out, f"  {note}", "")
    assert isinstance(out.file, io.StringIO)
    text = "\n".join(line.rstrip() for line in out.file.getvalue().splitlines()) + "\n"
    return text if settings.unicode else text.translate(words.ASCII).encode("ascii", "replace").decode()


class _Names:
    """A letter for each setting, and its name beside it or, where that would fill the line, in a key above."""

    def __init__(self, summaries: Sequence[Summary], width: int) -> None:
        self._names = {_key(arm): name for arm, name in settings_of([summary.arm for summary in summaries]).items()}
        self._letters = dict(zip(self._names, LETTERS, strict=False))
        self._apart = max(map(len, self._names.values())) > width // 4

    def letter(self, summary: Summary) -> str:
        return self._letters.get(_key(summary.arm), "?")

    def row(self, summary: Summary) -> str:
        """Return what a row of a table begins with."""
        return self.letter(summary) if self._apart else self.with_letter(summary)

    def with_letter(self, summary: Summary) -> str:
        return f"{self.letter(summary)} {self._names[_key(summary.arm)]}"

    def print_key(self, out: Console) -> None:
        if self._apart:
            out.print()
            for key, name in self._names.items():
                _paragraph(out, f" {self._letters.get(key, '?')}  {name}", "")


def _shown(result: RetrainResult, summaries: Sequence[Summary]) -> list[Summary]:
    """Return the rows worth a line: all of a few, of a sweep each setting at its best learning rate."""
    if len(summaries) <= MOST_ROWS and len({summary.arm.lr for summary in summaries}) == 1:
        return list(summaries)
    best = {_key(window.arm): window.best_rate for window in learning_rate_windows(result)}
    shown = [summary for summary in summaries if best[_key(summary.arm)] in (summary.arm.lr, None)]
    return sorted(shown, key=lambda summary: summary.final or math.inf)[:MOST_ROWS]


def _grid(result: RetrainResult, summaries: Sequence[Summary], names: _Names, rates: Sequence[float]) -> Table:
    """Return final losses by setting and learning rate; `×` where a seed diverged."""
    table = _empty_table()
    table.add_column("final loss at lr", no_wrap=True)
    for rate in rates:
        table.add_column(f"{rate:.2g}".replace("e-0", "e-"), justify="right", no_wrap=True)
    table.add_column("decades", justify="right", no_wrap=True)
    windows = {_key(window.arm): window for window in learning_rate_windows(result)}
    rows: dict[tuple[object, ...], dict[float, Summary]] = {}
    for summary in summaries:
        rows.setdefault(_key(summary.arm), {})[summary.arm.lr] = summary
    for key, cells in rows.items():
        losses = [_cell(cells.get(rate)) for rate in rates]
        decades = windows[key].decades
        name = names.row(next(iter(cells.values())))
        table.add_row(name, *losses, "–" if decades is None else f"{decades:.1f}")
    return table


def _cell(summary: Summary | None) -> str:
    if summary is None:
        return ""
    return "×" if summary.final is None else loss(summary.final) + "×" * bool(summary.diverged)


def _loss_columns(summaries: Sequence[Summary], sweep: bool) -> list[tuple[str, list[str]]]:
    """Return the losses of each setting; columns that say nothing new are left out."""
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
    if any(summary.diverged for summary in summaries):
        columns.append(("diverged", lambda s: ", ".join(f"step {at:,}" for at in s.diverged) or "no"))
    for level in list(summaries[0].steps_to)[-2:] if summaries else []:
        columns.append((f"steps to\n{loss(level)}", partial(_steps_to, level)))
    if any(summary.runs[0].kernel for summary in summaries):
        columns.append(("kernel\nerror", lambda s: kernel_error(s.runs)))
    if any(summary.runs[0].perturbation for summary in summaries):
        columns.append(("noise borne\nβ, loss × 2", lambda s: noise_borne(s.runs)))
    columns.append(("ms/step", lambda s: f"{1e3 * s.seconds_per_step:.1f}"))
    return [(heading, [cell(summary) for summary in summaries]) for heading, cell in columns]


def _steps_to(level: float, summary: Summary) -> str:
    at = summary.steps_to[level]
    return words.steps(None if at is None else float(at))


def _table(
    out: Console, lead: str, summaries: Sequence[Summary], names: _Names, columns: Sequence[tuple[str, list[str]]]
) -> None:
    """Print a row for each setting; columns that do not fit the line go into another table below."""
    rows = [names.row(summary) for summary in summaries]
    first = max(map(len, [lead, *rows]))
    parts: list[list[tuple[str, list[str]]]] = [[]]
    room = out.width - first
    for heading, cells in columns:
        wide = 2 + max(map(len, [*heading.splitlines(), *cells]))
        if wide > room and parts[-1]:
            parts.append([])
            room = out.width - first
        parts[-1].append((heading, cells))
        room -= wide
    for part in parts:
        table = _empty_table()
        table.add_column(lead, no_wrap=True)
        for heading, _ in part:
            table.add_column(heading, justify="left" if heading == "law" else "right", no_wrap=True)
        for position, summary in enumerate(summaries):
            style = "red" if summary.diverged else ""
            table.add_row(rows[position], *(cells[position] for _, cells in part), style=style)
        out.print()
        out.print(table)


def _curves(
    out: Console, result: RetrainResult, summaries: Sequence[Summary], names: _Names, settings: Settings
) -> None:
    """Draw what there is of losses over steps, kernels learned and asked for, and losses over noise."""
    some = summaries[:MOST_CURVES]
    key = ", ".join(names.with_letter(summary) for summary in some)
    if len(key) > 2 * settings.width:
        key = "letters as above"
    losses, kernels, noises = {}, {}, {}
    for summary in some:
        run, letter = summary.runs[0], names.letter(summary)
        losses[letter] = [(float(point.step), point.loss) for point in run.history if point.loss > 0]
        kernels[letter] = run.kernel.values if run.kernel else ()
        if run.perturbation:
            noises[letter] = list(zip(run.perturbation.betas, run.perturbation.worst, strict=True))
    losses = {letter: points for letter, points in losses.items() if len(points) > 1}
    kernels = {letter: values for letter, values in kernels.items() if values}
    if losses:
        _picture(out, f" validation loss over steps: {key}", run_picture(losses, {}, settings, loss))
    if kernels:
        said = f" learned kernel: • asked for, {key}"
        _picture(out, said, kernel_picture(result.target, kernels, settings))
    if noises:
        said = f" worst validation loss with noise up to β on the weights of the rates: {key}"
        _picture(out, said, noise_picture(noises, settings, loss))


def _picture(out: Console, caption: str, lines: Sequence[str]) -> None:
    out.print()
    _paragraph(out, caption, "")
    for line in lines:
        out.print(Text.from_ansi(line), no_wrap=True, overflow="crop")


def _key(arm: Arm) -> tuple[object, ...]:
    return (arm.param, arm.freeze, arm.init, arm.recurrence_lr, arm.weight_decay)


def _empty_table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 1), collapse_padding=False)


def _paragraph(out: Console, text: str, style: str) -> None:
    lead = text[: len(text) - len(text.lstrip())]
    hanging = lead + "  " * bool(lead)
    for line in textwrap.wrap(text.strip(), out.width - 1, initial_indent=lead, subsequent_indent=hanging):
        out.print(Text(line, style=style), no_wrap=True, overflow="ignore", crop=False)
