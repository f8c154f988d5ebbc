"""A comparison of arms on the screen: verdict, losses, memory before and after, curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ssmdiag.printable import printable_record
from ssmdiag.reports import console, words
from ssmdiag.reports.console import Page, carried
from ssmdiag.reports.pictures import run_picture
from ssmdiag.reports.retrain.laws import law_columns, law_remark
from ssmdiag.reports.retrain.pictures import kernel_picture, noise_picture
from ssmdiag.reports.retrain.words import (
    Column,
    accuracy,
    answer,
    columns_of,
    diverged_at,
    kernel_error,
    learning_rate,
    loss,
    losses_so_far,
    memory_columns,
    noise_borne,
    setting_of,
    settings_of,
    spread,
    whole,
)
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
    result = printable_record(result)
    page = Page(settings)
    budget = result.budget
    finished = any(run.final_loss is not None for run in result.arms) and result.interrupted_at is None
    page.paragraph(answer(result), "bold green" if finished else "bold red")
    page.paragraph(
        f"{result.task}  {result.model}  {words.plural(budget.steps, 'step')} × {budget.batch}  "
        f"{words.plural(len(result.arms), 'run')}  {result.device} {result.seconds:,.0f} s",
        "bold",
    )
    if result.interrupted_at is not None:
        (lead, rows), *columns = losses_so_far(result)
        _write_rows(page, lead, rows, columns)
        page.remarks(result.notes)
    elif not settings.quiet:
        summaries = summarise_arms(result)
        shown = _shown(result, summaries)
        names = _Names(summaries, settings.width)
        rates = sorted({summary.arm.lr for summary in summaries})
        for line in names.key():
            page.paragraph(line)
        if len(rates) > 1:
            settings_, columns = _grid(result, summaries, rates)
            _write_table(page, "final loss at lr", settings_, names, columns)
        _write_table(page, "setting", shown, names, _loss_columns(shown, len(rates) > 1))
        memory = memory_columns([summary.runs[0] for summary in shown])
        same = {cell for heading, cells in memory if heading == "law" for cell in cells}
        if len(same) == 1:  # a column that says one thing is a line
            memory = [column for column in memory if column[0] != "law"]
        _write_table(page, "memory", shown, names, memory)
        if len(same) == 1 and not same & {"–"}:
            page.paragraph(f"  law of the layers' kernels, in every setting: {same.pop()}")
        laws = law_columns([summary.runs[0] for summary in shown])
        if laws:
            _write_table(page, "law learned", shown, names, laws)
        unlike = (law_remark(summary.runs[0], names.letter(summary)) for summary in shown)
        page.remarks((remark for remark in unlike if remark), gap=False)
        if settings.plots:
            _curves(page, result, shown, names)
        notes = [*result.notes]
        if any(summary.seeds > 1 for summary in shown):
            notes.append(f"memory{', laws' * bool(laws)} and curves are those of the first seed")
        page.remarks(notes)
    return page.text()


def _write_table(page: Page, lead: str, summaries: Sequence[Summary], names: _Names, columns: Sequence[Column]) -> None:
    """Write a row for each setting, red where it diverged."""
    styles = ["red" if summary.diverged else "" for summary in summaries]
    _write_rows(page, lead, [names.row(summary) for summary in summaries], columns, styles)


def _write_rows(
    page: Page, lead: str, rows: Sequence[str], columns: Sequence[Column], styles: Sequence[str] = ()
) -> None:
    """Write a table; columns that do not fit the line go into another one below."""
    first = console.Column(lead, rows, "left")
    parts: list[list[console.Column]] = []
    room = 0
    for heading, cells in columns:
        wide = 2 + max(len(carried(text, page.settings)) for text in [*heading.splitlines(), *cells])
        if wide > room or not parts:
            parts.append([first])
            room = page.settings.width - max(len(carried(text, page.settings)) for text in [lead, *rows])
        parts[-1].append(console.Column(heading, cells, "left" if heading in ("law", "arm") else "right"))
        room -= wide
    for part in parts or [[first]]:
        page.table(part, styles)


class _Names:
    """A letter for each setting, and its name beside it or, where that would fill the line, in a key above."""

    def __init__(self, summaries: Sequence[Summary], width: int) -> None:
        self._names = {
            setting_of(arm): name for arm, name in settings_of([summary.arm for summary in summaries]).items()
        }
        self._letters = dict(zip(self._names, LETTERS, strict=False))
        self._apart = max(map(len, self._names.values())) > width // 4

    def letter(self, summary: Summary) -> str:
        return self._letters.get(setting_of(summary.arm), "?")

    def row(self, summary: Summary) -> str:
        """Return what a row of a table begins with."""
        return self.letter(summary) if self._apart else self.with_letter(summary)

    def with_letter(self, summary: Summary) -> str:
        return f"{self.letter(summary)} {self._names[setting_of(summary.arm)]}"

    def key(self) -> list[str]:
        """Return the key's lines, an empty one before them; none where names stand in the rows."""
        if not self._apart:
            return []
        return [" ", *(f" {self._letters.get(key, '?')}  {name}" for key, name in self._names.items())]


