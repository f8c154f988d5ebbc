"""The learned kernel: the filter itself where the model is one, the input–output correlation where it is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ssmdiag.retrain.arms import Arm
from ssmdiag.retrain.learned_kernel import compare_with, learned_kernel, mean_derivative
from ssmdiag.retrain.model import Ensemble
from ssmdiag.retrain.tasks.linear_functional import filter_with
from tests.retrain.small import BUDGET, RECURRENCES, compare_arms, model, task, trained

LAGS = 24


def kernel(seed: int = 0) -> Tensor:
    return torch.randn(LAGS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def white(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, LAGS, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_of_a_filter_it_is_the_filter() -> None:
    K = kernel()
    found, noise = mean_derivative(lambda x: filter_with(K, x[..., 0])[..., None], white(3))
    assert float(noise.max()) < 1e-7  # every sequence has the same
    torch.testing.assert_close(found, K, rtol=1e-12, atol=1e-12)
    assert compare_with(K, found).error < 1e-12
    assert compare_with(K, 0 * K).error == pytest.approx(1)
    assert compare_with(K, 1.5 * K).error == pytest.approx(0.5)


@pytest.mark.slow
def test_of_a_nonlinear_model_it_is_the_correlation_of_output_and_white_input() -> None:
    K = 0.2 * kernel()

    def answer(x: Tensor) -> Tensor:
        return torch.tanh(filter_with(K, x[..., 0]))[..., None]

    x = white(200_000)
    found, noise = mean_derivative(answer, x)
    slope = 1 - answer(x)[:, -1, 0].square()  # tanh′, by which every sequence has K
    torch.testing.assert_close(noise, K.abs() * slope.std() / 200_000**0.5, rtol=1e-9, atol=0)
    correlation = (answer(x)[:, -1] * x[..., 0]).mean(0).flip(0)
    assert float((found - correlation).abs().max()) < 5 / 200_000**0.5
    assert float((found - K).abs().max()) > 0.02  # and not the filter's own


@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_of_a_trained_arm_it_is_what_finite_differences_say(recurrence: str) -> None:
    data = replace(
        task(), validation_inputs=task().validation_inputs[:5], validation_targets=task().validation_targets[:5]
    )
    both = trained(Arm("exp", lr=0.05), Arm("best", lr=0.05), recurrence=recurrence, data=data).ensemble
    learned = learned_kernel(both, 1, data)
    assert learned is not None
    ensemble = Ensemble(both.arms[1:], model(recurrence), data)
    ensemble.load_state(0, both.state_dict(1))
    x, h = data.validation_inputs, 1e-2
    with torch.no_grad():
        for lag in (0, 1, 7, data.length - 1):
            nudge = torch.zeros_like(x)
            nudge[:, -1 - lag] = h
            up, down = (ensemble.forward((x + sign * nudge)[None])[0, :, -1].double().mean() for sign in (1, -1))
            assert learned.values[lag] == pytest.approx(float(up - down) / (2 * h), abs=1e-4)


def test_arms_of_a_linear_functional_have_one_and_others_none() -> None:
    result = compare_arms([Arm("exp"), Arm("exp", lr=1e9)], task(), model(), BUDGET, task="lf-poly")
    assert result.target == tuple(task().kernel.tolist())  # type: ignore[union-attr]
    learned, lost = (arm.kernel for arm in result.arms)
    assert learned is not None
    assert len(learned.values) == len(result.target)
    assert learned.law is not None
    assert learned.law.asked == task().law
    assert lost is None
    other = compare_arms([Arm("exp")], task("delay"), model(), BUDGET, task="delay")
    assert other.target == ()
    assert other.arms[0].kernel is None
