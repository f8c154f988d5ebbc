"""One layer over the checkpoints of a run: its points, the trend through them, the limits it nears.

A decay a = e^(−r) rounds to exactly 1 where 1 − a is at most half a spacing below 1: 2⁻⁹ in bfloat16, 2⁻¹² in
float16, 2⁻²⁵ in float32. A rate that goes through a map that cannot cross (exp, softplus, sigmoid …) reaches
these along the line of its logarithm; one that is stored as it is (direct, none) can cross 0, along its own line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ssmdiag.compare.layer_point import ROUNDS_TO_ONE, LayerPoint
from ssmdiag.compare.trend import Crossing, Trend, Verdict, fit_trend, judge, project


@dataclass(frozen=True)
class Limit:
    """A rate that a layer may fall to, and when."""

    name: str
    """`bfloat16`, `float16`, `float32`: its decay rounds to 1. `context`: τ outgrows it. `boundary`: it crosses."""
    rate: float
    passed: int | None
    """The step from which on it is at or below; None where it is above at the last."""
    from_start: bool
    """True: it was there at its first checkpoint already."""
    projection: Crossing | None
    """None where it is passed, or the layer does not converge."""


@dataclass(frozen=True)
class LayerHistory:
    """One layer over the run."""

    name: str
    points: tuple[LayerPoint, ...]
    """Of every checkpoint that has the layer."""
    used: tuple[int, ...]
    """Steps of the points that the trend goes through: those of one shape."""
    slowest: Trend | None
    """Of the log of the smallest rate; None with fewer than two points above zero."""
    tail: Trend | None
    """Of the log of the rate that one mode in twenty stays below."""
    slowest_verdict: Verdict
    tail_verdict: Verdict
    verdict: Verdict
    limits: tuple[Limit, ...]

    @property
    def first(self) -> LayerPoint:
        return next(point for point in self.points if point.step == self.used[0])

    @property
    def last(self) -> LayerPoint:
        return next(point for point in self.points if point.step == self.used[-1])

    @property
    def trend(self) -> Trend | None:
        """Return the trend that the verdict rests on: the slow tail's only where it alone speaks."""
        return self.tail if self.by_tail else self.slowest

    @property
    def by_tail(self) -> bool:
        """True: the slowest mode does not bear the verdict, the slow twentieth of the modes does."""
        return self.verdict is not self.slowest_verdict and self.verdict is self.tail_verdict

    @property
    def next_limit(self) -> Limit | None:
        """Return the limit that it is projected to reach first."""
        ahead = [
            (limit.projection.at, position)
            for position, limit in enumerate(self.limits)
            if limit.projection and limit.projection.at is not None
        ]
        return self.limits[min(ahead)[1]] if ahead else None

    def fails(self, fail_on: str) -> bool:
        """Whether the layer does what `--fail-on` names."""
        before = self.first
        if self.verdict is Verdict.CROSSED:
            return not (before.unstable or before.marginal)
        if self.verdict is Verdict.BROKEN:
            return not before.nonfinite
        if self.verdict is not Verdict.CONVERGING:
            return False
        return fail_on == "converging" or any(
            (limit.passed is not None and not limit.from_start)
            or (limit.projection and limit.projection.at is not None)
            for limit in self.limits
        )


def judge_layers(
    layers: Mapping[str, Sequence[LayerPoint]], steps: Sequence[int], unit: str, context: int | None, least: float
) -> tuple[tuple[LayerHistory, ...], list[str]]:
    """Return the histories of all layers, judged together, and remarks on gaps and changes of shape."""
    unknown = Verdict.UNDETERMINED
    histories: list[LayerHistory] = []
    remarks: dict[str, list[str]] = {}
    for name, points in layers.items():
        used = _longest_stretch(points)
        for remark in _remarks(points, used, steps, unit):
            remarks.setdefault(remark, []).append(name)
        slowest, tail = (_trend(used, quantile) for quantile in ("min", "p05"))
        histories.append(
            LayerHistory(
                name, tuple(points), tuple(p.step for p in used), slowest, tail, unknown, unknown, unknown, limits=()
            )
        )
    trends = [trend for history in histories for trend in (history.slowest, history.tail) if trend]
    verdicts = iter(judge(trends, least_change=least))
    judged = []
    for history in histories:
        slow, many = (next(verdicts) if trend else unknown for trend in (history.slowest, history.tail))
        verdict = _verdict(history.last, slow, many)
        history = replace(history, slowest_verdict=slow, tail_verdict=many, verdict=verdict)
        judged.append(replace(history, limits=_limits(history, context)))
    return tuple(judged), [f"{_listed(names)}: {remark}" for remark, names in remarks.items()]


