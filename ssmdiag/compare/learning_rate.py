"""The learning rate of a layer at each checkpoint, where the optimiser's state is saved, and its integral.

A weight that an optimiser pushes one way moves by about the learning rate at every step (Kingma & Ba 2015, §2.1), so
it moves along a line over ∫lr, not over the step. The integral is in steps at the last learning rate and ends at
the last step: a line over it that meets a limit at u does so at step u, if the learning rate stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate, pairwise

from ssmdiag.checkpoint import Checkpoint
from ssmdiag.errors import SsmdiagError
from ssmdiag.recurrence.modal import Recurrence

SAME = 0.01
"""Relative change up to which the learning rate counts as constant."""


class Schedule(Enum):
    """What the learning rate does at the end of the run."""

    STAYS = "stays"
    RISES = "rises"
    FALLS = "falls"
    ENDED = "is 0"


@dataclass(frozen=True)
class LearningRates:
    """Learning rates at one checkpoint, by parameter."""

    known: Mapping[str, float]
    common: float | None
    """Learning rate of every parameter, if all groups have the same."""

    def of(self, recurrence: Recurrence) -> float | None:
        """Return the learning rate of the weights that decide a layer's rates; None unless it is known to be one."""
        names = {weight.name for weight in recurrence.weights if weight.role == "rate"}
        names = names or {weight.name for weight in recurrence.weights if weight.role == "step"}
        rates = {self.known.get(name, self.common) for name in names or {""}}
        return rates.pop() if len(rates) == 1 else None


def read_learning_rates(checkpoint: Checkpoint) -> LearningRates:
    """Return what the optimiser's state says, where the checkpoint has one that can be read."""
    try:
        groups = checkpoint.optimizer_groups
    except SsmdiagError:  # compare needs no optimiser state; `check` reports what is wrong with it
        groups = ()
    rates = [group.learning_rate for group in groups]
    known = {
        name: rate
        for group, rate in zip(groups, rates, strict=True)
        if rate is not None and rate >= 0
        for name in group.parameters or ()
    }
    common = rates[0] if rates and len(set(rates)) == 1 and rates[0] is not None and rates[0] >= 0 else None
    return LearningRates(known, common)


def schedule_of(rates: Sequence[float]) -> Schedule:
    """Return what the learning rate did over the last quarter of the checkpoints, two at least."""
    recent, last = rates[-max(round(len(rates) / 4) + 1, 2) :], rates[-1]
    if last <= 0:
        return Schedule.ENDED
    if last < (1 - SAME) * max(recent):
        return Schedule.FALLS
    return Schedule.RISES if min(recent) < (1 - SAME) * last else Schedule.STAYS


def steps_at_last_rate(steps: Sequence[float], rates: Sequence[float]) -> list[float] | None:
    """Return ∫lr from each step to the last, in steps at the last rate, by trapezoids, counted back from the last.

    None where it does not grow from checkpoint to checkpoint.

    >>> steps_at_last_rate([0, 100, 200], [3.0, 1.0, 1.0])
    [-100.0, 100.0, 200.0]
    """
    if rates[-1] <= 0:
        return None
    areas = [(b - a) * (p + q) / 2 for (a, b), (p, q) in zip(pairwise(steps), pairwise(rates), strict=True)]
    ahead = list(accumulate(reversed(areas), initial=0.0))[::-1]
    back = [steps[-1] - area / rates[-1] for area in ahead]
    return back if all(a < b for a, b in pairwise(back)) else None
