"""The drift of a path whose steps keep their direction for a while: weight averages, slowly turning gradients.

    d_i = μ g_i + √g_i · σ v_i,     v_i = φ v_{i−1} + √(1 − φ²) z_i,     0 ≤ φ < 1

Six steps say little about φ, and a drift looks like a large φ: equal steps are a drift, or φ near 1. Two treatments of
the unknown φ are therefore tried, and the smaller p-value counts, each times the factor that keeps the error rate in
simulated runs at what tests/trend_worlds.py states:

*Put in*: φ from the correlation of neighbouring steps, corrected for its bias, E r ≈ φ − (1 + 3φ)/m; Student's t
with the number of independent steps that m correlated ones are worth (Bartlett 1935). Finds drifts in much noise.

*Averaged over*: φ uniform below 0.95, μ and log σ flat; the mean, by the likelihood of each φ, of the p-values that
generalised least squares has for it. Finds drifts in little noise, where the φ put in is often too large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from ssmdiag.compare.significance import LEVEL, Slope, steps_of, student_p, student_quantile, student_slope

AVERAGED = 2.5
"""Factor of the p-value averaged over φ."""
PUT_IN = 15
"""Steps from which on the p-value with φ put in counts as it is; with fewer, times the quotient of both numbers."""
MOST_PUT_IN = 0.97
GRID = tuple(i / 20 for i in range(20))
"""The φ that are averaged over."""


def correlated_drift(x: Sequence[float], y: Sequence[float]) -> tuple[Slope, float]:
    """Return the drift of a walk with correlated steps, its interval and its two-sided p-value.

    The interval is that of the treatment with the smaller p-value, at `LEVEL` divided by its factor: it excludes 0
    where the p-value is under `LEVEL`.
    """
    gaps, moves, drift, least = steps_of(x, y)
    if len(gaps) < 2:
        return Slope(drift, -math.inf, math.inf), 1.0
    root = [math.sqrt(gap) for gap in gaps]
    left = [(move - drift * gap) / r for move, gap, r in zip(moves, gaps, root, strict=True)]
    ways = [_put_in(left, sum(gaps), drift, least), _averaged(left, root, drift, least)]
    slope, p = min(ways, key=lambda way: way[1])
    return slope, min(1.0, p)


def first_correlation(left: Sequence[float]) -> float:
    """Return φ of steps about their mean by the correlation of neighbours, corrected for its bias; 0 if negative."""
    m = len(left)
    square = sum(v * v for v in left)
    r = sum(a * b for a, b in pairwise(left)) / square if square > 0 else 0.0
    phi = (r * m + 1) / (m - 3) if m > 4 else r + 1 / m
    return min(max(phi, 0.0), MOST_PUT_IN)


def _put_in(left: Sequence[float], total: float, drift: float, least: float) -> tuple[Slope, float]:
    m = len(left)
    factor = max(PUT_IN / m, 1.0)
    phi = first_correlation(left)
    inflation = 1 + 2 * sum((1 - k / m) * phi**k for k in range(1, m))
    freedom = max(int(max(m / inflation, 1.5) - 1), 1)
    error = max(math.sqrt(sum(v * v for v in left) / (m - 1) * inflation / total), least)
    return student_slope(drift, error, freedom, factor)


def _averaged(left: Sequence[float], root: Sequence[float], drift: float, least: float) -> tuple[Slope, float]:
    """Return the drift by generalised least squares, averaged over φ.

    (1 − φ²) R⁻¹ is tridiagonal, so that each φ needs six sums only. The spread of the mixture is that between drifts
    and that within them.
    """
    freedom = len(left) - 1
    sums = [_sums(a, b) for a, b in ((left, left), (root, left), (root, root))]
    fits = []
    for phi in GRID:
        square, mixed, weight = (ends + (1 + phi * phi) * inner - phi * beside for ends, inner, beside in sums)
        shift = mixed / weight
        # A centred square: rounding may leave it slightly below zero.
        variance = max((square - shift * mixed) / freedom / weight, least * least)
        if variance == 0:
            return student_slope(drift, 0.0, freedom, AVERAGED)
        residual = math.log(variance * weight)
        likelihood = 0.5 * (math.log1p(-phi * phi) - math.log(weight) - freedom * residual)
        fits.append((likelihood, drift + shift, variance))
    most = max(fit[0] for fit in fits)
    shares = [math.exp(fit[0] - most) for fit in fits]
    shares = [share / sum(shares) for share in shares]
    p = sum(share * student_p(mu / math.sqrt(v), freedom) for share, (_, mu, v) in zip(shares, fits, strict=True))
    middle = sum(share * mu for share, (_, mu, _) in zip(shares, fits, strict=True))
    if freedom < 3:
        return Slope(middle, -math.inf, math.inf), AVERAGED * p
    wide = freedom / (freedom - 2)
    spread = sum(share * (wide * v + (mu - middle) ** 2) for share, (_, mu, v) in zip(shares, fits, strict=True))
    half = student_quantile(1 - LEVEL / AVERAGED / 2, freedom) * math.sqrt(spread / wide)
    return Slope(middle, middle - half, middle + half), AVERAGED * p


def _sums(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Return Σ a b over both ends, over the interior, and over neighbours."""
    ends = a[0] * b[0] + a[-1] * b[-1]
    inner = sum(u * v for u, v in zip(a[1:-1], b[1:-1], strict=True))
    return ends, inner, sum(a[i] * b[i + 1] + a[i + 1] * b[i] for i in range(len(a) - 1))
