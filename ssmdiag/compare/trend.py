"""Does a quantity drift over the checkpoints of a run, and how fast?

Checkpoints of one run are not independent draws: the path of a wandering weight rises or falls by chance. A test for
independent noise reports a trend in one such run of three with 7 checkpoints, in two of three with 20; correlated
steps mislead a test for random walks too. A trend is therefore accepted only if it rejects every null model,

    y_i = c + noise                       Mann–Kendall's rank test, exact (Mann 1945, Kendall 1975)
    y_i = y_{i−1} + noise · √(s_i − s_{i−1})    drift of a random walk, Student's t on its steps
    correlated steps, φ unknown           `correlated_steps`: weight averages, slowly turning gradients

and, of the smallest of many rates, which falls by itself where all of them wander, a fourth (`mode_drift`): the
modes that were slowest at first must have fallen. The p-value is the largest of these, and the interval of the slope
is the hull of Sen's (1968) and of both drifts'.

In simulated runs of 7 to 60 checkpoints without a drift (tests/compare/trend_worlds.py), 8 % at most were called
converging or receding: 6 % of walks with normal, wild and dying steps, 8 % with gradients that turn within 1.2
checkpoints and with averages of .995 and .999, 3 % of layers of 512 modes that wander. Drifts of 5 to 20 % a
checkpoint, in noise of up to 0.4 of that, were found in 90 % at 7 checkpoints and in 97 % from 12 on; in noise of half
the drift, 7 checkpoints show every other one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from statistics import median

from ssmdiag.compare.correlated_steps import correlated_drift
from ssmdiag.compare.significance import Slope, adjust, mann_kendall, random_walk_drift, theil_sen

ALPHA = 0.05
"""Probability of reporting a trend, in either direction and in any layer, for a run that has none."""
FEWEST = 5
"""Fewest points: of fewer, no order is rare enough (4 rising or falling points happen in 1 run of 12)."""
LEAST_CHANGE = math.log(1.05)
"""Change over the run, in nats, up to which a quantity counts as steady."""
LEVELLED = 1 / 8
"""A quantity has levelled off if its spread in the second half is at most this share of that over the run."""


class Verdict(Enum):
    """The verdict on a trend, most urgent first. Values are printed in reports and in JSON."""

    BROKEN = "not finite"
    """Modes are NaN or infinite."""
    CROSSED = "crossed"
    """A mode is on or past the stability boundary."""
    CONVERGING = "converging"
    """The memory lengthens towards the boundary, by more than chance explains."""
    UNDETERMINED = "undetermined"
    """These checkpoints cannot tell a trend from chance."""
    RECEDING = "receding"
    """The memory shortens, away from the boundary, by more than chance explains."""
    SETTLED = "settled"
    """The memory changed by more than chance explains, and has levelled off."""
    STEADY = "steady"
    """The memory did not change."""


@dataclass(frozen=True)
class Trend:
    """How one quantity changed over a run. y is in nats (a logarithm) unless stated otherwise."""

    points: int
    first: float
    last: float
    span: float
    """x of the last point minus x of the first."""
    slope: Slope
    """Theil–Sen, per unit of x; the interval is the hull of Sen's and of both drifts'."""
    rank_slope: Slope
    """Theil–Sen with Sen's interval alone, which assumes independent noise."""
    p_rank: float
    p_walk: float
    p_correlated: float
    spread: float
    """Largest minus smallest y."""
    late_slope: float
    """Theil–Sen slope over the second half of the span, and the last three points at least."""
    late_spread: float | None
    """Largest minus smallest y in the second half of the span; None where it holds fewer than three points."""
    now: float
    """y at the last point: the median of the last three, extrapolated along the slope."""
    p_modes: float | None = None
    """Whether the modes that were slowest at first went the same way; None where not needed, or not known."""

    @property
    def p(self) -> float:
        """Return the largest of all p-values: the trend must reject every null model."""
        return max(self.p_rank, self.p_walk, self.p_correlated, self.p_modes or 0.0)

    @property
    def change(self) -> float:
        """Return slope times span: the change over the run by the trend."""
        return self.slope.value * self.span

    @property
    def outlook(self) -> Slope:
        """Return the slope to extrapolate with: its interval also covers the pace of the second half."""
        slope = self.slope
        return Slope(slope.value, min(slope.low, self.late_slope), max(slope.high, self.late_slope))


def fit_trend(x: Sequence[float], y: Sequence[float]) -> Trend:
    """Return the trend of y over x, two points at least. Raises ValueError unless x increases and y is finite."""
    if len(x) != len(y) or len(x) < 2 or any(b <= a for a, b in pairwise(x)):
        raise ValueError(f"a trend needs two or more points at increasing x, got {len(x)} and {len(y)}")
    if not all(map(math.isfinite, (*x, *y))):
        raise ValueError("a trend needs finite points")
    rank = theil_sen(x, y)
    walk, p_walk = random_walk_drift(x, y)
    correlated, p_correlated = correlated_drift(x, y)
    low = min(rank.low, walk.low, correlated.low, rank.value)
    hull = Slope(rank.value, low, max(rank.high, walk.high, correlated.high, rank.value))
    start = min(sum(value < (x[0] + x[-1]) / 2 for value in x), max(len(x) - 3, 0))
    late = y[start:] if x[start] >= (x[0] + x[-1]) / 2 else ()
    return Trend(
        points=len(x),
        first=y[0],
        last=y[-1],
        span=x[-1] - x[0],
        slope=hull,
        rank_slope=rank,
        p_rank=mann_kendall(y)[1],
        p_walk=p_walk,
        p_correlated=p_correlated,
        spread=max(y) - min(y),
        late_slope=theil_sen(x[start:], y[start:]).value,
        late_spread=max(late) - min(late) if late else None,
        now=median(y[i] + rank.value * (x[-1] - x[i]) for i in range(max(0, len(x) - 3), len(x))),
    )


def judge(trends: Sequence[Trend], *, least_change: float = LEAST_CHANGE, alpha: float = ALPHA) -> list[Verdict]:
    """Return the verdict on each of several trends of one run; y is the log of a distance from the boundary.

    The p-values are adjusted for their number (Benjamini & Hochberg 1995), so that a run in which nothing drifts
    is called converging or receding anywhere with probability `alpha` at most, however many layers it has.
    """
    both = adjust([trend.p for trend in trends])
    rank = adjust([trend.p_rank for trend in trends])
    return [_judge(t, p <= alpha, r <= alpha, least_change) for t, p, r in zip(trends, both, rank, strict=True)]


def _judge(trend: Trend, drifts: bool, ordered: bool, least_change: float) -> Verdict:
    if trend.spread <= 1e-9:
        return Verdict.STEADY
    if trend.points < FEWEST:
        return Verdict.UNDETERMINED
    if abs(trend.change) > least_change:
        # The change itself is exact, and the second half shows that it has stopped: no random walk to rule out.
        if ordered and trend.late_spread is not None and trend.late_spread <= LEVELLED * trend.spread:
            return Verdict.SETTLED
        if drifts:
            return Verdict.CONVERGING if trend.change < 0 else Verdict.RECEDING
    low, high = trend.rank_slope.low * trend.span, trend.rank_slope.high * trend.span
    if trend.spread <= least_change or (-least_change <= low and high <= least_change):
        return Verdict.STEADY
    return Verdict.UNDETERMINED
