"""One layer at one checkpoint of a run, in a few numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ssmdiag.assessment.memory import LayerDecay, assess_memory, summarise_memory
from ssmdiag.assessment.spectrum import summarise
from ssmdiag.compare.mode_drift import ModeDrift, drifts_of_first_slowest
from ssmdiag.recurrence.channels import sample_channels
from ssmdiag.recurrence.modal import Recurrence
from ssmdiag.recurrence.quantiles import Quantiles

ROUNDS_TO_ONE = {
    "bfloat16": -math.log1p(-(2.0**-9)),
    "float16": -math.log1p(-(2.0**-12)),
    "float32": -math.log1p(-(2.0**-25)),
}
"""Rate at or below which a decay rounds to 1, in nats per step, by float type."""
MOST_CHANNELS = 256
"""Channels sampled for a layer's horizon and decay law."""
CROSSING_MAPS = frozenset({"none", "direct"})
"""Maps f in Re λ = −f(w) that take either sign."""


@dataclass(frozen=True)
class LayerPoint:
    """One layer at one checkpoint, in a few numbers."""

    name: str
    step: int
    family: str
    title: str
    channels: int
    modes: int
    dtype: str
    time_invariant: bool
    can_cross: bool
    """True: the rate is stored directly, so a step of the optimiser can make it negative."""
    rate: Quantiles | None
    """Nats per step; None where no mode is finite."""
    margin: float | None
    """Smallest 1 − |λ̄|."""
    nonfinite: int
    unstable: int
    marginal: int
    rounded: Mapping[str, int]
    """Modes whose decay rounds to 1, by float type."""
    moved: int | None
    """Modes whose rate changed since the layer's first checkpoint by more than the least change; None at the first."""
    horizon: Quantiles | None
    """Steps to 99 % of the energy, over channels; None where it was not computed."""
    decay: LayerDecay | None
    slowest_mode: int | None = None
    """Which mode is the slowest, channels first; None where not all are finite."""
    first_slowest: tuple[ModeDrift, ...] = ()
    """How the modes that were slowest at the layer's first checkpoint have moved; None there."""
    learning_rate: float | None = None
    """Learning rate of the weights behind the rates, where the saved optimiser state gives it."""

    @property
    def shape(self) -> tuple[str, int, int]:
        return self.family, self.channels, self.modes

    @property
    def slowest(self) -> float | None:
        """Longest time constant, in steps of the sequence."""
        if self.rate is None:
            return None
        return 1 / self.rate.min if self.rate.min > 0 else math.inf


def read_point(
    step: int,
    recurrence: Recurrence,
    title: str,
    *,
    context: int | None,
    before: Tensor | None,
    least_change: float,
    learning_rate: float | None = None,
) -> LayerPoint:
    """Return the numbers of one layer at one checkpoint.

    `before`: its rates at its first checkpoint, (channel, mode) in nats per step. Horizon and decay law are computed
    over `context` steps, None for neither.
    """
    horizon, decay = (
        (None, None)
        if context is None
        else summarise_memory(assess_memory(sample_channels(recurrence, MOST_CHANNELS), context))
    )
    rate = recurrence.rate
    moved = None
    first_slowest: tuple[ModeDrift, ...] = ()
    if before is not None and before.shape == rate.shape and recurrence.layout != "finite":
        factor = math.exp(least_change)
        moved = int(((rate > factor * before) | (factor * rate < before)).sum())
        first_slowest = drifts_of_first_slowest(before, rate)
    maps = {weight.map for weight in recurrence.weights if weight.role == "rate"}
    spread, nonfinite, unstable, marginal = _spread(recurrence, title)
    return LayerPoint(
        name=recurrence.layer,
        step=step,
        family=recurrence.family,
        title=title,
        channels=recurrence.channels,
        modes=recurrence.modes,
        dtype=recurrence.dtype,
        time_invariant=recurrence.time_invariant,
        can_cross=bool(maps & CROSSING_MAPS),
        rate=spread,
        margin=None if spread is None else -math.expm1(min(-spread.min, 700.0)),
        nonfinite=nonfinite,
        unstable=unstable,
        marginal=marginal,
        rounded={name: int((rate <= limit).sum()) for name, limit in ROUNDS_TO_ONE.items()},
        moved=moved,
        horizon=horizon,
        decay=decay,
        slowest_mode=int(rate.argmin()) if spread and not nonfinite else None,
        first_slowest=first_slowest,
        learning_rate=learning_rate,
    )


def _spread(recurrence: Recurrence, title: str) -> tuple[Quantiles | None, int, int, int]:
    """Return quantiles of the rate, and how many modes are not finite, unstable and marginal, as `summarise` does."""
    ell = recurrence.log_eigenvalues
    if recurrence.layout == "finite" or not bool(ell.isfinite().all()):
        numbers = summarise(recurrence, title)
        return numbers.rate, numbers.nonfinite, numbers.unstable, numbers.marginal
    # All that is needed for sound weights: a tenth of the work of `summarise`, over a hundred checkpoints.
    ordered = ell.real.neg().flatten().sort().values
    grow = 0 if recurrence.linearised else int((ordered < 0).sum())
    return Quantiles.of_sorted(ordered), 0, grow, int((ordered == 0).sum())
