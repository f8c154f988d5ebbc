"""Checkpoints of one run, in train-step order → `RunComparison`: which layers converge to the boundary, and when.

The quantity followed is the smallest rate r = −log|λ̄| of a layer, in nats per step: near the boundary it is the
margin 1 − |λ̄|, and 1/r is the slowest time constant. Its logarithm is fitted over the train step, not over the
step's logarithm: a weight in A = −exp(A_log) that an optimiser pushes one way moves by about the learning rate at
every step, so log r lies on a line, and a run has no natural step 0 for a logarithm. One mode may jitter, so the rate
that one mode in twenty stays below is followed too.

Checkpoints are read one after another and a few numbers of each are kept: memory does not grow with their number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ssmdiag.assessment.memory import DEFAULT_CONTEXT
from ssmdiag.checkpoint import Checkpoint, read_checkpoint
from ssmdiag.checkpoint.location import Location, locate
from ssmdiag.checkpoint.remote_path import RemotePath
from ssmdiag.compare.layer_history import LayerHistory, judge_layers
from ssmdiag.compare.layer_point import LayerPoint, read_point
from ssmdiag.compare.learning_rate import read_learning_rates
from ssmdiag.compare.models import require_one_model, sentence_on
from ssmdiag.compare.relatedness import why_unrelated
from ssmdiag.compare.run_order import OrderSource, order_checkpoints
from ssmdiag.compare.trend import LEAST_CHANGE, Verdict
from ssmdiag.compare.unmoved import find_steering_changed
from ssmdiag.cores import one_thread
from ssmdiag.diagnosis import context_length_of
from ssmdiag.errors import AssumptionError, CheckpointError, DifferentModelsError, LayerError, SsmdiagError
from ssmdiag.families.interface import Family
from ssmdiag.families.reading_ahead import read_ahead
from ssmdiag.families.recognition import Recognition, recognise
from ssmdiag.guard import guard
from ssmdiag.output.result import Result
from ssmdiag.printable import plural
from ssmdiag.recurrence.modal import Recurrence
from ssmdiag.version import __version__

FailOn = Literal["never", "converging", "crossing"]
Memory = Literal["none", "ends", "all"]


@dataclass(frozen=True)
class RunCheckpoint:
    """One checkpoint of the run."""

    path: str
    step: int
    """Its x: what `RunComparison.unit` counts."""
    train_step: int | None
    """The train step that the file gives."""
    problems: tuple[str, ...]
    """What of it could not be read."""


@dataclass(frozen=True, repr=False)
class RunComparison(Result):
    """A run over its checkpoints."""

    checkpoints: tuple[RunCheckpoint, ...]
    """Those that were read, in order; steps increase."""
    order: OrderSource
    unit: str
    """What steps count: `step`, `epoch` or `checkpoint`."""
    context_length: int | None
    layers: tuple[LayerHistory, ...]
    problems: tuple[str, ...]
    """What could not be read; the rest of the comparison stands."""
    notes: tuple[str, ...]
    device: str
    seconds: float
    steering_changed: Mapping[str, tuple[str, ...]] | None = None
    """Where no rate moved: by layer, tensors that steer it by the input and have changed since the first checkpoint.
    None where they were not compared, or not all of them could be."""
    ssmdiag_version: str = __version__
    torch_version: str = torch.__version__

    @property
    def verdict(self) -> Verdict:
        """Return the most urgent verdict of any layer, in the order of `Verdict`."""
        return min((layer.verdict for layer in self.layers), key=list(Verdict).index, default=Verdict.STEADY)

    def exit_code(self, fail_on: FailOn = "never") -> int:
        """Return 2 if part could not be read, 1 if a layer does what `fail_on` names, else 0.

        `converging`: a layer converges, or it crossed the boundary or broke during the run. `crossing`: a layer crossed
        or broke, or it converges and has passed a limit during the run or is projected to pass one.
        """
        fails = fail_on != "never" and any(layer.fails(fail_on) for layer in self.layers)
        return 2 if self.problems else int(fails)


@one_thread()
def compare_run(
    paths: Sequence[str | Location],
    *,
    assume: Mapping[str, str] | None = None,
    families: Sequence[Family] | None = None,
    device: str = "cpu",
    context_length: int | None = None,
    memory: Memory = "ends",
    least_change: float = LEAST_CHANGE,
    on_checkpoint: Callable[[int, int], None] | None = None,
) -> RunComparison:
    """Return how every layer's memory changed over the checkpoints of one run.

    Parameters
    ----------
    memory
        At which checkpoints horizon and decay law are computed too: the first and last, all, or none.
    least_change
        Nats of log rate over the run up to which a layer counts as steady.
    on_checkpoint
        Called with (checkpoints read, checkpoints in all).

    Raises
    ------
    SsmdiagError
        Fewer than two checkpoints could be read. DifferentModelsError where they are of different models: of other
        families, sizes or numbers of layers. AssumptionError as in `diagnose`.
    """
    start = time.perf_counter()
    find = partial(recognise, assume=assume, families=families, device=device)
    opened, problems = _open(paths)
    _require_two(paths, opened, problems)
    run = order_checkpoints([path for path, _ in opened], [step for _, step in opened])
    notes, kept = _without_repeats([opened[i][0] for i in run.order], [run.steps[i] for i in run.order], run.unit)
    stored = dict(opened)
    collected = _Collected(context_length, run.certain)
    checkpoints = []
    for position, (path, step) in enumerate(kept):
        wanted = memory == "all" or (memory == "ends" and position in (0, len(kept) - 1))
        missing: list[str] = []
        points: list[LayerPoint] = []
        try:
            checkpoint = read_checkpoint(path)
            learning_rates = read_learning_rates(checkpoint)
            for recurrence, title in _recurrences(path, checkpoint, find(checkpoint), collected, missing):
                context = (collected.context or DEFAULT_CONTEXT) if wanted else None
                before = collected.first_rates(recurrence, step)
                try:
                    with guard(recurrence.layer, "its examination"):
                        point = read_point(
                            step,
                            recurrence,
                            title,
                            context=context,
                            before=before,
                            least_change=least_change,
                            learning_rate=learning_rates.of(recurrence),
                        )
                except LayerError as error:
                    missing.append(error.sentence)
                else:
                    points.append(point)
                    collected.note_assumptions(recurrence)
        except (AssumptionError, DifferentModelsError):
            raise
        except SsmdiagError as error:
            problems.append(sentence_on(path, error))
        else:
            collected.add(points, step, run.unit)
            checkpoints.append(RunCheckpoint(str(path), step, stored[path], tuple(missing)))
            problems += [f"{path.name}: {sentence}" for sentence in missing]
        if on_checkpoint:
            on_checkpoint(position + 1, len(kept))
    _require_two(paths, checkpoints, problems)
    _require_common_layers(collected.layers, checkpoints)
    layers, remarks = judge_layers(
        collected.layers, [c.step for c in checkpoints], run.unit, collected.context, least_change
    )
    return RunComparison(
        checkpoints=tuple(checkpoints),
        order=run.source,
        unit=run.unit,
        context_length=collected.context,
        layers=layers,
        problems=tuple(problems),
        notes=(*notes, *collected.notes, *remarks),
        device=device,
        seconds=time.perf_counter() - start,
        steering_changed=find_steering_changed([checkpoints[end].path for end in (0, -1)], layers, find),
    )


@dataclass
class _Collected:
    """What is kept of the checkpoints read so far: points by layer, in the order in which layers appeared."""

    context: int | None
    certain: bool
    """Whether these are known to be checkpoints of one run."""
    layers: dict[str, list[LayerPoint]] = field(default_factory=dict)
    rates: dict[str, tuple[int, Tensor]] = field(default_factory=dict)
    """Of every layer at the first checkpoint that has it in its present shape: its step and its rates."""
    notes: list[str] = field(default_factory=list)
    whole: tuple[Location, Recognition] | None = None
    """The first checkpoint that was recognised without a problem."""
    last: tuple[Location, Checkpoint] | None = None
    """The last of those."""
    unread: dict[str, None] = field(default_factory=dict)
    """Unreadable files beside checkpoints, each reported once."""

    def require_related(self, path: Location, checkpoint: Checkpoint, found: Recognition) -> None:
        """Raise DifferentModelsError where neither files nor names show a run, and the weights are unrelated."""
        claimed = {name for layer in found.layers for name in layer.names.values()}
        if self.last and not self.certain and (why := why_unrelated(self.last[1], checkpoint, claimed)):
            raise DifferentModelsError(
                f"{self.last[0].name} and {path.name} are different models: {why}.",
                expected="checkpoints of one run",
                advice="`ssmdiag compare` puts different models into a table.",
            )
        self.last = path, checkpoint

    def first_rates(self, recurrence: Recurrence, step: int) -> Tensor | None:
        """Return the layer's rates at its first checkpoint, None if this is it."""
        first = self.rates.get(recurrence.layer)
        if first is None or first[1].shape != recurrence.rate.shape:
            first = self.rates[recurrence.layer] = (step, recurrence.rate)
        return first[1] if first[0] != step else None

    def note_assumptions(self, recurrence: Recurrence) -> None:
        for a in recurrence.assumptions:
            note = f"assumed: {a.option} = {a.value} ({a.meaning}); nothing in the files says"
            if a.source == "usual" and note not in self.notes:
                self.notes.append(note)

    def add(self, now: Sequence[LayerPoint], step: int, unit: str) -> None:
        """Add the points of one checkpoint to their layers."""
        names = [point.name for point in now]
        if self.layers and names and not set(names) & set(self.layers):
            shapes = [points[-1].shape for points in self.layers.values()]
            if shapes == [point.shape for point in now]:
                names = list(self.layers)
                self.notes.append(f"layers are named differently at {unit} {step:,}; they were matched by their order")
        for name, point in zip(names, now, strict=True):
            self.layers.setdefault(name, []).append(point)


