"""Training all arms on the same batches: one loop, whatever the number of arms in it.

Arms of one seed start as the same function and see the same batches in the same order; a batch is
drawn from a generator of its own, so that a run repeats to the bit on one device. An arm whose loss is
not finite, or far above that of predicting nothing, has diverged: its step is kept and it rests.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ssmdiag.retrain.adamw import ArmAdamW
from ssmdiag.retrain.arms import Arm, Budget
from ssmdiag.retrain.model import Ensemble, ModelSettings
from ssmdiag.retrain.results import ArmResult, Point
from ssmdiag.retrain.saving import load_state, save_arm, save_state
from ssmdiag.retrain.tasks import TaskData

DIVERGED = 1e4
"""A loss this many times that of predicting nothing has diverged."""
VALIDATION_BATCH = 640


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
    device: str = "cpu",
    folder: Path | None = None,
    resume: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[ArmResult]:
    """Train these arms together and return how each went, in their order.

    Parameters
    ----------
    folder
        Where checkpoints and the resumable state go; None to write nothing.
    resume
        Go on from the state in `folder`, if there is one of the same arms.

    Raises ConfigurationError where the state belongs to other arms, OSError where the disk is full.
    """
    ensemble = Ensemble(arms, settings, data, device)
    optimiser = ArmAdamW(ensemble.parameters, *_rates(ensemble, device))
    run = _Run(history=[[] for _ in arms])
    if resume and folder is not None:
        load_state(folder, ensemble, optimiser, run, budget)
    batches = _Batches(arms, data, budget.batch, device)
    nothing = _loss_of_nothing(data)
    while run.step <= budget.steps:
        _validate_and_save(ensemble, optimiser, data, run, budget, folder, on_progress)
        if run.step == budget.steps:
            break
        start = time.perf_counter()
        losses, gradients = _losses_and_gradients(ensemble, *batches.at(run.step), data)
        _note_divergence(run, losses.detach().tolist(), DIVERGED * nothing)
        running = torch.tensor([k not in run.diverged for k in range(len(arms))], device=device)
        optimiser.step(gradients, schedule(run.step, budget), running)
        run.step += 1
        run.seconds += time.perf_counter() - start
        if len(run.diverged) == len(arms):
            break
    each = run.seconds / max(run.step, 1) / len(arms)
    return [
        ArmResult(
            arm=arm,
            diverged_at=run.diverged.get(k),
            history=tuple(run.history[k]),
            seconds_per_step=each,
            checkpoints=tuple(sorted((folder / arm.label).glob("step-*.safetensors"))) if folder else (),
        )
        for k, arm in enumerate(arms)
    ]


def schedule(step: int, budget: Budget) -> float:
    """Return what the learning rates are multiplied with: a linear rise, then a cosine to zero."""
    rise = min(1.0, (step + 1) / budget.warm_up) if budget.warm_up else 1.0
    return rise * 0.5 * (1 + math.cos(math.pi * step / max(budget.steps, 1)))


def losses_of(answers: Tensor, targets: Tensor, data: TaskData) -> Tensor:
    """Return the mean loss of each arm, (arm,). Raises ValueError for shapes that do not belong together."""
    if data.loss == "squared error":
        if answers.shape != targets.shape:
            raise ValueError(f"answers are {tuple(answers.shape)}, targets {tuple(targets.shape)}")
        return (answers - targets).square().flatten(1).mean(1)
    classes = answers.shape[-1]
    each = functional.cross_entropy(answers.reshape(-1, classes), targets.reshape(-1), reduction="none")
    return each.view(len(answers), -1).mean(1)


def _losses_and_gradients(
    ensemble: Ensemble, inputs: Tensor, targets: Tensor, data: TaskData
) -> tuple[Tensor, dict[str, Tensor]]:
    losses = losses_of(ensemble.forward(inputs), targets, data)
    # The sum's gradient is each arm's own: arms do not mix. A diverged arm's infinity stays with it.
    gradients = torch.autograd.grad(losses.sum(), list(ensemble.parameters.values()))
    return losses, dict(zip(ensemble.parameters, gradients, strict=True))


def _note_divergence(run: _Run, losses: Sequence[float], limit: float) -> None:
    for k, loss in enumerate(losses):
        if not loss <= limit:
            run.diverged.setdefault(k, run.step)


def _validate_and_save(
    ensemble: Ensemble,
    optimiser: ArmAdamW,
    data: TaskData,
    run: _Run,
    budget: Budget,
    folder: Path | None,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    last = run.step == budget.steps
    new = not any(points and points[-1].step == run.step for points in run.history)  # resumed at a validated step
    if (last or run.step % budget.validate_every == 0) and new:
        for k, point in enumerate(_validate(ensemble, data, run.step)):
            if not math.isfinite(point.loss):
                run.diverged.setdefault(k, run.step)
            if k not in run.diverged:
                run.history[k].append(point)
        if on_progress:
            latest = [math.nan if k in run.diverged else run.history[k][-1].loss for k in range(len(run.history))]
            on_progress(Progress(run.step, budget.steps, ensemble.arms, tuple(latest)))
    every = budget.checkpoint_every
    if folder is not None and (last or run.step == 0 or (every and run.step % every == 0)):
        for k in range(len(ensemble.arms)):
            if k not in run.diverged:
                save_arm(folder, ensemble, k, run.step, budget, data.length)
        save_state(folder, ensemble, optimiser, run, budget)


@torch.no_grad()
def _validate(ensemble: Ensemble, data: TaskData, step: int) -> list[Point]:
    arms, device = len(ensemble.arms), next(iter(ensemble.parameters.values())).device
    total, right, count = torch.zeros(arms, dtype=torch.float64), torch.zeros(arms, dtype=torch.float64), 0
    pieces = zip(
        data.validation_inputs.split(VALIDATION_BATCH), data.validation_targets.split(VALIDATION_BATCH), strict=True
    )
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


class _Batches:
    """Batches by step: a shuffle of the samples for each seed and epoch, that needs no memory of the last one."""

    def __init__(self, arms: Sequence[Arm], data: TaskData, size: int, device: str) -> None:
        self.seeds = [arm.seed for arm in arms]
        self.inputs, self.targets = data.inputs, data.targets
        self.size = min(size, len(data.inputs))
        self.epoch_steps = len(data.inputs) // self.size
        self.device = device
        self._order: dict[tuple[int, int], Tensor] = {}

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Return inputs (arm, batch, …) and targets of a step."""
        epoch, place = divmod(step, self.epoch_steps)
        picks = {}
        for seed in dict.fromkeys(self.seeds):
            order = self._shuffle(seed, epoch)
            picks[seed] = order[place * self.size : (place + 1) * self.size]
        index = torch.stack([picks[seed] for seed in self.seeds])
        return self.inputs[index].to(self.device), self.targets[index].to(self.device)

    def _shuffle(self, seed: int, epoch: int) -> Tensor:
        if (seed, epoch) not in self._order:
            self._order = {key: order for key, order in self._order.items() if key[1] == epoch}
            generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
            self._order[seed, epoch] = torch.randperm(len(self.inputs), generator=generator)
        return self._order[seed, epoch]


def _loss_of_nothing(data: TaskData) -> float:
    """Return the validation loss of answering zero, or every class alike."""
    if data.loss == "squared error":
        return float(data.validation_targets.double().square().mean())
    return math.log(data.outputs)


def groups_of(arms: Sequence[Arm], most: int) -> Iterator[tuple[Arm, ...]]:
    """Yield arms in groups of at most `most`, to be trained together."""
    for start in range(0, len(arms), most):
        yield tuple(arms[start : start + most])
