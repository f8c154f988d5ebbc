"""Simulated runs with and without a trend: what `compare` makes of worlds in which the truth is known.

A world draws log rates, (run, checkpoint) or (run, checkpoint, mode), with parameters drawn anew for every run. The
tests were tuned on a few fixed parameters (steps correlated by 0.5, averages saved every 100, 250 and 500 steps, drifts
of 0.1 in noise of 0.01 to 0.1) and are judged here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ssmdiag.compare.layer_history import LayerHistory, judge_layers
from ssmdiag.compare.layer_point import ROUNDS_TO_ONE, LayerPoint
from ssmdiag.compare.mode_drift import drifts_of_first_slowest
from ssmdiag.compare.trend import LEAST_CHANGE, Verdict
from ssmdiag.recurrence.quantiles import Quantiles

Array = np.ndarray
Draw = Callable[[np.random.Generator, int, int], Array]
GAP = 1000
"""Optimiser steps between checkpoints, as the library is told."""
LIMIT = "float16"
GOAL = math.log(ROUNDS_TO_ONE[LIMIT])
TRENDS = (Verdict.CONVERGING, Verdict.RECEDING)


def column(values: Array) -> Array:
    return values[:, None]


# Noise: what wanders without going anywhere. (run, checkpoint), one unit a step or so.


def independent(g: np.random.Generator, runs: int, points: int) -> Array:
    return g.normal(size=(runs, points))


def walk(g: np.random.Generator, runs: int, points: int) -> Array:
    return g.normal(size=(runs, points)).cumsum(1)


def wild_walk(g: np.random.Generator, runs: int, points: int) -> Array:
    return g.standard_t(2.5, size=(runs, points)).cumsum(1)


def dying_walk(g: np.random.Generator, runs: int, points: int) -> Array:
    """A walk under a learning rate that falls along a cosine."""
    return (g.normal(size=(runs, points)) * (1.02 + np.cos(np.linspace(0, math.pi, points)))).cumsum(1)


def remembering(g: np.random.Generator, runs: int, points: int) -> Array:
    """Stationary AR(1) noise with a memory of 1 to 10 checkpoints."""
    return autoregressive(g, np.exp(-1 / g.uniform(1, 10, runs)), points)


def autoregressive(g: np.random.Generator, phi: Array, points: int) -> Array:
    noise = g.normal(size=(len(phi), points))
    for i in range(1, points):
        noise[:, i] = phi * noise[:, i - 1] + np.sqrt(1 - phi**2) * noise[:, i]
    return noise


def turning(g: np.random.Generator, runs: int, points: int, fine: int = 10) -> Array:
    """A walk pushed by gradients that keep their direction for 0.2 to 1.2 checkpoints."""
    memory = g.uniform(0.2, 1.2, runs) * fine
    return autoregressive(g, np.exp(-1 / memory), points * fine).cumsum(1)[:, ::fine] / fine


def averaged(beta: float, gaps: tuple[float, float]) -> Draw:
    """A walk of weights whose exponential moving average is saved, `gaps` optimiser steps from one to the next."""

    def draw(g: np.random.Generator, runs: int, points: int, fine: int = 10) -> Array:
        keep = beta ** (np.exp(g.uniform(*np.log(gaps), size=runs)) / fine)
        weights, average = np.zeros(runs), np.zeros(runs)
        saved = np.empty((runs, points))
        for i in range(points * fine):
            weights += g.normal(size=runs)
            average = keep * average + (1 - keep) * weights
            saved[:, i // fine] = average
        return saved / math.sqrt(fine)

    return draw


def modes(beta: float | None, channels: int = 32, per_channel: int = 16) -> Draw:
    """512 modes, (run, checkpoint, mode): a step Δ for each channel and a rate for each mode, all of which wander."""

    def draw(g: np.random.Generator, runs: int, points: int, fine: int = 5) -> Array:
        saved = np.empty((runs, points, channels * per_channel))
        keep = column(beta ** (np.exp(g.uniform(math.log(250), math.log(2000), runs)) / fine)) if beta else 0.0
        start = column(g.uniform(0, 1, runs)) * g.uniform(math.log(1e-3), math.log(1e-1), (runs, channels))
        weights = start.repeat(per_channel, 1) + np.log(1 + np.arange(channels * per_channel) % per_channel)
        size, shared = column(g.uniform(0.02, 0.2, runs)), column(g.uniform(0, 1, runs))
        average = weights.copy()
        for i in range(points * fine):
            steps = shared * g.normal(size=(runs, channels)).repeat(per_channel, 1)
            weights += size / math.sqrt(fine) * (steps + (1 - shared) * g.normal(size=weights.shape))
            average = keep * average + (1 - keep) * weights
            saved[:, i // fine] = average
        return saved

    return draw


WANDERING: dict[str, Draw] = {
    "independent noise": independent,
    "noise with a memory of 1 to 10 checkpoints": remembering,
    "a walk": walk,
    "a walk with wild steps": wild_walk,
    "a walk while the learning rate falls": dying_walk,
    "gradients that turn in 0.2 to 1.2 checkpoints": turning,
    "average .995, saved every 100 to 1,000 steps": averaged(0.995, (100, 1000)),
    "average .999, saved every 250 to 2,000 steps": averaged(0.999, (250, 2000)),
    "512 modes that wander": modes(None),
    "512 modes that wander, average .995": modes(0.995),
    "512 modes that wander, average .999": modes(0.999),
}
"""Worlds without a drift, as log rate up to a factor."""

NOISES: dict[str, tuple[Draw, tuple[float, float]]] = {
    "independent noise": (independent, (0.05, 0.25)),
    "noise with a memory of 1 to 10 checkpoints": (remembering, (0.05, 0.4)),
    "a walk": (walk, (0.05, 0.3)),
    "a walk with wild steps": (wild_walk, (0.03, 0.2)),
    "gradients that turn in 0.2 to 1.2 checkpoints": (turning, (0.05, 0.2)),
    "average .999, saved every 250 to 2,000 steps": (averaged(0.999, (250, 2000)), (0.05, 0.3)),
}
"""Noise about a drift, and how large it is, in drifts from one checkpoint to the next."""


def flat(t: Array) -> Array:
    return np.ones_like(t)


def cosine(t: Array) -> Array:
    return (1 + np.cos(math.pi * np.clip(t, 0, 1))) / 2


SCHEDULES: dict[str, Callable[[np.random.Generator], Callable[[Array], Array]]] = {
    "cosine to 0": lambda g: cosine,
    "cosine to a tenth": lambda g: lambda t: 0.1 + 0.9 * cosine(t),
    "linear to 0": lambda g: lambda t: np.clip(1 - t, 0, None),
    "stable, then linear to 0 over 40 to 70 %": lambda g: _wsd(g.uniform(0.4, 0.7)),
    "saturation in a half to a fifth of the run": lambda g: _saturating(g.uniform(2, 5)),
}
"""Pace of a drift that slows, by the share of the run that is over."""
LATE = {
    "cosine, seen up to 60 %": lambda g: lambda t: cosine(0.6 * t),
    "stable, then linear to 0 over 10 to 30 %": lambda g: _wsd(g.uniform(0.1, 0.3)),
    "saturation in a whole run": lambda g: lambda t: np.exp(-t),
}
"""Such that have hardly begun to slow: few weights alone do not tell them from a drift that does not."""


def _wsd(part: float) -> Callable[[Array], Array]:
    return lambda t: np.clip((1 - t) / part, 0, 1)


def _saturating(times: float) -> Callable[[Array], Array]:
    return lambda t: np.exp(-times * t)


@dataclass(frozen=True)
class Outcome:
    """What was said of one run, and whether it was so."""

    verdict: Verdict
    named: bool
    line: bool
    """Where a step is named: the drift's own line meets the limit within the interval."""
    path: bool
    """Where a step is named: the run itself first does."""
    bounded: bool
    bound: bool
    """Where a bound is given: the run does not reach the limit before it."""


