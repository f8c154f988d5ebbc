"""A layer's energy by few exponentials, held against stepped kernels at every lag."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ssmdiag.assessment.memory import assess_memories, assess_memory, summarise_memory
from ssmdiag.decay.energy_curve import GONE, WITHIN_DB, EnergyCurve
from ssmdiag.decay.sentence import describe_curve
from ssmdiag.recurrence.modal import Recurrence
from tests.assessment.test_tail import CONTEXT, dense_of, drawn, modal, stepped


def curve_of(layer: Recurrence, context: int = CONTEXT) -> EnergyCurve | None:
    return assess_memory(layer, context).remaining.curve


def distance(curve: EnergyCurve, layer: Recurrence) -> float:
    """Return how many dB the curve is off at most, over all of its lags."""
    steps = math.ceil(18 / float(layer.rate.min()))
    left = (stepped(layer, steps) ** 2).sum(0)[::-1].cumsum()[::-1]
    assert curve.energy_share == pytest.approx(left[curve.first] / left[0], rel=1e-6)
    lag = np.arange(curve.last + 1 - curve.first)
    told = sum(part * np.exp(-2 * rate * lag) for rate, part in zip(curve.rates, curve.shares, strict=True))
    return float(np.abs(10 * np.log10(told * left[curve.first] / left[curve.first : curve.last + 1])).max())


def channels_of(rates: list[float], shares: list[float]) -> Recurrence:
    """Return a layer whose channels have one mode each, and these shares of the energy."""
    rate = np.array(rates)
    weights = np.sqrt(np.array(shares) * -np.expm1(-2 * rate))
    return modal(-rate[:, None] + 0j, weights[:, None])


@pytest.mark.parametrize(
    ("rates", "shares"),
    [([0.01], [1.0]), ([0.2, 0.004], [0.7, 0.3]), ([0.3, 0.01, 0.0005], [0.6, 0.3, 0.1])],
)
def test_channels_of_one_rate_each_are_found_again(rates: list[float], shares: list[float]) -> None:
    curve = curve_of(channels_of(rates, shares))
    assert curve is not None
    assert (curve.first, len(curve.rates)) == (0, len(rates))
    assert curve.rates == pytest.approx(rates, rel=0.2)
    assert curve.shares == pytest.approx(shares, abs=0.1)
    assert sum(curve.shares) == pytest.approx(1.0)


@pytest.mark.parametrize("gone", [3.0, 7.0, 40.0])
def test_a_term_gone_within_a_step_has_no_more_than_the_largest_rate(gone: float) -> None:
    curve = curve_of(channels_of([gone, 0.1], [0.5, 0.5]))
    assert curve is not None
    assert curve.rates == pytest.approx([GONE, 0.1], rel=1e-3)
    assert curve.shares == pytest.approx([0.5, 0.5], rel=1e-2)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("seed", range(3))
def test_many_rates_over_two_decades_are_described_from_the_first_lag_on(seed: int) -> None:
    random = np.random.default_rng(seed)
    rate = np.exp(random.uniform(math.log(5e-4), math.log(5e-2), (64, 1)))
    layer = modal(-rate + 0j, random.standard_normal((64, 1)) * np.sqrt(rate))
    curve = curve_of(layer)
    assert curve is not None
    assert (curve.first, curve.last) == (0, CONTEXT)
    assert distance(curve, layer) <= curve.within_db <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize("context", [64, CONTEXT])
def test_no_curve_is_further_from_the_energy_at_any_lag_than_it_says(real: bool, context: int) -> None:
    random = np.random.default_rng(context)
    described = 0
    for _ in range(8):
        layer = drawn(random, int(random.choice([4, 8, 16])), int(random.choice([1, 2, 6])), real=real)
        curve = curve_of(layer, context)
        if curve is not None:
            described += 1
            assert distance(curve, layer) <= curve.within_db <= WITHIN_DB, curve
    assert described >= 3


def test_a_kernel_that_rises_first_is_no_sum_of_exponentials_from_its_first_lag_on() -> None:
    layer = modal([[-0.01, -0.0101]], [[1.0, -1.0]])
    curve = curve_of(layer)
    assert curve is None or (curve.first > 0 and distance(curve, layer) <= curve.within_db)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("rate", [1e-3, 0.0, -1e-7, -1e-9])
def test_what_grows_or_stays_or_is_nothing_has_no_curve(rate: float) -> None:
    assert curve_of(modal([[rate, -0.1]], [[1.0, 1e-3]])) is None
    assert curve_of(modal([[-0.1]], [[0.0]])) is None
    assert curve_of(modal([[-9.0]], [[1.0]])) is None


def test_a_kernel_that_swings_alone_is_not_described() -> None:
    layer = modal([[-0.002 + 0.3j]], [[1.0]], factor=2.0)
    assert curve_of(layer) is None
    assert curve_of(modal([[-0.002]], [[1.0]])) is not None


def test_a_full_state_matrix_has_the_curve_of_its_modes() -> None:
    layer = drawn(np.random.default_rng(8), 6, 4, real=True)
    own, dense = curve_of(layer), curve_of(dense_of(layer))
    assert own is not None
    assert dense is not None
    assert distance(dense, layer) <= dense.within_db
    assert dense.within_db == pytest.approx(own.within_db, abs=0.3)


@pytest.mark.slow
def test_a_layers_curve_does_not_depend_on_the_layers_beside_it() -> None:
    random = np.random.default_rng(13)
    layers = [drawn(random, 3, 5, real=True), drawn(random, 70, 8, real=True), drawn(random, 1, 2, real=True)]
    together = [memory.remaining.curve for memory in assess_memories(layers, CONTEXT)]
    assert together == [curve_of(layer) for layer in layers]
    assert any(together)


def test_a_curve_is_a_sentence() -> None:
    curve = EnergyCurve(0, 4096, (math.log(2) / 12, math.log(2) / 95.5), (0.71, 0.29), 1.0, 0.7)
    assert describe_curve(curve) == (
        "Up to lag 4,096 its energy is that of 2 exponentials to 0.7 dB: 71 % half gone every 12 steps, "
        "29 % every 95.5."
    )
    one = EnergyCurve(17, 64, (math.log(2) / 12,), (1.0,), 0.5, 0.7)
    assert describe_curve(one) == (
        "From lag 17 to 64 the last 50 % of its energy is exponential to 0.7 dB, half gone every 12 steps."
    )
    random = np.random.default_rng(2)
    rate = np.exp(random.uniform(math.log(5e-4), math.log(5e-2), (64, 1)))
    memory = assess_memory(modal(-rate + 0j, np.sqrt(rate)), CONTEXT)
    said = summarise_memory(memory)[1].sentence
    assert ("exponentials to" in said) == said.startswith("Undetermined")


def test_one_step_is_said_in_the_singular() -> None:
    from ssmdiag.decay.sentence import _counted, _every

    assert [_every("1"), _every("5.2"), _counted("1"), _counted("0.5")] == ["step", "5.2 steps", "1 step", "0.5 steps"]