def _open(paths: Sequence[str | Location]) -> tuple[list[tuple[Location, int | None]], list[str]]:
    """Return the paths that can be opened with their stored train steps, and a sentence on each that cannot."""
    opened, problems = [], []
    if other := next(
        (type(path).__name__ for path in paths if not isinstance(path, (str, PathLike, RemotePath))), None
    ):
        raise TypeError(
            f"a run is compared from paths, not from a {other}; `compare_models` takes two models in memory"
        )
    for path in dict.fromkeys(map(locate, paths)):
        try:
            opened.append((path, read_checkpoint(path).train_step))
        except SsmdiagError as error:
            problems.append(sentence_on(path, error))
    return opened, problems


def _require_two(paths: Sequence[object], usable: Sequence[object], problems: Sequence[str]) -> None:
    if len(usable) < 2:
        seen = f"{len(usable)} of {plural(len(paths), 'checkpoint')} could be read:"
        raise CheckpointError(
            seen if problems else "one checkpoint alone has nothing to be compared with.",
            expected="two or more",
            details=problems,
        )


def _require_common_layers(layers: Mapping[str, Sequence[LayerPoint]], checkpoints: Sequence[RunCheckpoint]) -> None:
    if not any(len(points) > 1 for points in layers.values()):
        names = ", ".join(Path(checkpoint.path).name for checkpoint in checkpoints[:4])
        raise CheckpointError(
            f"no layer is in two of the {len(checkpoints)} checkpoints ({names}{' …' * (len(checkpoints) > 4)}).",
            expected="checkpoints of one run, or two models",
            advice="compare different models two at a time.",
        )


