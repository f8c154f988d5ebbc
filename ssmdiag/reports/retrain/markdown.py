"""A comparison of arms as Markdown: the verdict, then one table of losses and memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ssmdiag.printable import plural, printable_record
from ssmdiag.reports.markdown import escape
from ssmdiag.reports.retrain.laws import law_columns, law_remark
from ssmdiag.reports.retrain.words import (
    Column,
    accuracy,
    answer,
    columns_of,
    diverged_at,
    kernel_error,
    loss,
    losses_so_far,
    memory_columns,
    noise_borne,
    settings_of,
    spread,
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
    runs = [summary.runs[0] for summary in summaries]
    table: list[tuple[object, str, Callable[[Summary], str]]] = [
        (True, "setting", lambda s: names[s.arm]),
        (True, "lr", lambda s: f"{s.arm.lr:g}"),
        (True, "seeds", lambda s: str(s.seeds)),
        (True, "final loss", lambda s: loss(s.final)),
        (True, "over seeds", lambda s: spread(s, "…")),
        (any(s.accuracy is not None for s in summaries), "accuracy", lambda s: accuracy(s.accuracy)),
        (True, "diverged", diverged_at),
        (any(run.kernel for run in runs), "kernel error", lambda s: kernel_error(s.runs)),
        (any(run.perturbation for run in runs), "noise β at loss × 2", lambda s: noise_borne(s.runs)),
    ]
    laws = [(heading.replace("\n", " "), cells) for heading, cells in law_columns(runs)]
    return [*columns_of(summaries, table), *laws, *memory_columns(runs)]


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
        f"{plural(result.budget.steps, 'step')} of {plural(result.budget.batch, 'sequence')}, "
        f"{plural(len(result.arms), 'run')}, {result.device}, {result.seconds:,.0f} s.",
        *(f"- {escape(note)}" for note in (*_remarks(result), *result.notes)),
    ]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(escape, cells)) + " |"
