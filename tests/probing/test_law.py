"""The law of observed retention: clocks that decay by one, clocks that do not, and samples too small to tell."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssmdiag.probing.law import AGREEMENT, judge_law, mean_square
from tests.probing.measured import measured
from tests.tolerances import RELATIVE

LENGTH = 2048
POWER = (((torch.arange(64, dtype=torch.float64) + 0.5) / 64) ** 2)[:, None] + 1e-5
"""Rates of 64 channels with density r^(−1/2): the sum of exp(−2 r t) decays like t^(−1/2)."""


def ones(channels: int) -> Tensor:
    return torch.ones(1, LENGTH, channels, dtype=torch.float64)


def test_one_rate_at_a_constant_clock_is_exponential() -> None:
    law = judge_law(measured(ones(4), rate=[[0.02]] * 4))
    assert (law.law, law.agreement) == ("exponential", 1.0)
    assert law.window is not None
    assert law.window[0] == 0


def test_channels_spread_like_a_power_decay_like_one_at_random_clocks_too() -> None:
    draw = torch.Generator().manual_seed(0)
    noisy = torch.rand(2, LENGTH, 64, generator=draw, dtype=torch.float64) ** 3 * 4
    for step in (ones(64), noisy):
        law = judge_law(measured(step, rate=POWER))
        assert law.law == "polynomial"
        assert law.agreement is not None
        assert law.agreement >= AGREEMENT


def test_a_clock_that_stands_still_is_flat() -> None:
    assert judge_law(measured(0 * ones(2), rate=[[1.0]] * 2)).law == "flat"


def test_a_law_that_few_resamplings_agree_on_is_not_said() -> None:
    """Four channels at clocks that jump: near exponential, but for some of the positions only."""
    said, withheld = 0, 0
    for seed in range(12):
        draw = torch.Generator().manual_seed(seed)
        step = torch.rand(1, LENGTH, 4, generator=draw, dtype=torch.float64) ** 6 * 7
        law = judge_law(measured(step, rate=[[0.02]] * 4))
        assert law.agreement is not None
        said += law.law == "exponential"
        if law.law == "undetermined" and "resamplings" in law.reason:
            withheld += 1
            assert law.agreement < AGREEMENT
            assert f"{law.agreement:.0%}" in law.reason
            assert law.reason.startswith(("exponential", "truncated"))
    assert said
    assert withheld


def test_a_text_too_short_to_resample_has_no_law() -> None:
    law = judge_law(measured(ones(2)[:, :3], rate=[[1.0]] * 2))
    assert (law.law, law.window, law.agreement) == ("undetermined", None, None)
    assert law.reason == "the text has too few positions to resample"


def test_the_law_depends_on_the_seed_and_on_no_global_one() -> None:
    draw = torch.Generator().manual_seed(3)
    step = torch.rand(1, LENGTH, 4, generator=draw, dtype=torch.float64) ** 6 * 7
    found = measured(step, rate=[[0.02]] * 4)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert judge_law(found, seed=5) == judge_law(found, seed=5)
    assert bool((torch.get_rng_state() == before).all())
    assert len({judge_law(found, seed=seed).agreement for seed in range(8)}) > 1


@pytest.mark.parametrize("rate", [1e-4, 0.1, 3.0])
def test_the_mean_square_of_a_bin_of_an_exponential_is_that_of_its_lags(rate: float) -> None:
    lags = torch.tensor([0, 1, 2, 3, 5, 8, 100, 119])
    found = mean_square(torch.exp(-rate * lags.double())[None], lags)[0]
    for k, (first, last) in enumerate(zip(lags[:-1].tolist(), lags[1:].tolist(), strict=True)):
        exact = math.fsum(math.exp(-2 * rate * lag) for lag in range(first, last)) / (last - first)
        assert float(found[k]) == pytest.approx(exact, rel=max(RELATIVE["float64"], 1e-11))


def test_the_mean_square_of_what_does_not_decay_or_is_gone() -> None:
    lags = torch.tensor([0, 1, 5])
    assert mean_square(torch.ones(1, 3, dtype=torch.float64), lags).tolist() == [[1.0, 1.0]]
    gone = mean_square(torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64), lags)
    assert gone.tolist() == [[1.0, 0.0]]
