"""Two models side by side → `ModelComparison`: what memory one has that the other lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ssmdiag.checkpoint import Checkpoint, read_checkpoint
from ssmdiag.cores import one_thread
from ssmdiag.diagnosis import context_length_of, diagnose
from ssmdiag.families.recognition import recognise
from ssmdiag.rules.selection import Selection
from ssmdiag.spectrum import BINS_PER_DECADE, FIRST_DECADE, LAST_DECADE

if TYPE_CHECKING:
    from ssmdiag.diagnosis import Diagnosis
    from ssmdiag.families.interface import Family
    from ssmdiag.spectrum import LayerDiagnosis

LEAST_SHARE = 0.01
"""Share of a model's modes in a range of time constants that is worth speaking of."""
LACKING = 0.1
"""A model lacks what it has less than this share of the other's share of."""


@dataclass(frozen=True)
class Gap:
    """Time constants that one model has and the other as good as lacks."""

    lacking: Literal["a", "b"]
    low: float
    """Steps; 0 where the range is open below."""
    high: float
    """Steps; infinite where it is open above."""
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


@dataclass(frozen=True)
class ModelComparison:
    """Two models, each diagnosed over the same context."""

    a: Diagnosis
    b: Diagnosis
    gaps: tuple[Gap, ...]
    """Longest time constants first."""
    shares: tuple[tuple[float, ...], tuple[float, ...]]
    """Share of each model's modes per decade of the time constant, from 10^FIRST_DECADE steps."""

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
    a: str | Path | Checkpoint,
    b: str | Path | Checkpoint,
    *,
    assume: Mapping[str, str] | None = None,
    families: Sequence[Family] | None = None,
    device: str = "cpu",
    context_length: int | None = None,
    on_layer: Callable[[int, int], None] | None = None,
) -> ModelComparison:
    """Return two models side by side; laws and horizons of both over one context.

    The context is `context_length`, else the longer of the two that the models state.
    Raises what `diagnose` raises.
    """
    sides = [side if isinstance(side, Checkpoint) else read_checkpoint(side) for side in (a, b)]
    if context_length is None:
        stated = [length for side in sides if (length := context_length_of(side.settings))]
        context_length = max(stated, default=None)
    first, second = (
        diagnose(
            side,
            assume=assume,
            families=families,
            device=device,
            context_length=context_length,
            rules=Selection(()),
            on_layer=on_layer,
        )
        for side in sides
    )
    return ModelComparison(first, second, tuple(_gaps(first, second)), (_shares(first), _shares(second)))


def same_structure(
    a: str | Path,
    b: str | Path,
    *,
    assume: Mapping[str, str] | None = None,
    families: Sequence[Family] | None = None,
) -> bool:
    """Whether two checkpoints have the same layers: families in order and, where spelled alike, sizes. Reads no values.

    Raises CheckpointError where one cannot be opened, AssumptionError as in `diagnose`.
    """
    first, second = (recognise(read_checkpoint(path), assume=assume, families=families).layers for path in (a, b))
    if [layer.family.name for layer in first] != [layer.family.name for layer in second]:
        return False
    return all(
        dict(one.axes) == dict(other.axes) or one.spelling.name != other.spelling.name
        for one, other in zip(first, second, strict=True)
    )


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
        start = 0
        while start < len(wanting):
            stop = start
            while stop < len(wanting) and wanting[stop]:
                stop += 1
            if stop > start:
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
            start = stop + 1
    return sorted(gaps, key=lambda gap: -gap.high)
