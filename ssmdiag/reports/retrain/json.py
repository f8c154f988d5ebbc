"""A comparison of arms as JSON, by the output contract."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ssmdiag.reports.json import SCHEMA_VERSION, layer_document, plain
from ssmdiag.retrain.verdict import learning_rate_windows, loss_levels
from ssmdiag.version import __version__

if TYPE_CHECKING:
    from ssmdiag.retrain.results import ArmResult, RetrainResult


def render(result: RetrainResult) -> str:
    """Return indented JSON: unknown is null, infinity the string "inf"."""
    return json.dumps(document(result), indent=2, ensure_ascii=False) + "\n"


def document(result: RetrainResult) -> dict[str, Any]:
    """Return the comparison as plain data."""
    levels = loss_levels(result)
    return plain({
        "schema_version": SCHEMA_VERSION,
        "ssmdiag_version": __version__,
        "task": result.task,
        "model": result.model,
        "steps": result.budget.steps,
        "budget": asdict(result.budget),
        "context_length": result.context,
        "device": result.device,
        "seconds": result.seconds,
        "interrupted_at": result.interrupted_at,
        "target_kernel": result.target,
        "notes": result.notes,
        "arms": [_arm(run, levels) for run in result.arms],
        "learning_rate_windows": [
            {
                "param": window.arm.param, "freeze": window.arm.freeze, "init": window.arm.init,
                "recurrence_lr": window.arm.recurrence_lr, "weight_decay": window.arm.weight_decay,
                "rates": window.rates, "usable": window.usable, "decades": window.decades,
                "best_final_loss": window.best, "best_rate": window.best_rate,
            }
            for window in learning_rate_windows(result)
        ],
    })  # fmt: skip


def _arm(run: ArmResult, levels: tuple[float, ...]) -> dict[str, Any]:
    return {
        **asdict(run.arm),
        "diverged_at": run.diverged_at,
        "interrupted_at": run.interrupted_at,
        "final_loss": run.final_loss,
        "best_loss": run.best_loss,
        "steps_to_level": {f"{level:g}": run.steps_to(level) for level in levels},
        "history": [asdict(point) for point in run.history],
        "seconds_per_step": run.seconds_per_step,
        "memory": {
            "before": [layer_document(layer) for layer in run.before],
            "after": [layer_document(layer) for layer in run.after],
        },
        "kernel": asdict(run.kernel) if run.kernel else None,
        "perturbation": asdict(run.perturbation) | {"borne": run.perturbation.reach()} if run.perturbation else None,
        "checkpoint": str(run.checkpoints[-1]) if run.checkpoints else None,
    }
