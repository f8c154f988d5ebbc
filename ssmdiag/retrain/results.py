"""The results of training: every arm's losses, its memory before and after, its learned kernel, its checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssmdiag.output.result import Result

if TYPE_CHECKING:
    from pathlib import Path

    from ssmdiag.assessment.spectrum import LayerDiagnosis
    from ssmdiag.retrain.arms import Arm, Budget
    from ssmdiag.retrain.tasks import TargetLaw


@dataclass(frozen=True)
class Point:
    """A validation of one arm."""

    step: int
    loss: float
    """Mean over the validation set: squared error, or cross-entropy in nats."""
    accuracy: float | None = None


@dataclass(frozen=True)
class PerturbationCurve:
    """Validation losses with noise on the trained rates (P1's perturbation error)."""

    betas: tuple[float, ...]
    """∞-norm of the noise on the stored weight of every mode's rate, ascending from 0."""
    worst: tuple[float, ...]
    """Largest loss over draws at each β; infinite where one is not finite."""
    median: tuple[float, ...]
    draws: int
    sequences: int
    """Validation sequences each loss is a mean over."""

    def reach(self, times: float = 2.0) -> float | None:
        """Return the largest β up to which the worst loss stays within so many times that without noise."""
        limit = times * self.worst[0]
        first = next((k for k, loss in enumerate(self.worst) if not loss <= limit), len(self.betas))
        return self.betas[first - 1] if first else None


@dataclass(frozen=True)
class LearnedLaw:
    """The law of the task's kernel, fitted to the one that was learned."""

    asked: TargetLaw
    describes: bool
    """Whether that law describes the learned kernel; parameters are None where not."""
    reason: str | None
    """Why not."""
    window: tuple[int, int] | None = None
    """First and last lag fitted; None where nothing could be."""
    residual_db: dict[str, float] | None = None
    """Rms residual of every law over the window, that of the target and its rivals."""
    exponent: float | None = None
    exponent_error: float | None = None
    """Standard errors; None for an exponent whose t₀ is at a bound."""
    offset: float | None = None
    offset_error: float | None = None
    offset_at_bound: bool = False
    """Whether t₀ is at a quarter step or at the last lag, which the fit does not leave."""
    rate: float | None = None
    rate_error: float | None = None


@dataclass(frozen=True)
class LearnedKernel:
    """The linear kernel a trained model has learned, where the task has one to compare it with."""

    values: tuple[float, ...]
    """By lag."""
    error: float
    """Euclidean distance from the task's kernel, relative to its norm."""
    law: LearnedLaw | None = None
    """None where the task's kernel has no law."""


@dataclass(frozen=True)
class ArmResult:
    """How one arm went."""

    arm: Arm
    diverged_at: int | None
    """First step whose loss was not finite, or past `training.DIVERGED` times the loss of predicting nothing."""
    history: tuple[Point, ...]
    """Validations, in order; nothing after divergence."""
    seconds_per_step: float
    """Wall time of a step, shared evenly by the arms trained together."""
    before: tuple[LayerDiagnosis, ...] = ()
    after: tuple[LayerDiagnosis, ...] = ()
    checkpoints: tuple[Path, ...] = ()
    perturbation: PerturbationCurve | None = None
    """None where it was not requested, and for an arm that diverged."""
    kernel: LearnedKernel | None = None
    """None where the task has no kernel, and for an arm that diverged."""
    interrupted_at: int | None = None
    """Step at which Ctrl-C or a kill ended it; None for an arm that was trained to its end."""
    places: tuple[str, ...] = ()
    """Devices and numbers of ranks it was trained on, one after another: `cpu`, `2 ranks on cuda`."""

    @property
    def final_loss(self) -> float | None:
        """Loss of the last validation; None for an arm that diverged, or did not come to its end."""
        ended = self.diverged_at is None and self.interrupted_at is None
        return self.history[-1].loss if ended and self.history else None

    @property
    def best_loss(self) -> float | None:
        """Smallest validation loss, before divergence if it diverged."""
        return min((point.loss for point in self.history if math.isfinite(point.loss)), default=None)

    def steps_to(self, level: float) -> int | None:
        """Return the first validated step at or under a loss, or None."""
        return next((point.step for point in self.history if point.loss <= level), None)


@dataclass(frozen=True, repr=False)
class RetrainResult(Result):
    """One comparison."""

    task: str
    model: str
    budget: Budget
    arms: tuple[ArmResult, ...]
    device: str
    context: int
    """Steps of a sequence."""
    target: tuple[float, ...] = ()
    """The task's kernel, by lag; empty where it has none."""
    notes: tuple[str, ...] = ()
    """What a reader must know to read the numbers."""
    seconds: float = 0.0
    interrupted_at: int | None = None
    """Step at which Ctrl-C or a kill ended it, arms that had not begun left out; None for a whole comparison."""
