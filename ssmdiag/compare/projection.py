"""When does a drifting quantity reach a limit? A step if its pace is constant, a bound if it slows, or nothing.

A step is named with the interval in which the line through the *first* point meets the limit at a slope within the
trend's interval: a walk that has strayed from its line continues from where it is, and its slope is known no better
than its steps allow. No step is named where the run slows down,

    late half / early half < 0.6                        by Theil–Sen slopes
    late half / early half < 0.85, by more than chance  Welch's comparison of the steps, one-sided, at 1 %
    last quarter / before  < 0.8,  by more than chance

because a line through a flattening curve meets every limit, and no interval about it is valid. Then a bound is given:
at the slower pace of the late half and of the last quarter, the limit is not reached before this step.

In the simulations of `trend`, a step was named in 97 % of the constant drifts that were found, and its interval held in
95 %; under cosine and linear schedules, decays over 40 % of the run or more, and saturation within half of it, one was
named in 4 %. Of constant drifts 3 % were taken for slowing ones, and then the bound is later than the crossing. What
has hardly begun to slow cannot be told from a few weights: a decay of the learning rate in the last fifth of a run
passes for none in most, and one that slows smoothly under 20 checkpoints stays undetermined, as steps that keep their
direction would look the same. Where the files hold the optimiser's state, the trend is drawn over the integral of the
learning rate, and no step is named once that falls; else projections say that they assume it stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from ssmdiag.compare.correlated_steps import first_correlation
from ssmdiag.compare.significance import Slope, student_p, theil_sen

REACH = 10.0
"""Projections end at this many observed spans past the last point."""
SLOWER = 0.6
"""Below this share of the early half's pace the late half counts as slower, whatever the noise."""
SLOWER_BY_TEST = {0.5: 0.85, 0.25: 0.8}
"""Last part of the run → share of the earlier pace below which a test decides whether it is slower."""
LEVEL = 0.01


class Unnamed(Enum):
    """Why no step is named. Values are printed in JSON."""

    SLOWS = "slows"
    RATE_FALLS = "learning rate falls"
    RATE_ENDED = "learning rate is 0"


@dataclass(frozen=True)
class Crossing:
    """When a trend reaches a limit."""

    at: float | None
    """x; None where it lies beyond `reach`, the trend leads away, or none is named."""
    earliest: float | None
    """From the steeper end of the slope's interval; None where even that lies beyond `reach`, or none is named."""
    latest: float | None
    """From the flatter end; None where that lies beyond `reach`, never comes, or none is named."""
    reach: float
    """The largest x that was searched."""
    unnamed: Unnamed | None = None
    not_before: float | None = None
    """Where no step is named: the limit is not reached before this x unless the pace rises; None past `reach`."""


@dataclass(frozen=True)
class Pace:
    """The pace of a falling quantity in parts of its run, per unit of x."""

    early: float
    late: float
    end: float
    """Theil–Sen slope over the last quarter of the span, and the last three points at least."""
    slows: bool

    @property
    def slowest(self) -> float:
        """Return the flatter of the late half's slope and the end's, for a quantity that falls."""
        return max(self.late, self.end)


def measure_pace(x: Sequence[float], y: Sequence[float]) -> Pace:
    """Return the pace of y over x, five points or more, and whether its fall slows."""
    middle, quarter = (x[0] + (x[-1] - x[0]) * share for share in (0.5, 0.75))
    early = max(sum(value <= middle for value in x), 3)
    late, end = (min(sum(value < start for value in x), len(x) - 3) for start in (middle, quarter))
    first, second, last = (theil_sen(x[i:j], y[i:j]).value for i, j in ((0, early), (late, len(x)), (end, len(x))))
    slows = first < 0 and second > SLOWER * first
    slows = slows or any(_slower(x, y, part, most) for part, most in SLOWER_BY_TEST.items())
    return Pace(first, second, last, slows)


def _slower(x: Sequence[float], y: Sequence[float], part: float, most: float) -> bool:
    """Whether the steps in the last part of the span fall by less than `most` of the others, by more than chance."""
    start = x[-1] - part * (x[-1] - x[0])
    steps = [(b - a, d - c, (a + b) / 2 >= start) for (a, b), (c, d) in zip(pairwise(x), pairwise(y), strict=True)]
    steps[-1] = (*steps[-1][:2], True)
    gaps = [sum(gap for gap, _, late in steps if late is side) for side in (False, True)]
    freedom = len(steps) - 2
    if freedom < 1 or not all(gaps):
        return False
    before, after = (sum(move for _, move, late in steps if late is side) / gaps[side] for side in (False, True))
    if not (before < 0 and after > most * before):
        return False
    left = [(move - (after if late else before) * gap) / math.sqrt(gap) for gap, move, late in steps]
    phi = first_correlation(left)
    inflation = (1 + phi) / (1 - phi)
    freedom = min(max(int(len(steps) / inflation - 2), 1), freedom)
    variance = sum(v * v for v in left) / (len(steps) - 2) * inflation * (1 / gaps[0] + 1 / gaps[1])
    return variance == 0 or student_p((after - before) / math.sqrt(variance), freedom) <= 2 * LEVEL


def project(first: tuple[float, float], now: tuple[float, float], slope: Slope, target: float, span: float) -> Crossing:
    """Return when y, at (x, y) = `first` at the start of the run and `now` at its end, falls to `target`.

    Nothing is said beyond `REACH` spans past the last point: a trend need not continue.
    """
    last = now[0]
    reach = last + REACH * span

    def arrival(start: tuple[float, float], rate: float) -> float:
        if now[1] <= target:
            return last
        return max(start[0] + (start[1] - target) / -rate, last) if rate < 0 else math.inf

    at = arrival(now, slope.value)
    earliest = min(at, arrival(first, slope.low))
    latest = max(at, arrival(first, slope.high))
    step, soonest, last_one = (value if value <= reach else None for value in (at, earliest, latest))
    return Crossing(step, soonest, last_one, reach)


def bound(now: tuple[float, float], pace: float, target: float, span: float, why: Unnamed) -> Crossing:
    """Return the step before which y, `now` at the end of its run, is not at `target` at this pace or a slower one."""
    reach = now[0] + REACH * span
    before = now[0] + max(now[1] - target, 0.0) / -pace if pace < 0 else math.inf
    return Crossing(None, None, None, reach, why, before if before <= reach else None)
