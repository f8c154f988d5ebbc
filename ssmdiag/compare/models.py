"""Two models side by side → `ModelComparison`: what memory one has that the other lacks. More → `ModelTable`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ssmdiag.assessment.spectrum import BINS_PER_DECADE, FIRST_DECADE, LAST_DECADE, LayerDiagnosis
from ssmdiag.checkpoint import Checkpoint, read_checkpoint
from ssmdiag.checkpoint.location import Location, locate
from ssmdiag.checkpoint.remote_path import RemotePath
from ssmdiag.cores import one_thread
from ssmdiag.diagnosis import Diagnosis, diagnose, longest_context
from ssmdiag.errors import AssumptionError, CheckpointError, DifferentModelsError, SsmdiagError
from ssmdiag.families.interface import Family
from ssmdiag.families.recognition import Recognition, recognise
from ssmdiag.output.result import Result
from ssmdiag.rules.selection import Selection

if TYPE_CHECKING:
    from ssmdiag.checkpoint.reading import CheckpointLike

LEAST_SHARE = 0.01
"""Smallest share of a model's modes in a range of time constants that is reported."""
LACKING = 0.1
"""A model lacks a range if its share there is less than this fraction of the other's."""


@dataclass(frozen=True)
class Gap:
    """Time constants that one model has and the other lacks almost entirely."""

    lacking: Literal["a", "b"]
    low: float
    """Steps; 0 where the range has no lower end."""
    high: float
    """Steps; infinite where it has no upper end."""
    share: float
    """Share of the modes of the model that has them."""
    share_lacking: float
    """Share of the modes of the other."""
    layers: tuple[str, ...]
    """Layers that hold them, most first."""


@dataclass(frozen=True)
class DepthRow:
    """The layers of both models at one relative depth; either may have none there."""

    start: float
    """From 0, the first layer, to 1."""
    stop: float
    a: tuple[LayerDiagnosis, ...]
    b: tuple[LayerDiagnosis, ...]


@dataclass(frozen=True, repr=False)
class ModelComparison(Result):
    """Two models, each diagnosed over the same context."""

    a: Diagnosis
    b: Diagnosis
    gaps: tuple[Gap, ...]
    """Longest time constants first."""
    shares: tuple[tuple[float, ...], tuple[float, ...]]
    """Share of each model's modes per decade of the time constant, from 10^FIRST_DECADE steps."""
    notes: tuple[str, ...] = ()
    """Which checkpoint of a run stands for it."""

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(f"{Path(side.path).name}: {problem}" for side in (self.a, self.b) for problem in side.problems)

    def exit_code(self) -> int:
        """Return 2 if part of either could not be read, else 0."""
        return 2 if self.problems else 0

    def by_depth(self, most: int = 12) -> list[DepthRow]:
        """Return both models' layers by relative depth, as many rows as the deeper has layers, or `most`."""
        rows = min(max(len(self.a.layers), len(self.b.layers), 1), most)
        bounds = [k / rows for k in range(rows + 1)]
        return [
            DepthRow(start, stop, _between(self.a.layers, start, stop), _between(self.b.layers, start, stop))
            for start, stop in pairwise(bounds)
        ]


@one_thread()
def compare_models(
    a: CheckpointLike,
    b: CheckpointLike,
    *,
    assume: Mapping[str, str] | None = None,
    families: Sequence[Family] | None = None,
    device: str = "cpu",
    context_length: int | None = None,
    on_layer: Callable[[int, int], None] | None = None,
    notes: Sequence[str] = (),
) -> ModelComparison:
    """Return two models side by side; laws and horizons of both over one context. Each is what `diagnose` takes.

    The context is `context_length`, else the longer of the two that the models state.
    Raises what `diagnose` raises.
    """
    sides = [read_checkpoint(side) for side in (a, b)]
    context_length = longest_context(sides) if context_length is None else context_length
    examine = partial(diagnose, assume=assume, families=families, device=device, rules=Selection(()), on_layer=on_layer)
    first, second = (examine(side, context_length=context_length) for side in sides)
    shares = _shares(first), _shares(second)
    return ModelComparison(first, second, tuple(_gaps(first, second)), shares, tuple(notes))


@dataclass(frozen=True, repr=False)
class ModelTable(Result):
    """Three models or more, each diagnosed over the same context."""

    models: tuple[Diagnosis, ...]
    """Those that could be read, in the order given."""
    shares: tuple[tuple[float, ...], ...]
    """Share of each model's modes per decade of the time constant, from 10^FIRST_DECADE steps."""
    unread: tuple[str, ...]
    """A sentence on each that could not be read."""
    notes: tuple[str, ...] = ()
    """Which checkpoint of a run stands for it."""

    @property
    def problems(self) -> tuple[str, ...]:
        found = [f"{Path(side.path).name}: {problem}" for side in self.models for problem in side.problems]
        return (*self.unread, *found)

    def exit_code(self) -> int:
        """Return 2 if part of one could not be read, else 0."""
        return 2 if self.problems else 0


