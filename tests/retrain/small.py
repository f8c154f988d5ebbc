"""What the tests of retraining train: seconds, not minutes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ssmdiag.retrain import training
from ssmdiag.retrain.arms import Arm, Budget
from ssmdiag.retrain.batches import ArmBatches, SampledBatches
from ssmdiag.retrain.comparison import built_in_experiment, compare
from ssmdiag.retrain.distributed import Ranks
from ssmdiag.retrain.ensemble_trainee import EnsembleTrainee
from ssmdiag.retrain.foreign import module_experiment
from ssmdiag.retrain.model import Ensemble, ModelSettings
from ssmdiag.retrain.results import ArmResult, RetrainResult
from ssmdiag.retrain.sources import ModelSource
from ssmdiag.retrain.starting_point import StartingPoint
from ssmdiag.retrain.streamed_batches import StreamedBatches
from ssmdiag.retrain.tasks import TaskData, TaskSettings, find_task

RECURRENCES = ("s4d", "lru")
BUDGET = Budget(steps=8, batch=8, validate_every=3)


def model(recurrence: str = "s4d", depth: int = 1) -> ModelSettings:
    return ModelSettings(recurrence, width=6, modes=4, depth=depth)


def task(name: str = "lf-poly", length: int = 16) -> TaskData:
    return find_task(name).make(TaskSettings(length=length, samples=64))


def ensemble(*arms: Arm, recurrence: str = "s4d", data: TaskData | None = None, depth: int = 1) -> Ensemble:
    return Ensemble(arms, model(recurrence, depth), data or task())


def train(
    arms: Sequence[Arm], data: TaskData, settings: ModelSettings, budget: Budget, *, device: str = "cpu", **how: Any
) -> tuple[ArmResult, ...]:
    """Train arms of the built-in model together."""
    trainee = EnsembleTrainee(arms, data, settings, budget.batch, ranks=Ranks(device=device))
    return training.train(trainee, budget, **how)


def compare_arms(
    arms: Sequence[Arm],
    data: TaskData,
    settings: ModelSettings,
    budget: Budget,
    *,
    task: str,
    together: int = 12,
    start: StartingPoint | None = None,
    device: str = "cpu",
    ranks: Ranks | None = None,
    **how: Any,
) -> RetrainResult:
    """Compare arms of the built-in model."""
    experiment = built_in_experiment(arms, data, settings, budget, task=task, together=together, start=start)
    return compare(experiment, ranks=ranks or Ranks(device=device), **how)


def compare_modules(
    arms: Sequence[Arm],
    source: ModelSource,
    batches: SampledBatches | StreamedBatches,
    budget: Budget,
    *,
    task: str,
    assume: Mapping[str, str] | None = None,
    device: str = "cpu",
    ranks: Ranks | None = None,
    **how: Any,
) -> RetrainResult:
    """Compare arms of a module that is given."""
    experiment = module_experiment(arms, source, batches, budget, task=task, assume=assume)
    return compare(experiment, ranks=ranks or Ranks(device=device), **how)


def trained(*arms: Arm, recurrence: str = "s4d", data: TaskData | None = None) -> EnsembleTrainee:
    """Return arms of the built-in model, trained for `BUDGET`."""
    trainee = EnsembleTrainee(arms, data or task(), model(recurrence), BUDGET.batch)
    training.train(trainee, BUDGET)
    return trainee


def first_batch(arms: Ensemble, data: TaskData, size: int = 8) -> ArmBatches:
    return ArmBatches(arms.arms, data, size, "cpu")


def history(result: ArmResult) -> list[tuple[int, float]]:
    return [(point.step, point.loss) for point in result.history]


Freeze = Literal["none", "eigenvalues", "step", "both"]
FREEZES: tuple[Freeze, ...] = ("none", "eigenvalues", "step", "both")
