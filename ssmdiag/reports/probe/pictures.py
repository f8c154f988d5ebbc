"""Pictures of observed memory: what a layer retains over log lag, observed and at rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssmdiag.reports.pictures import draw, drawn, open_figure
from ssmdiag.reports.words import decade

if TYPE_CHECKING:
    from ssmdiag.reports.interface import Settings

Curve = Sequence[tuple[float, float]]


def retention_picture(nominal: Curve, observed: Curve, settings: Settings, *, height: int = 10) -> list[str]:
    """Return two curves of (lag, share left) against log lag, from nothing to all."""
    rest, dot = ("·", "dot") if settings.unicode else (".", "*")
    return _shares([(nominal, rest), (observed, dot)], settings, height)


def use_picture(lost: Curve, settings: Settings, *, height: int = 10) -> list[str]:
    """Return how much of the past's effect is kept with so many steps of it, from (steps, share that is lost)."""
    kept = [(steps, 1 - share) for steps, share in lost]
    return _shares([(kept, "dot" if settings.unicode else "*")], settings, height)


def _shares(curves: Sequence[tuple[Curve, str]], settings: Settings, height: int) -> list[str]:
    """Return curves of shares against log lag by their markers."""
    last = max((lag for curve, _ in curves for lag, _ in curve), default=0.0)
    if not last:
        return []
    figure = open_figure(settings, 100, height)
    for curve, marker in curves:
        draw(figure, [(math.log10(1 + lag), min(max(left, 0.0), 1.0)) for lag, left in curve], marker)
    figure.ruler("y").lim(0, 1)
    figure.ruler("y").ticks([0, 0.5, 1], ["0", "0.5", "1"])
    ticks = [10**d for d in range(math.floor(math.log10(1 + last)) + 1)]
    figure.ruler("x").lim(0, max(math.log10(1 + last), 0.1))
    figure.ruler("x").ticks([math.log10(1 + tick) for tick in ticks], [decade(round(math.log10(t))) for t in ticks])
    return drawn(figure, settings)