def _without_repeats(
    paths: Sequence[Location], steps: Sequence[int], unit: str
) -> tuple[list[str], list[tuple[Location, int]]]:
    """Return the first checkpoint of every step, and a note on each that was left out."""
    first: dict[int, Location] = {}
    notes = []
    for path, step in zip(paths, steps, strict=True):
        if step in first:
            notes.append(f"{path.name} is left out: {first[step].name} is of {unit} {step:,} too")
        else:
            first[step] = path
    return notes, [(path, step) for step, path in first.items()]


def _recurrences(
    path: Location, checkpoint: Checkpoint, found: Recognition, collected: _Collected, problems: list[str]
) -> Iterator[tuple[Recurrence, str]]:
    """Yield the recurrences of one checkpoint with their family's title, one layer in memory at a time."""
    found.require_layers(checkpoint)
    problems += [*(said for said in checkpoint.problems if said not in collected.unread), *found.problems]
    collected.unread |= dict.fromkeys(checkpoint.problems)
    if not found.problems and not any(layer.defect for layer in found.layers):
        collected.whole = collected.whole or (path, found)
        require_one_model(collected.whole, (path, found))
        collected.require_related(path, checkpoint, found)
    collected.context = collected.context or context_length_of(checkpoint.settings)
    read_ahead(found.layers)
    for layer in found.layers:
        try:
            recurrences = layer.read()
        except LayerError as error:
            problems.append(error.sentence)
        else:
            yield from ((recurrence, layer.family.title) for recurrence in recurrences)
