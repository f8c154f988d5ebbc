"""The memory function against hundreds of digits, closed forms, least squares and theorems."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssmdiag.capacity.cascade import cascade_of
from ssmdiag.capacity.full_spectrum import full_spectrum
from ssmdiag.capacity.reconstruction import EXACT, MemorySizeError, leading_memory, memory_function
from ssmdiag.families.initial_spectra import legs_matrix, normal_legs
from ssmdiag.recurrence.discretisation import bilinear
from ssmdiag.recurrence.modal import DenseRealisation, Recurrence
from tests.capacity.reference import cholesky, exact_memory, gram, solve_lower, spectrum
from tests.device import cuda as cuda
from tests.families.synthetic import config, state_dict
from tests.kernel.test_kernel import SPELLINGS, random_dense, random_mimo, random_siso

STEP = 0.01
LAGS = [0, 1, 2, 7, 40, 200, 1000, 5000]
FAR = [0, 3, 1000, 10**6, 10**9, 4 * 10**9]
PAIRS = 32
INDEX = torch.arange(PAIRS, dtype=torch.float64)


def pairs(frequency: Tensor) -> Tensor:
    return torch.complex(torch.full_like(frequency, -0.5 * STEP), STEP * frequency)


def ring(count: int, inner: float = 0.9, outer: float = 0.999) -> Tensor:
    share = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    modulus = (inner**2 + (outer**2 - inner**2) * share).log() / 2
    return torch.complex(modulus, 2 * math.pi * (torch.arange(count, dtype=torch.float64) * 0.618033988 % 1))


def exactly(*values: complex) -> Tensor:
    return torch.tensor(values, dtype=torch.complex128)


SPECTRA = {
    "S4D-Lin, 63 modes": pairs(math.pi * INDEX),
    "S4D-Inv, 64 modes": pairs(2 * PAIRS / math.pi * (2 * PAIRS / (2 * INDEX + 1) - 1)),
    "S4D-Real, 64 modes": -STEP * torch.arange(1, 65, dtype=torch.float64),
    "LegS, 64 modes": bilinear(-torch.arange(1, 65, dtype=torch.float64), torch.tensor(STEP, dtype=torch.float64)),
    "HiPPO-N, 32 modes": STEP * normal_legs(32)[:16],
    "ring, 31 modes": ring(16),
    "LRU's whole disc, 31 modes": ring(16, 0.0, 1.0),
    "real, both signs": exactly(-0.1, -0.2, complex(-0.1, math.pi), complex(-0.3, math.pi), -0.2 + 1j),
    "modes that forget at once": torch.tensor([-50.0, -60.0, -0.1, -800.0], dtype=torch.float64),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "ring, 31 modes" else pytest.mark.slow) for name in SPECTRA]
)
def test_memory_equals_three_hundred_digits(name: str) -> None:
    ell = SPECTRA[name].to(torch.complex128)
    found = memory_function(spectrum(ell), LAGS)
    assert bool(found.sound.all())
    for value, expected in zip(found.values[0].tolist(), exact_memory(ell.tolist(), LAGS), strict=True):
        assert abs(value - expected) < 1e-14
        assert abs(value - expected) < 1e-12 * expected + 1e-30


@pytest.mark.one_in(4)
@pytest.mark.parametrize("margin", [1e-3, 1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("shape", ["real", "ring", "mixed with fast modes"])
def test_modes_at_the_boundary_keep_their_digits_at_any_lag(margin: float, shape: str) -> None:
    count = torch.arange(1, 7, dtype=torch.float64)
    ell = (-margin * count).to(torch.complex128)
    if shape == "ring":
        ell = ell + 1j * (0.4 * count)
    if shape == "mixed with fast modes":
        ell = torch.cat([ell, exactly(-0.1 + 1j, -0.2, -0.01 + 0.3j)])
    found = memory_function(spectrum(ell), FAR)
    assert bool(found.sound.all())
    for value, expected in zip(found.values[0].tolist(), exact_memory(ell.tolist(), FAR), strict=True):
        assert abs(value - expected) <= 2e-13 * expected + 1e-300


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("value", "modes"), [(-0.05, 8), (-0.02 + 0.5j, 8), (-0.05, 28)])
def test_equal_sections_are_the_limit_of_modes_that_approach(value: complex, modes: int) -> None:
    ell = torch.full((1, modes), value, dtype=torch.complex128)
    found = leading_memory(cascade_of(full_spectrum(spectrum(ell), distinct=False)), 512).values[0]
    with mpmath.workdps(1200):
        near = [mpmath.mpc(value) * (1 + k * mpmath.mpf(10) ** -20) for k in range(modes)]
        near += [mpmath.conj(z) for z in near if z.imag]
        rows = cholesky(gram(near))
        for lag in (0, 3, 50, 300):
            state = solve_lower(rows, [mpmath.exp(z * lag) for z in near])
            assert abs(float(found[lag]) - mpmath.fsum(abs(x) ** 2 for x in state)) < 1e-13


@pytest.mark.parametrize("rate", [1e-12, 1e-3, 0.5, 40.0])
def test_one_mode_forgets_geometrically(rate: float) -> None:
    lags = [0, 1, 30, 10**12]
    found = memory_function(spectrum(torch.tensor([[-rate]], dtype=torch.float64)), lags)
    expected = [-math.expm1(-2 * rate) * math.exp(-2 * rate * lag) for lag in lags]
    np.testing.assert_allclose(found.values[0].numpy(), expected, rtol=1e-14, atol=0)


def test_the_present_is_rebuilt_up_to_the_product_of_all_moduli() -> None:
    ell = random_siso(channels=20, modes=9).log_eigenvalues
    found = memory_function(spectrum(ell), [0]).values[:, 0]
    np.testing.assert_allclose(found.numpy(), -(4 * ell.real.sum(1)).expm1().numpy(), rtol=1e-13)


def test_a_shift_register_remembers_its_length_and_nothing_more() -> None:
    states = 20
    A = torch.zeros(1, states, states, dtype=torch.float64)
    A[0, 1:, :-1] = torch.eye(states - 1, dtype=torch.float64)
    B = torch.eye(states, dtype=torch.float64)[:1]
    dense = DenseRealisation(A, B, torch.ones(1, 1, states, dtype=torch.float64))
    ell = torch.full((1, states), -math.inf)
    found = memory_function(spectrum(ell, dense=lambda: dense), range(40))
    expected = [1.0] * states + [0.0] * (40 - states)
    np.testing.assert_allclose(found.values[0].numpy(), expected, atol=1e-14)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("states", [1, 8, 64, 128])
@pytest.mark.parametrize("step", [1e-3, 1e-2, 1e-1])
def test_legs_has_the_memory_of_its_eigenvalues_though_its_eigenvectors_are_useless(states: int, step: float) -> None:
    A, B = legs_matrix(states)
    rotation, _ = torch.linalg.qr(torch.randn(states, states, generator=torch.manual_seed(0), dtype=torch.float64))
    A, B = rotation @ A @ rotation.mT, rotation @ B  # the basis of the diagonal plus low rank form is a rotation
    identity = torch.eye(states, dtype=torch.float64)
    solved = torch.linalg.solve(identity - step / 2 * A, torch.cat([identity + step / 2 * A, B[:, None]], 1))
    dense = DenseRealisation(solved[None, :, :-1], solved[None, :, -1], torch.ones(1, 1, states, dtype=torch.float64))
    ell = bilinear(-torch.arange(1, states + 1, dtype=torch.float64), torch.tensor(step, dtype=torch.float64))
    exact, found = (
        memory_function(spectrum(ell), LAGS),
        memory_function(spectrum(ell[None], dense=lambda: dense), LAGS),
    )
    assert bool(found.sound.all())
    assert found.modes.item() == states
    assert float((found.values - exact.values).abs().max()) < 1e-11


def test_an_s4_file_as_initialised_has_the_memory_of_eigenvalues_one_to_n(
    read_model: Callable[..., list[Recurrence]],
) -> None:
    states, steps = 64, torch.tensor([1e-3, 1e-2, 1e-1], dtype=torch.float64)
    A, B = legs_matrix(states)
    low_rank = (torch.arange(states, dtype=torch.float64) + 0.5).sqrt()
    normal = A + low_rank[:, None] * low_rank + 0.5 * torch.eye(states, dtype=torch.float64)
    frequency, basis = torch.linalg.eigh(-0.5j * (normal - normal.mT))
    frequency, basis = frequency[states // 2 :], basis[:, states // 2 :].mH  # one of each conjugate pair
    columns = {"P": basis @ low_rank.to(torch.complex128), "B": basis @ B.to(torch.complex128)}
    file = {f"kernel.{name}": torch.view_as_real(values)[None, None] for name, values in columns.items()} | {
        "kernel.A_real": torch.full((1, states // 2), math.log(0.5), dtype=torch.float64),
        "kernel.A_imag": -frequency[None],
        "kernel.inv_dt": steps.log()[:, None],
        "kernel.C": torch.ones(1, 3, states // 2, 2, dtype=torch.float64),
        "kernel.l_kernel": torch.tensor(0),
    }
    (recurrence,) = read_model(file)
    assert recurrence.layout == "dense"
    found = memory_function(recurrence, LAGS)
    exact = memory_function(spectrum(bilinear(-torch.arange(1, states + 1, dtype=torch.float64), steps[:, None])), LAGS)
    assert bool(found.sound.all())
    assert found.modes.tolist() == [states] * 3
    assert float((found.values - exact.values).abs().max()) < 1e-10


def test_a_dense_state_that_eigenvectors_can_describe_has_their_memory() -> None:
    recurrence = random_dense()
    plain = replace(recurrence, dense=None)
    assert recurrence.dense is not None
    found = memory_function(recurrence, LAGS)
    eigen = memory_function(plain, LAGS)
    assert bool(found.sound.all() & eigen.sound.all())
    assert float((found.values - eigen.values).abs().max()) < 1e-8


def test_a_complex_dense_state_is_read_as_real_and_imaginary_parts() -> None:
    recurrence = random_dense(real=False)
    found = memory_function(recurrence, LAGS)
    assert found.modes.tolist() == [12, 12, 12]
    eigen = memory_function(replace(recurrence, dense=None), LAGS)
    assert float((found.values - eigen.values).abs().max()) < 1e-8


def leverage(recurrence: Recurrence, length: int, direction: Tensor | None = None) -> Tensor:
    """Return MF by least squares: the diagonal of the projection onto the responses of Re h and Im h."""
    decay = recurrence.log_eigenvalues.exp()
    B = torch.ones_like(decay) if recurrence.input_matrix is None else recurrence.input_matrix
    state = B if direction is None else (B @ direction)[None]
    rows = []
    for _ in range(length):
        rows.append(torch.cat([state.real, state.imag], 1))
        state = decay * state
    U, values, _ = torch.linalg.svd(torch.stack(rows, 1), full_matrices=False)
    return (U.square() * (values > 1e-9 * values[:, :1])[:, None]).sum(2)


@pytest.mark.parametrize(
    "ell",
    [
        ring(5, 0.5, 0.9)[None],
        torch.cat([ring(3, 0.5, 0.9), ring(3, 0.5, 0.9).conj()])[None],  # both of each pair are stored
        exactly(-0.1, -0.4, -0.1 + 1j, -0.1 + 1j, -0.1 - 1j, -0.4)[None],
        exactly(-0.2 + 1j, complex(-0.2, 1 + 2 * math.pi), complex(-0.2, 2 * math.pi - 1))[None],  # aliases
    ],
)
def test_memory_is_the_share_of_an_input_that_least_squares_recovers(ell: Tensor) -> None:
    recurrence = spectrum(ell)
    found = memory_function(recurrence, range(60))
    assert bool(found.sound.all())
    assert found.total.tolist() == [pytest.approx(n, abs=1e-9) for n in found.modes.tolist()]
    np.testing.assert_allclose(found.values.numpy(), leverage(recurrence, 400)[:, :60].numpy(), atol=1e-9)


def test_a_layer_with_many_inputs_has_the_memory_of_any_one_direction() -> None:
    recurrence = replace(random_mimo(), log_eigenvalues=ring(5, 0.5, 0.9)[None])
    found = memory_function(recurrence, range(40)).values
    for seed in range(3):
        direction = torch.randn(7, generator=torch.manual_seed(seed), dtype=torch.complex128).real + 0j
        np.testing.assert_allclose(found.numpy(), leverage(recurrence, 400, direction)[:, :40].numpy(), atol=1e-9)


def test_a_linear_readout_of_simulated_noise_reaches_it() -> None:
    ell = exactly(-0.1, -0.05 + 0.7j, -0.2 + 2j)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(100_000, generator=generator, dtype=torch.float64).numpy()
    state, decay, rows = np.zeros(3, complex), ell.exp().numpy(), np.empty((len(inputs), 6))
    for t, value in enumerate(inputs):
        state = decay * state + value
        rows[t, :3], rows[t, 3:] = state.real, state.imag
    features = rows[100:, [0, 1, 2, 4, 5]]
    found = memory_function(spectrum(ell), [0, 2, 8]).values[0].tolist()
    for lag, expected in zip([0, 2, 8], found, strict=True):
        target = inputs[100 - lag : len(inputs) - lag]
        _, residual, _, _ = np.linalg.lstsq(features, target, rcond=None)
        assert 1 - residual[0] / (target @ target) == pytest.approx(expected, abs=0.01)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.booleans())
def test_memory_lies_in_the_unit_interval_never_rises_and_sums_to_the_modes(seed: int, modes: int, real: bool) -> None:
    recurrence = random_siso(seed, channels=3, modes=modes, slow=1e-2, real=real)
    found = memory_function(recurrence, range(3000))
    assert bool(found.sound.all())
    assert bool((found.values >= 0).all() & (found.values <= 1 + 1e-12).all())
    assert bool((found.values.diff() <= 0).all())
    assert found.modes.tolist() == [modes if real else 2 * modes] * 3
    np.testing.assert_allclose(found.values.sum(1).numpy(), found.modes.numpy(), atol=1e-9 * modes)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(7)), st.booleans())
def test_memory_depends_on_neither_order_nor_conjugation_nor_what_is_written(
    seed: int, order: list[int], paired: bool
) -> None:
    recurrence = random_siso(seed, modes=7)
    assert recurrence.input_matrix is not None
    other = replace(
        recurrence,
        log_eigenvalues=recurrence.log_eigenvalues[:, order].conj(),
        input_matrix=recurrence.input_matrix * 1e-5j,
        conjugate_pairs=paired,
    )
    a, b = memory_function(recurrence, LAGS), memory_function(other, LAGS)
    np.testing.assert_allclose(a.values.numpy(), b.values.numpy(), rtol=1e-10, atol=1e-14)


def test_any_lag_by_itself_is_the_same_as_among_all() -> None:
    recurrence = random_siso(channels=4, slow=1e-4)
    every = memory_function(recurrence, range(40_000)).values
    few = [0, 5, 4095, 4096, 17_000, 39_999]
    np.testing.assert_allclose(
        memory_function(recurrence, few).values.numpy(), every[:, few].numpy(), rtol=1e-9, atol=1e-16
    )


def test_what_holds_no_memory_is_left_out_and_counted_by_its_reason() -> None:
    good = exactly(-0.1 + 1j, -0.2 + 2j, -0.3)
    bad = exactly(complex(math.nan, 0), 0.1 + 1j, 1j, 0.0, -0.3, -0.1 - 1j, complex(-0.5, math.inf))
    ell = torch.cat([good, bad])
    ell = torch.stack([ell, torch.cat([good, good + 0.05j, good - 0.7, good[:1] - 1])])
    found = memory_function(spectrum(ell), LAGS)
    first = {name: int(counts[0]) for name, counts in vars(found.excluded).items()}
    assert first == {"not_finite": 2, "unstable": 1, "marginal": 2, "unreached": 0, "repeated": 2}
    assert found.excluded.totals() == first
    assert found.modes.tolist() == [5, 20 - 2]
    np.testing.assert_allclose(
        found.values[0].numpy(), memory_function(spectrum(good), LAGS).values[0].numpy(), rtol=1e-13
    )


def test_a_mode_that_is_not_written_holds_nothing() -> None:
    recurrence = random_siso(modes=6)
    assert recurrence.input_matrix is not None
    input_matrix = recurrence.input_matrix.clone()
    input_matrix[0, 2:4] = 0
    input_matrix[1, 0] = math.nan
    found = memory_function(replace(recurrence, input_matrix=input_matrix), LAGS)
    assert found.excluded.unreached.tolist() == [2, 0, 0, 0, 0]
    assert found.excluded.not_finite.tolist() == [0, 1, 0, 0, 0]
    assert found.modes.tolist() == [8, 10, 12, 12, 12]
    left = spectrum(recurrence.log_eigenvalues[:1, [0, 1, 4, 5]])
    np.testing.assert_allclose(found.values[:1].numpy(), memory_function(left, LAGS).values.numpy(), rtol=1e-13)


def test_channels_of_nothing_but_broken_modes_are_unknown_and_of_marginal_ones_empty() -> None:
    ell = torch.tensor([[math.nan] * 3, [0.1] * 3, [0.0] * 3, [-0.1, -0.2, -0.3]], dtype=torch.float64)
    for chosen in (ell, ell[:3], ell[:1]):
        found = memory_function(spectrum(chosen), [0, 10])
        assert found.sound.tolist() == [False, False, True, True][: len(chosen)]
        assert found.values.isnan().all(1).tolist() == [True, True, False, False][: len(chosen)]
        assert found.values[2:3].tolist() == [[0.0, 0.0]][: max(0, len(chosen) - 2)]


def test_a_broken_or_growing_dense_channel_does_not_touch_the_others() -> None:
    recurrence = random_dense(channels=4)
    assert recurrence.dense is not None
    dense, ell = recurrence.dense(), recurrence.log_eigenvalues.clone()
    A, B = dense.state_matrix.clone(), dense.input_matrix.clone()
    A[0, 0, 0] = math.nan
    A[1] *= 1.2
    ell[1] += math.log(1.2)
    B[2] = 0
    broken = DenseRealisation(A, B, dense.output_matrix)
    found = memory_function(replace(recurrence, dense=lambda: broken, log_eigenvalues=ell), LAGS)
    assert found.sound.tolist() == [False, False, True, True]
    assert found.modes.tolist() == [0, 0, 0, 6]
    assert found.excluded.unreached.tolist() == [0, 0, 6, 0]
    np.testing.assert_allclose(
        found.values[3].numpy(), memory_function(recurrence, LAGS).values[3].numpy(), rtol=1e-9, atol=1e-12
    )


def test_the_self_test_sees_a_cascade_that_is_not_orthonormal() -> None:
    ell = -0.1 * torch.arange(1, 6, dtype=torch.float64)[None]
    for field in ("state_matrix", "entry", "exit", "direct"):
        cascade = cascade_of(full_spectrum(spectrum(ell)))
        assert bool(leading_memory(cascade, 64).passes(cascade).all())
        getattr(cascade, field)[:] *= 1 + 100 * EXACT
        assert not bool(leading_memory(cascade, 64).passes(cascade).any())


def test_misuse_and_too_much_memory_are_refused_in_words() -> None:
    recurrence = random_siso()
    for lags in ([-1], [0.5], [2**41]):
        with pytest.raises(ValueError, match="whole numbers"):
            memory_function(recurrence, lags)  # type: ignore[arg-type]
    with pytest.raises(MemorySizeError, match=r"(?s)5 channels × 1,000 lags .* next: ask for fewer lags"):
        memory_function(recurrence, range(1000), memory_limit=1000)
    assert memory_function(recurrence, []).values.shape == (5, 0)


@pytest.mark.one_in(16)
@pytest.mark.parametrize(("family", "spelling"), SPELLINGS)
def test_the_memory_of_every_family_sums_to_its_modes(
    family: object, spelling: object, read_model: Callable[..., list[Recurrence]]
) -> None:
    for recurrence in read_model(state_dict(spelling), config(family, spelling)):  # type: ignore[arg-type]
        found = memory_function(recurrence, [0, 1, 100])
        spent = sum(found.excluded.totals().values())
        assert bool(found.sound.any()) or spent > 0
        good = found.sound
        np.testing.assert_allclose(found.total[good].numpy(), found.modes[good].numpy(), rtol=EXACT)
        assert bool((found.values[good] <= 1 + 1e-9).all())


@pytest.mark.slow
def test_memory_on_a_gpu_is_the_memory_on_the_cpu(cuda: str) -> None:
    for recurrence in (random_siso(modes=40), random_siso(real=True, modes=16)):
        moved = replace(recurrence, log_eigenvalues=recurrence.log_eigenvalues.to(cuda), input_matrix=None)
        found = memory_function(moved, FAR)
        assert found.values.device.type == "cuda"
        np.testing.assert_allclose(
            found.values.cpu().numpy(), memory_function(recurrence, FAR).values.numpy(), rtol=1e-9, atol=1e-15
        )
