"""Energies and horizons against closed forms, brute force and 60 digits, at the boundary and through cancellation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from unittest import mock

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssmdiag.assessment.memory import lag_edges
from ssmdiag.kernel.dense import LEAST, on_real_state, times
from ssmdiag.kernel.energy import band_energy, band_energy_and_horizon, horizon, tail_energy
from ssmdiag.kernel.kernel import sample_kernel
from ssmdiag.kernel.orthonormal import orthonormal_factor
from ssmdiag.kernel.powers import retention
from ssmdiag.kernel.response import Response
from ssmdiag.kernel.status import Status
from ssmdiag.recurrence.modal import DenseRealisation, Recurrence
from tests.kernel.test_kernel import SPELLINGS, count_dense, random_dense, random_mimo, random_siso, siso

Read = Callable[..., list[Recurrence]]
EDGES = [0, 1, 2, 5, 10, 20, 40, 80, 160, 1000, 5000]
LAGS = [0, 1, 7, 100, 1000]


def one_pole(rate: float, weight: float = 3.0) -> Recurrence:
    return siso(torch.tensor([[-rate]], dtype=torch.float64), torch.full((1, 1, 1), weight, dtype=torch.float64))


def dense_of(recurrence: Recurrence, basis: Tensor) -> Recurrence:
    """Return real modes as a full matrix V diag(λ̄) V⁻¹."""
    assert recurrence.output_matrix is not None
    assert recurrence.input_matrix is not None
    inverse = torch.linalg.inv(basis)
    A = basis @ torch.diag_embed(recurrence.log_eigenvalues.real.exp()) @ inverse
    dense = DenseRealisation(
        A.to(torch.complex128),
        recurrence.input_matrix @ basis.T.to(torch.complex128),
        recurrence.output_matrix @ inverse.to(torch.complex128),
    )
    return replace(recurrence, dense=lambda: dense)


def summed(recurrence: Recurrence, length: int) -> Tensor:
    """Return K_t² summed over copies, or over outputs and inputs; (channel, lag)."""
    square = sample_kernel(recurrence, range(length)).square()
    return square.sum((0, 1))[None] if recurrence.layout == "many inputs" else square.sum(0)


def exact(recurrence: Recurrence, lag: int, channel: int = 0) -> mpmath.mpf:
    """Return E(τ) of one channel by the closed form in 60 digits."""
    assert recurrence.output_matrix is not None
    assert recurrence.input_matrix is not None
    weights = recurrence.kernel_factor * (recurrence.output_matrix * recurrence.input_matrix)[:, channel]
    total = mpmath.mpf(0)
    with mpmath.workdps(60):
        turn = {math.pi: mpmath.pi, -math.pi: -mpmath.pi}  # float64's π stands for π
        ell = [mpmath.mpc(e.real, turn.get(e.imag, e.imag)) for e in recurrence.log_eigenvalues[channel].tolist()]
        full = ell + [mpmath.conj(e) for e in ell]
        for row in weights.tolist():
            half = [mpmath.mpc(w) / 2 for w in row]
            c = [w * mpmath.exp(e * lag) for w, e in zip(half + [mpmath.conj(w) for w in half], full, strict=True)]
            for i, a in enumerate(full):
                for j, b in enumerate(full):
                    total += (c[i] * mpmath.conj(c[j]) / -mpmath.expm1(a + mpmath.conj(b))).real
    return total


@pytest.mark.parametrize("rate", [1e-13, 1e-9, 1e-3, 0.5, 30.0])
def test_energy_and_horizon_of_one_pole_are_geometric(rate: float) -> None:
    recurrence = one_pole(rate)
    lags = [0, 1, 1000, 10**9]
    expected = [9 * math.exp(-2 * rate * lag) / -math.expm1(-2 * rate) for lag in lags]
    np.testing.assert_allclose(tail_energy(recurrence, lags).values[0].numpy(), expected, rtol=1e-14)
    for share in (0.5, 0.99, 1 - 1e-6):
        found = horizon(recurrence, share, max_lag=2**40)
        wanted = max(1, math.ceil(-math.log1p(-share) / (2 * rate)))
        if wanted > 2**40:
            assert Status(int(found.status)) is Status.BEYOND
            assert bool(found.lags.isnan().all())
        else:
            assert Status(int(found.status)) is Status.KNOWN
            assert found.lags.item() == pytest.approx(wanted, abs=0 if wanted < 2**30 else wanted * 1e-13)


@pytest.mark.one_in(8)
@pytest.mark.parametrize(
    "make",
    [
        random_siso,
        lambda: random_siso(real=True),
        random_mimo,
        random_dense,
        lambda: random_dense(real=False),
        lambda: random_siso(copies=40, modes=3),
        lambda: random_mimo(inputs=1, outputs=1, modes=1),
    ],
)
def test_energy_bands_and_horizon_equal_brute_force(make: Callable[[], Recurrence]) -> None:
    recurrence = make()
    square = summed(recurrence, 40_000)
    energy = square.flip(-1).cumsum(-1).flip(-1)
    found = tail_energy(recurrence, LAGS)
    assert bool(found.known[:, :4].all())
    error = (found.values - energy[:, LAGS]).abs()
    assert bool((error <= 1e-10 * energy[:, LAGS] + found.noise).all())
    bands = band_energy(recurrence, EDGES)
    for k, (first, last) in enumerate(pairwise(EDGES)):
        mean = square[:, first:last].mean(1)
        assert bool(((bands.values[:, k] - mean).abs() <= 1e-10 * mean + bands.noise[:, k]).all())
    for share in (0.5, 0.9, 0.99):
        expected = (energy > (1 - share) * energy[:, :1]).sum(1)
        assert horizon(recurrence, share).lags.tolist() == expected.tolist()


@pytest.mark.slow
def test_noise_bounds_the_error_against_sixty_digits() -> None:
    for seed in range(4):
        recurrence = random_siso(seed, channels=2, modes=8)
        found = tail_energy(recurrence, [0, 10, 300])
        for channel in range(2):
            for k, lag in enumerate([0, 10, 300]):
                error = abs(float(exact(recurrence, lag, channel) - float(found.values[channel, k])))
                assert error <= float(found.noise[channel, k])
                assert float(found.noise[channel, k]) < 1e-11 * float(found.values[channel, k])


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("rate", [0.1, 1e-5])
def test_nearly_equal_poles_that_cancel_keep_all_digits_but_those_of_the_gap(gap: float, rate: float) -> None:
    ell = torch.tensor([[-rate, -rate * (1 + gap)]], dtype=torch.float64)
    recurrence = siso(ell, torch.tensor([[[1.0, -1.0]]]))
    found = tail_energy(recurrence, [0, 5])
    for k, lag in enumerate((0, 5)):
        expected = exact(recurrence, lag)
        error = abs(float(expected - float(found.values[0, k])))
        assert error <= float(found.noise[0, k])
        # The quadratic form wᵀGw would have lost gap², and at 1e-9 everything.
        assert error <= 1e-15 / gap * float(expected)


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9])
def test_a_dense_matrix_whose_poles_cancel_keeps_all_digits_but_those_of_the_gap(gap: float) -> None:
    rate = 1e-3
    ell = torch.tensor([[-rate, -rate * (1 + gap)]], dtype=torch.float64)
    reference = siso(ell, torch.tensor([[[1.0, -1.0]]]))
    recurrence = dense_of(reference, torch.tensor([[1.0, 0.3], [0.2, 1.0]], dtype=torch.float64))
    found = tail_energy(recurrence, [0, 5])
    for k, lag in enumerate((0, 5)):
        expected = exact(reference, lag)
        # The matrix is rounded where the rates are exact, and the Gramian would have lost gap².
        assert abs(float(expected - float(found.values[0, k]))) <= 1e-12 / gap * float(expected)
        assert float(found.noise[0, k]) <= 1e-11 / gap * float(expected)
    assert horizon(recurrence).lags.item() == pytest.approx(horizon(reference).lags.item(), abs=max(1, 1e-8 / gap))


@pytest.mark.parametrize("context", [100, 5000, 2**40])
def test_bands_of_a_dense_matrix_on_the_boundary_are_those_of_its_modes(context: int) -> None:
    rates = torch.tensor([[0.0, 0.01, 0.3]], dtype=torch.float64)
    reference = siso(-rates, torch.tensor([[[0.5, -1.0, 2.0]]]))
    basis = torch.tensor([[1.0, 0.3, 0.1], [0.2, 1.0, -0.4], [0.0, 0.5, 1.0]], dtype=torch.float64)
    recurrence = dense_of(reference, basis)
    found, expected = (band_energy(x, lag_edges(context)) for x in (recurrence, reference))
    assert found.status.tolist() == [Status.BOUNDARY]
    # The rounded matrix holds a unit eigenvalue to its own digits, which count once for each step.
    allowed = 1e-14 * lag_edges(context)[1:] * expected.values + 1e-14 * expected.values.amax()
    assert bool(((found.values - expected.values).abs() <= allowed).all())
    assert bool(((found.values - expected.values).abs() <= found.noise).all())
    assert horizon(recurrence).lags.tolist() == [math.inf]


@pytest.mark.parametrize("make", [random_siso, lambda: random_siso(real=True), random_mimo, random_dense])
def test_bands_and_horizon_found_together_are_those_found_alone(make: Callable[[], Recurrence]) -> None:
    recurrence = make()
    bands, found = band_energy_and_horizon(recurrence, EDGES, 0.9, 2**40)
    alone, lags = band_energy(recurrence, EDGES), horizon(recurrence, 0.9, 2**40)
    for name in ("values", "noise", "status"):
        torch.testing.assert_close(getattr(bands, name), getattr(alone, name), rtol=1e-14, atol=0)
    assert found.lags.tolist() == lags.lags.tolist()
    assert found.status.tolist() == lags.status.tolist()


@pytest.mark.parametrize(
    "ask",
    [
        horizon,
        lambda r: tail_energy(r, [0, 3]),
        lambda r: band_energy(r, [0, 3, 9]),
        lambda r: band_energy_and_horizon(r, [0, 3, 9]),
    ],
)
def test_a_dense_matrix_is_built_once_for_a_question(ask: Callable[[Recurrence], object]) -> None:
    recurrence, built = count_dense(random_dense())
    ask(recurrence)
    assert len(built) == 1


def test_dense_states_that_die_out_stay_fast_and_end_in_zero() -> None:
    """Subnormal numbers in the powers of a matrix take a hundred times as long as others."""
    recurrence = random_dense(channels=2, states=64)
    energy = tail_energy(recurrence, [0, 10**5, 10**9])
    assert bool((energy.values[:, 0] > 0).all())
    assert energy.values[:, 1:].tolist() == [[0.0, 0.0]] * 2
    assert recurrence.dense is not None
    A = on_real_state(recurrence.dense()).state_matrix
    for _ in range(40):
        A = times(A, A)
        assert bool(((A == 0) | (A.abs() > LEAST)).all())


def test_what_cancels_beyond_float64_is_unknown_not_a_number() -> None:
    rate = 1e-3
    ell = torch.tensor([[-rate, -rate * (1 + 4e-16)], [-rate, -2 * rate]], dtype=torch.float64)
    recurrence = siso(ell, torch.tensor([[[1.0, -1.0], [1.0, -1.0]]]))
    found = horizon(recurrence)
    assert [Status(int(s)) for s in found.status] == [Status.CANCELLED, Status.KNOWN]
    assert found.lags[0].isnan()
    energy = tail_energy(recurrence, [0, 10])
    assert [Status(int(s)) for s in energy.status] == [Status.CANCELLED, Status.KNOWN]
    assert energy.known.tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize("angle", [0.0, 0.3, math.pi])
def test_modes_within_a_trillionth_of_the_boundary_keep_their_digits(angle: float) -> None:
    ell = torch.tensor([[complex(-1e-12, angle), complex(-3e-12, angle), complex(-0.1, 1.0)]], dtype=torch.complex128)
    recurrence = siso(ell, torch.tensor([[[1.0, 0.5, 2.0]]]), 2.0)
    if angle == math.pi:  # float64's π is not π: the reference takes the pole on the real axis that it stands for
        reference = siso(torch.tensor([[-1e-12, -3e-12]], dtype=torch.float64), torch.tensor([[[1.0, 0.5]]]), 2.0)
    else:
        reference = recurrence
    lags = [0, 1000, 10**9, 10**12]
    found = tail_energy(recurrence, lags)
    for k, lag in enumerate(lags):
        expected = float(exact(reference, lag))
        assert abs(float(found.values[0, k]) - expected) <= (1e-12 if reference is recurrence else 1e-9) * expected
    assert bool(found.known.all())
    bands = band_energy(recurrence, [10**6, 10**6 + 100, 10**6 + 100_000])
    for k, (first, count) in enumerate([(10**6, 100), (10**6 + 100, 99_900)]):
        at = np.unique(np.linspace(first, first + count - 1, 5000).astype(int)) if count > 5000 else None
        lags_in = range(first, first + count) if at is None else at.tolist()
        mean = float(sample_kernel(recurrence, lags_in).square().mean())
        slack = 1e-9 * mean + float(bands.noise[0, k]) if at is None else 5e-3 * mean
        assert abs(float(bands.values[0, k]) - mean) <= slack
        assert float(bands.noise[0, k]) < 1e-3 * mean


def test_a_mode_on_the_boundary_has_infinite_energy_and_finite_bands() -> None:
    ell = torch.tensor([[0.0, -0.1 + 0.5j, 0.7j]], dtype=torch.complex128)
    recurrence = siso(ell, torch.tensor([[[1.0, 0.5, 0.25]]]))
    found = horizon(recurrence)
    assert Status(int(found.status)) is Status.BOUNDARY
    assert found.lags.item() == math.inf
    assert tail_energy(recurrence, [0, 10**6]).values.tolist() == [[math.inf, math.inf]]
    square = summed(recurrence, 5000)
    bands = band_energy(recurrence, EDGES)
    for k, (first, last) in enumerate(pairwise(EDGES)):
        assert float(bands.values[0, k]) == pytest.approx(float(square[0, first:last].mean()), rel=1e-12)
    without = siso(ell, torch.tensor([[[0.0, 0.5, 0.0]]]))
    assert Status(int(horizon(without).status)) is Status.KNOWN


def test_every_kind_of_broken_channel_gets_its_status_among_sound_ones() -> None:
    recurrence = random_siso(channels=6)
    ell = recurrence.log_eigenvalues.clone()
    ell[0, 0] = complex(math.nan, 0)
    ell[1, 0] = 1e-5 + 1j
    ell[2, 0] = 1j
    assert recurrence.output_matrix is not None
    output = recurrence.output_matrix.clone()
    output[:, 3] = 0
    output[0, 4, 1] = math.inf
    broken = replace(recurrence, log_eigenvalues=ell, output_matrix=output)
    wanted = [Status.NOT_FINITE, Status.GROWS, Status.BOUNDARY, Status.ZERO, Status.NOT_FINITE, Status.KNOWN]
    found, energy, bands = horizon(broken), tail_energy(broken, [0, 5]), band_energy(broken, [0, 5, 100])
    for status in (found.status, energy.status, bands.status):
        assert [Status(int(s)) for s in status] == wanted
    np.testing.assert_array_equal(found.lags.numpy(), [np.nan] * 2 + [np.inf] + [np.nan] * 2 + [found.lags[5]])
    assert found.lags[5] == horizon(recurrence).lags[5]
    assert energy.values[:, 0].isnan().tolist() == [True, False, False, False, True, False]
    assert energy.values[1:4, 0].tolist() == [math.inf, math.inf, 0.0]
    torch.testing.assert_close(energy.values[5], tail_energy(recurrence, [0, 5]).values[5], rtol=1e-13, atol=0)


def test_a_channel_without_energy_does_not_hold_up_the_search_for_the_others() -> None:
    recurrence = siso(torch.tensor([[-1e-3], [0.1]]).double(), torch.ones(1, 2, 1, dtype=torch.float64))
    with mock.patch.object(Response, "energy", autospec=True, side_effect=Response.energy) as energy:
        found = horizon(recurrence)
    assert found.status.tolist() == [Status.KNOWN, Status.GROWS]
    assert found.lags[0] == math.ceil(math.log(100) / 2e-3)
    assert energy.call_count < 20


def test_an_unstable_dense_matrix_grows_and_a_broken_one_is_not_a_number() -> None:
    recurrence = random_dense()
    assert recurrence.dense is not None
    d = recurrence.dense()
    ell = recurrence.log_eigenvalues.clone()
    ell[0] += 0.02
    A = d.state_matrix.clone()
    A[0] *= math.exp(0.02)
    A[1, 0, 0] = math.nan
    other = replace(d, state_matrix=A)
    broken = replace(recurrence, log_eigenvalues=ell, dense=lambda: other)
    found = horizon(broken)
    assert [Status(int(s)) for s in found.status] == [Status.GROWS, Status.NOT_FINITE, Status.KNOWN]
    assert found.lags[2] == horizon(recurrence).lags[2]


def test_modes_that_forget_at_once_leave_a_kernel_of_one_lag() -> None:
    recurrence = siso(torch.full((1, 3), -math.inf), torch.ones(1, 1, 3))
    assert horizon(recurrence).lags.item() == 1
    assert tail_energy(recurrence, [0, 1]).values.tolist() == [[pytest.approx(9.0, rel=1e-14), 0.0]]


def test_misuse_is_a_value_error() -> None:
    recurrence = random_siso()
    for share in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match="share"):
            horizon(recurrence, share)
    with pytest.raises(ValueError, match="max_lag"):
        horizon(recurrence, max_lag=0)
    for edges in ([1], [3, 3], [5, 2]):
        with pytest.raises(ValueError, match="increase"):
            band_energy(recurrence, edges)
    bare = replace(recurrence, output_matrix=None)
    for function in (horizon, lambda r: tail_energy(r, [0]), lambda r: band_energy(r, [0, 1])):
        with pytest.raises(ValueError, match="retention"):
            function(bare)
    assert bool((horizon(retention(bare)).lags > 1).all())


@pytest.mark.parametrize("real", [True, False])
def test_the_orthonormal_factor_squares_to_the_gram_matrix(real: bool) -> None:
    ell = random_siso(real=real).log_eigenvalues
    ell = ell.gather(1, ell.real.neg().argsort(1))
    ell = ell.real if real else ell
    factor = orthonormal_factor(ell)
    gram = -1 / torch.expm1(ell[:, :, None] + ell[:, None].conj())
    torch.testing.assert_close(factor.mT @ factor.conj(), gram, rtol=1e-11, atol=1e-11)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(-3, 3).map(lambda e: 10.0**e), st.permutations(range(6)))
def test_horizon_depends_on_neither_the_order_of_modes_nor_a_scale_nor_the_sign_of_frequency(
    seed: int, scale: float, order: list[int]
) -> None:
    recurrence = random_siso(seed)
    assert recurrence.output_matrix is not None
    gain = torch.full_like(recurrence.log_eigenvalues, scale)
    other = siso(recurrence.log_eigenvalues[:, order].conj(), recurrence.output_matrix[..., order].conj(), 2.0, gain)
    assert horizon(other).lags.tolist() == horizon(recurrence).lags.tolist()
    energies = tail_energy(other, LAGS).values / tail_energy(recurrence, LAGS).values
    np.testing.assert_allclose(energies.numpy(), scale**2, rtol=1e-9)


@pytest.mark.one_in(16)
@pytest.mark.parametrize(("family", "spelling"), SPELLINGS)
def test_every_family_has_an_energy_a_horizon_or_a_reason(family, spelling, read_model: Read) -> None:  # type: ignore[no-untyped-def]
    from tests.families.synthetic import config, state_dict

    for recurrence in read_model(state_dict(spelling), config(family, spelling)):
        if recurrence.layout == "none":
            recurrence = retention(recurrence)
        found, energy = horizon(recurrence), tail_energy(recurrence, [0, 10])
        bands = band_energy(recurrence, [0, 3, 10, 40])
        square = summed(recurrence, 40)
        for channel, status in enumerate(found.status.tolist()):
            if status in (Status.KNOWN, Status.BEYOND):
                expected = [square[channel, a:b].mean() for a, b in ((0, 3), (3, 10), (10, 40))]
                for k, mean in enumerate(expected):
                    slack = float(bands.noise[channel, k]) + 1e-8 * float(mean) + 1e-14 * float(square[channel].max())
                    assert abs(float(bands.values[channel, k] - mean)) <= slack
                between = float(energy.values[channel, 0] - energy.values[channel, 1])
                slack = 1e-9 * float(energy.values[channel, 0]) + float(energy.noise[channel].sum())
                assert abs(between - float(square[channel, :10].sum())) <= slack
            else:
                assert status in (Status.GROWS, Status.BOUNDARY, Status.ZERO)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("angle", [0.0, 2.0])
def test_noise_holds_where_a_power_is_rounded_by_its_own_exponent(angle: float, copies: int) -> None:
    """The rounding of rτ is rτ ε of e^{−rτ}: more than the modes' own where the kernel is all but gone."""
    generator = torch.Generator().manual_seed(0)
    rate = 0.3 + 0.1 * torch.rand(40, 1, generator=generator, dtype=torch.float64)
    recurrence = siso(torch.complex(-rate, torch.full_like(rate, angle)), torch.ones(copies, 40, 1))
    lags = [0, 10, 100, 500, 800]
    found, bands = tail_energy(recurrence, lags), band_energy(recurrence, lags)
    for channel in range(40):
        tails = [exact(recurrence, lag, channel) for lag in lags]
        between = [(a - b) / (j - i) for (a, b), (i, j) in zip(pairwise(tails), pairwise(lags), strict=True)]
        for energy, expected in ((found, tails), (bands, between)):
            for k, value in enumerate(expected):
                error = abs(float(value - float(energy.values[channel, k])))
                assert error <= float(energy.noise[channel, k]) <= 1e-12 * float(value)
