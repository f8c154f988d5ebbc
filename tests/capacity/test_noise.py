"""Noise-aware memory against many digits, closed forms and states that were really rounded."""

from __future__ import annotations

import math
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssmdiag.capacity.capacity import assess_capacity
from ssmdiag.capacity.noise import noisy_capacity, noisy_memory_function, noisy_states
from ssmdiag.capacity.reconstruction import memory_function
from ssmdiag.capacity.rounding import STATE_PRECISION, Rounding
from ssmdiag.recurrence.modal import DenseRealisation, Recurrence
from tests.capacity.reference import exact_capacity, exact_memory, spectrum
from tests.capacity.test_reconstruction import exactly, ring
from tests.kernel.test_kernel import random_dense, random_siso

STEPS = [0.001, 0.01, 0.1]
MAMBA = [-step * torch.arange(1, 17, dtype=torch.float64) for step in STEPS]
LAGS = [0, 1, 5, 30, 300]
SPECTRA = {
    **{f"Mamba at {step}": ell for step, ell in zip(STEPS, MAMBA, strict=True)},
    "S4D-Lin": torch.complex(torch.full((16,), -0.005).double(), 0.01 * math.pi * torch.arange(16).double()),
    "ring": ring(8),
    "whole disc": ring(10, 0.0, 1.0),
    "many real modes": -0.01 * torch.arange(1, 33, dtype=torch.float64),
    "close modes": -0.01 * (1 + 1e-6 * torch.arange(6, dtype=torch.float64)),
    "at the boundary": exactly(*(complex(-1e-9 * k, 0.3 * k) for k in range(1, 5)), -0.1),
}


@pytest.mark.one_in(9)
@pytest.mark.parametrize("name", SPECTRA)
def test_what_survives_rounding_equals_eighty_digits(name: str) -> None:
    ell = SPECTRA[name].to(torch.complex128)
    for epsilon in STATE_PRECISION.values():
        found = noisy_capacity(spectrum(ell), epsilon).item()
        assert abs(found - exact_capacity(ell.tolist(), epsilon)) < 1e-7
        memory = noisy_memory_function(spectrum(ell), LAGS, epsilon)[0].tolist()
        for value, expected in zip(memory, exact_memory(ell.tolist(), LAGS, epsilon=epsilon, digits=80), strict=True):
            assert abs(value - expected) < 1e-7


@pytest.mark.one_in(15)
@pytest.mark.parametrize("mean", [0.3, -1.0, 5.0])
@pytest.mark.parametrize("name", ["Mamba at 0.001", "S4D-Lin", "ring", "close modes", "at the boundary"])
def test_what_survives_an_input_with_a_mean_equals_eighty_digits(name: str, mean: float) -> None:
    ell, lags = SPECTRA[name].to(torch.complex128), [0, 3, 40]
    for epsilon in (2.0**-9, 2.0**-12, 0.015):
        found = noisy_capacity(spectrum(ell), epsilon, Rounding(input_mean=mean)).item()
        assert abs(found - exact_capacity(ell.tolist(), epsilon, mean=mean)) < 1e-7
        memory = noisy_memory_function(spectrum(ell), lags, epsilon, Rounding(input_mean=mean))[0].tolist()
        exact = exact_memory(ell.tolist(), lags, epsilon=epsilon, mean=mean, digits=80)
        assert all(abs(value - expected) < 1e-7 for value, expected in zip(memory, exact, strict=True))


def test_sixteen_real_modes_are_worth_six_in_bf16_and_twelve_in_float32() -> None:
    recurrence = spectrum(torch.stack(MAMBA))
    bf16, single = noisy_capacity(recurrence, "bf16"), noisy_capacity(recurrence, "float32")
    assert bool(((bf16 > 5.1) & (bf16 < 6.4)).all())
    assert bool(((single > 11.6) & (single < 12.6)).all())
    linear = spectrum(SPECTRA["S4D-Lin"])
    assert noisy_capacity(linear, "bf16").item() > 30.9


