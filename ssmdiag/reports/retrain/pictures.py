"""Pictures of a comparison of arms: learned and target kernels, losses over noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ssmdiag.reports.pictures import draw, drawn, open_figure, open_panels, rule
from ssmdiag.reports.words import decade

if TYPE_CHECKING:
    from ssmdiag.reports.interface import Settings

DEPTH = 60
"""Range shown, in dB below the peak of the target kernel."""
MOST_POINTS = 60
"""Points of a curve; more only blacken it."""


def kernel_picture(target: Sequence[float], curves: Mapping[str, Sequence[float]], settings: Settings) -> list[str]:
    """Return learned kernels by their letters and the target kernel: |K| in dB against log lag, K against lag."""
    figure = open_figure(settings, 120, 12)
    first, second = open_panels(figure, 2, settings)
    peak = max(map(abs, target)) or 1.0
    last = max(len(target) - 1, 1)
    dot = "dot" if settings.unicode else "*"
    loud = sorted({round(math.expm1(math.log1p(last) * k / MOST_POINTS)) for k in range(MOST_POINTS + 1)})
    for marker, values in (*curves.items(), (dot, target)):
        levels = [(math.log10(1 + lag), _decibels(values[lag] / peak)) for lag in loud]
        draw(first, [(x, y) for x, y in levels if y >= -DEPTH], marker)
    first.title("|K| in dB against lag, log")
    first.ruler("y").lim(-DEPTH, 5)
    first.ruler("y").ticks(list(range(0, -DEPTH - 1, -20)), [str(level) for level in range(0, -DEPTH - 1, -20)])
    ticks = [10**d for d in range(math.floor(math.log10(1 + last)) + 1)]
    first.ruler("x").lim(0, math.log10(1 + last))
    first.ruler("x").ticks([math.log10(1 + tick) for tick in ticks], [decade(round(math.log10(t))) for t in ticks])
    some = sorted({round(last * k / MOST_POINTS) for k in range(MOST_POINTS + 1)})
    for marker, values in (*curves.items(), (dot, target)):
        draw(second, [(float(lag), values[lag]) for lag in some if math.isfinite(values[lag])], marker)
    second.title("K against lag")
    rule(second, 0, last)
    return drawn(figure, settings)


def noise_picture(
    curves: Mapping[str, Sequence[tuple[float, float]]], settings: Settings, say: Callable[[float], str]
) -> list[str]:
    """Return (β, loss) curves by their letters, both axes logarithmic; β = 0 is at the left."""
    figure = open_figure(settings, 100, 12)
    betas = sorted({beta for curve in curves.values() for beta, _ in curve})
    finite = [value for curve in curves.values() for _, value in curve if 0 < value < math.inf]
    if not finite:
        return []
    low, high = math.log10(min(finite)), math.log10(min(max(finite), 1e6 * min(finite)))
    high = max(high, low + math.log10(2))
    for letter, curve in curves.items():
        points = [
            (float(betas.index(beta)), min(math.log10(value), high) if value < math.inf else high)
            for beta, value in curve
            if value > 0
        ]
        draw(figure, points, "braille" if settings.unicode else "-", lines=True)
        draw(figure, points, letter)
    pad = 0.06 * (high - low)
    figure.ruler("y").lim(low - pad, high + pad)
    levels = [low + (high - low) * k / 4 for k in range(5)]
    figure.ruler("y").ticks(levels, [say(10**level) for level in levels])
    figure.ruler("x").lim(0, len(betas) - 1)
    every = 1 if settings.width >= 90 else 2
    shown = [k for k in range(len(betas)) if (len(betas) - 1 - k) % every == 0 or k == 0]
    figure.ruler("x").ticks(shown, [f"{betas[k]:.2g}" for k in shown])
    return drawn(figure, settings)


def _decibels(value: float) -> float:
    return 20 * math.log10(abs(value)) if value and math.isfinite(value) else -math.inf
