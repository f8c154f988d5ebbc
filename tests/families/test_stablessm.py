"""StableSSM's four parameterisations, which its files do not name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssmdiag.diagnosis import diagnose, extract_recurrences
from ssmdiag.recurrence.modal import Recurrence
from tests.reference import relative_error, stepped_kernel
from tests.tolerances import RELATIVE

H, N, LAGS = 5, 4, 40

Read = Callable[..., list[Recurrence]]
Write = Callable[..., Path]

REAL_PARTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "exp": lambda w: -torch.exp(w),
    "softplus": lambda w: -torch.log(1 + torch.exp(w)),
    "best": lambda w: -1 / (w**2 + 0.1),
    "direct": lambda w: w,
}


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def weights(prefix: str = "net.stablessm_layers.0.kernel.") -> dict[str, Tensor]:
    return {
        f"{prefix}log_A_real": random(H, N, seed=1),
        f"{prefix}A_imag": math.pi * torch.arange(N, dtype=torch.float64).expand(H, N).clone(),
        f"{prefix}log_dt": -4 + random(H, seed=2),
        f"{prefix}C": random(H, N, 2, seed=3),
    }


def expected(parameterization: str) -> tuple[Tensor, Tensor]:
    """ℓ (H, N) and K (1, H, lag) = 2 Re Σ_n C (λ̄ − 1)/λ λ̄^t."""
    w = weights("")
    A = REAL_PARTS[parameterization](w["log_A_real"]) + 1j * w["A_imag"]
    z = A * w["log_dt"].exp()[:, None]
    C = torch.complex(w["C"][..., 0], w["C"][..., 1]) * (z.exp() - 1) / A
    return z, torch.stack([2 * (C * (z * t).exp()).sum(-1).real for t in range(LAGS)], -1)[None]


@pytest.mark.parametrize("parameterization", REAL_PARTS)
def test_each_parameterisation_gives_its_own_spectrum_and_kernel(parameterization: str, read_model: Read) -> None:
    (found,) = read_model(weights(), parameterization=parameterization)
    ell, K = expected(parameterization)
    torch.testing.assert_close(found.log_eigenvalues, ell, rtol=RELATIVE["float64"], atol=0)
    assert relative_error(stepped_kernel(found, LAGS), K) < 1e-12
    assert (found.family, found.layer) == ("stablessm", "net.stablessm_layers.0")


@pytest.mark.parametrize("parameterization", REAL_PARTS)
def test_the_parameterisation_is_taken_from_the_configuration_where_it_is(
    parameterization: str, read_model: Read
) -> None:
    (found,) = read_model(weights(), {"model": {"net": {"parameterization": parameterization}}})
    torch.testing.assert_close(found.log_eigenvalues, expected(parameterization)[0], rtol=1e-12, atol=0)
    assert found.assumptions[0].source == "file"


def test_the_shipped_initialisation_is_read_as_unstable(read_model: Read) -> None:
    """Every shipped configuration trains `direct`, which starts from Re A = +0.5."""
    state = weights()
    state["net.stablessm_layers.0.kernel.log_A_real"].fill_(0.5)
    (found,) = read_model(state)
    assert bool((found.rate < 0).all())
    assert (found.assumptions[0].value, found.assumptions[0].source) == ("direct", "usual")


@pytest.mark.parametrize(("parameterization", "stored"), [("exp", -0.6931), ("softplus", -0.4328), ("best", 1.3784)])
def test_the_initial_weights_of_the_stable_maps_mean_a_rate_of_one_half(
    parameterization: str, stored: float, read_model: Read
) -> None:
    state = weights()
    state["net.stablessm_layers.0.kernel.log_A_real"].fill_(stored)
    (found,) = read_model(state, parameterization=parameterization)
    torch.testing.assert_close(found.rate / found.step, torch.full((H, N), 0.5).double(), rtol=2e-4, atol=0)


def test_the_report_shows_the_half_life_under_every_other_parameterisation(write_model: Write) -> None:
    diagnosis = diagnose(write_model(weights()))
    (alternative,) = diagnosis.alternatives
    assert alternative.assumption.option == "parameterization"
    for name, longest in alternative.others:
        rate = -expected(name)[0].real
        assert longest == pytest.approx(math.log(2) / float(rate.min()), rel=1e-12)
    assert {name for name, _ in alternative.others} == {"exp", "softplus", "best"}


def test_a_stablessm_under_another_name_can_be_told_from_s4d_by_the_user(write_model: Write) -> None:
    model = write_model(weights("encoder.blocks.0.kernel."))
    assert extract_recurrences(model)[0].family == "s4d"
    (found,) = extract_recurrences(model, assume={"family": "stablessm", "parameterization": "best"})
    assert found.family == "stablessm"
    torch.testing.assert_close(found.log_eigenvalues, expected("best")[0], rtol=1e-12, atol=0)