@one_thread()
def tabulate_models(
    paths: Sequence[CheckpointLike],
    *,
    assume: Mapping[str, str] | None = None,
    families: Sequence[Family] | None = None,
    device: str = "cpu",
    context_length: int | None = None,
    notes: Sequence[str] = (),
) -> ModelTable:
    """Return any number of models beside each other; laws and horizons of all over one context.

    The context is `context_length`, else the longest that the models state.
    Raises CheckpointError where none can be read, AssumptionError as in `diagnose`.
    """
    sides: list[Checkpoint] = []
    models: list[Diagnosis] = []
    unread: list[str] = []
    for path in paths:
        try:
            sides.append(read_checkpoint(path))
        except SsmdiagError as error:
            unread.append(sentence_on(path, error))
    context = context_length or longest_context(sides)
    examine = partial(diagnose, assume=assume, families=families, device=device, rules=Selection(()))
    for side in sides:
        try:
            models.append(examine(side, context_length=context))
        except AssumptionError:
            raise
        except SsmdiagError as error:
            unread.append(sentence_on(side.path, error))
    if not models:
        raise CheckpointError(f"none of the {len(paths)} models could be read:", details=unread)
    return ModelTable(tuple(models), tuple(map(_shares, models)), tuple(unread), tuple(notes))


def sentence_on(path: CheckpointLike, error: SsmdiagError) -> str:
    """Return an error's sentence, the file's name before it unless the sentence has it."""
    name = locate(path).name if isinstance(path, (str, Path, RemotePath)) else ""
    return error.sentence if name in error.sentence else f"{name}: {error.sentence}"


def same_structure(
    a: str | Location,
    b: str | Location,
    *,
    assume: Mapping[str, str] | None = None,
    families: Sequence[Family] | None = None,
) -> bool:
    """Whether two checkpoints have the same layers: families in order and, where spelled alike, sizes. Reads no values.

    Raises CheckpointError where one cannot be opened, AssumptionError as in `diagnose`.
    """
    return same_layers(*(recognise(read_checkpoint(path), assume=assume, families=families) for path in (a, b)))


def same_layers(a: Recognition, b: Recognition) -> bool:
    """Whether two checkpoints have as many layers, of the same families in order and, where spelled alike, sizes."""
    if [layer.family.name for layer in a.layers] != [layer.family.name for layer in b.layers]:
        return False
    return all(
        dict(one.axes) == dict(other.axes) or one.spelling.name != other.spelling.name
        for one, other in zip(a.layers, b.layers, strict=True)
    )


def require_one_model(first: tuple[Location, Recognition], other: tuple[Location, Recognition]) -> None:
    """Raise DifferentModelsError where two checkpoints, given with their paths, have other layers."""
    if not same_layers(first[1], other[1]):
        names = " and ".join(f"{path.absolute().parent.name}/{path.name}" for path, _ in (first, other))
        raise DifferentModelsError(
            f"{names} are different models: {', and '.join(_layers(found) for _, found in (first, other))}.",
            expected="checkpoints of one run",
            advice="`ssmdiag compare` puts different models into a table.",
        )


def _layers(found: Recognition) -> str:
    """Return how many layers of which family a checkpoint has, with the sizes of the first."""
    counts = Counter(layer.family.title for layer in found.layers)
    sizes = ", ".join(f"{size:,} {axis}s" for axis, size in found.layers[0].axes.items())
    return " + ".join(f"{count} × {title}" for title, count in counts.items()) + (f" ({sizes})" if sizes else "")


def _between(layers: Sequence[LayerDiagnosis], start: float, stop: float) -> tuple[LayerDiagnosis, ...]:
    """Return the layers whose middle lies at a relative depth of at least `start` and under `stop`."""
    return tuple(layer for i, layer in enumerate(layers) if start <= (i + 0.5) / len(layers) < stop)


def _shares(side: Diagnosis) -> tuple[float, ...]:
    """Return the share of the model's modes in each decade."""
    totals = [sum(counts) for counts in zip(*(_decades(layer) for layer in side.layers), strict=True)]
    return tuple(count / max(sum(totals), 1) for count in totals) or (0.0,) * (LAST_DECADE - FIRST_DECADE)


def _decades(layer: LayerDiagnosis) -> list[int]:
    bins = layer.histogram
    return [sum(bins[start : start + BINS_PER_DECADE]) for start in range(0, len(bins), BINS_PER_DECADE)]


def _gaps(a: Diagnosis, b: Diagnosis) -> list[Gap]:
    """Return what each model lacks of the other, neighbouring decades as one range."""
    gaps = []
    for lacking, poor, rich in (("a", a, b), ("b", b, a)):
        few, many = _shares(poor), _shares(rich)
        wanting = [m >= LEAST_SHARE and f < LACKING * m for f, m in zip(few, many, strict=True)]
        for is_wanting, decades in groupby(range(len(wanting)), wanting.__getitem__):
            if is_wanting:
                start, *more = decades
                stop = start + len(more) + 1
                holders = {layer.name: sum(_decades(layer)[start:stop]) for layer in rich.layers}
                gaps.append(
                    Gap(
                        lacking=lacking,  # type: ignore[arg-type]
                        low=0.0 if start == 0 else 10.0 ** (FIRST_DECADE + start),
                        high=float("inf") if stop == len(wanting) else 10.0 ** (FIRST_DECADE + stop),
                        share=sum(many[start:stop]),
                        share_lacking=sum(few[start:stop]),
                        layers=tuple(sorted((n for n, c in holders.items() if c), key=lambda n: -holders[n])),
                    )
                )
    return sorted(gaps, key=lambda gap: -gap.high)
