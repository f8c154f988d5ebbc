"""Rank tests, the drift of a random walk, Student's t: is a trend in a few points more than chance?

Plain numbers only: tens of points, no arrays.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from statistics import NormalDist, median

LEVEL = 0.05
"""Two-sided level of every interval: 95 %."""
EXACT = 60
"""Points up to which the distribution of Kendall's S is exact; beyond it, normal."""


@dataclass(frozen=True)
class Slope:
    """A slope per unit of x with its 95 % interval; infinite ends where the points allow any."""

    value: float
    low: float
    high: float


def theil_sen(x: Sequence[float], y: Sequence[float]) -> Slope:
    """Return the median of all pairwise slopes, with Sen's interval: slopes that Mann–Kendall does not reject.

    y − βx has no trend at level `LEVEL` for β strictly between the ends (Sen 1968; exact to `EXACT` points).
    """
    n = len(x)
    slopes = sorted((y[j] - y[i]) / (x[j] - x[i]) for i in range(n) for j in range(i + 1, n))
    least = _critical_score(n)
    if least is None:
        return Slope(median(slopes), -math.inf, math.inf)
    # With k slopes below β, S = count − 2k; β is kept while |S| stays under the least S that is rejected.
    below = (len(slopes) - least) // 2
    return Slope(median(slopes), slopes[below], slopes[len(slopes) - 1 - below])


def mann_kendall(y: Sequence[float]) -> tuple[int, float]:
    """Return Kendall's S of y against its order, and the two-sided p-value, ties included.

    >>> mann_kendall([1.0, 2.0, 3.0, 4.0, 5.0])
    (10, 0.016666666666666666)
    """
    n = len(y)
    score = sum(int(y[j] > y[i]) - int(y[j] < y[i]) for i in range(n) for j in range(i + 1, n))
    groups = tuple(sorted(count for count in Counter(y).values() if count > 1))
    return score, _tail(n, groups, abs(score))


def random_walk_drift(x: Sequence[float], y: Sequence[float]) -> tuple[Slope, float]:
    """Return the drift of a random walk through the points with its 95 % interval, and its two-sided p-value.

    Steps d_i over gaps g_i: d_i = μ g_i + σ √g_i z_i, so μ = Σd/Σg, σ² = Σ (d − μg)²/g / (m − 1) for m steps,
    and (μ̂ − μ) √Σg / σ̂ is Student's t with m − 1 degrees of freedom.
    """
    gaps, moves, drift, least = steps_of(x, y)
    freedom = len(gaps) - 1
    if freedom == 0:
        return Slope(drift, -math.inf, math.inf), 1.0
    variance = sum((d - drift * g) ** 2 / g for d, g in zip(moves, gaps, strict=True)) / freedom
    return student_slope(drift, max(math.sqrt(variance / sum(gaps)), least), freedom)


def steps_of(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float], float, float]:
    """Return the gaps in x, the moves of y over them, the drift, and the least error that a drift has.

    Equal steps leave only the rounding of y as their scatter.
    """
    gaps, moves = ([b - a for a, b in pairwise(values)] for values in (x, y))
    total = sum(gaps)
    return gaps, moves, sum(moves) / total, 1e-15 * max(map(abs, y)) / total


def student_slope(drift: float, error: float, freedom: int, factor: float = 1.0) -> tuple[Slope, float]:
    """Return a drift with its interval at `LEVEL` divided by a factor, and its two-sided p-value times that factor."""
    if error == 0:
        return Slope(drift, drift, drift), 1.0
    half = student_quantile(1 - LEVEL / factor / 2, freedom) * error
    return Slope(drift, drift - half, drift + half), factor * student_p(drift / error, freedom)


def adjust(p_values: Sequence[float]) -> list[float]:
    """Return Benjamini & Hochberg's (1995) adjusted p-values.

    >>> adjust([0.01, 0.04, 0.03])
    [0.03, 0.04, 0.04]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i], reverse=True)
    adjusted, least = [1.0] * len(p_values), 1.0
    for position, i in enumerate(order):
        least = min(least, p_values[i] * len(p_values) / (len(p_values) - position))
        adjusted[i] = least
    return adjusted


def student_p(t: float, freedom: int) -> float:
    """Return P(|T| ≥ |t|) of Student's t with a whole number of degrees of freedom (Zelen & Severo 1964, 26.7.3-4)."""
    t = abs(t)
    cosine, sine = math.sqrt(freedom / (freedom + t * t)), t / math.sqrt(freedom + t * t)
    odd = freedom % 2
    term = total = cosine if odd else 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    inside = sine * total if freedom > 1 else 0.0
    if odd:
        inside = 2 / math.pi * (math.atan2(t, math.sqrt(freedom)) + inside)
    return max(0.0, 1 - inside)


@lru_cache(maxsize=1024)
def student_quantile(share: float, freedom: int) -> float:
    """Return the t that is exceeded with probability 1 − share, for a share between ½ and 1, by bisection."""
    low, high = 0.0, 1.0
    while student_p(high, freedom) > 2 * (1 - share):
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_p(middle, freedom) > 2 * (1 - share) else (low, middle)
    return (low + high) / 2


def _tail(n: int, groups: tuple[int, ...], score: int) -> float:
    """Return P(|S| ≥ score) over all orders of n values with tie groups of these sizes."""
    if score == 0:
        return 1.0
    if n > EXACT:
        variance = (_spread(n) - sum(map(_spread, groups))) / 18
        return 2 * NormalDist().cdf(-(score - 1) / math.sqrt(variance))
    inversions = _inversions(n, groups)
    # S = (pairs that differ) − 2 · inversions, symmetric about 0.
    worst = (len(inversions) - 1 - score) // 2
    return min(1.0, 2 * sum(inversions[: worst + 1]) / sum(inversions))


def _spread(n: int) -> int:
    return n * (n - 1) * (2 * n + 5)


def _critical_score(n: int) -> int | None:
    """Return the least S that is rejected at `LEVEL` two-sided among n values without ties, None if none is."""
    pairs = n * (n - 1) // 2
    if _tail(n, (), pairs) > LEVEL:
        return None
    # S = pairs − 2k: the k most extreme scores on one side
    beyond = bisect_right(range(pairs // 2 + 1), LEVEL, key=lambda k: _tail(n, (), pairs - 2 * k))
    return pairs - 2 * (beyond - 1)


@lru_cache(maxsize=256)
def _inversions(n: int, groups: tuple[int, ...]) -> tuple[int, ...]:
    """Return how many orders of a multiset have each number of inversions: Gauss's multinomial [n]!/Π[m]!."""
    counts = [1]
    for i in range(2, n + 1):
        counts = _times(counts, i)
    for size in groups:
        for i in range(2, size + 1):
            counts = _over(counts, i)
    return tuple(counts)


def _times(counts: list[int], i: int) -> list[int]:
    """Multiply a polynomial by 1 + q + … + q^(i−1)."""
    return list(accumulate(a - b for a, b in zip([*counts, *[0] * (i - 1)], [*[0] * i, *counts[:-1]], strict=True)))


def _over(counts: list[int], i: int) -> list[int]:
    """Divide a polynomial by 1 + q + … + q^(i−1), which divides it."""
    result = [0] * i
    for before, count in pairwise([0, *counts[: len(counts) - i + 1]]):
        result.append(count - before + result[-i])
    return result[i:]
