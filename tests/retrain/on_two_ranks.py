"""What each rank of `test_distributed` runs; it leaves the results as it has them, as JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssmdiag.retrain.arms import OWN, Arm, Budget
from ssmdiag.retrain.batches import SampledBatches
from ssmdiag.retrain.distributed import Ranks, joined
from ssmdiag.retrain.model import ModelSettings
from ssmdiag.retrain.results import RetrainResult
from ssmdiag.retrain.sources import ModelSource, function_source
from ssmdiag.retrain.tasks import TaskSettings, find_task
from ssmdiag.retrain.user_code import read_data
from tests.retrain.given_models import Net, sequences
from tests.retrain.small import compare_arms, compare_modules

GIVEN = "tests.retrain.given_models"
BUILT_IN = Budget(6, 7, 2)
SETTINGS = ModelSettings("s4d", width=4, modes=3)
TWO = (Arm("exp", lr=0.05), Arm("best", lr=0.05, freeze="step", seed=1))
THREE = (*TWO, Arm("softplus", lr=1e6))


class Halved(Net):
    """Classes of every step, with a weight that has no part in the loss."""

    def __init__(self) -> None:
        super().__init__(outputs=2)
        self.unused = nn.Parameter(torch.ones(3))


def classes_with_holes() -> SampledBatches:
    """Return classes where most targets are ignored, unevenly: parts of a batch differ in how many count."""
    x, y = sequences(20, 4)
    targets = (y[..., 0] > 0).long()
    targets[::2, 3:] = -100
    targets[4] = -100
    return SampledBatches((x, targets), (x[:5], targets[:5]), 5, "cross-entropy")


def comparisons(ranks: Ranks, folder: Path) -> dict[str, RetrainResult]:
    data = find_task("lf-exp").make(TaskSettings(length=10, samples=28))
    torch.manual_seed(3)
    holes = Halved()
    return {
        "built in": compare_arms(TWO, data, SETTINGS, BUILT_IN, task="t", ranks=ranks, folder=folder / "built-in"),
        "built in, spread": compare_arms(THREE, data, SETTINGS, BUILT_IN, task="t", ranks=ranks, folder=folder / "s"),
        "holes": compare_modules(
            [Arm("best(b=0.05)", lr=0.05)], ModelSource("holes", lambda seed: holes), classes_with_holes(),
            Budget(5, 5, 1), task="t", ranks=ranks, folder=folder / "holes",
        ),
        "given, spread": compare_modules(
            [Arm(OWN, lr=0.05, seed=seed) for seed in (1, 0, 2)], function_source(f"{GIVEN}:regressor"),
            read_data(f"{GIVEN}:loaders", 8), Budget(4, 8, 2), task="t", ranks=ranks, folder=folder / "given",
        ),
    }  # fmt: skip


def losses(result: RetrainResult) -> list[dict[str, Any]]:
    return [
        {
            "arm": run.arm.label,
            "history": [point.loss for point in run.history],
            "diverged_at": run.diverged_at,
            "checkpoints": [path.name for path in run.checkpoints],
            "after": [layer.half_life.median if layer.half_life else None for layer in run.after],
        }
        for run in result.arms
    ]


def interrupted(ranks: Ranks, folder: Path) -> bool:
    """Send this process SIGINT at step 2, on the last rank alone; return whether KeyboardInterrupt came of it."""

    def stop(progress: Any) -> None:
        if progress.step == 2 and ranks.rank == ranks.count - 1:
            os.kill(os.getpid(), signal.SIGINT)

    try:
        compare_modules(
            [Arm(OWN)], function_source(f"{GIVEN}:regressor"), read_data(f"{GIVEN}:pairs", 8), Budget(6, 8, 2),
            task="t", ranks=ranks, folder=folder / "interrupted", on_progress=stop,
        )  # fmt: skip
    except KeyboardInterrupt:
        return True
    return False


if __name__ == "__main__":
    output = Path(sys.argv[1])
    with joined() as ranks:
        results = {name: losses(result) for name, result in comparisons(ranks, output).items()}
        stopped = ranks.gather(interrupted(ranks, output))
        (output / f"rank-{ranks.rank}.json").write_text(json.dumps({"results": results, "stopped": stopped}))
