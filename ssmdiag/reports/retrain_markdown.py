"""A comparison of arms as Markdown: the verdict, then one table of losses and memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssmdiag.reports import words
from ssmdiag.reports.retrain_words import answer, loss, memory_of, settings_of
from ssmdiag.retrain.verdict import summarise_arms

if TYPE_CHECKING:
    from ssmdiag.retrain.results import RetrainResult


def render(result: RetrainResult) -> str:
    """Return the comparison as Markdown."""
    summaries = summarise_arms(result)
    names = settings_of([summary.arm for summary in summaries])
    rows = []
    for summary in summaries:
        before, after = memory_of(summary.runs[0].before), memory_of(summary.runs[0].after)
        spread = f"{loss(summary.spread[0])} … {loss(summary.spread[1])}" if summary.spread else "–"
        rows.append([
            names[summary.arm],
            f"{summary.arm.lr:g}",
            f"{summary.seeds}",
            loss(summary.final),
            spread,
            "–" if summary.accuracy is None else f"{100 * summary.accuracy:.1f} %",
            ", ".join(f"step {at:,}" for at in summary.diverged) or "no",
            f"{words.steps(before[0])} → {words.steps(after[0])}",
            f"{words.margin(before[2])} → {words.margin(after[2])}",
            before[3] if before[3] == after[3] else f"{before[3]} → {after[3]}",
        ])  # fmt: skip
    heading = ["setting", "lr", "seeds", "final loss", "over seeds", "accuracy", "diverged", "horizon", "margin", "law"]
    lines = [
        f"### {result.task}: {result.model}",
        "",
        answer(result),
        "",
        _row(heading),
        _row(["---"] * len(heading)),
        *(_row(row) for row in rows),
        "",
        f"{result.budget.steps:,} steps of {result.budget.batch} sequences, {len(result.arms):,} runs, "
        f"{result.device}, {result.seconds:,.0f} s.",
        *(f"- {note}" for note in result.notes),
    ]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