def _shown(result: RetrainResult, summaries: Sequence[Summary]) -> list[Summary]:
    """Return the rows worth a line: all of a few, of a sweep each setting at its best learning rate."""
    if len(summaries) <= MOST_ROWS and len({summary.arm.lr for summary in summaries}) == 1:
        return list(summaries)
    best = {setting_of(window.arm): window.best_rate for window in learning_rate_windows(result)}
    shown = [summary for summary in summaries if best[setting_of(summary.arm)] in (summary.arm.lr, None)]
    return sorted(shown, key=lambda summary: summary.final or math.inf)[:MOST_ROWS]


def _grid(
    result: RetrainResult, summaries: Sequence[Summary], rates: Sequence[float]
) -> tuple[list[Summary], list[Column]]:
    """Return a summary of each setting, and final losses by learning rate; `×` where a seed diverged."""
    windows = {setting_of(window.arm): window for window in learning_rate_windows(result)}
    rows: dict[Arm, dict[float, Summary]] = {}
    for summary in summaries:
        rows.setdefault(setting_of(summary.arm), {})[summary.arm.lr] = summary
    columns = [(learning_rate(rate), [_cell(cells.get(rate)) for cells in rows.values()]) for rate in rates]
    decades = [windows[key].decades for key in rows]
    columns.append(("decades", ["–" if width is None else f"{width:.1f}" for width in decades]))
    # The row of a setting is red where it diverged at its best rate.
    return [windows[key].top or next(iter(cells.values())) for key, cells in rows.items()], columns


def _cell(summary: Summary | None) -> str:
    if summary is None:
        return ""
    return "×" if summary.final is None else loss(summary.final) + "×" * bool(summary.diverged)


def _loss_columns(summaries: Sequence[Summary], sweep: bool) -> list[Column]:
    """Return the losses of each setting; columns that say nothing new are left out."""
    runs = [summary.runs[0] for summary in summaries]
    levels = list(summaries[0].steps_to)[-2:] if summaries else []
    table: list[tuple[object, str, Callable[[Summary], str]]] = [
        (sweep, "best lr", lambda s: learning_rate(s.arm.lr)),
        (True, "final loss", lambda s: loss(s.final)),
        (any(s.spread for s in summaries), "over seeds", lambda s: spread(s, "–")),
        (any(loss(s.best) != loss(s.final) for s in summaries), "best", lambda s: loss(s.best)),
        (any(s.accuracy is not None for s in summaries), "accuracy", lambda s: accuracy(s.accuracy)),
        (any(s.diverged for s in summaries), "diverged", diverged_at),
        *((True, f"steps to\n{loss(level)}", lambda s, level=level: whole(s.steps_to[level])) for level in levels),
        (any(run.kernel for run in runs), "kernel\nerror", lambda s: kernel_error(s.runs)),
        (any(run.perturbation for run in runs), "noise β at\nloss × 2", lambda s: noise_borne(s.runs)),
        (True, "ms/step", lambda s: f"{1e3 * s.seconds_per_step:.1f}"),
    ]
    return columns_of(summaries, table)


def _curves(page: Page, result: RetrainResult, summaries: Sequence[Summary], names: _Names) -> None:
    """Draw, where known, losses over steps, learned and target kernels, and losses over noise."""
    some, settings = summaries[:MOST_CURVES], page.settings
    key = "; ".join(names.with_letter(summary) for summary in some)
    if len(key) > 2 * settings.width:
        key = "letters as above"
    runs = {names.letter(summary): summary.runs[0] for summary in some}
    points = {letter: [(float(p.step), p.loss) for p in run.history if p.loss > 0] for letter, run in runs.items()}
    losses = {letter: curve for letter, curve in points.items() if len(curve) > 1}
    kernels = {letter: run.kernel.values for letter, run in runs.items() if run.kernel}
    curves = {letter: run.perturbation for letter, run in runs.items() if run.perturbation}
    noises = {letter: list(zip(curve.betas, curve.worst, strict=True)) for letter, curve in curves.items()}
    if losses:
        page.picture(run_picture(losses, {}, settings, loss), f"validation loss over steps: {key}")
    if kernels:
        page.picture(kernel_picture(result.target, kernels, settings), f"learned kernels: • target, {key}")
    if noises:
        said = f"worst validation loss with noise up to β on the weights of the rates: {key}"
        page.picture(noise_picture(noises, settings, loss), said)
