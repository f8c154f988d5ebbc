"""Curves over an axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ssmdiag.reports.drawing.axis import Axis
from ssmdiag.reports.drawing.colours import CURVES
from ssmdiag.reports.drawing.picture import WIDE, Numbers, Picture, centred, line, path, shortened, text, width_of

LEFT, RIGHT, TOP, BOTTOM = 66, 14, 10, 42
ROOM = 210
"""Units of the axes from top to bottom."""
MOST_POINTS = 200
"""Points of a curve: more only make the page larger."""
BESIDE_TICKS = 26
"""Units left of the ticks: the name of the axis, and room."""
BESIDE = 46
"""Units of the key that a curve takes besides its name."""


@dataclass(frozen=True)
class Curve:
    """One curve: its name in the key, and its (x, y)."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: Literal["line", "dots"] = "line"


@dataclass(frozen=True)
class Mark:
    """A line across, at a value of one axis."""

    axis: Literal["x", "y"]
    value: float
    name: str


@dataclass(frozen=True)
class Plot(Picture):
    """Curves of several things over one axis; points that have no place on the axes are in the table alone."""

    x: Axis
    y: Axis
    curves: Sequence[Curve]
    marks: Sequence[Mark] = ()

    @property
    def height(self) -> int:
        return TOP + ROOM + BOTTOM + 18 * len(self._key())

    def body(self) -> str:
        x, y = self._axes()
        size = f'width="{WIDE - self._left - RIGHT:.1f}" height="{ROOM}"'
        frame = f'<rect class="frame" x="{self._left:.1f}" y="{TOP}" {size}/>'
        parts = [*self._ticks(x, y), frame]
        for mark in self.marks:
            parts += self._mark(mark, x, y)
        for number, curve in enumerate(self.curves):
            seen = [(a, b) for a, b in curve.points if x.shows(a) and y.shows(b)]
            places = [(self._across(x, a), self._down(y, b)) for a, b in seen]
            if curve.kind == "dots" or len(places) == 1:
                dots = "".join(f"{path([place])}m-2.6 0a2.6 2.6 0 1 0 5.2 0a2.6 2.6 0 1 0-5.2 0" for place in places)
                parts.append(f'<path class="d{number % CURVES}" d="{dots}"/>' if dots else "")
            elif places:
                parts.append(f'<path class="curve c{number % CURVES}" d="{path(places)}"/>')
        return "".join([*parts, *self._legend()])

    def numbers(self) -> Numbers:
        at = sorted({a for curve in self.curves for a, _ in curve.points})
        columns = [dict(curve.points) for curve in self.curves]
        rows: list[list[float | str | None]] = [[a, *(column.get(a) for column in columns)] for a in at]
        blank = [None] * (len(columns) - 1)
        for mark in self.marks:
            axis = self.x if mark.axis == "x" else self.y
            rows.append([f"{mark.name} ({axis.label})", mark.value, *blank])
        return Numbers([self.x.label, *(curve.name for curve in self.curves)], rows)

    def _axes(self) -> tuple[Axis, Axis]:
        """Return both axes, as far as the points go that have a place on both."""
        seen = [(a, b) for c in self.curves for a, b in c.points if self.x.holds(a) and self.y.holds(b)]
        marked = {axis: [mark.value for mark in self.marks if mark.axis == axis] for axis in "xy"}
        return self.x.over([*(a for a, _ in seen), *marked["x"]]), self.y.over([*(b for _, b in seen), *marked["y"]])

    @cached_property
    def _left(self) -> float:
        """Units left of the axes: the ticks have their room beside the name of the axis."""
        return max(LEFT, BESIDE_TICKS + max((width_of(said) for _, said in self._axes()[1].ticks()), default=0.0))

    def _across(self, axis: Axis, value: float) -> float:
        return self._left + (WIDE - self._left - RIGHT) * axis.place(value)

    def _down(self, axis: Axis, value: float) -> float:
        return TOP + ROOM * (1 - axis.place(value))

    def _ticks(self, x: Axis, y: Axis) -> list[str]:
        parts = []
        for value, said in x.ticks():
            at = self._across(x, value)
            parts += [line(at, TOP, at, TOP + ROOM, "grid"), centred(at, TOP + ROOM + 16, said, "quiet")]
        for value, said in y.ticks():
            at = self._down(y, value)
            parts += [
                line(self._left, at, WIDE - RIGHT, at, "grid"),
                text(self._left - 6, at + 4, said, "quiet", anchor="end"),
            ]
        parts.append(text((self._left + WIDE - RIGHT) / 2, TOP + ROOM + 34, self.x.label, anchor="middle"))
        middle = TOP + ROOM / 2
        turned = text(0, 0, self.y.label, anchor="middle")
        return [*parts, f'<g transform="translate(13 {middle:.0f})rotate(-90)">{turned}</g>']

    def _mark(self, mark: Mark, x: Axis, y: Axis) -> list[str]:
        axis = x if mark.axis == "x" else y
        if not axis.shows(mark.value):
            return []
        if mark.axis == "y":
            at = self._down(y, mark.value)
            return [
                line(self._left, at, WIDE - RIGHT, at, "limit"),
                text(WIDE - RIGHT - 4, at - 4, mark.name, anchor="end"),
            ]
        at = self._across(x, mark.value)
        anchor = "end" if axis.place(mark.value) > 0.5 else "start"
        words = text(at + (-5 if anchor == "end" else 5), TOP + 14, mark.name, anchor=anchor)
        return [line(at, TOP, at, TOP + ROOM, "limit"), words]

    def _key(self) -> list[list[int]]:
        """Return the lines of the key: numbers of the curves in each."""
        lines: list[list[int]] = []
        room = 0.0
        for number, curve in enumerate(self.curves):
            need = BESIDE + width_of(self._short(curve))
            if need > room:
                lines.append([])
                room = WIDE - self._left
            lines[-1].append(number)
            room -= need
        return lines

    def _legend(self) -> list[str]:
        parts = []
        for row, numbers in enumerate(self._key()):
            at, y = self._left, TOP + ROOM + BOTTOM + 10 + 18 * row
            for number in numbers:
                curve = self.curves[number]
                name = self._short(curve)
                if curve.kind == "dots":
                    parts.append(f'<circle class="d{number % CURVES}" cx="{at + 12:.0f}" cy="{y - 4}" r="3"/>')
                else:
                    parts.append(line(at, y - 4, at + 26, y - 4, f"curve c{number % CURVES}"))
                parts.append(text(at + 32, y, name))
                at += BESIDE + width_of(name)
        return parts

    def _short(self, curve: Curve) -> str:
        """Return the name of a curve as the key has it."""
        return shortened(curve.name, WIDE - self._left - BESIDE)


def thinned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> Sequence[tuple[float, float]]:
    """Return points spread evenly over the order they are in, both ends included; all where they are few.

    >>> thinned([(float(k), 0.0) for k in range(7)], 3)
    [(0.0, 0.0), (3.0, 0.0), (6.0, 0.0)]
    """
    if len(points) <= most:
        return points
    return [points[round(k * (len(points) - 1) / (most - 1))] for k in range(most)]