def _verdict(last: LayerPoint, slowest: Verdict, tail: Verdict) -> Verdict:
    """Combine what the slowest mode and the slow twentieth say; a fact about the last checkpoint outranks both."""
    if last.nonfinite:
        return Verdict.BROKEN
    if last.unstable or last.marginal:
        return Verdict.CROSSED
    if slowest is Verdict.RECEDING:
        return slowest
    for verdict in (Verdict.CONVERGING, Verdict.RECEDING):
        if verdict in (slowest, tail):
            return verdict
    return tail if (slowest, tail) == (Verdict.STEADY, Verdict.SETTLED) else slowest


def _trend(points: Sequence[LayerPoint], quantile: str) -> Trend | None:
    """Return the trend of log rate; points on or past the boundary have none and are passed over."""
    rates = [(point.step, getattr(point.rate, quantile)) for point in points if point.rate]
    usable = [(step, rate) for step, rate in rates if 0 < rate < math.inf]
    if len(usable) < 2:
        return None
    return fit_trend([step for step, _ in usable], [math.log(rate) for _, rate in usable])


def _limits(history: LayerHistory, context: int | None) -> tuple[Limit, ...]:
    rates = [(p.step, p.rate.min) for p in history.points if p.rate and p.step in history.used]
    goals = dict(ROUNDS_TO_ONE)
    if context:
        goals["context"] = 1 / context
    if history.last.can_cross:
        goals["boundary"] = 0.0
    converges = history.slowest_verdict is Verdict.CONVERGING and history.verdict is Verdict.CONVERGING
    limits = []
    for name, goal in sorted(goals.items(), key=lambda item: -item[1]):
        below = 0
        while below < len(rates) and rates[-1 - below][1] <= goal:
            below += 1
        passed = rates[-below][0] if below else None
        trend, target = history.slowest, math.log(goal) if goal else 0.0
        if name == "boundary" and converges:
            trend = fit_trend([step for step, _ in rates], [rate for _, rate in rates])
        projection = None
        if trend and converges and not below:
            projection = project(rates[-1][0], trend.now, trend.outlook, target, trend.span)
        limits.append(Limit(name, goal, passed, below == len(rates) > 0, projection))
    return tuple(limits)


def _longest_stretch(points: Sequence[LayerPoint]) -> list[LayerPoint]:
    """Return the longest run of points of one shape, the last of equally long ones."""
    stretches: list[list[LayerPoint]] = []
    for point in points:
        if stretches and stretches[-1][-1].shape == point.shape:
            stretches[-1].append(point)
        else:
            stretches.append([point])
    return max(reversed(stretches), key=len)


def _remarks(points: Sequence[LayerPoint], used: Sequence[LayerPoint], steps: Sequence[int], unit: str) -> list[str]:
    remarks = []
    present = {point.step for point in points}
    absent = [step for step in steps if step not in present]
    if absent:
        some = ", ".join(f"{step:,}" for step in absent[:4]) + (" …" if len(absent) > 4 else "")
        remarks.append(f"missing at {unit} {some}")
    for before, after in pairwise(points):
        if before.shape != after.shape:
            was, now = (f"{p.title} of {p.channels:,} × {p.modes:,}" for p in (before, after))
            remarks.append(
                f"{was} up to {unit} {before.step:,}, {now} from {after.step:,} on: another model; "
                f"judged over the {len(used)} checkpoints from {used[0].step:,} to {used[-1].step:,}"
            )
    broken = [point.step for point in points if point.nonfinite]
    if broken:
        remarks.append(f"modes that are not finite from {unit} {broken[0]:,} on")
    return remarks


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more layers" if len(names) > 3 else "")