def learning_of(pace: Callable[[Array], Array], points: int) -> list[float]:
    return [float(value) for value in 1e-3 * pace(np.linspace(0, 1, points))]


def history(log_rates: Array, learning: Sequence[float] | None = None, *, linear: bool = False) -> LayerHistory:
    """Return what is made of one layer, (checkpoint,) or (checkpoint, mode) log rates; rates themselves if linear."""
    rates = log_rates if linear else np.exp(log_rates)
    rates = rates.reshape(len(rates), -1)
    count = rates.shape[1]
    channels, per_channel = (count // 16, 16) if count > 16 else (1, count)
    tensor = torch.from_numpy(rates).reshape(len(rates), channels, per_channel)
    # As `Quantiles` has it up to interpolation.
    ordered = np.sort(rates, axis=1)[:, [0, count // 20]]
    points = []
    for i, (least, tail) in enumerate(ordered):
        points.append(
            LayerPoint(
                name="0", step=GAP * i, family="s4d", title="S4D", channels=channels, modes=per_channel,
                dtype="float32", time_invariant=True, can_cross=linear,
                rate=Quantiles(float(least), float(tail), 1.0, 1.0, 1.0), margin=float(least),
                nonfinite=0, unstable=0, marginal=0, rounded={}, moved=None, horizon=None, decay=None,
                slowest_mode=int(rates[i].argmin()),
                first_slowest=drifts_of_first_slowest(tensor[0], tensor[i]) if i == len(rates) - 1 else (),
                learning_rate=learning[i] if learning is not None else None,
            )
        )  # fmt: skip
    layers, _ = judge_layers({"0": points}, [p.step for p in points], "step", None, LEAST_CHANGE)
    return layers[0]


def false_trends(draw: Draw, seed: int, points: int, runs: int) -> float:
    """Return the share of runs without a drift that are called converging or receding."""
    g = np.random.default_rng([seed, points, 0])
    drawn = draw(g, runs, points)
    if drawn.ndim == 2:
        drawn = drawn * column(np.exp(g.uniform(math.log(0.03), math.log(0.3), runs))) - 4
    return sum(history(run).verdict in TRENDS for run in drawn) / runs


def drifting_runs(
    noise: str,
    seed: int,
    points: int,
    runs: int,
    schedule: Callable[[np.random.Generator], Callable[[Array], Array]] = lambda g: flat,
    *,
    told: bool = False,
) -> list[Outcome]:
    """Return what is said of runs that drift by 5 to 20 % a checkpoint at first, at the pace of a schedule.

    The limit lies where a drift that did not slow would meet it 0.2 to 3 spans after the run.
    """
    draw, (least, most) = NOISES[noise]
    ahead = 6 * (points - 1)
    g = np.random.default_rng([seed, points, 1])
    noises = draw(g, runs, points + ahead)
    outcomes = []
    for i in range(runs):
        drift = g.uniform(0.05, 0.2)
        pace = schedule(g)
        t = np.arange(points + ahead) / (points - 1)
        fine = np.linspace(0, t[-1], 4 * len(t) + 1)
        speeds = pace(fine)
        gone = np.concatenate([[0.0], np.cumsum((speeds[1:] + speeds[:-1]) / 2 * np.diff(fine))]) * (points - 1)
        line = -drift * np.interp(t, fine, gone)
        meets = points - 1 + g.uniform(0.2, 3) * (points - 1)
        path = line + drift * g.uniform(least, most) * noises[i] + GOAL + drift * meets
        line += GOAL + drift * meets
        outcomes.append(_outcome(line, path, points, learning_of(pace, points) if told else None))
    return outcomes


def _outcome(line: Array, path: Array, points: int, learning: list[float] | None) -> Outcome:
    layer = history(path[:points], learning)
    limit = next(limit for limit in layer.limits if limit.name == LIMIT)
    projection = limit.projection
    if projection is None:
        return Outcome(layer.verdict, False, False, False, False, False)
    ends = [math.inf if end is None else end / GAP for end in (projection.earliest, projection.latest)]
    crossing, first = (_first_below(values, points) for values in (line, path))
    # A run's own crossing is seen at the first checkpoint past it.
    holds = ends[0] <= first and first - 1 <= ends[1]
    before = math.inf if projection.not_before is None else projection.not_before / GAP
    before = min(before, projection.reach / GAP)
    named = projection.at is not None
    return Outcome(
        layer.verdict,
        named,
        named and ends[0] <= crossing and crossing - 1 <= ends[1],
        named and holds,
        projection.unnamed is not None,
        projection.unnamed is not None and before <= first,
    )


def _first_below(values: Array, points: int) -> float:
    below = np.flatnonzero(values[points:] <= GOAL)
    return float(points + below[0]) if len(below) else math.inf


def told(outcomes: Sequence[Outcome]) -> str:
    """Return one row of a table: converging, named, its interval holds, bounds hold."""
    converging = sum(x.verdict is Verdict.CONVERGING for x in outcomes)
    named, bounded = [x for x in outcomes if x.named], [x for x in outcomes if x.bounded]
    shares = [
        (converging, len(outcomes)), (len(named), converging), (len(named), len(outcomes)),
        (sum(x.path for x in named), len(named)), (sum(x.line for x in named), len(named)),
        (sum(x.bound for x in bounded), len(bounded)),
    ]  # fmt: skip
    return "".join(f"{part / whole:8.3f}" if whole else "       –" for part, whole in shares)


HEAD = f"{'found':>8}{'named/f':>8}{'named':>8}{'holds':>8}{'line':>8}{'bound':>8}"
