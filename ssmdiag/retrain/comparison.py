"""Arms → the comparison: trained in groups, with the memory of each before and after.

`compare_arms` compares arms of the built-in model, `foreign.compare_modules` those of a module that is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ssmdiag.assessment.spectrum import LayerDiagnosis
from ssmdiag.diagnosis import diagnose
from ssmdiag.errors import ConfigurationError
from ssmdiag.retrain.arms import Arm, Budget
from ssmdiag.retrain.distributed import ALONE, Ranks
from ssmdiag.retrain.ensemble_trainee import EnsembleTrainee
from ssmdiag.retrain.interruption import keeping_what_is_known
from ssmdiag.retrain.memory_limit import saying_what_to_lower
from ssmdiag.retrain.model import ModelSettings, require_reach
from ssmdiag.retrain.output import prepare
from ssmdiag.retrain.recurrences import RECURRENCES
from ssmdiag.retrain.results import ArmResult, RetrainResult
from ssmdiag.retrain.resuming import state_path
from ssmdiag.retrain.starting_point import StartingPoint
from ssmdiag.retrain.tasks import TaskData
from ssmdiag.retrain.training import Progress, Trainee, train
from ssmdiag.rules.selection import Selection

if TYPE_CHECKING:
    from torch import Tensor

    from ssmdiag.checkpoint import Checkpoint

TOGETHER = 12
"""Arms trained as one batch; more would only fill the caches."""


@dataclass(frozen=True)
class Subject:
    """What is compared: a model on a task."""

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


def compare_arms(
    arms: Sequence[Arm],
    data: TaskData,
    settings: ModelSettings,
    budget: Budget,
    *,
    task: str,
    device: str = "cpu",
    folder: Path | None = None,
    resume: bool = False,
    together: int = TOGETHER,
    start: StartingPoint | None = None,
    ranks: Ranks = ALONE,
    perturb: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> RetrainResult:
    """Train every arm of the built-in model and return how each went and what it remembers: see `compare`.

    At most `together` arms are one batch. `start` is a checkpoint to go on from: `settings` are then its own.
    """
    _require_possible(arms, settings)
    if start is not None:
        start.require_fit(arms, data)
    else:
        with saying_what_to_lower(f"starting {settings.title}", "a smaller --width, --modes or --depth."):
            require_reach(arms, settings, data)
    subject = Subject(
        task=task,
        model=settings.title,
        context=data.length,
        kernel=data.kernel,
        notes=_notes(arms) + (start.notes if start else ()) + budget.notes(len(data.inputs)),
        groups=lambda some: [tuple(some[k : k + together]) for k in range(0, len(some), together)],
        build=lambda group, ranks: EnsembleTrainee(group, data, settings, budget.batch, start=start, ranks=ranks),
        smaller="fewer arms --together, or a smaller --length, --width, --modes or --depth.",
    )
    return compare(
        arms, subject, budget,
        device=device, folder=folder, resume=resume, ranks=ranks, perturb=perturb, on_progress=on_progress,
    )  # fmt: skip


def compare(
    arms: Sequence[Arm],
    subject: Subject,
    budget: Budget,
    *,
    device: str,
    folder: Path | None,
    resume: bool,
    ranks: Ranks,
    perturb: bool,
    on_progress: Callable[[Progress], None] | None,
) -> RetrainResult:
    """Train every arm of the subject and return how each went and what it remembers.

    Checkpoints and resumable states are kept in `folder`, if any. With more arms than `ranks` each rank trains and
    writes its share, and every rank returns the whole; else the first rank writes, and it alone returns checkpoints and
    memories.
    `perturb` asks for every arm's loss with noise on its trained rates.
    """
    begun = time.perf_counter()
    ranks = replace(ranks, device=ranks.device if ranks.count > 1 else device)
    spread = ranks.spreads(arms)
    remembers = spread or ranks.first
    notes = list(subject.notes)
    if folder is not None:
        shares = [arms[rank :: ranks.count] for rank in range(ranks.count)] if spread else [arms]
        states = [state_path(folder, group) for share in shares for group in subject.groups(share)]
        notes += prepare(folder, arms, states, resume=resume, ranks=ranks, writes=remembers)
    known: dict[Arm, ArmResult] = {}

    def answer() -> RetrainResult:
        return RetrainResult(
            task=subject.task,
            model=subject.model,
            budget=budget,
            arms=tuple(known[arm] for arm in arms if arm in known),
            device=device,
            context=subject.context or 0,
            target=() if subject.kernel is None else tuple(subject.kernel.tolist()),
            notes=tuple(notes),
            seconds=time.perf_counter() - begun,
        )

    with keeping_what_is_known(known, arms, answer):
        for group in subject.groups(ranks.share(arms) if spread else arms):
            with saying_what_to_lower(f"on {ranks.device}, with {subject.model}", subject.smaller):
                trainee = subject.build(group, ranks.on_its_own() if spread else ranks)
                before = [_memory(trainee.checkpoint(k), subject) if remembers else () for k in range(len(group))]
                trained = train(
                    trainee, budget, task=subject.task, folder=folder, resume=resume, on_progress=on_progress
                )
                known |= {arm.arm: replace(arm, before=memory) for arm, memory in zip(trained, before, strict=True)}
                for k, arm in enumerate(group):
                    known[arm] = _with_what_was_learned(trainee, k, known[arm], perturb=perturb)
                    if remembers:
                        known[arm] = replace(known[arm], after=_after(trainee, k, known[arm], subject))
        if spread:
            known |= {arm: result for part in ranks.gather(known) for arm, result in part.items()}
    notes += _notes_on(known.values(), perturb=perturb)
    return answer()


def _with_what_was_learned(trainee: Trainee, position: int, result: ArmResult, *, perturb: bool) -> ArmResult:
    """Return the result with its learned kernel and, if asked, its perturbation errors; an arm that diverged has none.

    All ranks compute them: a module goes through its validation data on all of them together.
    """
    if result.final_loss is None:
        return result
    noisy = None
    if perturb:
        what = f"on {trainee.ranks.device}, adding noise to {result.arm.label}"
        with saying_what_to_lower(what, "leave out --perturb."):
            noisy = trainee.perturbation(position)
    return replace(result, perturbation=noisy, kernel=trainee.kernel(position))


def _after(trainee: Trainee, position: int, result: ArmResult, subject: Subject) -> tuple[LayerDiagnosis, ...]:
    """Return the memory of a trained arm; of one that diverged, that of its last checkpoint, if it has a second one."""
    if result.diverged_at is None:
        return _memory(trainee.checkpoint(position), subject)
    return _memory(result.checkpoints[-1], subject) if len(result.checkpoints) > 1 else ()


def _memory(checkpoint: Checkpoint | Path, subject: Subject) -> tuple[LayerDiagnosis, ...]:
    return diagnose(checkpoint, context_length=subject.context, assume=subject.assume, rules=Selection(rules=())).layers


def _require_possible(arms: Sequence[Arm], settings: ModelSettings) -> None:
    layer = RECURRENCES[settings.recurrence]
    if not layer.step and any(arm.freeze == "step" for arm in arms):
        raise ConfigurationError(
            f"--freeze step: {layer.title} has no weight that decides its step.",
            expected="none, eigenvalues, or both, which is eigenvalues alone here",
        )


def _notes(arms: Sequence[Arm]) -> tuple[str, ...]:
    notes = []
    params = {arm.param for arm in arms}
    if "direct" in params:
        notes.append("direct starts at Re λ = −0.5; the authors' code starts it at +0.5, where every mode grows")
    if "best" in params:
        notes.append("best is 1/(w² + 0.5) as in the paper; the authors' code has b = 0.1: --param 'best(b=0.1)'")
    return tuple(notes)


def _notes_on(results: Iterable[ArmResult], *, perturb: bool) -> list[str]:
    """Return the remarks on trained arms."""
    results, notes = list(results), []
    if perturb and any(result.perturbation is None and result.diverged_at is None for result in results):
        notes.append(
            "no perturbation error where a frozen weight is part of a larger tensor: it is held, whatever is stored"
        )
    moved = dict.fromkeys(result.places for result in results if len(result.places) > 1)
    notes += [
        f"trained on {', then on '.join(places)}: they round differently, so the losses are not, to the bit, those "
        "of a run on one of them"
        for places in moved
    ]
    return notes
