"""The verdict on hand-made results: windows, levels, spread over seeds, medians."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from ssmdiag.retrain.arms import Arm, Budget
from ssmdiag.retrain.results import ArmResult, Point, RetrainResult
from ssmdiag.retrain.verdict import USABLE, learning_rate_windows, loss_levels, median, summarise_arms


def run(arm: Arm, *losses: float, diverged_at: int | None = None, accuracy: float | None = None) -> ArmResult:
    """Return a run validated every ten steps."""
    points = [Point(10 * k, loss, accuracy) for k, loss in enumerate(losses)]
    return ArmResult(arm, diverged_at, tuple(points), seconds_per_step=0.5)


def result(*runs: ArmResult) -> RetrainResult:
    return RetrainResult("task", "model", Budget(), runs, "cpu", 16)


def sweep(param: str, finals: dict[float, float | None]) -> list[ArmResult]:
    return [
        run(Arm(param, lr=lr), 1.0) if final is None else run(Arm(param, lr=lr), 1.0, final)
        for lr, final in finals.items()
    ]


def test_seeds_are_told_together_with_median_and_spread() -> None:
    finals = [0.3, 0.1, 0.2, 0.4]
    (summary,) = summarise_arms(result(*[run(Arm("exp", seed=k), 1.0, final) for k, final in enumerate(finals)]))
    assert summary.seeds == 4
    assert summary.final == pytest.approx(0.25)
    assert summary.spread == (0.1, 0.4)
    assert summary.best == 0.1
    assert summary.diverged == ()
    assert summary.seconds_per_step == 0.5


def test_one_seed_has_no_spread() -> None:
    (summary,) = summarise_arms(result(run(Arm("exp"), 1.0, 0.5)))
    assert summary.spread is None
    assert summary.final == 0.5


def test_runs_that_diverged_are_counted_and_left_out_of_the_losses() -> None:
    (summary,) = summarise_arms(
        result(
            run(Arm("exp"), 1.0, 0.2),
            run(Arm("exp", seed=1), 1.0, 0.1, diverged_at=17),
            run(Arm("exp", seed=2), 1, 0.4),
        )
    )
    assert summary.diverged == (17,)
    assert summary.final == pytest.approx(0.3)
    assert summary.best == 0.1  # it got there before
    (none,) = summarise_arms(result(run(Arm("exp"), 1.0, diverged_at=5)))
    assert (none.final, none.spread, none.best) == (None, None, 1.0)


def test_settings_differ_by_everything_but_the_seed() -> None:
    first = Arm("exp")
    others = [
        Arm("best"), replace(first, lr=0.1), replace(first, freeze="step"), replace(first, init="long"),
        replace(first, recurrence_lr=0.1), replace(first, weight_decay=0.1),
    ]  # fmt: skip
    runs = [run(arm, 1.0, 0.5) for arm in [first, *others, replace(first, seed=7)]]
    summaries = summarise_arms(result(*runs))
    assert [summary.arm for summary in summaries] == [first, *others]
    assert summaries[0].seeds == 2


def test_accuracy_is_the_median_at_the_end_and_zero_counts() -> None:
    runs = [run(Arm("exp", seed=k), 1.0, 0.5, accuracy=accuracy) for k, accuracy in enumerate((0.0, 0.2, 0.9))]
    wild = run(Arm("exp", seed=3), 1.0, accuracy=1.0, diverged_at=3)
    assert summarise_arms(result(*runs, wild))[0].accuracy == 0.2
    assert summarise_arms(result(run(Arm("exp"), 1.0, 0.5)))[0].accuracy is None


def test_levels_part_the_way_down_evenly_in_log_loss() -> None:
    levels = loss_levels(result(run(Arm("exp"), 1.0, 0.5, 1e-4), run(Arm("best"), 1.0, 0.7)))
    assert levels == (0.1, 0.01, 0.001)
    assert loss_levels(result(run(Arm("exp"), 1.0, 1.0))) == ()
    assert loss_levels(result(run(Arm("exp")))) == ()


def test_steps_to_a_level_are_the_first_and_the_median_over_seeds() -> None:
    curves = [(1.0, 0.05, 0.5, 0.005, 1e-4), (1.0, 0.5, 0.09, 0.02, 0.02), (1.0, 0.5, 0.5, 0.08, 0.008)]
    runs = [run(Arm("exp", seed=k), *curve) for k, curve in enumerate(curves)]
    (summary,) = summarise_arms(result(*runs))
    assert summary.steps_to == {0.1: 20, 0.01: 40, 0.001: None}


def test_steps_to_a_level_that_half_the_seeds_reach_are_not_known() -> None:
    runs = [run(Arm("exp"), 1.0, 1e-4), run(Arm("exp", seed=1), 1.0, 0.5)]
    (summary,) = summarise_arms(result(*runs))
    assert summary.steps_to == {0.1: None, 0.01: None, 0.001: None}


def test_a_window_is_the_longest_run_of_usable_rates_in_decades() -> None:
    finals = {1e-4: 0.9, 1e-3: 0.19, 1e-2: 0.1, 1e-1: 0.21, 1.0: 0.2, 10.0: None}
    (window,) = learning_rate_windows(result(*sweep("exp", finals)))
    assert USABLE == 2
    assert window.rates == (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    assert window.usable == (1e-3, 1e-2, 1.0)
    assert window.decades == pytest.approx(1.0)
    assert (window.best, window.best_rate) == (0.1, 1e-2)


def test_windows_of_two_maps_share_the_limit_of_the_better_one() -> None:
    rates = (1e-3, 1e-2, 1e-1)
    runs = sweep("exp", dict.fromkeys(rates, 0.5)) + sweep("best", dict.fromkeys(rates, 0.1))
    worse, better = learning_rate_windows(result(*reversed(runs)))[::-1]
    assert (worse.usable, worse.decades) == ((), 0.0)
    assert (better.usable, better.decades) == (rates, pytest.approx(2.0))


def test_a_rate_is_usable_only_if_every_seed_is() -> None:
    runs = [run(Arm("exp", lr=lr, seed=seed), 1.0, 0.1) for lr in (0.01, 0.1) for seed in (0, 1)]
    runs[3] = run(Arm("exp", lr=0.1, seed=1), 1.0, 0.1, diverged_at=12)
    (window,) = learning_rate_windows(result(*runs))
    assert window.usable == (0.01,)


def test_a_window_of_one_rate_has_no_width() -> None:
    (window,) = learning_rate_windows(result(run(Arm("exp"), 1.0, 0.1)))
    assert window.decades is None


def test_a_rate_of_zero_is_no_end_of_a_window() -> None:
    (window,) = learning_rate_windows(result(*sweep("exp", {0.0: 0.1, 0.01: 0.1, 0.1: 0.1})))
    assert window.decades == pytest.approx(1.0)


def test_nothing_is_usable_where_every_run_diverged() -> None:
    runs = [run(Arm("exp", lr=lr), 1.0, diverged_at=1) for lr in (0.1, 1.0)]
    (window,) = learning_rate_windows(result(*runs))
    assert (window.usable, window.decades, window.best, window.best_rate) == ((), 0.0, None, None)


def test_medians() -> None:
    assert median([]) is None
    assert median([3.0]) == 3.0
    assert median([1.0, 2.0]) == 1.5
    assert median([1.0, 2.0, 9.0]) == 2.0


def test_a_result_of_losses_that_are_not_finite_has_the_best_of_the_finite_ones() -> None:
    one = run(Arm("exp"), 1.0, 0.5, math.inf)
    assert one.best_loss == 0.5
    assert one.steps_to(0.7) == 10
    assert one.steps_to(0.1) is None
