"""Rows of cells, the darker the more: time constants by layer, retention by layer and lag."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ssmdiag.reports.drawing.picture import WIDE, Numbers, Picture, centred, line, shortened, text, width_of

ROW = 15
TOP, BOTTOM, RIGHT = 8, 58, 12
WIDEST = 150.0
"""Units that the names of rows take, most."""
LEVELS = 16
"""Shades: the table has the numbers."""
MOST_ROWS = 96
"""Rows drawn; of more layers, as many spread evenly."""


@dataclass(frozen=True)
class Heat(Picture):
    """A row for each thing, a column for each place on an axis, a shade for each value from 0 to `most`."""

    labels: Sequence[str]
    values: Sequence[Sequence[float | None]]
    """By row and column; None is left blank."""
    columns: Sequence[float]
    """The place of every column."""
    ticks: Sequence[tuple[float, str]]
    """(number of a column's left edge, what is written there); may lie between two."""
    across: str
    """What the columns are, and their unit."""
    shade: str
    """What a shade is."""
    most: float = 1.0
    mark: tuple[float, str] | None = None
    """A line down, at the number of a column's edge, and its name."""

    @property
    def height(self) -> int:
        return TOP + ROW * len(self.labels) + BOTTOM + 16 * (self.mark is not None)

    @cached_property
    def _left(self) -> float:
        return 14 + min(max(map(width_of, self.labels), default=0.0), WIDEST)

    def _across(self, column: float) -> float:
        return self._left + (WIDE - RIGHT - self._left) * column / max(len(self.columns), 1)

    def body(self) -> str:
        below = TOP + ROW * len(self.labels)
        shades: dict[int, list[str]] = {}
        for row, values in enumerate(self.values):
            for level, first, last in _runs([self._level(value) for value in values]):
                x, wide = self._across(first), self._across(last) - self._across(first)
                shades.setdefault(level, []).append(f"M{x:.1f} {TOP + ROW * row}h{wide:.1f}v{ROW - 1}h{-wide:.1f}z")
        parts = [
            f'<path class="heat" fill-opacity="{level / LEVELS:.3g}" d="{"".join(cells)}"/>'
            for level, cells in sorted(shades.items())
        ]
        for row, label in enumerate(self.labels):
            said = shortened(label, WIDEST, from_left=True)
            parts.append(text(self._left - 6, TOP + ROW * row + 12, said, anchor="end"))
        free = 0.0
        for column, said in self.ticks:
            at = self._across(column)
            parts.append(line(at, below, at, below + 4, "grid"))
            if at - width_of(said) / 2 >= free:
                parts.append(centred(at, below + 17, said, "quiet"))
                free = at + width_of(said) / 2 + 4
        size = f'width="{WIDE - RIGHT - self._left:.1f}" height="{below - TOP}"'
        parts.append(f'<rect class="frame" x="{self._left:.1f}" y="{TOP}" {size}/>')
        if self.mark:
            at = self._across(self.mark[0])
            parts += [line(at, TOP, at, below + 22, "limit"), centred(at, below + 34, self.mark[1])]
        low = below + 34 + 16 * (self.mark is not None)
        return "".join([*parts, text(self._under(self.across), low, self.across, "quiet"), *self._scale(low + 18)])

    def numbers(self) -> Numbers:
        rows = [[label, *values] for label, values in zip(self.labels, self.values, strict=True)]
        return Numbers(["row", *(f"{column:.6g}" for column in self.columns)], rows)

    def _under(self, said: str) -> float:
        """Return where words below begin: with the cells, farther left where long labels leave them no room."""
        return max(4.0, min(self._left, WIDE - RIGHT - width_of(said)))

    def _level(self, value: float | None) -> int:
        if value is None or not math.isfinite(value) or value <= 0 or self.most <= 0:
            return 0
        return min(LEVELS, max(1, math.ceil(LEVELS * value / self.most - 1e-9)))

    def _scale(self, y: float) -> list[str]:
        """Return the key: shades from nothing to the most."""
        start = self._under(self.shade + " " * 20)
        at = start + 8 + width_of(self.shade)
        swatches = [
            f'<rect class="heat" fill-opacity="{level / LEVELS:.3g}" x="{at + 20 + 3 * level:.0f}" y="{y - 10:.0f}"'
            ' width="6" height="11"/>'
            for level in range(2, LEVELS + 1, 2)
        ]
        most = f"{self.most:.3g}" if self.most < 1e4 else f"{self.most:,.0f}"
        end = at + 20 + 3 * LEVELS + 14
        return [text(start, y, self.shade, "quiet"), text(at + 12, y, "0"), *swatches, text(end, y, most)]


def _runs(levels: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return (level, first column, column after the last) of neighbours alike, without those of level 0."""
    runs: list[tuple[int, int, int]] = []
    for column, level in enumerate(levels):
        if runs and runs[-1][0] == level:
            runs[-1] = (level, runs[-1][1], column + 1)
        else:
            runs.append((level, column, column + 1))
    return [run for run in runs if run[0]]


def spread_rows(count: int, most: int = MOST_ROWS) -> list[int]:
    """Return the rows to draw: all of a few, else so many, spread evenly, both ends included.

    >>> spread_rows(3), spread_rows(100, 3)
    ([0, 1, 2], [0, 50, 99])
    """
    return list(range(count)) if count <= most else [round(k * (count - 1) / (most - 1)) for k in range(most)]
