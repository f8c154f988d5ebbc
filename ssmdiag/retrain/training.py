"""One training loop: for the built-in model's arms, all at once, or for one arm of a user's module.

Arms of one seed start as the same function and see the same batches in the same order; a batch is
drawn from a generator of its own, so that a run repeats to the bit on one device. An arm whose loss is
not finite, or far above that of predicting nothing, has diverged: its step is recorded and it is not updated again.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ssmdiag.checkpoint import Checkpoint
from ssmdiag.retrain.arms import Arm, Budget
from ssmdiag.retrain.distributed import Ranks
from ssmdiag.retrain.interruption import InterruptedTraining, finishing_steps, signal_of
from ssmdiag.retrain.results import ArmResult, LearnedKernel, PerturbationCurve, Point
from ssmdiag.retrain.run_folder import Run, RunState
from ssmdiag.retrain.saving import Contents, checkpoints_of, save_checkpoint

DIVERGED = 1e4
"""A loss this many times that of predicting nothing has diverged."""
PRICED_AFTER = 20
"""Steps after which it can be told how long the others will take."""


class Trainee(Protocol):
    """Arms that are trained together. Every rank calls every method, in the same order."""

    arms: tuple[Arm, ...]
    ranks: Ranks
    nothing: float | None
    """Loss of predicting nothing; None where that is not known."""

    def settings(self) -> dict[str, Any]:
        """Return what else decides the result, besides arms, budget and data; called before anything is trained."""

    def data(self, step: int) -> str:
        """Return a digest of what is trained on before this step, and of what is validated on."""

    def require_same_batches(self, step: int) -> None:
        """Raise ConfigurationError where ranks would train on parts of different batches."""

    def losses(self, step: int) -> list[float]:
        """Return each arm's loss on the batch of this step, summed over ranks, and keep the gradients."""

    def update(self, scale: float, running: Sequence[bool]) -> None:
        """Take an optimiser step with the learning rates times `scale`, for the arms that are running."""

    def validate(self, step: int) -> list[Point]:
        """Return each arm's loss over the validation data."""

    def state(self) -> dict[str, Any]:
        """Return `weights` and `optimiser`, all that is needed to go on."""

    def load(self, state: dict[str, Any]) -> None:
        """Put a state back."""

    def contents(self, position: int) -> Contents:
        """Return what the checkpoint of one arm holds, and what lies beside it."""

    def checkpoint(self, position: int) -> Checkpoint:
        """Return one arm as it is now, for a diagnosis."""

    def perturbation(self, position: int) -> PerturbationCurve | None:
        """Return one arm's losses with noise on its rates; None where there is no rate to move."""

    def kernel(self, position: int) -> LearnedKernel | None:
        """Return one arm's linear kernel; None where the task has none to compare it with."""

    def saying_what_fits(self) -> AbstractContextManager[None]:
        """Raise SsmdiagError where memory runs out inside, and say what would fit."""


@dataclass
class Progress:
    """How far a group of arms is; `on_progress` gets one after each validation, and one after `PRICED_AFTER` steps."""

    step: int
    steps: int
    arms: tuple[Arm, ...]
    losses: tuple[float, ...]
    """Latest validation loss of each arm; NaN where it diverged."""


