"""Training one arm of a module the tool did not build: the loop of `training`, with torch's AdamW and DDP."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssmdiag.errors import ConfigurationError, SsmdiagError
from ssmdiag.reparam import parameter_groups
from ssmdiag.retrain.arms import Arm, Budget
from ssmdiag.retrain.batches import Batch, Inputs, SampledBatches, describe, pick
from ssmdiag.retrain.distributed import Ranks
from ssmdiag.retrain.interruption import InterruptedTraining, finishing_steps, signal_of
from ssmdiag.retrain.learned_kernel import SEQUENCES, compare_with, mean_derivative
from ssmdiag.retrain.memory_limit import is_out_of_memory, saying_what_fits, saying_what_to_lower
from ssmdiag.retrain.module_files import checkpoints_of, save_module
from ssmdiag.retrain.module_state import ModuleRun, ModuleState
from ssmdiag.retrain.perturbation import module_perturbation_curve
from ssmdiag.retrain.results import ArmResult, LearnedKernel, Point
from ssmdiag.retrain.scoring import Score, call
from ssmdiag.retrain.seeding import seeded
from ssmdiag.retrain.streamed_batches import StreamedBatches
from ssmdiag.retrain.training import DIVERGED, Progress, schedule

_EXPERTS = ("expert", "router")


def train_module(
    module: nn.Module,
    arm: Arm,
    batches: SampledBatches | StreamedBatches,
    budget: Budget,
    *,
    beside: Mapping[str, bytes],
    source: str,
    task: str,
    ranks: Ranks,
    folder: Path | None = None,
    resume: bool = False,
    assume: Mapping[str, str] | None = None,
    perturb: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> ArmResult:
    """Train a module in place and return how it went.

    `module` is on its device, reparameterised and frozen as the arm says. `beside` are files that lie beside its
    checkpoints, such as config.json; `source` is what it was made of, `task` what it learns: a state is resumed of
    the same alone. Raises ConfigurationError where model and data do not fit; after Ctrl-C or SIGTERM
    InterruptedTraining, a KeyboardInterrupt, with the state of the last step written.
    """
    groups = parameter_groups(
        module, lr=arm.lr, recurrence_lr=arm.recurrence_lr, weight_decay=arm.weight_decay, assume=assume
    )
    if not groups:
        raise ConfigurationError(f"{arm.label}: nothing is left to train.", advice="freeze less.")
    rates = [group["lr"] for group in groups]
    optimiser = torch.optim.AdamW(groups)
    run = ModuleRun()
    trainer = _Trainer(module, batches, Score(batches.loss, batches.read_out), ranks, arm.seed)
    state = None
    if folder is not None:
        state = ModuleState(folder, arm, module, optimiser, run, batches, budget, source, task, assume)
        if resume:
            state.load(trainer.validate)
    ranks.require_same(f"{arm.label}: the step to go on from", run.step)
    trainer.require_same_batches(run.step)
    state = state if ranks.first else None
    if state is not None and not run.history:
        state.save()  # first of all files: a checkpoint without a state could be anyone's

    def result(*, interrupted: bool = False) -> ArmResult:
        return ArmResult(
            arm=arm,
            diverged_at=run.diverged_at,
            history=tuple(run.history),
            seconds_per_step=run.seconds / max(run.step, 1),
            checkpoints=checkpoints_of(folder, arm, budget, run.step) if folder else (),
            interrupted_at=run.step if interrupted and run.diverged_at is None else None,
        )

    with finishing_steps() as stopping, trainer.saying_what_fits():
        try:
            while run.diverged_at is None:
                last = run.step == budget.steps
                new = not run.history or run.history[-1].step != run.step
                due = (last or run.step % budget.validate_every == 0) and new
                if due:
                    point = trainer.validate(run.step)
                    if math.isfinite(point.loss):
                        run.history.append(point)
                    else:
                        run.diverged_at = run.step
                if state is not None and run.diverged_at is None and budget.keeps(run.step):
                    save_module(state.folder, arm, module, beside, run.step, budget)
                if state is not None and (due or budget.keeps(run.step)):
                    state.save()
                if due and on_progress:
                    on_progress(Progress(run.step, budget.steps, (arm,), (point.loss,)))
                if last or run.diverged_at is not None:
                    break
                start = time.perf_counter()
                for group, rate in zip(optimiser.param_groups, rates, strict=True):
                    group["lr"] = rate * schedule(run.step, budget)
                loss = trainer.backward(run.step)
                limit = DIVERGED * (math.inf if batches.nothing is None else batches.nothing)
                if loss <= limit and math.isfinite(loss):
                    optimiser.step()
                    run.step += 1
                else:
                    run.diverged_at = run.step
                optimiser.zero_grad()
                run.seconds += time.perf_counter() - start
                if ranks.any(bool(stopping())):
                    if state is not None:
                        state.save()
                    raise InterruptedTraining(stopping() or signal.SIGINT)
            if run.diverged_at is not None and state is not None:
                state.save()
        except KeyboardInterrupt as stop:
            raise InterruptedTraining(signal_of(stop), (result(interrupted=True),)) from None
    if run.diverged_at is not None:
        return result()
    with trainer.saying_what_fits():
        perturbation = module_perturbation_curve(module, trainer.loss_over, assume=assume) if perturb else None
        return replace(result(), perturbation=perturbation, kernel=trainer.learned_kernel())


class _Trainer:
    """Losses and gradients of a module, over all ranks."""

    def __init__(
        self, module: nn.Module, batches: SampledBatches | StreamedBatches, score: Score, ranks: Ranks, seed: int
    ) -> None:
        self.module, self.batches, self.score, self.ranks, self.seed = module, batches, score, ranks, seed
        self.dtype = next(p.dtype for p in module.parameters() if p.is_floating_point() or p.is_complex()).to_real()
        self.fits = False
        """Whether a batch went through the module."""
        self.shared = ranks.wrap(module, some_unused=ranks.count > 1 and self._some_unused())

    def backward(self, step: int) -> float:
        """Leave the gradient of a step's mean loss in the parameters and return the loss."""
        batch = self.batches.at(self.seed, step)
        inputs, targets, share = self._part(batch)
        self.module.train()
        with seeded("step", self.seed, step, self.ranks.rank, device=self.ranks.device):
            loss = self._loss(self.shared, inputs, targets)
        # DDP takes the mean over ranks, of which each has its share of the whole.
        (loss * (share * self.ranks.count)).backward()
        return float(self.ranks.sum(share * loss.detach().double()))

    def saying_what_fits(self) -> AbstractContextManager[None]:
        """Raise SsmdiagError with a batch that fits, or what to lower, where memory runs out inside."""
        device, smaller = self.ranks.device, "a smaller model, or a smaller --length."
        if isinstance(self.batches, SampledBatches) and self.ranks.count == 1:
            return saying_what_fits(self._attempt, 1, self.batches.draw.size, device, smaller)
        lower = "--batch" if isinstance(self.batches, SampledBatches) else "batches of --data"
        return saying_what_to_lower(f"on {device}, training {type(self.module).__name__}", f"smaller {lower}.")

    def _attempt(self, arms: int, batch: int) -> None:
        """Do the first step's work for some sequences, and forget it."""
        some = slice(batch)
        inputs, targets = self.batches.at(self.seed, 0)
        self.module.train()
        try:
            loss = self._loss(self.module, self._moved(pick(inputs, some)), targets[some].to(self.ranks.device))
            loss.backward()
        finally:
            self.module.zero_grad()

    def validate(self, step: int) -> Point:
        """Return mean loss and accuracy over the validation data."""
        return self._validated(step, None)[0]

    def loss_over(self, sequences: int) -> tuple[float, int]:
        """Return the mean loss over the first validation sequences, whole batches of them, and how many they were."""
        point, count = self._validated(0, sequences)
        return point.loss, count

    def learned_kernel(self) -> LearnedKernel | None:
        """Return the module's linear kernel, if the task has one and the module answers it number by number."""
        if not isinstance(self.batches, SampledBatches) or self.batches.kernel is None:
            return None
        inputs, targets = self.batches.held_out
        self.module.eval()

        def answer(x: Tensor) -> Tensor:
            return self.score.answers(call(self.module, x), targets[: len(x)])

        values, noise = mean_derivative(answer, self._moved(inputs[:SEQUENCES]))
        return compare_with(self.batches.kernel, values, noise, self.batches.law)

    @torch.no_grad()
    def _validated(self, step: int, most: int | None) -> tuple[Point, int]:
        """Return a validation over so many sequences, each rank going through its part of every batch."""
        self.module.eval()
        total, count = torch.zeros(4, dtype=torch.float64), 0
        for batch in self.batches.validation():
            if most is not None and count >= most:
                break
            count += len(batch[1])
            inputs, targets, share = self._part(batch)
            if share or not self.fits:
                output = self._answers(self.module, inputs, targets)
                weight = self.score.weight(targets) * bool(share)
                hits = self.score.hits(output, targets)
                if weight:
                    loss = float(self.score.mean(output, targets))
                    total += torch.tensor([weight * loss, weight, hits or 0, hits is not None], dtype=torch.float64)
        loss, weight, hits, classes = self.ranks.sum(total).tolist()
        if not weight:
            raise ConfigurationError("the validation data are empty.", expected="one target at least")
        return Point(step, loss / weight, hits / weight if classes else None), count

    def require_same_batches(self, step: int) -> None:
        """Raise ConfigurationError where ranks would train on parts of different batches."""
        if self.ranks.count > 1:
            inputs, targets = self.batches.at(self.seed, step)
            self.ranks.require_same("--data: the first batch", (describe(inputs), float(targets.double().sum())))

    def _part(self, batch: Batch) -> tuple[Inputs, Tensor, float]:
        """Return this rank's part of a batch, on the device, and its share of the answers in it."""
        inputs, targets = batch
        whole = self.score.weight(targets)
        if self.ranks.count > 1:
            part = self.ranks.part(len(targets))
            # A rank with no sample still has to take part in what all ranks do together.
            part = part if part.start < part.stop else slice(0, 1)
            empty = self.ranks.part(len(targets)) != part
            inputs, targets = pick(inputs, part), targets[part]
            share = 0.0 if empty else self.score.weight(targets) / max(whole, 1)
        else:
            share = 1.0
        return self._moved(inputs), targets.to(self.ranks.device), share

    def _moved(self, inputs: Inputs) -> Inputs:
        if isinstance(inputs, Mapping):
            return {name: self._moved(value) for name, value in inputs.items()}
        if isinstance(inputs, tuple):
            return tuple(self._moved(value) for value in inputs)
        cast = self.batches.casts and inputs.is_floating_point()
        return inputs.to(self.ranks.device, self.dtype if cast else inputs.dtype)

    def _loss(self, model: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        output = self._answers(model, inputs, targets)
        if not self.score.weight(targets):  # no answer is asked for in this part: 0/0, but nothing is to come of it
            from ssmdiag.retrain.scoring import answers_in

            return 0 * answers_in(output).sum()
        return self.score.mean(output, targets)

    def _answers(self, model: nn.Module, inputs: Inputs, targets: Tensor) -> Any:
        try:
            output = call(model, inputs)
        except SsmdiagError:
            raise
        except Exception as error:
            if self.fits or is_out_of_memory(error):
                raise
            raise ConfigurationError(
                f"{type(self.module).__name__} takes no batch of inputs {describe(inputs)} with targets "
                f"{describe(targets)}: {type(error).__name__}: {error}",
                expected="inputs as the model's forward takes them, samples along the first axis",
            ) from error
        self.fits = True
        return output

    def _some_unused(self) -> bool:
        """Whether a parameter has no part in the loss; DDP must be told, on all ranks alike."""
        inputs, targets, _ = self._part(next(self.batches.validation()))
        self.module.eval()
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(self._loss(self.module, inputs, targets), trained, allow_unused=True)
        # Which experts are asked may change from batch to batch.
        routed = any(part in name for name, _ in self.module.named_modules() for part in _EXPERTS)
        return self.ranks.any(routed or any(gradient is None for gradient in gradients))
