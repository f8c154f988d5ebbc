"""What `Watch` reads of a live model at one train step, and of each of its layers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ssmdiag.assessment.memory import assess_memories, summarise_memory
from ssmdiag.compare.layer_point import CROSSING_MAPS, ROUNDS_TO_ONE
from ssmdiag.errors import SsmdiagError
from ssmdiag.guard import guard
from ssmdiag.recurrence.modal import Recurrence

if TYPE_CHECKING:
    from torch import Tensor

NEAR = ROUNDS_TO_ONE["bfloat16"]
"""Rate in nats per step at and below which a mode counts as near the boundary."""
REACHES = CROSSING_MAPS | {"relu"}
"""Maps of a weight that is the rate itself: steps of one size take it to the boundary in a finite number."""


@dataclass(frozen=True)
class LayerReading:
    """One layer in a few numbers. Steps are those of the sequence."""

    name: str
    """Dotted path of its module, with the branch if it has several."""
    margin: float
    """Smallest 1 − |λ̄|; negative where a mode grows, NaN where one is not finite."""
    half_life: float
    """Longest, in steps; infinite on and past the stability boundary, NaN where a mode is not finite."""
    near_boundary: float
    """Share of modes with 1 − |λ̄| ≤ 2⁻⁹, whose decay rounds to 1 in bfloat16."""
    nonfinite: int
    """Modes that are NaN or infinite, in float64 or in the model's own arithmetic."""
    modes: int
    slowest_rate: float
    """Nats per step; NaN where a mode is not finite, as the fastest."""
    fastest_rate: float
    ceiling: float
    """The rate at which the model's own arithmetic overflows."""
    linear: bool
    """Whether its weight is the rate itself: then it falls to 0 along a line, else its logarithm does."""
    linearised: bool = False
    """Whether it is the slope of a nonlinear recurrence, which past the boundary saturates."""
    law: str | None = None
    """How its kernel decays; None where that was not sought at this reading."""
    horizon: float | None = None
    """Steps to 99 % of the energy, in the median channel; None where it was not sought, or is not known."""


@dataclass(frozen=True)
class Reading:
    """A live model at one train step."""

    train_step: int
    layers: tuple[LayerReading, ...]
    warnings: tuple[str, ...]
    """What was said at this reading."""
    problems: tuple[str, ...]
    """Layers that could not be read now."""
    seconds: float

    @property
    def worst(self) -> LayerReading:
        """The layer with the smallest margin; one that is not finite before all others."""
        return min(self.layers, key=lambda layer: -math.inf if math.isnan(layer.margin) else layer.margin)

    @property
    def margin(self) -> float:
        """The smallest margin of all layers; NaN where a mode is not finite, or no layer could be read."""
        return self.worst.margin if self.layers else math.nan

    @property
    def broken(self) -> bool:
        """Whether a mode is NaN or infinite: from there no training recovers."""
        return any(layer.nonfinite for layer in self.layers)

    def scalars(self) -> dict[str, float]:
        """Return the numbers under the names that loggers show: `ssmdiag/margin`, `ssmdiag/<layer>/margin`, …"""
        found = {"ssmdiag/margin": self.margin, "ssmdiag/half_life": self.worst.half_life} if self.layers else {}
        for layer in self.layers:
            place = f"ssmdiag/{layer.name or 'model'}"
            found[f"{place}/margin"] = layer.margin
            found[f"{place}/half_life"] = layer.half_life
            found[f"{place}/near_boundary"] = layer.near_boundary
            if layer.horizon is not None:
                found[f"{place}/horizon"] = layer.horizon
        return found


def read_layer(recurrence: Recurrence, law: str | None = None, horizon: float | None = None) -> LayerReading:
    """Return the numbers of one recurrence."""
    rate, ceiling = recurrence.rate, _ceiling(recurrence.dtype)
    low, high = rate.aminmax()
    near = (rate <= NEAR).double().mean()
    sound = recurrence.frequency.isfinite().all().double()
    slowest, fastest, share, finite = torch.stack([low, high, near, sound]).tolist()  # one wait for a GPU
    nonfinite = 0
    if not (finite and -ceiling < slowest and fastest < ceiling):  # NaN is neither
        nonfinite = int(_broken(recurrence, ceiling).sum())
    if nonfinite:
        slowest = fastest = math.nan
    return LayerReading(
        name=recurrence.layer,
        margin=-math.expm1(min(-slowest, 700.0)) if not nonfinite else math.nan,
        half_life=(math.log(2) / slowest if slowest > 0 else math.inf) if not nonfinite else math.nan,
        near_boundary=share,
        nonfinite=nonfinite,
        modes=rate.numel(),
        slowest_rate=slowest,
        fastest_rate=fastest,
        ceiling=ceiling,
        linear=any(weight.role == "rate" and weight.map in REACHES for weight in recurrence.weights),
        linearised=recurrence.linearised,
        law=law,
        horizon=horizon,
    )


def find_laws(recurrences: Sequence[Recurrence], context: int, problems: list[str]) -> dict[str, dict[str, Any]]:
    """Return `law` and `horizon` of each layer by its name; of those on one device together, which takes a third."""
    groups: dict[torch.device, list[Recurrence]] = defaultdict(list)
    for recurrence in recurrences:
        groups[recurrence.log_eigenvalues.device].append(recurrence)
    found: dict[str, dict[str, Any]] = {}
    waiting = list(groups.values())
    while waiting:
        group = waiting.pop()
        try:
            with guard(group[0].layer, "its law"):
                for memory in assess_memories(group, context, tails=False):
                    horizon, decay = summarise_memory(memory)
                    found[memory.layer] = {"law": decay.law[0], "horizon": horizon and horizon.median}
        except SsmdiagError as error:
            if len(group) == 1:
                problems.append(error.sentence)
            else:
                waiting += [[recurrence] for recurrence in group]
    return found


def _broken(recurrence: Recurrence, ceiling: float) -> Tensor:
    """Return which modes are NaN or beyond the model's arithmetic, (channel, mode) bool.

    λ̄ = 0 is a rate of +inf, a mode that forgets at once; if an infinite weight causes it, the mode is broken.
    """
    if recurrence.taps is not None:
        return ~recurrence.taps.isfinite().all(0)
    rate = recurrence.rate
    whole = all(bool(weight.values.isfinite().all()) for weight in recurrence.weights)
    forgets = (rate == math.inf) & whole
    return ~(((rate.abs() < ceiling) | forgets) & recurrence.frequency.isfinite())


def _ceiling(dtype: str) -> float:
    """Return the largest number of the type in which a model computes with weights stored as `dtype`."""
    if dtype in ("float16", "complex32"):
        return torch.finfo(torch.float16).max
    return torch.finfo(torch.float64 if dtype in ("float64", "complex128") else torch.float32).max