def train(
    trainee: Trainee,
    budget: Budget,
    *,
    task: str = "",
    folder: Path | None = None,
    resume: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> tuple[ArmResult, ...]:
    """Train the arms together, in place, and return how each went, in their order.

    Parameters
    ----------
    task
        What the data are called where a state of other data is refused.
    folder
        Where the first rank keeps checkpoints and the resumable state; None to write nothing.
    resume
        Go on from the state in `folder`, if there is one of the same arms.

    Raises ConfigurationError where the state is of another run, SsmdiagError where the disk is full. After Ctrl-C
    or SIGTERM the step is finished and the state written, then InterruptedTraining raised, a KeyboardInterrupt.
    """
    training = _Training(trainee, budget, folder, task, on_progress)
    training.begin(resume=resume)
    with finishing_steps() as stopping, trainee.saying_what_fits():
        try:
            training.go_on(stopping)
        except KeyboardInterrupt as stop:
            raise InterruptedTraining(signal_of(stop), training.results(interrupted=True)) from None
    return training.results()


@dataclass
class _Training:
    """The loop, and what it writes."""

    trainee: Trainee
    budget: Budget
    folder: Path | None
    task: str
    on_progress: Callable[[Progress], None] | None

    def __post_init__(self) -> None:
        trainee, ranks = self.trainee, self.trainee.ranks
        self.run = Run([[] for _ in trainee.arms])
        self.state = RunState(self.folder, trainee, self.run, self.budget, self.task) if self.folder else None
        device = torch.device(ranks.device).type
        self.place = device if ranks.count == 1 else f"{ranks.count} ranks on {device}"

    def begin(self, *, resume: bool) -> None:
        ranks = self.trainee.ranks
        if resume and self.state is not None:
            self.state.load()
        ranks.require_same(f"{self.trainee.arms[0].label}, the step to go on from", self.run.step)
        if ranks.count > 1:
            self.trainee.require_same_batches(self.run.step)
        if not ranks.first:
            self.state = None
        if not any(self.run.history):
            self._save_state()  # first of all files: a checkpoint without a state could be anyone's

    def go_on(self, stopping: Callable[[], int]) -> None:
        """Train to the end of the budget, or until every arm has diverged, or a signal came."""
        run, ranks, begun = self.run, self.trainee.ranks, self.run.step
        while any(self._running()):
            self._validate_and_save()
            if run.step == self.budget.steps:
                return
            if any(self._running()):
                self._step()
            if run.step == begun + PRICED_AFTER and run.step % self.budget.validate_every:
                self._report()
            if ranks.any(bool(stopping())):
                self._save_state()
                raise InterruptedTraining(stopping() or signal.SIGINT)
        self._save_state()

    def results(self, *, interrupted: bool = False) -> tuple[ArmResult, ...]:
        run, arms = self.run, self.trainee.arms
        kept = self.folder if self.trainee.ranks.first else None  # the others may look before a file is there
        return tuple(
            ArmResult(
                arm=arm,
                diverged_at=run.diverged.get(k),
                history=tuple(run.history[k]),
                seconds_per_step=run.seconds / max(run.step, 1) / len(arms),
                checkpoints=checkpoints_of(kept, arm, self.budget, run.diverged.get(k, run.step)) if kept else (),
                interrupted_at=run.step if interrupted and k not in run.diverged else None,
                places=tuple(run.places),
            )
            for k, arm in enumerate(arms)
        )

    def _running(self) -> list[bool]:
        return [k not in self.run.diverged for k in range(len(self.trainee.arms))]

    def _step(self) -> None:
        run, begun = self.run, time.perf_counter()
        limit = DIVERGED * (self.trainee.nothing or math.inf)
        for k, loss in enumerate(self.trainee.losses(run.step)):
            if not (loss <= limit and math.isfinite(loss)):
                run.diverged.setdefault(k, run.step)
        self.trainee.update(schedule(run.step, self.budget), self._running())
        run.places += [self.place] * (self.place not in run.places)
        run.step += 1
        run.seconds += time.perf_counter() - begun

    def _validate_and_save(self) -> None:
        run, budget = self.run, self.budget
        resumed = any(points and points[-1].step == run.step for points in run.history)  # validated already
        due = (run.step == budget.steps or run.step % budget.validate_every == 0) and not resumed
        if due:
            for k, point in enumerate(self.trainee.validate(run.step)):
                if not math.isfinite(point.loss):
                    run.diverged.setdefault(k, run.step)
                if k not in run.diverged:
                    run.history[k].append(point)
        if self.state is not None and budget.keeps(run.step):
            for k, runs in enumerate(self._running()):
                if runs:
                    save_checkpoint(self.state.folder, self.trainee.arms[k], run.step, budget, self.trainee.contents(k))
        if due or budget.keeps(run.step):
            self._save_state()
        if due:
            self._report()

    def _report(self) -> None:
        """Tell how far it is."""
        if self.on_progress:
            run, budget = self.run, self.budget
            losses = zip(run.history, self._running(), strict=True)
            latest = tuple(points[-1].loss if runs else math.nan for points, runs in losses)
            self.on_progress(Progress(run.step, budget.steps, self.trainee.arms, latest))

    def _save_state(self) -> None:
        if self.state is not None:
            self.state.save()


def schedule(step: int, budget: Budget) -> float:
    """Return what the learning rates are multiplied with: a linear rise, then a cosine to zero."""
    rise = min(1.0, (step + 1) / budget.warm_up) if budget.warm_up else 1.0
    return rise * 0.5 * (1 + math.cos(math.pi * step / max(budget.steps, 1)))
