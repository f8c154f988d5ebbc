"""The orthonormal factor, all modes at once, against the loop over modes, closed forms and 60 digits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssmdiag.kernel.energy import band_energy, horizon, tail_energy
from ssmdiag.kernel.orthonormal import around_one, orthonormal_factor
from ssmdiag.recurrence.modal import Recurrence
from tests.kernel.looped_factor import LoopedEnergy, expm1
from tests.kernel.test_energy import exact
from tests.kernel.test_kernel import random_siso, siso

LAGS = [0, 1, 10, 100, 1000, 10**5]


def spectrum_of(kind: str, modes: int, generator: torch.Generator) -> Tensor:
    """Return ℓ (mode,) of a kind that is hard on a factor."""
    rate = 10 ** (-4 + 3 * torch.rand(modes, generator=generator, dtype=torch.float64))
    angle = math.pi * (2 * torch.rand(modes, generator=generator, dtype=torch.float64) - 1)
    half = modes // 2
    if kind == "one rate":
        rate = torch.full_like(rate, 5e-3)
        angle = 0.02 * math.pi * torch.arange(modes, dtype=torch.float64)
    elif kind == "repeated":
        rate[half:], angle[half:] = rate[: modes - half].clone(), angle[: modes - half].clone()
    elif kind == "nearly repeated":
        rate[half:] = rate[: modes - half] * (1 + 1e-9)
        angle[half:] = angle[: modes - half] * (1 - 1e-9)
    elif kind == "boundary":
        rate[::2] *= 1e-9
    elif kind == "real and complex":
        angle[::3], angle[1::6], angle[4::6] = 0.0, math.pi, -math.pi
    elif kind == "real at both ends of the boundary":
        rate = rate * 1e-9
        angle[::2], angle[1::2] = 0.0, math.pi
    elif kind == "gone at once":
        rate[::4] = math.inf
    return torch.complex(-rate, angle)


KINDS = (
    "random", "one rate", "repeated", "nearly repeated", "boundary", "real and complex",
    "real at both ends of the boundary", "gone at once",
)  # fmt: skip


def layer(kind: str, modes: int = 24, channels: int = 3, seed: int = 0, copies: int = 1) -> Recurrence:
    generator = torch.Generator().manual_seed(seed)
    ell = torch.stack([spectrum_of(kind, modes, generator) for _ in range(channels)])
    parts = torch.randn(2, copies, channels, modes, generator=generator, dtype=torch.float64)
    return siso(ell, torch.complex(*parts), 2.0)


@pytest.mark.one_in(40)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copies", [1, 2, 3])
def test_energies_and_horizons_are_those_of_the_loop_over_modes(kind: str, copies: int) -> None:
    recurrence = layer(kind, copies=copies)
    energy, bands = tail_energy(recurrence, LAGS), band_energy(recurrence, LAGS)
    assert bool(energy.known[:, 0].all())
    for channel in range(recurrence.channels):
        loop = LoopedEnergy(recurrence, channel)
        tails = torch.tensor([loop.at(lag) for lag in LAGS], dtype=torch.float64)
        slack = 2 * energy.noise[channel] + 1e-12 * tails
        assert bool(((energy.values[channel] - tails).abs() <= slack).all())
        inside = -tails.diff() / torch.tensor(LAGS).diff()
        slack = (2 * energy.noise[channel][0] + 1e-12 * tails[0]) / torch.tensor(LAGS).diff()
        assert bool(((bands.values[channel] - inside).abs() <= slack).all())
        for share in (0.5, 0.99):
            found, expected = horizon(recurrence, share, max_lag=2**40).lags[channel].item(), loop.horizon(share)
            if expected >= 2**40:
                assert math.isnan(found)
            else:
                assert found == pytest.approx(expected, abs=0 if expected < 2**30 else expected * 1e-12)


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9, 1e-12])
def test_pairs_that_cancel_keep_all_digits_but_those_of_the_gap(gap: float) -> None:
    ell = torch.tensor([[complex(-1e-2, 0.4), complex(-1e-2 * (1 + gap), 0.4 * (1 + gap))]], dtype=torch.complex128)
    recurrence = siso(ell, torch.tensor([[[1.0, -1.0]]]), 2.0)
    found = tail_energy(recurrence, [0, 5, 200])
    for k, lag in enumerate((0, 5, 200)):
        expected = exact(recurrence, lag)
        error = abs(float(expected - float(found.values[0, k])))
        assert error <= float(found.noise[0, k])
        assert error <= 1e-14 / gap * float(expected)


@pytest.mark.one_in(12)
@pytest.mark.parametrize("kind", [*KINDS[:-1], "real and positive"])
def test_the_noise_bounds_the_error_far_down_the_tail(kind: str) -> None:
    recurrence = layer(kind, modes=7, channels=1, seed=3)
    if kind == "real and positive":
        recurrence = random_siso(3, channels=1, modes=7, copies=1, real=True)
    slowest = float(recurrence.rate.min())
    lags = [int(nats / slowest) for nats in (0, 1, 30, 200, 340)]
    found = tail_energy(recurrence, [min(lag, 2**40) for lag in lags])
    for k, lag in enumerate(lags):
        error = abs(float(exact(recurrence, min(lag, 2**40)) - float(found.values[0, k])))
        assert error <= float(found.noise[0, k])


@pytest.mark.parametrize("kind", KINDS[:-2])
def test_the_factor_squares_to_the_gram_matrix_of_modes_and_of_their_conjugates(kind: str) -> None:
    ell = spectrum_of(kind, 12, torch.Generator().manual_seed(1))
    ell = torch.complex(ell.real, ell.imag.abs() % math.pi)[None]
    ell = ell.gather(1, ell.real.neg().argsort(dim=1, stable=True))
    factor = orthonormal_factor(ell)
    norm = torch.linalg.vector_norm(factor, dim=1)
    for other, right in ((ell.conj(), factor.conj()), (ell, factor)):
        gram = -1 / expm1(ell[:, :, None] + other[:, None])
        assert bool(((factor.mT @ right - gram).abs() <= 1e-14 * norm[:, :, None] * norm[:, None]).all())


def test_one_pair_has_the_functions_that_are_printed() -> None:
    value = complex(-0.3, 0.7)
    ell = torch.tensor([[value]], dtype=torch.complex128)
    pole = np.exp(value)
    gain = math.sqrt((1 - abs(pole) ** 2) / 2) / ((1 - pole * pole) * (1 - abs(pole) ** 2))
    expected = [gain * abs(1 - pole) * (1 + pole), gain * abs(1 + pole) * (1 - pole)]
    np.testing.assert_allclose(orthonormal_factor(ell)[0, :, 0].numpy(), expected, rtol=1e-14)


@pytest.mark.parametrize("rate", [1e-15, 1e-3, 40.0])
@pytest.mark.parametrize("angle", [0.0, 1e-9, 1.0, math.pi])
def test_distances_from_one_keep_their_digits(rate: float, angle: float) -> None:
    import mpmath

    with mpmath.workdps(40):
        pole = mpmath.exp(mpmath.mpc(-rate, mpmath.pi if angle == math.pi else angle))
        expected = [complex(1 + pole), complex(1 - pole)]
    for found, one in zip(
        around_one(torch.tensor(complex(-rate, angle), dtype=torch.complex128)), expected, strict=True
    ):
        assert abs(complex(found) - one) <= 5e-16 * abs(one)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from(KINDS))
def test_neither_the_order_nor_the_sign_of_a_frequency_moves_an_energy(seed: int, modes: int, kind: str) -> None:
    recurrence = layer(kind, modes=modes, channels=2, seed=seed)
    assert recurrence.output_matrix is not None
    order = torch.randperm(modes, generator=torch.Generator().manual_seed(seed))
    turned = siso(recurrence.log_eigenvalues[:, order].conj(), recurrence.output_matrix[..., order].conj(), 2.0)
    a, b = tail_energy(recurrence, LAGS), tail_energy(turned, LAGS)
    assert bool(((a.values - b.values).abs() <= a.noise + b.noise).all())


def test_modes_of_one_sign_are_read_by_half_the_arithmetic_with_the_same_answer() -> None:
    recurrence = random_siso(real=True)
    ell = recurrence.log_eigenvalues.clone()
    mixed = torch.cat([ell, torch.full_like(ell[:, :1], complex(-0.1, 1.0))], 1)
    assert recurrence.output_matrix is not None
    output = torch.cat([recurrence.output_matrix, torch.full_like(recurrence.output_matrix[..., :1], 1e-30)], -1)
    gain = torch.cat([recurrence.input_matrix, torch.ones_like(ell[:, :1])], 1)  # type: ignore[list-item]
    other = siso(mixed, output, recurrence.kernel_factor, gain)
    np.testing.assert_allclose(
        tail_energy(other, LAGS[:4]).values.numpy(), tail_energy(recurrence, LAGS[:4]).values.numpy(), rtol=1e-11
    )
