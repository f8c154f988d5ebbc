"""The target's law in a learned kernel: planted parameters within their errors, and near misses said to be such."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssmdiag.retrain.learned_kernel import DESCRIBES_DB, fit_target_law
from ssmdiag.retrain.results import LearnedLaw
from ssmdiag.retrain.tasks import TargetLaw, TaskSettings, known_tasks

POLYNOMIAL = TargetLaw("polynomial", exponent=1.1, offset=10.0)
EXPONENTIAL = TargetLaw("exponential", rate=0.05)
TRUNCATED = TargetLaw("truncated", exponent=1.1, offset=10.0, rate=0.01)
LAWS = {law.law: law for law in (POLYNOMIAL, EXPONENTIAL, TRUNCATED)}


def kernel(law: TargetLaw, lags: int = 100) -> Tensor:
    t = torch.arange(lags, dtype=torch.float64)
    power = (1 + t / law.offset) ** -law.exponent if law.offset and law.exponent else torch.ones_like(t)
    return power * torch.exp(-(law.rate or 0.0) * t)


def fit(values: Tensor, asked: TargetLaw = POLYNOMIAL, noise: float = 0.0) -> LearnedLaw:
    return fit_target_law(values, torch.full_like(values, noise), asked)


@pytest.mark.parametrize("lags", [100, 1000])
@pytest.mark.parametrize("name", LAWS)
def test_planted_parameters_are_found_within_their_errors(name: str, lags: int) -> None:
    law = LAWS[name]
    found = fit(kernel(law, lags), law)
    assert found.describes
    assert found.reason is None
    assert found.asked == law
    assert found.residual_db is not None
    assert found.residual_db[name] < 0.01
    for parameter in ("exponent", "offset", "rate"):
        planted, value, error = (getattr(where, parameter + end) for where, end in
                                 ((law, ""), (found, ""), (found, "_error")))  # fmt: skip
        assert (value is None) == (planted is None)
        if planted is not None:
            assert value == pytest.approx(planted, rel=2e-3)
            assert error is None or abs(value - planted) <= error < 0.1 * planted


@pytest.mark.slow
def test_errors_cover_the_planted_parameters_as_often_as_standard_errors_do() -> None:
    random = torch.Generator().manual_seed(0)
    off = []
    for _ in range(150):
        found = fit(kernel(POLYNOMIAL) * (1 + 0.02 * torch.randn(100, generator=random, dtype=torch.float64)))
        assert found.describes
        assert found.exponent is not None and found.exponent_error is not None  # noqa: PT018
        assert found.offset is not None and found.offset_error is not None  # noqa: PT018
        off.append([(found.exponent - 1.1) / found.exponent_error, (found.offset - 10) / found.offset_error])
    within = torch.tensor(off, dtype=torch.float64).abs()
    # 68 % and 95 % of a normal's draws; no more than that either, or the errors would be too wide to tell anything.
    assert 0.55 < float((within < 1).double().mean()) < 0.85
    assert 0.9 < float((within < 2).double().mean()) < 1


@pytest.mark.parametrize(
    ("near", "asked", "rival"),
    [
        (kernel(TRUNCATED), POLYNOMIAL, "truncated"),
        (kernel(EXPONENTIAL), POLYNOMIAL, "exponential"),
        (kernel(POLYNOMIAL), EXPONENTIAL, "polynomial"),
    ],
)
def test_a_kernel_of_another_law_has_no_parameters_but_residuals(near: Tensor, asked: TargetLaw, rival: str) -> None:
    found = fit(near, asked)
    assert not found.describes
    assert found.reason == f"{rival} fits much better" or rival == "polynomial"
    assert found.exponent is found.offset is found.rate is found.rate_error is None
    assert found.window == (0, 99)
    assert found.residual_db is not None
    assert found.residual_db[asked.law] > 4 * found.residual_db[rival]


def test_a_kernel_of_no_law_is_said_to_be_of_none() -> None:
    t = torch.arange(100, dtype=torch.float64)
    found = fit(torch.exp(-0.03 * t) * (0.5 * t).cos(), EXPONENTIAL)  # swings, which the exponential does not
    assert not found.describes
    assert found.reason == "no law fits it"
    assert found.residual_db is not None
    assert min(found.residual_db.values()) > DESCRIBES_DB


def test_an_offset_at_its_bound_has_no_error_and_says_so() -> None:
    below = fit(kernel(TargetLaw("polynomial", exponent=1.1, offset=0.1)))
    assert not below.describes
    assert below.offset_at_bound
    assert below.reason == "t₀ is at its bound of 0.25 steps, and the law does not fit there"
    at = fit(kernel(TargetLaw("polynomial", exponent=1.1, offset=0.249)))
    assert at.describes
    assert at.offset_at_bound
    assert at.offset == pytest.approx(0.25)
    assert at.offset_error is at.exponent_error is None


def test_lags_that_drown_in_the_noise_are_left_out() -> None:
    random = torch.Generator().manual_seed(1)
    values = kernel(POLYNOMIAL, 1000) + 1e-3 * torch.randn(1000, generator=random, dtype=torch.float64)
    found = fit(values, noise=1e-3)
    assert found.window is not None
    assert 100 < found.window[1] < 400
    assert found.describes
    nothing = fit(values, noise=1.0)
    assert not nothing.describes
    assert nothing.window is nothing.residual_db is None
    assert nothing.reason == "the kernel is too small to be distinguished from the arithmetic's noise"


@pytest.mark.slow
def test_the_law_a_task_states_is_that_of_its_kernel() -> None:
    stated = {}
    for task in known_tasks():
        if task.needs_path:
            continue
        data = task.make(TaskSettings(samples=2))
        assert data.law is None or data.kernel is not None
        if data.law is not None:
            assert data.kernel is not None
            stated[task.name] = data.law
            torch.testing.assert_close(data.kernel, kernel(data.law, len(data.kernel)), rtol=1e-12, atol=0)
    assert set(stated) == {"lf-exp", "lf-poly"}
