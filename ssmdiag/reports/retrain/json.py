"""A comparison of arms as JSON, by the output contract."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ssmdiag.reports.json import SCHEMA_VERSION, layer_document, pick, plain
from ssmdiag.reports.json import render as render_json
from ssmdiag.retrain.verdict import learning_rate_windows, loss_levels
from ssmdiag.version import __version__

if TYPE_CHECKING:
    from ssmdiag.retrain.results import ArmResult, RetrainResult

_WINDOW = (
    "param=arm.param freeze=arm.freeze init=arm.init recurrence_lr=arm.recurrence_lr weight_decay=arm.weight_decay "
    "rates usable decades best_final_loss=best best_rate"
)


def render(result: RetrainResult) -> str:
    """Return indented JSON: unknown is null, infinity the string "inf"."""
    return render_json(document(result), ascii=False)


def document(result: RetrainResult) -> dict[str, Any]:
    """Return the comparison as plain data."""
    levels = loss_levels(result)
    return plain({
        "schema_version": SCHEMA_VERSION,
        "ssmdiag_version": __version__,
        **pick(result, "task model steps=budget.steps budget context_length=context device seconds interrupted_at"),
        **pick(result, "target_kernel=target notes"),
        "arms": [_arm(run, levels) for run in result.arms],
        "learning_rate_windows": [pick(window, _WINDOW) for window in learning_rate_windows(result)],
    })  # fmt: skip


def _arm(run: ArmResult, levels: tuple[float, ...]) -> dict[str, Any]:
    return {
        **asdict(run.arm),
        **pick(run, "diverged_at interrupted_at final_loss best_loss"),
        "steps_to_level": {f"{level:g}": run.steps_to(level) for level in levels},
        **pick(run, "history seconds_per_step"),
        "memory": {
            "before": [layer_document(layer) for layer in run.before],
            "after": [layer_document(layer) for layer in run.after],
        },
        "kernel": run.kernel,
        "perturbation": run.perturbation and {**asdict(run.perturbation), "borne": run.perturbation.reach()},
        "checkpoint": str(run.checkpoints[-1]) if run.checkpoints else None,
    }
