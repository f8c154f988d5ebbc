"""Compare arms: train them in groups, with the memory of each before and after.

`built_in_experiment` has arms of the built-in model, `foreign.module_experiment` those of a module that is
given; `compare` trains either.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ssmdiag.assessment.spectrum import LayerDiagnosis
from ssmdiag.checkpoint import Checkpoint
from ssmdiag.diagnosis import diagnose
from ssmdiag.errors import ConfigurationError
from ssmdiag.retrain.arms import Arm, Budget
from ssmdiag.retrain.distributed import ALONE, Ranks
from ssmdiag.retrain.ensemble_trainee import EnsembleTrainee
from ssmdiag.retrain.interruption import InterruptedTraining, signal_of
from ssmdiag.retrain.memory_limit import saying_what_to_lower
from ssmdiag.retrain.model import ModelSettings, require_reach
from ssmdiag.retrain.recurrences import RECURRENCES
from ssmdiag.retrain.results import ArmResult, RetrainResult
from ssmdiag.retrain.run_folder import prepare, state_path
from ssmdiag.retrain.starting_point import StartingPoint
from ssmdiag.retrain.tasks import TaskData
from ssmdiag.retrain.training import Progress, Trainee, train
from ssmdiag.rules.selection import Selection

_NOTES = {
    "direct": "direct starts at Re λ = −0.5; the authors' code starts it at +0.5, where every mode grows",
    "best": "best is 1/(w² + 0.5) as in the paper; the authors' code has b = 0.1: --param 'best(b=0.1)'",
}
"""What a reader must know of a map."""


@dataclass(frozen=True)
class Experiment:
    """What is compared: arms of a model on a task, and how they are trained."""

    arms: tuple[Arm, ...]
    budget: Budget
    task: str
    model: str
    """Its title."""
    context: int | None
    """Steps of a sequence."""
    kernel: Tensor | None
    """(lag,) float64: the memory kernel that would solve the task, where there is one."""
    notes: tuple[str, ...]
    groups: Callable[[Sequence[Arm]], list[tuple[Arm, ...]]]
    """Arms → those that are trained together, in the order in which they are trained."""
    build: Callable[[tuple[Arm, ...], Ranks], Trainee]
    """Arms that are trained together, on some ranks → what trains them."""
    smaller: str
    """What to do where memory runs out."""
    assume: Mapping[str, str] | None = None


def built_in_experiment(
    arms: Sequence[Arm],
    data: TaskData,
    settings: ModelSettings,
    budget: Budget,
    *,
    task: str,
    together: int = 12,
    start: StartingPoint | None = None,
) -> Experiment:
    """Return how arms of the built-in model are trained, at most `together` as one batch.

    `start` is a checkpoint to go on from: `settings` are then its own. Raises MapError where a map cannot hold the
    rates, ConfigurationError for what no arm of this model can have.
    """
    layer = RECURRENCES[settings.recurrence]
    if not layer.step and any(arm.freeze == "step" for arm in arms):
        raise ConfigurationError(
            f"--freeze step: {layer.title} has no weight that decides its step.",
            expected="none, eigenvalues, or both, which is eigenvalues alone here",
        )
    if start is not None:
        start.require_fit(arms, data)
    else:
        with saying_what_to_lower(f"starting {settings.title}", "a smaller --width, --modes or --depth."):
            require_reach(arms, settings, data)
    return Experiment(
        arms=tuple(arms),
        budget=budget,
        task=task,
        model=settings.title,
        context=data.length,
        kernel=data.kernel,
        notes=(
            *(note for param, note in _NOTES.items() if any(arm.param == param for arm in arms)),
            *(start.notes if start else ()),
            *budget.notes(len(data.inputs)),
        ),
        groups=lambda some: [tuple(some[k : k + together]) for k in range(0, len(some), together)],
        build=lambda group, ranks: EnsembleTrainee(group, data, settings, budget.batch, start=start, ranks=ranks),
        smaller="fewer arms --together, or a smaller --length, --width, --modes or --depth.",
    )


def compare(
    experiment: Experiment,
    *,
    folder: Path | None = None,
    resume: bool = False,
    ranks: Ranks = ALONE,
    perturb: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> RetrainResult:
    """Train every arm and return how each went and what it remembers.

    Checkpoints and resumable states are kept in `folder`, if any. With more arms than `ranks` each rank trains and
    writes its share, and every rank returns the whole; else the first rank writes, and it alone returns checkpoints and
    memories. `perturb` asks for every arm's loss with noise on its trained rates.

    After Ctrl-C or a kill, raises InterruptedTraining with the arms that were begun.
    """
    begun = time.perf_counter()
    arms, budget = experiment.arms, experiment.budget
    spread = ranks.spreads(arms)
    remembers = spread or ranks.first
    notes = list(experiment.notes)
    if folder is not None:
        shares = [arms[rank :: ranks.count] for rank in range(ranks.count)] if spread else [arms]
        states = [state_path(folder, group) for share in shares for group in experiment.groups(share)]
        notes += prepare(folder, arms, states, resume=resume, ranks=ranks, writes=remembers)
    known: dict[Arm, ArmResult] = {}

    def answer(interrupted_at: int | None = None) -> RetrainResult:
        return RetrainResult(
            task=experiment.task,
            model=experiment.model,
            budget=budget,
            arms=tuple(known[arm] for arm in arms if arm in known),
            device=torch.device(ranks.device).type,
            context=experiment.context or 0,
            target=() if experiment.kernel is None else tuple(experiment.kernel.tolist()),
            notes=tuple(notes),
            seconds=time.perf_counter() - begun,
            interrupted_at=interrupted_at,
        )

    try:
        for group in experiment.groups(ranks.share(arms) if spread else arms):
            with saying_what_to_lower(f"on {ranks.device}, with {experiment.model}", experiment.smaller):
                trainee = experiment.build(group, replace(ranks, rank=0, count=1) if spread else ranks)
                before = [_memory(trainee.checkpoint(k), experiment) if remembers else () for k in range(len(group))]
                trained = train(
                    trainee, budget, task=experiment.task, folder=folder, resume=resume, on_progress=on_progress
                )
                known |= {arm.arm: replace(arm, before=memory) for arm, memory in zip(trained, before, strict=True)}
                for k, arm in enumerate(group):
                    known[arm] = _with_what_was_learned(trainee, k, known[arm], experiment, perturb, remembers)
        if spread:
            known |= {arm: result for part in ranks.gather(known) for arm, result in part.items()}
    except KeyboardInterrupt as stop:
        known |= {arm.arm: arm for arm in getattr(stop, "arms", ())}
        left = [arm.label for arm in arms if arm not in known]
        if left:
            notes.append(f"not begun: {', '.join(left[:6])}{', …' * (len(left) > 6)}")
        steps = [arm.interrupted_at for arm in known.values() if arm.interrupted_at is not None]
        at = max(steps, default=budget.steps if known else 0)
        raise InterruptedTraining(signal_of(stop), result=answer(interrupted_at=at)) from None
    notes += _notes_on(known.values(), perturb=perturb)
    return answer()


def _with_what_was_learned(
    trainee: Trainee, position: int, result: ArmResult, experiment: Experiment, perturb: bool, remembers: bool
) -> ArmResult:
    """Return the result with its learned kernel and, if asked, its perturbation errors and its memory.

    All ranks compute the first two: a module goes through its validation data on all of them together. An arm that
    diverged has neither, and the memory of its last checkpoint, if it has a second one.
    """
    kernel, noisy, after = None, None, result.after
    if result.final_loss is not None:
        if perturb:
            what = f"on {trainee.ranks.device}, adding noise to {result.arm.label}"
            with saying_what_to_lower(what, "leave out --perturb."):
                noisy = trainee.perturbation(position)
        kernel = trainee.kernel(position)
    if remembers and result.diverged_at is None:
        after = _memory(trainee.checkpoint(position), experiment)
    elif remembers and len(result.checkpoints) > 1:
        after = _memory(result.checkpoints[-1], experiment)
    return replace(result, kernel=kernel, perturbation=noisy, after=after)


def _memory(checkpoint: Checkpoint | Path, experiment: Experiment) -> tuple[LayerDiagnosis, ...]:
    return diagnose(
        checkpoint, context_length=experiment.context, assume=experiment.assume, rules=Selection(rules=())
    ).layers


def _notes_on(results: Collection[ArmResult], *, perturb: bool) -> list[str]:
    """Return the remarks on trained arms."""
    held = perturb and any(result.perturbation is None and result.diverged_at is None for result in results)
    moved = dict.fromkeys(result.places for result in results if len(result.places) > 1)
    return [
        *["no perturbation error where a frozen weight is part of a larger tensor: noise would not reach it"] * held,
        *(
            f"trained on {', then on '.join(places)}: they round differently, so the losses are not, to the bit, those "
            "of a run on one of them"
            for places in moved
        ),
    ]
