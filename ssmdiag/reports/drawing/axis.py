"""An axis of a picture: where a value lies on it, and its ticks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ssmdiag.reports.words import steps

Scale = Literal["linear", "log", "log1p"]
MOST_TICKS = 6


@dataclass(frozen=True)
class Axis:
    """What is drawn along one side; without `low` and `high`, as far as the points go."""

    label: str
    scale: Scale = "linear"
    """`log1p` is log₁₀(1 + value): lag 0 has a place on it."""
    low: float | None = None
    high: float | None = None

    def over(self, values: Iterable[float]) -> Axis:
        """Return the axis with both ends, wide enough for these values; they must be on it."""
        known = sorted(values)
        none = (1.0, 10.0) if self.scale == "log" else (0.0, 1.0)  # with nothing to draw, an axis still has ends
        low = self.low if self.low is not None else (known[0] if known else none[0])
        high = self.high if self.high is not None else (known[-1] if known else none[1])
        if self.scale == "linear" and self.low is None and self.high is None:
            pad = 0.05 * (high - low)
            low, high = low - pad, high + pad
        if self.scale == "log":
            low, high = (low / 1.1, high * 1.1) if high > 1.2 * low else (low / 1.5, high * 1.5)
        elif not high > low:
            low, high = (low, low + 1.0) if self.scale == "log1p" else (low - 0.5, high + 0.5)
        return Axis(self.label, self.scale, low, high)

    def holds(self, value: float) -> bool:
        """Whether a value can be drawn on such an axis at all."""
        return math.isfinite(value) and (self.scale == "linear" or value > 0 or (self.scale == "log1p" and value == 0))

    def shows(self, value: float) -> bool:
        """Whether a value lies between the ends."""
        return self.holds(value) and self._bounds[0] <= self._bent(value) <= self._bounds[1]

    def place(self, value: float) -> float:
        """Return where a value lies, 0 at the low end and 1 at the high one."""
        low, high = self._bounds
        return (self._bent(value) - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        """Return values between the ends, with what is written at them."""
        low, high = self._ends
        if self.scale == "linear":
            return [(value, _plain(value)) for value in _round_values(low, high)]
        first, last = math.floor(math.log10(low) if self.scale == "log" else 0), math.ceil(math.log10(high))
        every = max(1, math.ceil((last - first) / MOST_TICKS))
        values = [10.0**d for d in range(first, last + 1, every)]
        if sum(low <= value <= high for value in values) < 2:
            values = sorted({lead * 10.0**d for d in range(first, last + 1) for lead in (1, 2, 5)})
        if sum(low <= value <= high for value in values) < 2:
            values = _round_values(low, high)
        zero = [0.0] if self.scale == "log1p" and low <= 0 else []
        shown = [value for value in [*zero, *values] if low <= value <= high]
        said = [_short(value) for value in shown]
        exact = [f"{value:.6g}" for value in shown]
        return list(zip(shown, said if len(set(said)) == len(said) else exact, strict=True))

    @property
    def _ends(self) -> tuple[float, float]:
        if self.low is None or self.high is None:
            raise ValueError("the axis has no ends yet: over() gives it some")
        return self.low, self.high

    @property
    def _bounds(self) -> tuple[float, float]:
        low, high = self._ends
        return self._bent(low), self._bent(high)

    def _bent(self, value: float) -> float:
        if self.scale == "linear":
            return value
        return math.log10(value if self.scale == "log" else 1 + value)


def _round_values(low: float, high: float) -> list[float]:
    """Return about five round numbers between two.

    >>> _round_values(-3, 21), _round_values(0, 1)
    ([0.0, 5.0, 10.0, 15.0, 20.0], [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    """
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next((lead for lead in (1, 2, 5) if (high - low) / (step * lead) <= MOST_TICKS - 1), 10)
    digits = max(0, -math.floor(math.log10(step)))
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, digits) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    """Return a tick of a logarithmic axis: steps where it is large, a power where it is small.

    >>> [_short(value) for value in (0.0, 1e-5, 2.5e-4, 0.001, 1.0, 1000.0, 20_000.0)]
    ['0', '1e-5', '2.5e-4', '0.001', '1', '1k', '20k']
    """
    if 0 < value < 0.001:
        return re.sub(r"\.?0*e-0?", "e-", f"{value:.2e}")
    return f"{value:.3g}" if value < 1000 else steps(value).replace(".0", "")


def _plain(value: float) -> str:
    return steps(value) if value >= 10_000 else f"{value:,.6g}".replace("-", "−")
