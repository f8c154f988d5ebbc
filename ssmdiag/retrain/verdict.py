"""What the arms' losses say: spread over seeds, width of the usable learning-rate window, who was best.

A window is measured between tried learning rates: its precision is that of the grid.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from ssmdiag.retrain.arms import Arm
from ssmdiag.retrain.results import ArmResult, RetrainResult

USABLE = 2.0
"""Usable: the final loss is at most this many times the best of all arms, and at least half of the way down to it."""
LEVELS = 3
"""Loss levels whose first step is reported: a quarter, a half and three quarters of the way down, in log loss."""


@dataclass(frozen=True)
class Summary:
    """Arms that differ in their seeds alone."""

    arm: Arm
    """The arm with the first seed."""
    seeds: int
    diverged: tuple[int, ...]
    """Steps at which runs diverged."""
    final: float | None
    """Median final loss of the runs that did not diverge."""
    spread: tuple[float, float] | None
    """Smallest and largest final loss over seeds; None for one seed."""
    best: float | None
    """Smallest loss at any validation."""
    accuracy: float | None
    """Median at the end of the runs that did not diverge; None where there are no classes."""
    steps_to: dict[float, int | None]
    """Median first step at or under each level; None where most runs never got there."""
    seconds_per_step: float
    runs: tuple[ArmResult, ...]

    def within(self, limit: float) -> bool:
        """Whether every run ended at or below this loss."""
        return all(run.final_loss is not None and run.final_loss <= limit for run in self.runs)


@dataclass(frozen=True)
class Window:
    """Learning rates at which a setting is usable: everything of an arm but learning rate and seed."""

    arm: Arm
    rates: tuple[float, ...]
    """Tried, ascending."""
    usable: tuple[float, ...]
    """Those at which every seed ended within `USABLE` times the best loss of all arms."""
    top: Summary | None
    """The rate with the smallest median final loss, of those where fewest seeds diverged; None if no run finished."""

    @property
    def best(self) -> float | None:
        """Final loss at the best rate."""
        return self.top.final if self.top else None

    @property
    def best_rate(self) -> float | None:
        return self.top.arm.lr if self.top else None

    @property
    def decades(self) -> float | None:
        """Width in decades of the longest run of usable neighbours; None where one rate was tried."""
        if len(self.rates) < 2:
            return None
        neighbours = groupby(self.rates, key=lambda rate: rate in self.usable and rate > 0)
        stretches = [list(rates) for usable, rates in neighbours if usable]
        return max((math.log10(rates[-1] / rates[0]) for rates in stretches), default=0.0)


def summarise_arms(result: RetrainResult) -> list[Summary]:
    """Return a summary for each setting, its seeds together, in the order of the arms."""
    together: dict[Arm, list[ArmResult]] = {}
    for run in result.arms:
        together.setdefault(replace(run.arm, seed=0), []).append(run)
    levels = loss_levels(result)
    return [_summary(runs, levels) for runs in together.values()]


def learning_rate_windows(result: RetrainResult) -> list[Window]:
    """Return a window for each setting, its learning rates together."""
    summaries = summarise_arms(result)
    finals = [summary.final for summary in summaries if summary.final is not None]
    limit = math.nan
    if finals:
        start = max(run.history[0].loss for run in result.arms if run.history)
        limit = min(USABLE * min(finals), (start + min(finals)) / 2)
    together: dict[Arm, list[Summary]] = {}
    for summary in summaries:
        together.setdefault(replace(summary.arm, lr=0.0, seed=0), []).append(summary)
    windows = []
    for group in together.values():
        ordered = sorted(group, key=lambda summary: summary.arm.lr)
        known = [summary for summary in ordered if summary.final is not None]
        top = min(known, key=lambda summary: (len(summary.diverged), summary.final or 0.0), default=None)
        windows.append(
            Window(
                arm=group[0].arm,
                rates=tuple(summary.arm.lr for summary in ordered),
                usable=tuple(summary.arm.lr for summary in ordered if summary.within(limit)),
                top=top,
            )
        )
    return windows


def overlap(a: Summary, b: Summary) -> bool:
    """Whether the final losses of two settings' seeds overlap; with one run left of either, lie within 5 %."""
    if a.spread and b.spread:
        return a.spread[1] >= b.spread[0] and b.spread[1] >= a.spread[0]
    low, high = sorted((a.final or 0.0, b.final or 0.0))
    return high <= 1.05 * low


def loss_levels(result: RetrainResult) -> tuple[float, ...]:
    """Return loss levels between the first loss and the best one, evenly spread in log loss."""
    first = [run.history[0].loss for run in result.arms if run.history]
    best = [run.best_loss for run in result.arms if run.best_loss]
    if not first or not best or min(best) <= 0 or min(best) >= max(first):
        return ()
    high, low = math.log(max(first)), math.log(min(best))
    # Two digits: a level is a number to say, and the same for every arm.
    return tuple(float(f"{math.exp(high + (low - high) * k / (LEVELS + 1)):.2g}") for k in range(1, LEVELS + 1))


def _summary(runs: Sequence[ArmResult], levels: Sequence[float]) -> Summary:
    ends = [run.history[-1] for run in runs if run.final_loss is not None]
    finals = sorted(point.loss for point in ends)
    return Summary(
        arm=runs[0].arm,
        seeds=len(runs),
        diverged=tuple(run.diverged_at for run in runs if run.diverged_at is not None),
        final=median(finals),
        spread=(finals[0], finals[-1]) if len(finals) > 1 else None,
        best=min((run.best_loss for run in runs if run.best_loss is not None), default=None),
        accuracy=median([point.accuracy for point in ends if point.accuracy is not None]),
        steps_to={level: _median_step(run.steps_to(level) for run in runs) for level in levels},
        seconds_per_step=sum(run.seconds_per_step for run in runs) / len(runs),
        runs=tuple(runs),
    )


def _median_step(steps: Iterable[int | None]) -> int | None:
    middle = statistics.median_high(math.inf if step is None else step for step in steps)
    return None if middle == math.inf else int(middle)


def median(values: Sequence[float]) -> float | None:
    """Return the median, None where there are no values."""
    return statistics.median(values) if values else None
