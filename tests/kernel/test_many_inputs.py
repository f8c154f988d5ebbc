"""Energies and horizons of layers with many inputs and outputs: by QR of copies, the kernel itself, and 70 digits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch

from ssmdiag.assessment.memory import assess_memories, assess_memory
from ssmdiag.capacity.capacity import assess_capacities, assess_capacity
from ssmdiag.compare.spectrum_matching import compare_kernels
from ssmdiag.kernel import kernel, matrix_energy
from ssmdiag.kernel.energy import Energy, band_energy, horizon, tail_energy
from ssmdiag.kernel.kernel import compute_kernel, sample_kernel
from ssmdiag.kernel.matrix_energy import MatrixEnergy
from ssmdiag.kernel.quadratic_form import QuadraticForm
from ssmdiag.kernel.status import Status
from ssmdiag.kernel.tangential import TangentialFactor, tangential_factor
from ssmdiag.recurrence.modal import Recurrence
from tests.kernel.many_inputs import KINDS, ExactEnergy, as_copies, many_inputs

LAGS = [0, 1, 3, 10, 100, 1000, 10_000]
EDGES = [0, 1, 2, 5, 10, 20, 40, 80, 160, 1000, 5000]
SHAPES = [(3, 3), (5, 60), (60, 5), (1, 4), (4, 1)]
"""Outputs and inputs."""


def with_modes(recurrence: Recurrence, change: Callable[[torch.Tensor], object]) -> Recurrence:
    ell = recurrence.log_eigenvalues.clone()
    change(ell[0])
    return replace(recurrence, log_eigenvalues=ell)


def with_output(recurrence: Recurrence, factor: float | torch.Tensor) -> Recurrence:
    assert recurrence.output_matrix is not None
    return replace(recurrence, output_matrix=recurrence.output_matrix * factor)


def errors(found: Energy, exact: list[mpmath.mpf], width: int | np.ndarray = 1) -> np.ndarray:
    """Return |error| of each value over its noise, of those that float64 can hold."""
    values, noise = found.values[0].numpy() * width, found.noise[0].numpy() * width
    held = [(v, e, n) for v, e, n in zip(values, exact, noise, strict=True) if e > 1e-290]
    assert held
    return np.array([float(abs(mpmath.mpf(v) - e) / mpmath.mpf(n)) for v, e, n in held])


@pytest.mark.one_in(20)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modes", [7, 24])
def test_energies_and_horizon_are_those_of_copies(kind: str, modes: int) -> None:
    for seed, (outputs, inputs) in enumerate(SHAPES):
        recurrence = many_inputs(kind, seed, modes, inputs, outputs, 1.0 + seed % 2)
        copies = as_copies(recurrence)
        found, expected = horizon(recurrence, max_lag=2**40), horizon(copies, max_lag=2**40)
        assert found.status.tolist() == expected.status.tolist() == [Status.KNOWN]
        # Modes that last 10⁹ steps lose 1e-9 of their energy in one, which the two routes need not agree on.
        slack = 0 if kind != "boundary" else 1e-6 * float(expected.lags)
        assert found.lags.item() == pytest.approx(expected.lags.item(), abs=slack, rel=0)
        for ask in (lambda r: tail_energy(r, LAGS), lambda r: band_energy(r, EDGES)):
            own, other = ask(recurrence), ask(copies)
            assert own.status.tolist() == other.status.tolist()
            assert bool(((own.values - other.values).abs() <= own.noise + other.noise).all())


@pytest.mark.one_in(9)
@pytest.mark.parametrize("kind", KINDS)
def test_noise_bounds_the_error_against_seventy_digits(kind: str) -> None:
    width = np.diff(EDGES)
    for seed, (outputs, inputs) in enumerate(SHAPES[:3]):
        recurrence = many_inputs(kind, seed, 8, inputs, outputs, 1.0 + seed % 2)
        exact = ExactEnergy(recurrence)
        found, bands = tail_energy(recurrence, LAGS), band_energy(recurrence, EDGES)
        assert errors(found, [exact.tail(lag) for lag in LAGS]).max() <= 1
        assert errors(bands, exact.bands(EDGES), width).max() <= 1
        # A bound that says nothing would pass too.
        worst = 1e-6 if kind.startswith("cancelling") else 1e-10
        assert float((found.noise / found.values)[0, :4].max()) < worst
        assert float((bands.noise / bands.values)[0, :4].max()) < worst


@pytest.mark.one_in(9)
@pytest.mark.parametrize("gap", [1e-5, 1e-7, 1e-9])
def test_modes_that_cancel_lose_the_digits_of_their_gap_and_not_twice_as_many(gap: float) -> None:
    recurrence = many_inputs(f"cancelling to {gap}", seed=5)
    exact = ExactEnergy(recurrence)
    found, bands = tail_energy(recurrence, LAGS[:5]), band_energy(recurrence, EDGES)
    for k, lag in enumerate(LAGS[:5]):
        expected = exact.tail(lag)
        assert float(abs(float(found.values[0, k]) - expected) / expected) < 1e-14 / gap
    for k, expected in enumerate(exact.bands(EDGES)[:8]):
        mean = expected / int(np.diff(EDGES)[k])
        assert float(abs(float(bands.values[0, k]) - mean) / mean) < 1e-14 / gap
    # The form alone would have lost the square of the gap.
    values, noise = QuadraticForm(recurrence).tail(torch.ones(1, 8, 1, dtype=torch.complex128))
    assert float(noise / values) > 1e-18 / gap**2
    assert horizon(recurrence).lags.item() == horizon(as_copies(recurrence)).lags.item()


def test_what_cancels_beyond_float64_is_unknown_not_a_number() -> None:
    recurrence = many_inputs("cancelling to 0", seed=1)
    found, energy, bands = horizon(recurrence), tail_energy(recurrence, LAGS[:5]), band_energy(recurrence, EDGES[:9])
    assert [Status(int(x.status[0])) for x in (found, energy, bands)] == [Status.CANCELLED] * 3
    assert found.lags.isnan().all()
    assert not energy.known.any()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", ["ring", "real", "odd"])
def test_bins_and_tails_are_sums_of_the_kernel(kind: str) -> None:
    recurrence = many_inputs(kind, modes=9)
    square = sample_kernel(recurrence, range(EDGES[-1])).square().sum((0, 1))
    bands = band_energy(recurrence, EDGES).values[0]
    for k, (first, last) in enumerate(pairwise(EDGES)):
        assert float(bands[k]) == pytest.approx(float(square[first:last].mean()), rel=1e-11)
    found = tail_energy(recurrence, [0, 100]).values[0]
    assert float(found[0] - found[1]) == pytest.approx(float(square[:100].sum()), rel=1e-11)


def test_modes_on_the_boundary_have_finite_bands_and_an_infinite_horizon() -> None:
    def to_boundary(ell: torch.Tensor) -> None:
        ell[0], ell[1], ell[2], ell[3] = 0.0, 0.7j, 0.7j, complex(0, math.pi)

    recurrence = with_modes(many_inputs(modes=6), to_boundary)
    assert recurrence.output_matrix is not None
    B = torch.ones_like(recurrence.input_matrix)  # type: ignore[arg-type]
    recurrence = replace(recurrence, input_matrix=B)
    exact = ExactEnergy(recurrence).bands(EDGES)
    found = band_energy(recurrence, EDGES)
    assert Status(int(found.status)) is Status.BOUNDARY
    assert errors(found, exact, np.diff(EDGES)).max() <= 1
    assert float((found.noise / found.values).max()) < 1e-11
    assert horizon(recurrence).lags.tolist() == [math.inf]
    assert tail_energy(recurrence, [0, 10]).values.tolist() == [[math.inf, math.inf]]
    # Cancelling ones on the boundary: short bins are known, and long ones are not claimed to be.
    C = recurrence.output_matrix.clone()
    C[:, [0, 3, 4, 5]], C[:, 2] = 0, -C[:, 1] * (1 + 1e-9)
    cancelling = replace(recurrence, output_matrix=C)
    found = band_energy(cancelling, EDGES)
    assert errors(found, ExactEnergy(cancelling).bands(EDGES), np.diff(EDGES)).max() <= 1
    assert bool(found.known[0, :3].all())


def test_one_mode_that_grows_makes_the_layer_grow_unless_nothing_reads_it() -> None:
    recurrence = with_modes(many_inputs(), lambda ell: ell[2].real.fill_(1e-3))
    for found in (horizon(recurrence), tail_energy(recurrence, LAGS), band_energy(recurrence, EDGES)):
        assert Status(int(found.status)) is Status.GROWS
    assert (
        tail_energy(recurrence, [5]).values.tolist() == band_energy(recurrence, [5, 8]).values.tolist() == [[math.inf]]
    )
    unread = torch.ones(8, dtype=torch.float64)
    unread[2] = 0
    sound, rest = with_output(recurrence, unread), with_output(many_inputs(), unread)
    assert horizon(sound).lags.item() == horizon(rest).lags.item()
    torch.testing.assert_close(band_energy(sound, EDGES).values, band_energy(rest, EDGES).values, rtol=1e-13, atol=0)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_a_horizon_does_not_depend_on_the_size_of_c(scale: float) -> None:
    recurrence = many_inputs("cancelling to 1e-6", seed=3)
    assert horizon(with_output(recurrence, scale)).lags.item() == horizon(recurrence).lags.item()
    one_small = torch.ones(8, dtype=torch.float64)
    one_small[0] = 1e-170
    without = torch.ones(8, dtype=torch.float64)
    without[0] = 0
    ring = many_inputs()
    assert horizon(with_output(ring, one_small)).lags.item() == horizon(with_output(ring, without)).lags.item()


def test_nothing_read_or_not_a_number_says_so() -> None:
    recurrence = many_inputs()
    zero, broken = with_output(recurrence, 0.0), with_output(recurrence, math.nan)
    for layer, status in ((zero, Status.ZERO), (broken, Status.NOT_FINITE)):
        for found in (horizon(layer), tail_energy(layer, LAGS), band_energy(layer, EDGES)):
            assert Status(int(found.status)) is status
    assert tail_energy(zero, LAGS).values.tolist() == [[0.0] * len(LAGS)]
    assert tail_energy(broken, LAGS).values.isnan().all()


def test_the_order_of_modes_inputs_and_outputs_and_the_sign_of_frequency_change_nothing() -> None:
    for kind in KINDS:
        recurrence = many_inputs(kind, seed=2)
        B, C = recurrence.input_matrix, recurrence.output_matrix
        assert B is not None
        assert C is not None
        order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
        other = replace(
            recurrence,
            log_eigenvalues=recurrence.log_eigenvalues[:, order].conj().resolve_conj(),
            input_matrix=B[order].flip(1).conj().resolve_conj(),
            output_matrix=C[:, order].flip(0).conj().resolve_conj(),
        )
        turned = replace(recurrence, input_matrix=C.mT, output_matrix=B.mT)
        for layer in (other, turned):
            assert horizon(layer, max_lag=2**40).lags.item() == pytest.approx(
                horizon(recurrence, max_lag=2**40).lags.item(), rel=1e-6
            )
            found, own = tail_energy(layer, LAGS), tail_energy(recurrence, LAGS)
            assert bool(((found.values - own.values).abs() <= found.noise + own.noise).all())


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "odd"])
@pytest.mark.parametrize("modes", [5, 70])
def test_the_tangential_factor_squares_to_the_gram_matrix(kind: str, modes: int) -> None:
    recurrence = many_inputs(kind, modes=modes, outputs=4)
    ell = recurrence.log_eigenvalues[0]
    order = (-ell.real).argsort()
    ell, C = ell[order], recurrence.output_matrix[:, order]  # type: ignore[index]
    factor = tangential_factor(ell, C)
    assert not factor.tril(-1).any()
    gram = (C.mH @ C) / -torch.expm1(ell.conj()[:, None] + ell)
    root = gram.diagonal().real.sqrt()
    assert float(((factor.mH @ factor - gram).abs() / (root[:, None] * root)).max()) < 1e-12


@pytest.mark.parametrize("kind", ["ring", "cancelling to 1e-4"])
def test_a_factor_and_a_form_agree_within_their_noise_wherever_one_is_asked(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recurrence = many_inputs(kind, modes=40, outputs=90, inputs=7)
    form, at = QuadraticForm(recurrence), torch.tensor([0.0, 1, 7, 50, 400], dtype=torch.float64)
    factor = TangentialFactor(form)
    for mine, other in (
        (form.tail(form.states(at)), factor.tail(factor.states(at))),
        (form.bands(at), factor.difference(at[:-1], at.diff())),
        (form.bands(torch.arange(9.0, dtype=torch.float64)), factor.squares(torch.arange(8.0, dtype=torch.float64))),
    ):
        assert bool(((mine[0] - other[0]).abs() <= mine[1] + other[1]).all())
    quick = [band_energy(recurrence, EDGES), tail_energy(recurrence, LAGS)]
    monkeypatch.setattr(matrix_energy, "WANTED", 0.0)
    monkeypatch.setattr(matrix_energy, "UNRESOLVED", 0.0)
    monkeypatch.setattr(matrix_energy, "_replace_noisy", _take_other)
    sure = [band_energy(recurrence, EDGES), tail_energy(recurrence, LAGS)]
    for mine, other in zip(quick, sure, strict=True):
        assert not torch.equal(mine.values, other.values)
        assert bool(((mine.values - other.values).abs() <= mine.noise + other.noise).all())


def _take_other(values, noise, at, others, floors) -> None:  # type: ignore[no-untyped-def]
    values[at], noise[at] = others.flatten(), floors.flatten()


def test_layers_as_they_are_drawn_need_no_factor() -> None:
    """It takes ten times as long."""
    for kind in ("ring", "hippo", "boundary", "equal", "real"):
        recurrence = many_inputs(kind, modes=128, inputs=64, outputs=64)
        energy = MatrixEnergy(recurrence)
        at = torch.tensor(EDGES, dtype=torch.float64)
        energy.tail(at[:5])
        energy.bands(at)
        energy.horizon(0.99, 2**40)
        assert "factor" not in vars(energy)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("kind", ["ring", "odd", "cancelling to 1e-6"])
@pytest.mark.parametrize("product", [torch.float64, torch.float32])
def test_a_kernel_made_in_pieces_is_the_kernel_lag_by_lag(
    kind: str, product: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    recurrence = many_inputs(kind, factor=2.0)
    exact = sample_kernel(recurrence, range(300))
    for working_set in (kernel.WORKING_SET, 4096):  # all at once; lags and inputs in pieces
        monkeypatch.setattr(kernel, "WORKING_SET", working_set)
        found = compute_kernel(recurrence, 300, product=product)
        assert bool(((found.values - exact).abs() <= found.noise[..., None]).all())
        # Where modes cancel, float32 would be all noise.
        in_double = product == torch.float64 or kind.startswith("cancelling")
        assert float(found.noise.max()) < (1e-12 if in_double else 1e-3)


def test_two_kernel_matrices_differ_where_one_entry_was_changed() -> None:
    recurrence = many_inputs()
    assert recurrence.output_matrix is not None
    C = recurrence.output_matrix.clone()
    C[3] *= 1.01
    other = replace(recurrence, output_matrix=C)
    first, second = sample_kernel(recurrence, [0, 2, 50]), sample_kernel(other, [0, 2, 50])
    found = compare_kernels(recurrence, other, [0, 2, 50], None)
    gap = (first - second).abs()
    worst = np.unravel_index(int(gap.argmax()), gap.shape)
    assert found is not None
    assert worst[0] == 3
    assert (found.channel, found.at) == (worst[1], [0, 2, 50][worst[2]])
    assert found.value == pytest.approx(float(gap.max() / first.abs().max()), rel=1e-12)
    assert (found.a, found.b) == (complex(first[worst]), complex(second[worst]))
    same = compare_kernels(recurrence, recurrence, [0, 2], None)
    assert same is not None
    assert same.value == 0
    assert compare_kernels(recurrence, many_inputs(inputs=2), [0], None) is None
    assert compare_kernels(recurrence, as_copies(recurrence), [0], None) is None
    broken = compare_kernels(recurrence, with_output(recurrence, math.inf), [0], None)
    assert broken is not None
    assert broken.value == math.inf


@pytest.mark.one_in(2)
@pytest.mark.parametrize("threads", [1, 2])
def test_layers_side_by_side_are_what_each_is_alone(threads: int) -> None:
    layers = [many_inputs(seed=seed, modes=modes) for seed, modes in enumerate((8, 8, 5, 8))]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        memories, capacities = assess_memories(layers, 256), assess_capacities(layers, 256)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for layer, memory, capacity in zip(layers, memories, capacities, strict=True):
        alone = assess_memory(layer, 256)
        assert torch.equal(memory.mean_square, alone.mean_square)
        assert torch.equal(memory.horizon.lags, alone.horizon.lags)
        assert torch.equal(capacity.capacity, assess_capacity(layer, 256).capacity)
