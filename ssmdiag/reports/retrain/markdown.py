"""A comparison of arms as Markdown: the verdict, then one table of losses and memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssmdiag.printable import printable_record
from ssmdiag.reports.markdown import escape
from ssmdiag.reports.retrain.laws import law_columns, law_remark
from ssmdiag.reports.retrain.words import (
    Column,
    answer,
    kernel_error,
    loss,
    losses_so_far,
    memory_columns,
    noise_borne,
    settings_of,
)
from ssmdiag.retrain.verdict import Summary, summarise_arms

if TYPE_CHECKING:
    from ssmdiag.retrain.results import RetrainResult


def render(result: RetrainResult) -> str:
    """Return the comparison as Markdown."""
    result = printable_record(result)
    return _page(result, _columns(result) if result.interrupted_at is None else losses_so_far(result))


def _columns(result: RetrainResult) -> list[Column]:
    summaries = summarise_arms(result)
    names = settings_of([summary.arm for summary in summaries])
    columns = [
        ("setting", [names[summary.arm] for summary in summaries]),
        ("lr", [f"{summary.arm.lr:g}" for summary in summaries]),
        ("seeds", [f"{summary.seeds}" for summary in summaries]),
        ("final loss", [loss(summary.final) for summary in summaries]),
        ("over seeds", [_spread(summary) for summary in summaries]),
        ("diverged", [", ".join(f"step {at:,}" for at in summary.diverged) or "no" for summary in summaries]),
    ]
    if any(summary.accuracy is not None for summary in summaries):
        said = ["–" if s.accuracy is None else f"{100 * s.accuracy:.1f} %" for s in summaries]
        columns.insert(5, ("accuracy", said))
    runs = [summary.runs[0] for summary in summaries]
    if any(run.kernel for run in runs):
        columns.append(("kernel error", [kernel_error(summary.runs) for summary in summaries]))
    if any(run.perturbation for run in runs):
        columns.append(("noise borne, β", [noise_borne(summary.runs) for summary in summaries]))
    columns += [(heading.replace("\n", " "), cells) for heading, cells in law_columns(runs)]
    return columns + memory_columns(runs)


def _remarks(result: RetrainResult) -> list[str]:
    summaries = summarise_arms(result)
    names = settings_of([summary.arm for summary in summaries])
    remarks = [law_remark(summary.runs[0], f"{names[summary.arm]}, lr {summary.arm.lr:g}") for summary in summaries]
    return [remark for remark in remarks if remark]


def _page(result: RetrainResult, columns: Sequence[Column]) -> str:
    heading = [name for name, _ in columns]
    rows = list(zip(*(cells for _, cells in columns), strict=True))
    lines = [
        f"### {escape(result.task)}: {escape(result.model)}",
        "",
        escape(answer(result)),
        "",
        _row(heading),
        _row(["---"] * len(heading)),
        *(_row(row) for row in rows),
        "",
        f"{result.budget.steps:,} steps of {result.budget.batch} sequences, {len(result.arms):,} runs, "
        f"{result.device}, {result.seconds:,.0f} s.",
        *(f"- {escape(note)}" for note in (*_remarks(result), *result.notes)),
    ]
    return "\n".join(lines) + "\n"


def _spread(summary: Summary) -> str:
    return f"{loss(summary.spread[0])} … {loss(summary.spread[1])}" if summary.spread else "–"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(escape, cells)) + " |"
