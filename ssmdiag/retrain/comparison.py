"""Arms → the comparison: trained in groups, their memory read off their own checkpoints before and after."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from ssmdiag.diagnosis import diagnose
from ssmdiag.errors import ConfigurationError
from ssmdiag.retrain.arms import Arm, Budget
from ssmdiag.retrain.distributed import ALONE, Ranks
from ssmdiag.retrain.interruption import keeping_what_is_known
from ssmdiag.retrain.learned_kernel import learned_kernel
from ssmdiag.retrain.memory_limit import saying_what_to_lower
from ssmdiag.retrain.model import ModelSettings, require_reach
from ssmdiag.retrain.output import prepare
from ssmdiag.retrain.perturbation import perturbation_curve
from ssmdiag.retrain.recurrences import RECURRENCES
from ssmdiag.retrain.results import ArmResult, RetrainResult
from ssmdiag.retrain.resuming import state_path
from ssmdiag.retrain.starting_point import StartingPoint
from ssmdiag.retrain.tasks import TaskData
from ssmdiag.retrain.training import Progress, groups_of, train
from ssmdiag.rules.selection import Selection
from ssmdiag.spectrum import LayerDiagnosis

_LOWER = "fewer arms --together, or a smaller --length, --width, --modes or --depth."
TOGETHER = 12
"""Arms trained as one batch: more only fill the caches."""


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
    """Train every arm and return how each went and what it remembers.

    Checkpoints are kept in `folder`; without one they are read and dropped. `start` is a checkpoint to go on from:
    `settings` are then its own. With more arms than `ranks` each rank trains and writes its share, and every rank
    returns the whole; else the first rank writes, and it alone returns memories. `perturb` asks for every arm's
    loss with noise on its trained recurrence.
    """
    begun = time.perf_counter()
    _require_possible(arms, settings)
    if start is not None:
        start.require_fit(arms, data)
    else:
        with saying_what_to_lower(f"starting {settings.title}", "a smaller --width, --modes or --depth."):
            require_reach(arms, settings, data)
    spread = ranks.spreads(arms)
    notes = _notes(arms) + (start.notes if start else ()) + budget.notes(len(data.inputs))
    if folder is not None:
        shares = [arms[rank :: ranks.count] for rank in range(ranks.count)] if spread else [arms]
        states = [state_path(folder, group) for share in shares for group in groups_of(share, together)]
        notes += prepare(folder, arms, states, resume=resume, ranks=ranks, writes=spread or ranks.first)
    here = ranks.device if ranks.count > 1 else device
    known: dict[Arm, ArmResult] = {}

    def answer() -> RetrainResult:
        return RetrainResult(
            task=task,
            model=settings.title,
            budget=budget,
            arms=tuple(known[arm] for arm in arms if arm in known),
            device=device,
            context=data.length,
            target=() if data.kernel is None else tuple(data.kernel.tolist()),
            notes=notes,
            seconds=time.perf_counter() - begun,
        )

    with ExitStack() as stack, keeping_what_is_known(known, arms, answer, files=folder is not None):
        stack.enter_context(saying_what_to_lower(f"on {here}", _LOWER))
        kept = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for group in groups_of(ranks.share(arms) if spread else arms, together):
            trained = train(
                group, data, settings, budget, task=task, device=here,
                folder=kept, resume=resume, start=start, ranks=ranks.on_its_own() if spread else ranks,
                on_progress=on_progress,
            )  # fmt: skip
            known |= {result.arm: result for result in trained}
            tells = spread or ranks.first  # the others have no files to read
            for result in trained if tells else ():
                with saying_what_to_lower(f"on {here}, adding noise to {result.arm.label}", "leave out --perturb."):
                    noisy = perturbation_curve(result, data, settings, device=here) if perturb else None
                found = replace(result, perturbation=noisy, kernel=learned_kernel(result, data, settings, device=here))
                known[result.arm] = _with_memory(found, data.length, keep=folder is not None)
        if spread:
            known |= {result.arm: result for part in ranks.gather(list(known.values())) for result in part}
    return answer()


def _with_memory(result: ArmResult, context: int, *, keep: bool) -> ArmResult:
    paths = result.checkpoints
    before = _memory(paths[0], context) if paths else ()
    # An arm that diverged has no last checkpoint: its memory is that of the last one saved, or unknown.
    after = _memory(paths[-1], context) if len(paths) > 1 else before if result.diverged_at is None else ()
    return replace(result, before=before, after=after, checkpoints=paths if keep else ())


def _memory(path: Path, context: int) -> tuple[LayerDiagnosis, ...]:
    return diagnose(path, context_length=context, rules=Selection(rules=())).layers


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
