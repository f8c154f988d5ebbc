"""Pictures that several commands share: a kernel with its laws, shares over log lag, rows of lags."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ssmdiag.reports import words
from ssmdiag.reports.drawing.axis import Axis
from ssmdiag.reports.drawing.heat import Heat, spread_rows
from ssmdiag.reports.drawing.plot import Curve, Mark, Plot

if TYPE_CHECKING:
    from ssmdiag.assessment.memory import LayerDecay
    from ssmdiag.reports.drawing.picture import Picture

Points = Sequence[tuple[float, float]]
MOST_TICKS = 8
DEEPEST = -120.0
"""Decibels: below, float32's own rounding is all there is."""


def decay_plot(decay: LayerDecay, what: str) -> Plot:
    """Return a layer's envelope in dB over log lag, with the laws that were compared."""
    low = max(min(level for _, level in decay.envelope), DEEPEST)
    said = decay.law[0]
    compared = said in {law.value for law in decay.curves}
    chosen = f"Chosen: {said}." if compared else f"None of them was chosen ({said})."
    curves = [Curve("as read", decay.envelope, "dots")]
    curves += [Curve(law.value, curve) for law, curve in decay.curves.items()]
    return Plot(
        title=what,
        about=f"Root mean square over channels, in dB below its peak, and the laws that were compared. {chosen}",
        x=Axis("lag in steps", "log1p", low=0.0),
        y=Axis("dB below the peak", low=10 * math.floor(low / 10) - 5, high=5.0),
        curves=curves,
    )


def shares_plot(title: str, about: str, curves: Mapping[str, Points], *, y: str, marks: Sequence[Mark] = ()) -> Plot:
    """Return shares between 0 and 1 over log lag."""
    drawn = [Curve(name, points, "dots" if name == "observed" else "line") for name, points in curves.items()]
    low = min([0.0, *(share for points in curves.values() for _, share in points if math.isfinite(share))])
    high = max([1.0, *(share for points in curves.values() for _, share in points if math.isfinite(share))])
    across = Axis("steps, logarithmic", "log1p", low=0.0)
    return Plot(title=title, about=about, x=across, y=Axis(y, low=low, high=high), curves=drawn, marks=marks)


def lag_rows(title: str, about: str, rows: Mapping[str, Points], shade: str) -> Picture | None:
    """Return a row of cells for each layer, a column for each lag."""
    names = [list(rows)[k] for k in spread_rows(len(rows))]
    lags = sorted({lag for name in names for lag, _ in rows[name]})
    if not lags:
        return None
    every = range(0, len(lags), max(1, math.ceil(len(lags) / MOST_TICKS)))
    some = "" if len(names) == len(rows) else f" {len(names)} of {len(rows):,} layers, spread evenly."
    values = [[dict(rows[name]).get(lag) for lag in lags] for name in names]
    return Heat(
        title=title,
        about=about + some,
        labels=names,
        values=values,
        columns=lags,
        ticks=[(k + 0.5, f"{lags[k]:g}" if lags[k] < 1000 else words.steps(lags[k])) for k in every],
        across="steps back, not evenly spaced",
        shade=shade,
        most=max([1.0, *(value for row in values for value in row if value is not None and math.isfinite(value))]),
    )