@pytest.mark.parametrize("rate", [1e-9, 1e-3, 0.3, 50.0])
def test_one_mode_survives_by_its_margin(rate: float) -> None:
    margin = -math.expm1(-2 * rate)
    for epsilon in STATE_PRECISION.values():
        expected = 1 / (1 + epsilon**2 / 3 / margin)
        found = noisy_capacity(spectrum(torch.tensor([[-rate]], dtype=torch.float64)), epsilon).item()
        assert found == pytest.approx(expected, rel=1e-12)


def solved(A: np.ndarray, B: np.ndarray, epsilon: float, lags: list[int]) -> tuple[mpmath.mpf, list[mpmath.mpf]]:
    """Return capacity and memory of a dense state by the Stein equations in 60 digits."""
    n = len(A)
    with mpmath.workdps(60):
        a = mpmath.matrix(A.tolist())
        pairs = mpmath.matrix(n * n)
        for i in range(n):
            for j in range(n):
                for k in range(n):
                    for m in range(n):
                        pairs[i * n + j, k * n + m] = (i == k and j == m) - a[i, k] * a[j, m]
        square = [[x * y for y in B.tolist()] for x in B.tolist()]

        def stein(right: list[list[mpmath.mpf]]) -> mpmath.matrix:
            found = mpmath.lu_solve(pairs, mpmath.matrix([x for row in right for x in row]))
            return mpmath.matrix(n, n) + mpmath.matrix([[found[i * n + j] for j in range(n)] for i in range(n)])

        P = stein(square)
        N = stein([[mpmath.mpf(epsilon) ** 2 / 3 * P[i, i] * (i == j) for j in range(n)] for i in range(n)])
        inverse = (P + N) ** -1
        trace = mpmath.fsum((inverse * P)[i, i] for i in range(n))
        state, memory = mpmath.matrix(B.tolist()), []
        for lag in range(max(lags) + 1):
            if lag in lags:
                memory.append((state.T * inverse * state)[0])
            state = a * state
        return trace, memory


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", STATE_PRECISION)
def test_a_dense_state_rounds_in_its_own_basis(name: str) -> None:
    recurrence = random_dense(channels=2, states=5)
    assert recurrence.dense is not None
    dense = recurrence.dense()
    capacity, memory = noisy_capacity(recurrence, name), noisy_memory_function(recurrence, [0, 1, 4, 9], name)
    for channel in range(2):
        A, B = dense.state_matrix[channel].real.numpy(), dense.input_matrix[channel].real.numpy()
        trace, values = solved(A, B, STATE_PRECISION[name], [0, 1, 4, 9])
        assert abs(capacity[channel].item() - trace) < 1e-7
        for value, expected in zip(memory[channel].tolist(), values, strict=True):
            assert abs(value - expected) < 1e-7


def test_a_diagonal_state_matrix_rounds_as_its_modes_do() -> None:
    ell = MAMBA[1][:6]
    dense = DenseRealisation(ell.exp().diag()[None], torch.ones(1, 6).double(), torch.ones(1, 1, 6).double())
    for name in STATE_PRECISION:
        same = noisy_capacity(spectrum(ell[None], dense=lambda: dense), name)
        assert same.item() == pytest.approx(noisy_capacity(spectrum(ell), name).item(), abs=1e-9)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([3, 10, 20]), st.booleans())
def test_noise_only_takes_memory_and_more_noise_takes_more(seed: int, modes: int, real: bool) -> None:
    recurrence = random_siso(seed, channels=3, modes=modes, slow=1e-2, real=real)
    exact = memory_function(recurrence, range(200))
    best, before = exact.values, exact.modes.double()
    for name in ("float32", "fp16", "bf16", "int8"):
        memory, capacity = noisy_memory_function(recurrence, range(200), name), noisy_capacity(recurrence, name)
        assert bool((memory <= best + 1e-7).all() & (capacity <= before + 1e-7).all())
        assert bool((memory.diff() <= 1e-9).all())
        best, before = memory, capacity


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(9)))
def test_what_survives_depends_on_neither_order_nor_what_is_written(seed: int, order: list[int]) -> None:
    recurrence = random_siso(seed, modes=9)
    other = replace(recurrence, log_eigenvalues=recurrence.log_eigenvalues[:, order].conj(), input_matrix=None)
    np.testing.assert_allclose(
        noisy_capacity(recurrence, 2.0**-25).numpy(), noisy_capacity(other, 2.0**-25).numpy(), rtol=1e-8
    )


