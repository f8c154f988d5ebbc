"""Kolmogorov–Smirnov's p-value against scipy's, and against what it promises of uniform samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy
import torch

from ssmdiag.rules.uniformity import uniform_p_value


@pytest.mark.one_in(3)
@pytest.mark.parametrize("count", [10, 24, 100, 3000, 40_000])
@pytest.mark.parametrize("power", [1.0, 1.05, 1.3, 3.0])
def test_p_value_is_scipys_exact_one_within_three_percent(count: int, power: float) -> None:
    values = np.random.default_rng(count).random(count) ** power
    exact = scipy.stats.kstest(values, "uniform").pvalue
    assert uniform_p_value(torch.from_numpy(values)) == pytest.approx(exact, rel=0.03, abs=2e-4)


def test_tiny_p_values_keep_their_order_of_magnitude() -> None:
    values = np.random.default_rng(0).random(2000) ** 1.3
    exact = scipy.stats.kstest(values, "uniform").pvalue
    assert 1e-20 < exact < 1e-6
    assert math.log(uniform_p_value(torch.from_numpy(values))) == pytest.approx(math.log(exact), rel=0.05)


def test_uniform_samples_are_rejected_as_often_as_the_p_value_says() -> None:
    samples = torch.rand(2000, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rejected = sum(uniform_p_value(sample) < 0.1 for sample in samples)
    assert abs(rejected - 200) < 4 * math.sqrt(2000 * 0.1 * 0.9)


def test_values_outside_the_interval_and_none_at_all() -> None:
    assert uniform_p_value(torch.linspace(0.5, 1.5, 50, dtype=torch.float64)) < 1e-10
    assert uniform_p_value((torch.arange(100).double() + 0.5) / 100) == 1.0
    assert math.isnan(uniform_p_value(torch.empty(0, dtype=torch.float64)))
