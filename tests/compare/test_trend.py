"""Trends in a few checkpoints: against scipy, by brute force, and by how often chance is called a trend.

The rates asserted here are the ones `ssmdiag.compare.trend` states.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import scipy
from hypothesis import given
from hypothesis import strategies as st

from ssmdiag.compare.correlated_steps import AVERAGED, GRID, PUT_IN, correlated_drift
from ssmdiag.compare.projection import REACH, Unnamed, bound, measure_pace, project
from ssmdiag.compare.significance import (
    EXACT,
    Slope,
    adjust,
    mann_kendall,
    random_walk_drift,
    student_p,
    student_quantile,
    theil_sen,
)
from ssmdiag.compare.trend import FEWEST, LEAST_CHANGE, Verdict, fit_trend, judge

RUNS = 1000
MARGIN = 3 * math.sqrt(0.05 * 0.95 / RUNS)
"""Three standard errors of a rate of 5 % over so many runs."""


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 6, 9, 20, 59])
def test_student_p_and_quantile_are_scipys(freedom: int) -> None:
    for t in (0.0, 0.01, 0.7, 2.2, 12.0, 300.0):
        assert student_p(t, freedom) == pytest.approx(2 * scipy.stats.t.sf(t, freedom), abs=2e-15, rel=1e-9)
        assert student_p(-t, freedom) == student_p(t, freedom)
    for share in (0.6, 0.95, 0.975, 0.999):
        assert student_quantile(share, freedom) == pytest.approx(scipy.stats.t.ppf(share, freedom), rel=1e-9)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("n", [2, 3, 4, 5, 7, 10, 25, EXACT])
def test_mann_kendall_without_ties_is_scipys_exact_kendall(n: int) -> None:
    for seed in range(20):
        y = np.random.default_rng(seed).normal(size=n).cumsum().tolist()
        expected = scipy.stats.kendalltau(range(n), y, method="exact")
        score, p = mann_kendall(y)
        assert score == pytest.approx(expected.statistic * n * (n - 1) / 2)
        assert p == pytest.approx(expected.pvalue, rel=1e-9)


@pytest.mark.parametrize("y", [[1, 1, 2, 3], [0, 0, 0, 1, 2], [2, 1, 1, 1, 3, 3], [1, 1, 1], [5, 4, 4, 3, 3, 3, 1]])
def test_mann_kendall_with_ties_is_the_share_of_all_permutations(y: list[float]) -> None:
    def score(values: tuple[float, ...]) -> int:
        return sum((b > a) - (b < a) for a, b in itertools.combinations(values, 2))

    seen = abs(score(tuple(y)))
    every = [abs(score(order)) >= seen for order in itertools.permutations(y)]
    assert mann_kendall(y) == (score(tuple(y)), pytest.approx(sum(every) / len(every)))


def test_mann_kendall_of_many_points_goes_over_into_the_normal_distribution() -> None:
    y = np.random.default_rng(3).normal(size=EXACT).tolist()
    y = [value + 0.01 * i for i, value in enumerate(y)]
    exact = mann_kendall(y)[1]
    longer = [*y, float(np.median(y))]
    assert 0.5 * exact < mann_kendall(longer)[1] < 2 * exact
    # scipy's normal approximation has no continuity correction.
    expected = scipy.stats.kendalltau(range(len(longer)), longer, method="asymptotic").pvalue
    assert mann_kendall(longer)[1] == pytest.approx(expected, rel=0.05)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("n", [2, 3, 5, 6, 8, 12, 40])
def test_theil_sen_is_scipys_slope_and_its_interval_is_sens(n: int) -> None:
    for seed in range(10):
        generator = np.random.default_rng([n, seed])
        x = generator.choice(10_000, n, replace=False)
        x = sorted(float(v) for v in x)
        y = (generator.normal(size=n) + 1e-3 * np.array(x)).tolist()
        ours, theirs = theil_sen(x, y), scipy.stats.theilslopes(y, x, alpha=0.95)
        assert ours.value == pytest.approx(theirs.slope, rel=1e-12)
        if n < FEWEST:
            assert (ours.low, ours.high) == (-math.inf, math.inf)
            continue
        # Sen's interval by its definition: slopes that leave no trend behind. scipy's normal approximation may
        # stand one order statistic off.
        width = 1e-9 * (ours.high - ours.low)
        for slope, rejected in (
            (ours.low - width, True), (ours.low + width, False), (ours.high - width, False), (ours.high + width, True)
        ):  # fmt: skip
            left = [b - slope * a for a, b in zip(x, y, strict=True)]
            assert (mann_kendall(left)[1] <= 0.05) is rejected
        if n > 10:
            slopes = sorted((y[j] - y[i]) / (x[j] - x[i]) for i, j in itertools.combinations(range(n), 2))
            ranks = [
                int(np.searchsorted(slopes, v)) for v in (ours.low, ours.high, theirs.low_slope, theirs.high_slope)
            ]
            assert abs(ranks[0] - ranks[2]) <= 1
            assert abs(ranks[1] - ranks[3]) <= 1


def test_drift_over_equal_gaps_is_the_t_test_of_the_steps() -> None:
    for seed in range(10):
        y = np.random.default_rng(seed).normal(0.2, 1, size=9).cumsum()
        drift, p = random_walk_drift(list(range(9)), y.tolist())
        expected = scipy.stats.ttest_1samp(np.diff(y), 0.0)
        low, high = expected.confidence_interval(0.95)
        assert p == pytest.approx(expected.pvalue, rel=1e-9)
        assert (drift.low, drift.high) == (pytest.approx(low, rel=1e-9), pytest.approx(high, rel=1e-9))


def test_drift_over_unequal_gaps_is_weighted_least_squares() -> None:
    x = np.array([0.0, 100, 250, 500, 1000, 1500, 2000])
    y = np.array([0.0, -0.007, -0.128, -0.231, -0.297, -0.314, -0.315])
    root = np.sqrt(np.diff(x))
    fit = np.linalg.lstsq(root[:, None], np.diff(y) / root, rcond=None)
    error = math.sqrt(fit[1][0] / 5 / (root**2).sum())
    drift, p = random_walk_drift(x.tolist(), y.tolist())
    assert drift.value == pytest.approx(fit[0][0])
    assert p == pytest.approx(2 * scipy.stats.t.sf(abs(fit[0][0]) / error, 5), rel=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_adjusted_p_values_are_scipys(p_values: list[float]) -> None:
    assert adjust(p_values) == pytest.approx(scipy.stats.false_discovery_control(p_values).tolist(), abs=1e-15)


def autoregressive(generator: np.random.Generator, n: int, phi: float) -> np.ndarray:
    """Return stationary AR(1) noise of variance 1."""
    y = [generator.normal()]
    for _ in range(n - 1):
        y.append(phi * y[-1] + math.sqrt(1 - phi**2) * generator.normal())
    return np.array(y)


World = Callable[[np.random.Generator, int], np.ndarray]

WITHOUT_TREND: dict[str, World] = {
    "noise of 20 %": lambda g, n: 0.2 * g.normal(size=n),
    "noise of 1 %": lambda g, n: 0.01 * g.normal(size=n),
    "noise with a memory of 1.4 checkpoints": lambda g, n: 0.2 * autoregressive(g, n, 0.5),
    "noise with a memory of 10 checkpoints": lambda g, n: 0.2 * autoregressive(g, n, 0.9),
    "a random walk": lambda g, n: 0.1 * g.normal(size=n).cumsum(),
    "a walk with wild steps": lambda g, n: 0.1 * g.standard_t(2, size=n).cumsum(),
    "a walk under a learning rate that decays": lambda g, n: (
        0.3 * g.normal(size=n) * np.linspace(1, 0.05, n)
    ).cumsum(),
    "one jump": lambda g, n: 0.01 * g.normal(size=n) - 1.0 * (np.arange(n) >= g.integers(1, n)),
}


def verdicts(world: World, n: int, seed: int, runs: int = RUNS) -> Counter[Verdict]:
    generator = np.random.default_rng([seed, n])
    return Counter(judge([fit_trend(list(range(n)), world(generator, n).tolist())])[0] for _ in range(runs))


@pytest.mark.one_in(40)
@pytest.mark.parametrize("n", [5, 7, 12])
@pytest.mark.parametrize("name", WITHOUT_TREND)
def test_without_a_trend_one_is_seen_in_five_percent_of_runs_at_most(name: str, n: int) -> None:
    found = verdicts(WITHOUT_TREND[name], n, 1)
    assert (found[Verdict.CONVERGING] + found[Verdict.RECEDING]) / RUNS <= 0.05 + MARGIN


@pytest.mark.parametrize(("n", "share"), [(7, 1 / 3), (20, 2 / 3)])
def test_a_rank_test_alone_takes_wandering_for_a_trend(n: int, share: float) -> None:
    generator = np.random.default_rng(n)
    taken = sum(mann_kendall(generator.normal(size=n).cumsum().tolist())[1] <= 0.05 for _ in range(RUNS))
    assert taken / RUNS == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / RUNS))


@pytest.mark.slow
@pytest.mark.parametrize("layers", [3, 24])
def test_a_run_of_many_wandering_layers_gets_a_false_verdict_no_more_often(layers: int) -> None:
    generator = np.random.default_rng(5)
    runs, wrong = 300, 0
    for _ in range(runs):
        walks = 0.1 * generator.normal(size=(layers, 9)).cumsum(1)
        said = judge([fit_trend(list(range(9)), walk.tolist()) for walk in walks])
        wrong += any(verdict in (Verdict.CONVERGING, Verdict.RECEDING) for verdict in said)
    assert wrong / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_steps_with_momentum_fool_a_random_walk_and_not_the_three_tests_together() -> None:
    # Steps correlated by 0.5 from one checkpoint to the next: 1 run in 4 by the first two tests.
    generator = np.random.default_rng(2)
    trends = [
        fit_trend(list(range(10)), (0.1 * autoregressive(generator, 10, 0.5).cumsum()).tolist()) for _ in range(RUNS)
    ]
    fooled = [trend for trend in trends if max(trend.p_rank, trend.p_walk) <= 0.05]
    assert 0.15 < len(fooled) / RUNS < 0.35
    assert sum(trend.p_correlated <= 0.05 for trend in fooled) / RUNS <= 0.08


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 7])
def test_a_walk_whose_steps_are_all_of_one_size_fools_no_more_often_than_its_chance_to_go_one_way(n: int) -> None:
    # 4 equal steps go one way by chance in 2 of 16 walks, and Student's t knows no doubt without scatter.
    expected = 2 / 2 ** (n - 1)
    found = verdicts(lambda g, n: 0.1 * g.choice([-1.0, 1.0], size=n).cumsum(), n, 1)
    seen = (found[Verdict.CONVERGING] + found[Verdict.RECEDING]) / RUNS
    assert seen == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / RUNS))


DRIFTING: dict[str, tuple[World, int, float]] = {
    "10 % a checkpoint in a walk of 2 %": (lambda g, n: 0.1 * np.arange(n) + 0.02 * g.normal(size=n).cumsum(), 7, 0.8),
    "10 % a checkpoint in a walk of 5 %": (lambda g, n: 0.1 * np.arange(n) + 0.05 * g.normal(size=n).cumsum(), 7, 0.5),
    "10 % a checkpoint in noise of 2 %": (lambda g, n: 0.1 * np.arange(n) + 0.02 * g.normal(size=n), 7, 0.95),
    "10 % a checkpoint in noise of 10 %, 20 of them": (
        lambda g, n: 0.1 * np.arange(n) + 0.1 * g.normal(size=n), 20, 0.9,
    ),
    "2 % a checkpoint in a walk of 2 %, 20 of them": (
        lambda g, n: 0.02 * np.arange(n) + 0.02 * g.normal(size=n).cumsum(), 20, 0.9,
    ),
}  # fmt: skip


@pytest.mark.one_in(5)
@pytest.mark.parametrize("name", DRIFTING)
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_planted_drift_is_recovered_with_its_direction(name: str, sign: int) -> None:
    world, n, least = DRIFTING[name]
    found = verdicts(lambda g, n: sign * world(g, n), n, 3, runs=300)
    right, wrong = (Verdict.CONVERGING, Verdict.RECEDING)[:: -1 if sign > 0 else 1]
    assert found[right] / 300 >= least
    assert found[wrong] == 0


@pytest.mark.one_in(6)
@pytest.mark.parametrize(
    ("world", "least"),
    [(lambda g, n: 0.1 * g.normal(size=n), 0.95), (lambda g, n: 0.1 * g.normal(size=n).cumsum(), 0.95)],
)
@pytest.mark.parametrize("n", [5, 8, 15])
def test_the_interval_of_the_slope_holds_the_true_slope(world: World, least: float, n: int) -> None:
    generator = np.random.default_rng(n)
    inside = 0
    for _ in range(RUNS):
        slope = fit_trend(list(range(n)), (-0.07 * np.arange(n) + world(generator, n)).tolist()).slope
        inside += slope.low <= -0.07 <= slope.high
    assert inside / RUNS >= least - MARGIN


def test_fewer_than_five_points_are_never_judged_unless_nothing_moved() -> None:
    for n in range(2, FEWEST):
        falling, still = fit_trend(list(range(n)), [-float(i) for i in range(n)]), fit_trend(list(range(n)), [2.0] * n)
        assert judge([falling, still]) == [Verdict.UNDETERMINED, Verdict.STEADY]


def test_what_moved_and_rests_is_settled_and_what_moves_on_is_not() -> None:
    x = [0, 100, 250, 500, 1000, 1500, 2000]
    rests = [0.0, -0.007, -0.128, -0.231, -0.297, -0.314, -0.315]
    moves = [-value / 2000 for value in x]
    assert judge([fit_trend(x, rests)]) == [Verdict.SETTLED]
    assert judge([fit_trend(x, moves)]) == [Verdict.CONVERGING]


def test_a_change_under_five_percent_is_steady_however_regular() -> None:
    small = [-0.9 * LEAST_CHANGE * i / 6 for i in range(7)]
    assert judge([fit_trend(list(range(7)), small)]) == [Verdict.STEADY]
    assert judge([fit_trend(list(range(7)), [3 * v for v in small])]) == [Verdict.CONVERGING]


@given(
    st.lists(st.floats(-3, 3).map(lambda v: round(v, 3)), min_size=5, max_size=12),
    st.floats(1e-3, 1e3),
    st.floats(-100, 100),
)
def test_the_verdict_knows_neither_the_unit_of_steps_nor_of_the_margin(
    y: list[float], unit: float, shift: float
) -> None:
    x = [float(i * i + i) for i in range(len(y))]
    plain = fit_trend(x, y)
    scaled = fit_trend([unit * value for value in x], y)
    mirrored = fit_trend(x, [-value for value in y])
    assert scaled.p == pytest.approx(plain.p, rel=1e-6, abs=1e-12)
    assert scaled.change == pytest.approx(plain.change, rel=1e-9, abs=1e-12)
    assert mirrored.p == pytest.approx(plain.p, rel=1e-6, abs=1e-12)
    assert mirrored.slope.low == pytest.approx(-plain.slope.high, rel=1e-9)
    swap = {Verdict.CONVERGING: Verdict.RECEDING, Verdict.RECEDING: Verdict.CONVERGING}
    (verdict,) = judge([plain])
    assert judge([mirrored]) == [swap.get(verdict, verdict)]


def test_a_projection_is_where_the_line_meets_the_limit_and_its_interval_counts_from_the_first_point() -> None:
    slope = Slope(-1e-3, -2e-3, -0.5e-3)
    crossing = project((0.0, -5.0), (2000.0, -7.0), slope, -10.0, 2000.0)
    assert (crossing.at, crossing.earliest, crossing.latest) == (5000.0, 2500.0, 10_000.0)
    assert crossing.reach == 2000 + REACH * 2000
    assert crossing.unnamed is None


@pytest.mark.parametrize(
    ("slope", "expected"),
    [
        (Slope(-1e-4, -2e-3, 1e-3), (None, 2500.0, None)),  # may turn: no latest; the line itself is out of reach
        (Slope(1e-4, 0.0, 1e-3), (None, None, None)),
        (Slope(-1e-3, -math.inf, math.inf), (5000.0, 2000.0, None)),
    ],
)
def test_a_projection_out_of_reach_is_refused(slope: Slope, expected: tuple[float | None, ...]) -> None:
    crossing = project((0.0, -5.0), (2000.0, -7.0), slope, -10.0, 2000.0)
    assert (crossing.at, crossing.earliest, crossing.latest) == expected


def test_a_limit_that_is_passed_is_reached_now() -> None:
    crossing = project((0.0, -9.0), (2000.0, -11.0), Slope(1.0, 1.0, 1.0), -10.0, 2000.0)
    assert (crossing.at, crossing.earliest, crossing.latest) == (2000.0, 2000.0, 2000.0)


def test_a_bound_is_where_the_line_at_the_latest_pace_meets_the_limit() -> None:
    crossing = bound((2000.0, -7.0), -5e-4, -10.0, 2000.0, Unnamed.SLOWS)
    assert (crossing.at, crossing.earliest, crossing.latest) == (None, None, None)
    assert (crossing.unnamed, crossing.not_before) == (Unnamed.SLOWS, 8000.0)
    for pace in (-1e-5, 0.0, 1e-3):  # beyond the reach, or never
        assert bound((2000.0, -7.0), pace, -10.0, 2000.0, Unnamed.SLOWS).not_before is None


@pytest.mark.parametrize("x", [list(range(9)), [0, 100, 250, 500, 1000, 1500, 2000]])
def test_a_line_does_not_slow_and_a_curve_that_flattens_does(x: list[int]) -> None:
    share = [value / x[-1] for value in x]
    line = measure_pace(x, [-value for value in share])
    assert (line.slows, line.early, line.late, line.end) == (False, *[pytest.approx(-1 / x[-1])] * 3)
    assert not measure_pace(x, [-(value**2) for value in share]).slows
    assert not measure_pace(x, share).slows  # rises
    for curve in (
        [math.exp(-2 * value) for value in share],
        [-math.sin(math.pi / 2 * value) for value in share],
        [-min(value, 0.75) for value in share],
    ):
        pace = measure_pace(x, curve)
        assert pace.slows
        assert pace.early < pace.slowest
        assert pace.slowest == max(pace.late, pace.end)


def by_least_squares(x: np.ndarray, y: np.ndarray, phi: float) -> tuple[float, float, float]:
    """Return drift, its variance and log likelihood of φ by the covariance matrix of the steps, written out."""
    root, m = np.sqrt(np.diff(x)), len(x) - 1
    steps = np.diff(y) / root
    inverse = np.linalg.inv(phi ** abs(np.subtract.outer(np.arange(m), np.arange(m))))
    weight = root @ inverse @ root
    drift = root @ inverse @ steps / weight
    left = steps - drift * root
    square = left @ inverse @ left
    log_determinant = np.linalg.slogdet(inverse)[1]
    likelihood = (log_determinant - math.log(weight) - (m - 1) * math.log(square)) / 2
    return float(drift), float(square / (m - 1) / weight), float(likelihood)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("n", [4, 5, 8, 30])
def test_the_drift_averaged_over_the_correlation_is_that_of_generalised_least_squares(n: int) -> None:
    for seed in range(10):
        generator = np.random.default_rng([n, seed])
        x = generator.uniform(0.5, 2, n).cumsum()
        # Little noise: the average decides, not φ put in.
        y = -0.3 * x + 0.02 * generator.normal(size=n).cumsum()
        fits = [by_least_squares(x, y, phi) for phi in GRID]
        shares = np.exp([fit[2] for fit in fits] - np.max([fit[2] for fit in fits]))
        shares /= shares.sum()
        p = sum(
            s * 2 * scipy.stats.t.sf(abs(mu) / math.sqrt(v), n - 2) for s, (mu, v, _) in zip(shares, fits, strict=True)
        )
        _, ours = correlated_drift(x.tolist(), y.tolist())
        put_in = by_one_correlation(x, y)
        assert ours == pytest.approx(min(1.0, AVERAGED * p, put_in), rel=1e-6)


def by_one_correlation(x: np.ndarray, y: np.ndarray) -> float:
    gaps, m = np.diff(x), len(x) - 1
    left = (np.diff(y) - (y[-1] - y[0]) / gaps.sum() * gaps) / np.sqrt(gaps)
    r = (left[1:] @ left[:-1]) / (left @ left)
    phi = float(np.clip((r * m + 1) / (m - 3) if m > 4 else r + 1 / m, 0, 0.97))
    inflation = (phi ** abs(np.subtract.outer(np.arange(m), np.arange(m)))).sum() / m
    error = math.sqrt(left @ left / (m - 1) * inflation * gaps.sum())
    freedom = max(int(max(m / inflation, 1.5) - 1), 1)
    return float(max(PUT_IN / m, 1) * 2 * scipy.stats.t.sf(abs(y[-1] - y[0]) / error, freedom))


def test_an_interval_of_the_drift_leaves_out_zero_where_its_test_rejects_it() -> None:
    agree = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        y = 0.1 * np.arange(9) + 0.06 * generator.normal(size=9).cumsum()
        slope, p = correlated_drift(list(range(9)), y.tolist())
        agree += (p <= 0.05) is not (slope.low <= 0 <= slope.high)
    assert agree >= 194  # the average's quantile is that of one t of its spread


def test_steps_all_alike_leave_no_doubt_and_none_at_all_no_drift() -> None:
    assert correlated_drift(list(range(7)), [-0.1 * i for i in range(7)])[1] < 1e-6
    assert correlated_drift(list(range(7)), [2.0] * 7)[1] == 1.0
    assert correlated_drift([0, 1], [0.0, 1.0])[1] == 1.0


@pytest.mark.parametrize(
    ("x", "y"), [([0], [1.0]), ([0, 0], [1.0, 2.0]), ([1, 0], [1.0, 2.0]), ([0, 1], [1.0, math.nan]), ([0, 1], [1.0])]
)
def test_points_that_are_no_run_are_refused(x: list[float], y: list[float]) -> None:
    with pytest.raises(ValueError, match="a trend needs"):
        fit_trend(x, y)
