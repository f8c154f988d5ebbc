"""All that is reported of one layer's capacity: beside its family's initialisations, and with other steps Δ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ssmdiag.capacity.capacity import (
    WORK,
    CapacitySummary,
    LayerCapacity,
    affordable_channels,
    assess_capacity,
    initial_capacities,
    summarise_capacity,
)
from ssmdiag.capacity.hankel import hankel_singular_values
from ssmdiag.capacity.noise import complete
from ssmdiag.capacity.rounding import Rounding
from ssmdiag.capacity.timescale import recommend_step, trade_off
from ssmdiag.output.result import Result
from ssmdiag.printable import plural
from ssmdiag.recurrence.channels import sample_channels

if TYPE_CHECKING:
    from ssmdiag.recurrence.modal import Recurrence

MOST_TAPS = 1024
"""Lags of a convolution up to which its Hankel singular values are computed, at the cube of them."""
MOST_CHANNELS = 64
"""Channels of a layer that are looked at, the slowest among them."""


@dataclass(frozen=True)
class StepAdvice:
    """Which steps Δ would rebuild inputs from so many steps back."""

    length: int
    channels: int
    """Channels that some step makes able to."""
    of: int
    lowest: float | None
    """Least factor on Δ, the median over these channels; None without any."""
    highest: float | None
    sentence: str


@dataclass(frozen=True, repr=False)
class CapacityReport(Result):
    """One layer's capacity with what it is compared with."""

    name: str
    family: str
    time_invariant: bool
    channels: int
    modes: int
    own: CapacitySummary
    initial: Mapping[str, CapacitySummary] = field(default_factory=dict)
    """The same of the family's initialisations with as many modes, by name."""
    steps: Mapping[float, CapacitySummary] = field(default_factory=dict)
    """The same with Δ times each factor, on request."""
    wanted: StepAdvice | None = None
    """Range of Δ for a wanted length, on request."""
    states_used: float | None = None
    """Median over channels of the states that pass on 99.9 % of the energy; None for selective layers."""


def report_capacity(
    recurrence: Recurrence,
    context: int,
    *,
    state_dtype: str | None = None,
    rounding: Rounding | None = None,
    every_channel: bool = False,
    other_steps: bool = False,
    wanted: int | None = None,
) -> CapacityReport:
    """Return what one layer can rebuild of its input, and of how much of it a rounded state leaves.

    Parameters
    ----------
    context
        Lags in steps that the capacity is counted over.
    state_dtype
        Format the state is rounded to at every step; by default the one that the weights are stored in.
    other_steps
        Whether the step Δ is scaled too.
    wanted
        Length in steps for which a range of Δ is looked for.
    """
    given = rounding or Rounding()
    most = recurrence.channels if every_channel else affordable_channels(recurrence.modes, MOST_CHANNELS, 4 * WORK)
    finite = recurrence.layout == "finite"  # its capacity is where its taps end, its singular values are not so cheap
    few = sample_channels(recurrence, most)
    sample = recurrence if finite else few
    whole = given if finite else complete(given, recurrence)
    initial = initial_capacities(recurrence, context, state_dtype=state_dtype, rounding=given)
    steps = (
        trade_off(sample, context, state_dtype=state_dtype, rounding=given, whole=recurrence)
        if other_steps and not finite
        else {}
    )
    return CapacityReport(
        name=recurrence.layer,
        family=recurrence.family,
        time_invariant=recurrence.time_invariant,
        channels=recurrence.channels,
        modes=recurrence.modes,
        own=summarise_capacity(assess_capacity(sample, context, state_dtype=state_dtype, rounding=whole)),
        initial={name: summarise_capacity(own) for name, own in initial.items()},
        steps={factor: summarise_capacity(own) for factor, own in steps.items()},
        wanted=_advise(sample, wanted, state_dtype, whole) if wanted else None,
        states_used=_states_used(few),
    )


def report_alone(capacity: LayerCapacity) -> CapacityReport:
    """Return the report of a capacity that is already known, beside which nothing is put."""
    own = summarise_capacity(capacity)
    modes = int(capacity.modes.max()) if capacity.modes.numel() else 0
    return CapacityReport(capacity.layer, capacity.family, not capacity.gated, own.channels, modes, own)


def _advise(recurrence: Recurrence, wanted: int, state_dtype: str | None, rounding: Rounding) -> StepAdvice:
    """Return the range of factors on Δ that gives a length, over the channels that can reach it."""
    if recurrence.taps is not None:
        sentence = f"a convolution has no step Δ: its {recurrence.taps.shape[2]:,} taps are all that it sees."
        return StepAdvice(wanted, 0, recurrence.channels, None, None, sentence)
    found = recommend_step(recurrence, wanted, state_dtype=state_dtype, rounding=rounding)
    able = found.reachable
    count, total = int(able.sum()), len(able)
    back = f"{plural(wanted, 'step')} back to one half"
    if not count:
        best = found.memory[~found.memory.isnan()]
        most = f" (the best reaches {float(best.max()):.2f})" if best.numel() else ""
        sentence = f"no step Δ makes any of {plural(total, 'channel')} rebuild inputs {back}{most}."
        return StepAdvice(wanted, count, total, None, None, sentence)
    low, high = float(found.lowest[able].median()), float(found.highest[able].median())
    sentence = (
        f"to rebuild inputs {back}, multiply Δ by {low:.3g} … {high:.3g} (median over "
        f"the {count:,} of {plural(total, 'channel')} that can)."
    )
    return StepAdvice(wanted, count, total, low, high, sentence)


def _states_used(recurrence: Recurrence) -> float | None:
    if not recurrence.time_invariant or recurrence.layout == "none":
        return None
    if recurrence.taps is not None and recurrence.modes > MOST_TAPS:
        return None
    used = hankel_singular_values(recurrence).states_for(0.999)
    used = used[~used.isnan()]
    return float(used.median()) if used.numel() else None
