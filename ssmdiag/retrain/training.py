"""Training all arms on the same batches: one loop, whatever the number of arms in it.

Arms of one seed start as the same function and see the same batches in the same order; a batch is
drawn from a generator of its own, so that a run repeats to the bit on one device. An arm whose loss is
not finite, or far above that of predicting nothing, has diverged: its step is kept and it rests.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssmdiag.errors import ConfigurationError
from ssmdiag.retrain.adamw import ArmAdamW
from ssmdiag.retrain.arms import Arm, Budget
from ssmdiag.retrain.batches import ArmBatches, loss_of_nothing
from ssmdiag.retrain.distributed import ALONE, Ranks
from ssmdiag.retrain.gradients import losses_and_gradients, losses_of, shared_losses_and_gradients
from ssmdiag.retrain.interruption import InterruptedTraining, finishing_steps, signal_of
from ssmdiag.retrain.memory_limit import saying_what_fits
from ssmdiag.retrain.model import Ensemble, EnsembleModule, ModelSettings
from ssmdiag.retrain.results import ArmResult, Point
from ssmdiag.retrain.resuming import digest_of, load_run, save_run
from ssmdiag.retrain.saving import checkpoints_of, save_arm
from ssmdiag.retrain.starting_point import StartingPoint
from ssmdiag.retrain.tasks import TaskData

DIVERGED = 1e4
"""A loss this many times that of predicting nothing has diverged."""
VALIDATION_STEPS = 16_384
"""Steps of all sequences validated at a time."""


@dataclass
class Progress:
    """Where a group of arms is: told to whoever watches, once a validation."""

    step: int
    steps: int
    arms: tuple[Arm, ...]
    losses: tuple[float, ...]
    """Latest validation loss of each arm; NaN where it diverged."""


@dataclass
class _Run:
    """What changes while a group of arms trains; all of it goes into the resumable state."""

    step: int = 0
    seconds: float = 0.0
    diverged: dict[int, int] = field(default_factory=dict)
    history: list[list[Point]] = field(default_factory=list)


def train(
    arms: Sequence[Arm],
    data: TaskData,
    settings: ModelSettings,
    budget: Budget,
    *,
    task: str = "",
    device: str = "cpu",
    folder: Path | None = None,
    resume: bool = False,
    start: StartingPoint | None = None,
    ranks: Ranks = ALONE,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[ArmResult]:
    """Train these arms together and return how each went, in their order.

    Parameters
    ----------
    task
        What the data are called where a state of other data is refused.
    folder
        Where checkpoints and the resumable state go; None to write nothing.
    resume
        Go on from the state in `folder`, if there is one of the same arms.
    start
        Weights to go on from, instead of those the seed draws.
    ranks
        Processes that take a part of every batch each; the first of them writes.

    Raises ConfigurationError where the state is of another run, SsmdiagError where the disk is full. After Ctrl-C
    or SIGTERM the step is finished and the state written, then InterruptedTraining raised, a KeyboardInterrupt.
    """
    if device.startswith("mps"):
        raise ConfigurationError(
            "--device mps: kernels are formed in float64, which it does not have.", advice="--device cpu"
        )
    ensemble = Ensemble(arms, settings, data, device)
    if start is not None:
        for k, arm in enumerate(arms):
            ensemble.load_state(k, start.weights(arm.param))
    model = ranks.wrap(EnsembleModule(ensemble)) if ranks.count > 1 else None
    optimiser = ArmAdamW(ensemble.parameters, *_rates(ensemble, device))
    run = _Run(history=[[] for _ in arms])
    state = _State(folder, ensemble, optimiser, run, budget, data, start, task) if folder is not None else None
    if resume and state is not None:
        state.load()
    state = state if ranks.first else None
    if state is not None and not any(run.history):
        state.save()  # first of all files: a checkpoint without a state could be anyone's
    batches = ArmBatches(arms, data, budget.batch, device)
    nothing = loss_of_nothing(data.validation_targets, data.outputs) or math.inf
    ranks.require_same("the step to go on from", run.step)
    with finishing_steps() as stopping:
        try:
            while run.step <= budget.steps:
                _validate_and_save(ensemble, data, run, budget, state, on_progress)
                if run.step == budget.steps:
                    break
                begun = time.perf_counter()
                with saying_what_fits(partial(_attempt, ensemble, batches, data), len(arms), batches.draw.size, device):
                    inputs, targets = batches.at(run.step)
                    if model is None:
                        losses, gradients = losses_and_gradients(ensemble, inputs, targets, data)
                    else:
                        losses, gradients = shared_losses_and_gradients(ensemble, model, inputs, targets, data, ranks)
                _note_divergence(run, losses.detach().tolist(), DIVERGED * nothing)
                running = torch.tensor([k not in run.diverged for k in range(len(arms))], device=device)
                optimiser.step(gradients, schedule(run.step, budget), running)
                run.step += 1
                run.seconds += time.perf_counter() - begun
                if ranks.any(bool(stopping())):
                    if state is not None:
                        state.save()
                    raise InterruptedTraining(stopping() or signal.SIGINT)
                if len(run.diverged) == len(arms):
                    break
        except KeyboardInterrupt as stop:
            known = _results(run, ensemble.arms, budget, folder, interrupted=True)
            raise InterruptedTraining(signal_of(stop), known) from None
    return list(_results(run, ensemble.arms, budget, folder))


def _results(
    run: _Run, arms: Sequence[Arm], budget: Budget, folder: Path | None, *, interrupted: bool = False
) -> tuple[ArmResult, ...]:
    each = run.seconds / max(run.step, 1) / len(arms)
    return tuple(
        ArmResult(
            arm=arm,
            diverged_at=run.diverged.get(k),
            history=tuple(run.history[k]),
            seconds_per_step=each,
            checkpoints=checkpoints_of(folder, arm, budget, run.diverged.get(k, run.step)) if folder else (),
            interrupted_at=run.step if interrupted and k not in run.diverged else None,
        )
        for k, arm in enumerate(arms)
    )


class _State:
    """Where the state of a group of arms is kept, what goes into it, and what it must have been trained as."""

    def __init__(
        self,
        folder: Path,
        ensemble: Ensemble,
        optimiser: ArmAdamW,
        run: _Run,
        budget: Budget,
        data: TaskData,
        start: StartingPoint | None,
        task: str,
    ) -> None:
        self.folder, self.ensemble, self.optimiser, self.run = folder, ensemble, optimiser, run
        self.settings: dict[str, Any] = {
            "task": task,
            **asdict(ensemble.settings),
            **asdict(budget),
            "length": data.length,
            "loss": data.loss,
            "read_out": data.read_out,
            "start": digest_of(start.tensors, start.map) if start else None,
        }
        self.data = digest_of(data.inputs, data.targets, data.validation_inputs, data.validation_targets)

    def save(self) -> None:
        """Write the state. Raises SsmdiagError where it cannot be written; the last one stays."""
        run = self.run
        weights = {name: value.detach() for name, value in self.ensemble.parameters.items()}
        changing = {
            "step": run.step,
            "seconds": run.seconds,
            "diverged": run.diverged,
            "history": [[asdict(point) for point in points] for points in run.history],
            "weights": weights,
            "optimiser": self.optimiser.state(),
        }
        save_run(self.folder, self.ensemble.arms, self.settings, self.data, changing)

    def load(self) -> None:
        """Put back the state of these arms, if there is one. Raises SsmdiagError where it is of another run or torn."""
        there = load_run(self.folder, self.ensemble.arms, self.settings, lambda step: self.data)
        if there is None:
            return
        for name, value in self.ensemble.parameters.items():
            value.detach().copy_(there["weights"][name])
        self.optimiser.load(there["optimiser"])
        self.run.step, self.run.seconds, self.run.diverged = there["step"], there["seconds"], there["diverged"]
        self.run.history = [[Point(**point) for point in points] for points in there["history"]]


def schedule(step: int, budget: Budget) -> float:
    """Return what the learning rates are multiplied with: a linear rise, then a cosine to zero."""
    rise = min(1.0, (step + 1) / budget.warm_up) if budget.warm_up else 1.0
    return rise * 0.5 * (1 + math.cos(math.pi * step / max(budget.steps, 1)))


def _note_divergence(run: _Run, losses: Sequence[float], limit: float) -> None:
    for k, loss in enumerate(losses):
        if not loss <= limit:
            run.diverged.setdefault(k, run.step)


def _validate_and_save(
    ensemble: Ensemble,
    data: TaskData,
    run: _Run,
    budget: Budget,
    state: _State | None,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    validated = any(points and points[-1].step == run.step for points in run.history)  # resumed from here
    due = (run.step == budget.steps or run.step % budget.validate_every == 0) and not validated
    if due:
        for k, point in enumerate(validate(ensemble, data, run.step)):
            if not math.isfinite(point.loss):
                run.diverged.setdefault(k, run.step)
            if k not in run.diverged:
                run.history[k].append(point)
    if state is not None and budget.keeps(run.step):
        for k in range(len(ensemble.arms)):
            if k not in run.diverged:
                save_arm(state.folder, ensemble, k, run.step, budget, data.length)
    if state is not None and (due or budget.keeps(run.step)):
        state.save()
    if due and on_progress:
        latest = [math.nan if k in run.diverged else run.history[k][-1].loss for k in range(len(run.history))]
        on_progress(Progress(run.step, budget.steps, ensemble.arms, tuple(latest)))


@torch.no_grad()
def validate(ensemble: Ensemble, data: TaskData, step: int) -> list[Point]:
    """Return every arm's loss, and accuracy where there are classes, over the validation set."""
    arms, device = len(ensemble.arms), next(iter(ensemble.parameters.values())).device
    total, right, count = torch.zeros(arms, dtype=torch.float64), torch.zeros(arms, dtype=torch.float64), 0
    size = max(1, VALIDATION_STEPS // data.length)
    pieces = zip(data.validation_inputs.split(size), data.validation_targets.split(size), strict=True)
    answered = 0
    for inputs, targets in pieces:
        x = inputs.to(device).expand(arms, *inputs.shape)
        y = targets.to(device).expand(arms, *targets.shape)
        answers = ensemble.forward(x)
        total += len(inputs) * losses_of(answers, y, data).double().cpu()
        count += len(inputs)
        if data.loss == "cross-entropy":
            hits = answers.argmax(-1) == y
            right += hits.flatten(1).double().sum(1).cpu()
            answered += hits[0].numel()
    return [Point(step, float(total[k]) / count, float(right[k]) / answered if answered else None) for k in range(arms)]


def _rates(ensemble: Ensemble, device: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return learning rate and weight decay of every parameter, (arm,) each."""
    rates, decays = {}, {}
    for name in ensemble.parameters:
        part = ensemble.recurrent(name)
        own = [
            0.0 if part and arm.freeze in (part, "both")
            else arm.recurrence_lr if part and arm.recurrence_lr is not None
            else arm.lr
            for arm in ensemble.arms
        ]  # fmt: skip
        rates[name] = torch.tensor(own, device=device)
        decays[name] = torch.tensor([arm.weight_decay for arm in ensemble.arms], device=device)
    return rates, decays


def _attempt(ensemble: Ensemble, batches: ArmBatches, data: TaskData, arms: int, batch: int) -> None:
    """Do the first step's work for some arms and sequences, and forget it."""
    inputs, targets = batches.at(0, slice(arms), slice(batch))
    losses_and_gradients(ensemble, inputs, targets, data)


def groups_of(arms: Sequence[Arm], most: int) -> Iterator[tuple[Arm, ...]]:
    """Yield arms in groups of at most `most`, to be trained together."""
    for start in range(0, len(arms), most):
        yield tuple(arms[start : start + most])
