"""One layer over the checkpoints of a run: its points, the trend through them, the limits it nears.

A decay a = e^(−r) rounds to exactly 1 where 1 − a is at most half a spacing below 1: 2⁻⁹ in bfloat16, 2⁻¹² in
float16, 2⁻²⁵ in float32. A rate that goes through a map that cannot cross (exp, softplus, sigmoid …) reaches
these along the line of its logarithm; one that is stored as it is (direct, none) falls along its own line, which
crosses 0. All its limits are computed from that one line; otherwise it would round to 1 after it has crossed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise, takewhile
from operator import attrgetter

from ssmdiag.compare.layer_point import ROUNDS_TO_ONE, LayerPoint
from ssmdiag.compare.learning_rate import Schedule, schedule_of, steps_at_last_rate
from ssmdiag.compare.mode_drift import p_of_modes
from ssmdiag.compare.projection import Crossing, Unnamed, bound, measure_pace, project
from ssmdiag.compare.trend import FEWEST, Trend, Verdict, fit_trend, judge
from ssmdiag.families import has_fixed_decay
from ssmdiag.printable import module_name

_UNNAMED: dict[Schedule | None, Unnamed] = {Schedule.FALLS: Unnamed.RATE_FALLS, Schedule.ENDED: Unnamed.RATE_ENDED}
"""Why no step is named, by what the learning rate does at the end."""


@dataclass(frozen=True)
class Limit:
    """A rate that a layer may fall to, and when."""

    name: str
    """`bfloat16`, `float16`, `float32`: its decay rounds to 1. `context`: τ outgrows it. `boundary`: it crosses."""
    rate: float
    passed: int | None
    """The step from which on the rate is at or below it; None where the rate is above it at the last."""
    from_start: bool
    """True: the rate was there at its first checkpoint."""
    projection: Crossing | None
    """None where the limit is passed, or the layer does not converge."""

    @property
    def at(self) -> float | None:
        """The step at which the layer is projected to reach it."""
        return self.projection.at if self.projection else None


@dataclass(frozen=True)
class LayerHistory:
    """One layer over the run."""

    name: str
    points: tuple[LayerPoint, ...]
    """One for each checkpoint that has the layer."""
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
    schedule: Schedule | None = None
    """What its learning rate does at the end; None unless the learning rate is known at every point used."""

    @property
    def first(self) -> LayerPoint:
        return next(point for point in self.points if point.step == self.used[0])

    @property
    def last(self) -> LayerPoint:
        return next(point for point in self.points if point.step == self.used[-1])

    @property
    def trend(self) -> Trend | None:
        """Return the trend that decides the verdict: the slow twentieth's only where it alone is significant."""
        return self.tail if self.by_tail else self.slowest

    @property
    def by_tail(self) -> bool:
        """True: the slow twentieth of the modes decides the verdict, not the slowest mode."""
        return self.verdict is not self.slowest_verdict and self.verdict is self.tail_verdict

    @property
    def next_limit(self) -> Limit | None:
        """Return the limit that it is projected to reach first."""
        return min((limit for limit in self.limits if limit.at is not None), key=attrgetter("at"), default=None)

    def fails(self, fail_on: str) -> bool:
        """Whether the layer does what `--fail-on` names: `converging` or `crossing`."""
        if self.verdict is Verdict.CROSSED:
            return not (self.first.unstable or self.first.marginal)
        if self.verdict is Verdict.BROKEN:
            return not self.first.nonfinite
        if self.verdict is not Verdict.CONVERGING:
            return False
        return fail_on == "converging" or any(
            (limit.passed is not None and not limit.from_start) or limit.at is not None for limit in self.limits
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
        rates = [p.learning_rate for p in used if p.learning_rate is not None]
        histories.append(
            LayerHistory(
                name, tuple(points), tuple(p.step for p in used), slowest, tail, unknown, unknown, unknown, limits=(),
                schedule=schedule_of(rates) if len(rates) == len(used) > 1 else None,
            )
        )  # fmt: skip
    trends = [trend for history in histories for trend in (history.slowest, history.tail) if trend]
    verdicts = iter(judge(trends, least_change=least))
    judged = []
    for history in histories:
        slow, many = (next(verdicts) if trend else unknown for trend in (history.slowest, history.tail))
        verdict = Verdict.STEADY if _holds_nothing(history) else _verdict(history.last, slow, many)
        history = replace(history, slowest_verdict=slow, tail_verdict=many, verdict=verdict)
        judged.append(replace(history, limits=_limits(history, context)))
    return tuple(judged), [f"{_listed(names)}: {remark}" for remark, names in remarks.items()]


def _holds_nothing(history: LayerHistory) -> bool:
    """Whether every mode is 0 from one step to the next at every checkpoint: a rate of ∞ has no trend to wait for."""
    rates = [point.rate.min if point.rate else None for point in history.points if point.step in history.used]
    return len(rates) > 1 and set(rates) == {math.inf} and not history.last.nonfinite


def _verdict(last: LayerPoint, slowest: Verdict, tail: Verdict) -> Verdict:
    """Combine the trends of slowest mode and slow twentieth; a fact about the last checkpoint outranks both."""
    if last.nonfinite:
        return Verdict.BROKEN
    if last.marginal and not last.unstable and has_fixed_decay(last.family):
        return Verdict.STEADY  # no fault of the training, which cannot move it
    if last.unstable or last.marginal:
        return Verdict.CROSSED
    if slowest is Verdict.RECEDING:
        return slowest
    for verdict in (Verdict.CONVERGING, Verdict.RECEDING):
        if verdict in (slowest, tail):
            return verdict
    return tail if (slowest, tail) == (Verdict.STEADY, Verdict.SETTLED) else slowest


def _trend(points: Sequence[LayerPoint], quantile: str) -> Trend | None:
    """Return the trend of log rate; points on or past the boundary have none and are skipped."""
    rates = [(point, getattr(point.rate, quantile)) for point in points if point.rate]
    usable = [(point, rate) for point, rate in rates if 0 < rate < math.inf]
    if len(usable) < 2:
        return None
    trend = fit_trend([point.step for point, _ in usable], [math.log(rate) for _, rate in usable])
    if along := _linear_coordinates(usable):
        straight = fit_trend(*along)
        trend = replace(trend, p_walk=straight.p_walk, p_correlated=straight.p_correlated)
    return replace(trend, p_modes=_p_modes([point for point, _ in usable], trend.slope.value, quantile))


def _linear_coordinates(points: Sequence[tuple[LayerPoint, float]]) -> tuple[list[float], list[float]] | None:
    """Return x and y in which constant updates make a straight line; None where those are step and log rate.

    x is the integral of the learning rate where every point has one, y the rate itself where it is stored directly.
    """
    steps: list[float] = [point.step for point, _ in points]
    learning = [point.learning_rate for point, _ in points if point.learning_rate is not None]
    x = steps_at_last_rate(steps, learning) if len(learning) == len(points) else None
    linear = points[-1][0].can_cross
    if x is None and not linear:
        return None
    return x or steps, [rate if linear else math.log(rate) for _, rate in points]


def _p_modes(points: Sequence[LayerPoint], direction: float, quantile: str) -> float | None:
    """Return the p-value that the modes moved in the direction of their minimum, or low quantile.

    None where selection cannot explain it: the same mode was the slowest throughout. A mode that became the slowest
    later is judged by its own path since, with a p-value corrected for the number of modes.
    """
    last = points[-1]
    if not last.first_slowest:
        return None
    p = p_of_modes(last.first_slowest, direction)
    if quantile != "min":
        return p
    lead = list(takewhile(lambda point: point.slowest_mode == last.slowest_mode, reversed(points)))[::-1]
    if len(lead) == len(points):
        return None
    if len(lead) < FEWEST:
        return p
    path = fit_trend([x.step for x in lead], [math.log(x.rate.min) for x in lead if x.rate])
    return min(p, path.p * last.channels * last.modes) if path.change * direction > 0 else p


def _limits(history: LayerHistory, context: int | None) -> tuple[Limit, ...]:
    points = [(p, p.rate.min) for p in history.points if p.rate and p.step in history.used]
    goals = dict(ROUNDS_TO_ONE)
    if context:
        goals["context"] = 1 / context
    if history.last.can_cross:
        goals["boundary"] = 0.0
    converges = history.slowest_verdict is history.verdict is Verdict.CONVERGING
    path = _Path.of(history, points) if converges else None
    limits = []
    for name, goal in sorted(goals.items(), key=lambda item: -item[1]):
        below = next((k for k, (_, rate) in enumerate(reversed(points)) if rate > goal), len(points))
        passed = points[-below][0].step if below else None
        projection = path.reaches(goal) if path and not below else None
        limits.append(Limit(name, goal, passed, below == len(points) > 0, projection))
    return tuple(limits)


@dataclass(frozen=True)
class _Path:
    """The line along which a layer nears all its limits: of log rate, or of the rate itself where it can cross 0."""

    trend: Trend
    start: float
    """x of the first point."""
    end: float
    linear: bool
    pace: float | None
    """The slope for a bound; None where the trend's interval gives it."""
    unnamed: Unnamed | None
    span: float
    """In steps."""

    @classmethod
    def of(cls, history: LayerHistory, points: Sequence[tuple[LayerPoint, float]]) -> _Path:
        linear = history.last.can_cross
        points = [(point, rate) for point, rate in points if linear or 0 < rate < math.inf]
        steps = [float(point.step) for point, _ in points]
        x, y = _linear_coordinates(points) or (steps, [math.log(rate) for _, rate in points])
        unnamed = _UNNAMED.get(history.schedule)
        pace = measure_pace(x, y)
        slope = pace.slowest if pace.slows else None
        if unnamed is Unnamed.RATE_ENDED:
            slope = 0.0
        elif pace.slows:
            unnamed = unnamed or Unnamed.SLOWS
        return cls(fit_trend(x, y), x[0], x[-1], linear, slope, unnamed, steps[-1] - steps[0])

    def reaches(self, goal: float) -> Crossing:
        """Return when the rate falls to `goal`, or a bound before which it does not."""
        target = goal if self.linear else math.log(goal)
        now = (self.end, self.trend.now)
        if self.pace is not None and self.unnamed:
            return bound(now, self.pace, target, self.span, self.unnamed)
        crossing = project((self.start, self.trend.first), now, self.trend.outlook, target, self.span)
        if self.unnamed:  # no sooner than with the present learning rate
            return Crossing(None, None, None, crossing.reach, self.unnamed, crossing.earliest)
        return crossing


def _longest_stretch(points: Sequence[LayerPoint]) -> list[LayerPoint]:
    """Return the longest series of points of one shape, the last of equally long ones."""
    stretches = [list(group) for _, group in groupby(points, key=lambda point: point.shape)]
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
    more = len(names) - 3
    said = ", ".join(map(module_name, names[:3]))
    return said + (f" and {more} more layer{'s' * (more > 1)}" if more > 0 else "")