def test_vanishing_noise_leaves_the_exact_memory() -> None:
    recurrence = spectrum(ring(6))
    exact = memory_function(recurrence, LAGS).values
    np.testing.assert_allclose(noisy_memory_function(recurrence, LAGS, 1e-13).numpy(), exact.numpy(), atol=1e-10)


def test_modes_that_are_equal_round_apart_and_halve_the_noise() -> None:
    rate = 1e-4
    pair = noisy_capacity(spectrum(torch.tensor([[-rate, -rate]], dtype=torch.float64)), 0.02).item()
    half = noisy_capacity(spectrum(torch.tensor([[-rate]], dtype=torch.float64)), 0.02 / 2**0.5)
    assert pair == pytest.approx(half.item(), rel=1e-9)


def lengths(recurrence: Recurrence, share: float) -> tuple[list[float], Tensor]:
    states = noisy_states(recurrence, slice(None))
    rounded = states.rounded("bf16")
    memory = noisy_memory_function(recurrence, range(400), "bf16")
    return states.lengths(rounded, [0.9, share])[1].tolist(), (memory >= share).sum(1) - 1


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_the_length_found_by_bisection_is_the_last_lag_above_the_share(share: float) -> None:
    for recurrence in (spectrum(torch.stack(MAMBA)), random_siso(slow=1e-2), random_siso(real=True)):
        found, expected = lengths(recurrence, share)
        assert found == expected.tolist()
    dense = random_dense()
    assert dense.dense is not None
    built = DenseRealisation(*(x.real for x in vars(dense.dense()).values()))
    found, expected = lengths(replace(dense, dense=lambda: built), share)
    assert found == expected.tolist()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("modes", [13, 31, 45, 80])
@pytest.mark.parametrize("real", [True, False])
def test_many_modes_are_rounded_as_the_definition_says(modes: int, real: bool) -> None:
    """R and the survivors of large states, panel by panel, against one QR of [(K⁻¹ L)ᴴ; I]."""
    states = noisy_states(random_siso(modes=modes, slow=1e-2, real=real), slice(None))
    for name in STATE_PRECISION:
        found = states.rounded(name)
        assert found.whitening is not None
        signal = states._signal(found.whitening)
        identity = torch.eye(signal.shape[-1], dtype=torch.float64).expand(len(signal), -1, -1)
        Q, R = torch.linalg.qr(torch.cat([signal, identity], 1))
        # R is unique up to the signs of its rows.
        whole = (R.mT @ R) / R.square().max()
        torch.testing.assert_close((found.factor.mT @ found.factor) / R.square().max(), whole, rtol=1e-12, atol=1e-14)
        assert bool((found.factor.tril(-1) == 0).all())
        expected = Q[:, : signal.shape[-1]].square().sum((1, 2))
        torch.testing.assert_close(states.survivors(name), expected, rtol=1e-6 if name == "float32" else 1e-7, atol=0)


def test_broken_and_growing_modes_count_for_nothing() -> None:
    ell = exactly(-0.1, -0.2 + 1j, complex(math.nan, 0), 0.1, 0.0, 2j)[None]
    good = exactly(-0.1, -0.2 + 1j)
    for name in STATE_PRECISION:
        assert noisy_capacity(spectrum(ell), name).item() == pytest.approx(
            noisy_capacity(spectrum(good), name).item(), rel=1e-12
        )
    assert noisy_capacity(spectrum(ell[:, 2:]), "bf16").tolist() == [0.0]


def test_an_unknown_format_is_refused() -> None:
    for wrong in ("bfloat16", 0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="bf16, fp16, int8, float32"):
            noisy_capacity(random_siso(), wrong)


def test_a_rate_beyond_float64_costs_its_own_channel_alone() -> None:
    sound, beyond = exactly(-0.1 + 1j, -0.2 + 2j), exactly(*[complex(-4.4763e-309, 4.4763e-309)] * 2)
    alone = assess_capacity(spectrum(sound[None]), 64)
    both = assess_capacity(spectrum(torch.stack([sound, beyond, sound])), 64)
    for name, survivors in both.surviving.items():
        assert survivors[[0, 2]].tolist() == alone.surviving[name].tolist() * 2
        assert math.isnan(survivors[1].item())
