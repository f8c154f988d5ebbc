"""How often `compare` is fooled and how often it finds what is there, in simulated runs: the rates
`ssmdiag.compare.trend` and `projection` state.

The slow test prints them all (`pytest -m slow -s tests/compare/test_trend_worlds.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest

from ssmdiag.compare.projection import Unnamed
from ssmdiag.compare.trend import Verdict
from tests.compare.trend_worlds import (
    GAP,
    HEAD,
    LATE,
    LIMIT,
    NOISES,
    SCHEDULES,
    WANDERING,
    Outcome,
    drifting_runs,
    false_trends,
    history,
    told,
)

FALSE, FALSE_OF_WALKS = 0.10, 0.06
"""Shares of runs without a drift that may be given one."""
WALKS = ("a walk", "a walk with wild steps", "a walk while the learning rate falls", "512 modes that wander")
FOUND = {7: 0.70, 12: 0.90, 20: 0.95, 60: 0.95}
NAMED, NAMED_THOUGH_SLOWING, HOLDS = 0.95, 0.05, 0.93


def upper(share: float, runs: int) -> float:
    """Return what is not passed by a true share in 999 of 1,000 draws."""
    return share + 3.1 * math.sqrt(share * (1 - share) / runs)


def lower(share: float, runs: int) -> float:
    return share - 3.1 * math.sqrt(share * (1 - share) / runs) if runs else 0.0


def share(flags: Iterable[bool]) -> tuple[float, int]:
    flags = list(flags)
    return (sum(flags) / len(flags) if flags else 1.0), len(flags)


def assert_named_and_held(outcomes: list[Outcome], points: int, where: str) -> None:
    found, runs = share(x.verdict is Verdict.CONVERGING for x in outcomes)
    assert found >= lower(FOUND[points], runs), where
    named, runs = share(x.named for x in outcomes if x.verdict is Verdict.CONVERGING)
    assert named >= lower(NAMED, runs), where
    for side in ("path", "line"):
        held, runs = share(getattr(x, side) for x in outcomes if x.named)
        assert held >= lower(HOLDS, runs), (where, side)


@pytest.mark.one_in(12)
@pytest.mark.parametrize("world", WANDERING)
def test_what_wanders_is_seldom_given_a_trend(world: str) -> None:
    runs = 40 if "512" in world else 150
    allowed = FALSE_OF_WALKS if world in WALKS else FALSE
    for points in (7, 20):
        assert false_trends(WANDERING[world], 1, points, runs) <= upper(allowed, runs), points


@pytest.mark.one_in(6)
@pytest.mark.parametrize("noise", NOISES)
def test_a_drift_is_found_and_the_step_it_meets_a_limit_at_is_named(noise: str) -> None:
    for points in (7, 20):
        assert_named_and_held(drifting_runs(noise, 2, points, 60), points, f"{noise}, {points}")


@pytest.mark.one_in(5)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_step_is_named_where_a_drift_slows(schedule: str) -> None:
    for points in (7, 20):
        outcomes = drifting_runs("independent noise", 3, points, 60, SCHEDULES[schedule])
        named, runs = share(x.named for x in outcomes)
        assert named <= upper(NAMED_THOUGH_SLOWING, runs)
        bounds, runs = share(x.bound for x in outcomes if x.bounded)
        assert bounds >= lower(0.95, runs)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("schedule", {**SCHEDULES, **LATE})
def test_no_step_is_named_where_the_learning_rate_is_seen_to_fall(schedule: str) -> None:
    outcomes = drifting_runs("a walk", 4, 12, 40, {**SCHEDULES, **LATE}[schedule], told=True)
    assert not any(x.named for x in outcomes)
    assert all(x.bound for x in outcomes if x.bounded)


def test_a_drift_that_follows_the_learning_rate_is_found_where_weights_alone_leave_doubt() -> None:
    pace = LATE["cosine, seen up to 60 %"]
    blind, seeing = (drifting_runs("a walk", 5, 12, 60, pace, told=given) for given in (False, True))
    found = [sum(x.verdict is Verdict.CONVERGING for x in outcomes) for outcomes in (blind, seeing)]
    assert found[1] >= 0.9 * 60 > found[0]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("points", [7, 20])
def test_limits_of_a_rate_that_is_stored_as_it_is_stand_on_one_line(points: int) -> None:
    generator = np.random.default_rng(points)
    seen = 0
    for _ in range(50):
        rates = 0.05 - generator.uniform(0.4, 0.9) * 0.05 * np.arange(points) / (points - 1)
        layer = history(rates + 2e-4 * generator.normal(size=points), linear=True)
        ahead = [limit.projection for limit in layer.limits if limit.projection]
        assert [limit.name for limit in layer.limits] == ["bfloat16", "float16", "float32", "boundary"]
        steps = [crossing.at for crossing in ahead if crossing.at is not None]
        assert steps == sorted(steps)
        if len(steps) == 4:
            seen += 1
            # On a line, rates as far apart are steps as far apart.
            rise = (steps[3] - steps[0]) / layer.limits[0].rate
            assert steps[3] - steps[1] == pytest.approx(rise * layer.limits[1].rate, rel=1e-6)
    assert seen >= 45


def test_a_run_that_slows_says_why_no_step_is_named() -> None:
    generator = np.random.default_rng(0)
    t = np.linspace(0, 1, 60)
    layer = history(-6.5 - 1.5 * (1 - np.exp(-2 * t)) / (1 - np.exp(-2)) + 0.02 * generator.normal(size=60))
    assert layer.verdict is Verdict.CONVERGING
    projection = next(limit for limit in layer.limits if limit.name == LIMIT).projection
    assert projection is not None
    assert (projection.unnamed, projection.at) == (Unnamed.SLOWS, None)
    assert projection.not_before is None or projection.not_before > 60 * GAP
    assert not layer.fails("crossing")
    assert layer.fails("converging")


@pytest.mark.slow
def test_false_trends_found_drifts_and_named_steps_in_many_worlds() -> None:
    failures = []
    print(f"\n{'without a drift, called converging or receding':48}" + "".join(f"{n:8}" for n in (7, 12, 20, 60)))
    for world, draw in WANDERING.items():
        runs = 100 if "512" in world else 400
        allowed = FALSE_OF_WALKS if world in WALKS else FALSE
        rates = [false_trends(draw, 11, points, runs) for points in (7, 12, 20, 60)]
        print(f"{world:48}" + "".join(f"{rate:8.3f}" for rate in rates))
        failures += [f"{world}: {rate}" for rate in rates if rate > upper(allowed, runs)]
    print(f"\n{'constant drift in':48}" + HEAD)
    for noise in NOISES:
        for points in (7, 12, 20, 60):
            outcomes = drifting_runs(noise, 12, points, 150)
            print(f"{noise + ', ' + str(points):48}" + told(outcomes))
            try:
                assert_named_and_held(outcomes, points, noise)
            except AssertionError as error:
                failures.append(f"{noise}, {points}: {error}")
    for title, schedules, given in (
        ("slowing drift in", SCHEDULES, False), ("that has hardly begun to", LATE, False), ("seen", LATE, True),
    ):  # fmt: skip
        print(f"\n{title:62}" + HEAD)
        for schedule, pace in schedules.items():
            for noise in ("independent noise", "a walk"):
                for points in (7, 12, 20, 60):
                    outcomes = drifting_runs(noise, 13, points, 80, pace, told=given)
                    print(f"{schedule + '; ' + noise + ', ' + str(points):62}" + told(outcomes))
                    named, runs = share(x.named for x in outcomes)
                    if named > (0 if given else upper(NAMED_THOUGH_SLOWING, runs) if schedules is SCHEDULES else 1):
                        failures.append(f"{schedule}, {noise}, {points}: {named} named")
    assert not failures, "\n".join(failures)
