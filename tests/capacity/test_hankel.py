"""Hankel singular values against closed forms, singular values of the Hankel matrix itself, and many digits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import scipy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssmdiag.capacity.hankel import hankel_singular_values
from ssmdiag.kernel.status import Status
from ssmdiag.recurrence.modal import Recurrence
from tests.families.synthetic import config, state_dict
from tests.kernel.test_kernel import SPELLINGS, random_dense, random_mimo, random_siso, siso
from tests.reference import stepped_kernel, stepped_matrix_kernel

SPAN = 250


def hankel(rows: Tensor) -> Tensor:
    """Return K_{s+t} for s, t < SPAN of K (…, 2 SPAN)."""
    lag = torch.arange(SPAN)
    return rows[..., lag[:, None] + lag]


def brute_force(recurrence: Recurrence) -> list[np.ndarray]:
    """Return the singular values of each channel's finite Hankel matrix, outputs below and inputs beside each other."""
    if recurrence.layout == "many inputs":
        blocks = hankel(stepped_matrix_kernel(recurrence, 2 * SPAN).permute(1, 2, 0))
        whole = blocks.permute(0, 2, 1, 3).flatten(0, 1).flatten(1)
        return [scipy.linalg.svdvals(whole.numpy())]
    kernel = stepped_kernel(recurrence, 2 * SPAN)
    return [scipy.linalg.svdvals(hankel(kernel[:, c]).flatten(0, 1).numpy()) for c in range(recurrence.channels)]


@pytest.mark.one_in(9)
@pytest.mark.parametrize(
    "make",
    [
        lambda: random_siso(channels=1, slow=0.06),
        lambda: random_siso(channels=2, slow=0.06, real=True, copies=1),
        lambda: random_siso(channels=2, slow=0.06, copies=5, modes=2),
        lambda: replace(
            random_mimo(inputs=2, outputs=3), log_eigenvalues=random_siso(7, 1, 5, slow=0.1).log_eigenvalues
        ),
        lambda: random_mimo_fast(inputs=1, outputs=1),
        lambda: faster(random_dense()),
        lambda: faster(random_dense(real=False)),
    ],
)
def test_singular_values_are_those_of_the_hankel_matrix(make: Callable[[], Recurrence]) -> None:
    recurrence = make()
    found = hankel_singular_values(recurrence)
    for row, expected in zip(found.values.numpy(), brute_force(recurrence), strict=True):
        assert (np.diff(row) <= 1e-14 * row[0]).all()
        np.testing.assert_allclose(row, expected[: len(row)], atol=1e-11 * expected[0])


def random_mimo_fast(inputs: int, outputs: int) -> Recurrence:
    ell = random_siso(3, 1, 4, slow=0.1).log_eigenvalues
    return replace(random_mimo(modes=4, inputs=inputs, outputs=outputs), log_eigenvalues=ell)


def faster(recurrence: Recurrence) -> Recurrence:
    """Return a dense recurrence whose kernel ends within the span."""
    assert recurrence.dense is not None
    dense = recurrence.dense()
    other = replace(dense, state_matrix=0.85 * dense.state_matrix)
    return replace(recurrence, log_eigenvalues=recurrence.log_eigenvalues + math.log(0.85), dense=lambda: other)


@pytest.mark.parametrize("rate", [1e-12, 1e-3, 0.5, 30.0])
def test_one_pole_has_one_value_which_is_its_weight_over_its_margin(rate: float) -> None:
    recurrence = siso(torch.tensor([[-rate]], dtype=torch.float64), torch.full((1, 1, 1), 3.0))
    found = hankel_singular_values(recurrence)
    assert found.values.tolist() == [[pytest.approx(3 / -math.expm1(-2 * rate), rel=1e-13)]]
    assert found.states_for(0.999).tolist() == [1.0]
    assert found.lost.tolist() == [[pytest.approx(1.0), 0.0]]


def test_values_far_below_the_largest_keep_absolute_accuracy_against_eighty_digits() -> None:
    ell = [-0.05 * k for k in range(1, 9)]
    recurrence = siso(torch.tensor([ell], dtype=torch.float64), torch.ones(1, 1, 8))
    with mpmath.workdps(80):
        G = mpmath.matrix([[-1 / mpmath.expm1(mpmath.mpf(a) + b) for b in ell] for a in ell])
        lower = mpmath.cholesky(G)
        expected = sorted((abs(x) for x in mpmath.eigsy(lower.T * lower, eigvals_only=True)), reverse=True)
    found = hankel_singular_values(recurrence).values[0].tolist()
    for value, exact in zip(found, expected, strict=True):
        assert abs(value - exact) < 3e-15 * expected[0]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_the_squares_sum_to_the_energy_of_the_hankel_matrix(seed: int, real: bool) -> None:
    recurrence = random_siso(seed, channels=2, slow=0.1, real=real)
    kernel = stepped_kernel(recurrence, 2 * SPAN)
    weight = torch.arange(1, 2 * SPAN + 1, dtype=torch.float64)
    energy = (weight * kernel.square()).sum((0, 2))
    found = hankel_singular_values(recurrence)
    np.testing.assert_allclose(found.values.square().sum(1).numpy(), energy.numpy(), rtol=1e-10)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(6)), st.floats(-3, 3))
def test_values_depend_on_the_kernel_alone(seed: int, order: list[int], scale: float) -> None:
    recurrence = random_siso(seed)
    assert recurrence.output_matrix is not None
    gain = torch.full_like(recurrence.log_eigenvalues, 10**scale)
    output = recurrence.output_matrix[..., order].conj() / 10**scale
    other = siso(recurrence.log_eigenvalues[:, order].conj(), output, 2.0, gain)
    a, b = hankel_singular_values(recurrence).values, hankel_singular_values(other).values
    assert bool(((a - b).abs() <= 1e-11 * a[:, :1]).all())


def test_modes_that_cancel_or_repeat_take_no_state() -> None:
    ell = torch.tensor([[-0.1, -0.1, -0.2, -0.3]], dtype=torch.float64)
    recurrence = siso(ell, torch.tensor([[[1.0, 1.0, 0.0, 2.0]]]))
    found = hankel_singular_values(recurrence).values[0]
    assert bool((found[:2] > 0.05).all())
    assert bool((found[2:] < 1e-14).all())
    assert hankel_singular_values(recurrence).states_for(1 - 1e-12).tolist() == [2.0]


def test_what_is_lost_falls_to_nothing_and_bounds_the_kernels_spectrum() -> None:
    recurrence = random_siso(channels=1, copies=1, slow=0.05)
    found = hankel_singular_values(recurrence)
    assert found.lost[0, 0] == 1
    assert found.lost[0, -1] == 0
    assert bool((found.lost.diff() <= 0).all())
    # Twice the sum of all bounds the largest gain at any frequency (k = 0: nothing kept).
    gain = np.abs(np.fft.rfft(stepped_kernel(recurrence, 4096)[0, 0].numpy())).max()
    assert found.values[0, 0] <= gain * (1 + 1e-9)
    assert gain <= float(found.error_bound[0, 0]) * (1 + 1e-9)


def test_channels_without_an_operator_say_why() -> None:
    recurrence = random_siso(channels=4)
    ell = recurrence.log_eigenvalues.clone()
    ell[0, 0], ell[1, 0], ell[2, 0] = complex(math.nan, 0), 1e-3 + 1j, 1j
    found = hankel_singular_values(replace(recurrence, log_eigenvalues=ell))
    wanted = [Status.NOT_FINITE, Status.GROWS, Status.BOUNDARY, Status.KNOWN]
    assert [Status(int(status)) for status in found.status] == wanted
    assert found.values[:2].isnan().all()
    assert found.values[2].isinf().all()
    np.testing.assert_allclose(found.values[3].numpy(), hankel_singular_values(recurrence).values[3].numpy(), rtol=1e-9)
    assert found.states_for(0.9).isnan().tolist() == [True, True, True, False]
    bad = replace(random_mimo(), log_eigenvalues=random_mimo().log_eigenvalues + 1)
    assert hankel_singular_values(bad).values.isnan().all()


def test_a_selective_layer_and_one_without_matrices_are_refused() -> None:
    with pytest.raises(ValueError, match="selective"):
        hankel_singular_values(replace(random_siso(), time_invariant=False))
    with pytest.raises(ValueError, match="no input or output matrix"):
        hankel_singular_values(replace(random_siso(), output_matrix=None))
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            hankel_singular_values(random_siso()).states_for(share)


@pytest.mark.one_in(16)
@pytest.mark.parametrize(("family", "spelling"), SPELLINGS)
def test_every_time_invariant_layer_with_a_kernel_has_them(
    family: object, spelling: object, read_model: Callable[..., list[Recurrence]]
) -> None:
    for recurrence in read_model(state_dict(spelling), config(family, spelling)):  # type: ignore[arg-type]
        if not recurrence.time_invariant or recurrence.layout == "none":
            with pytest.raises(ValueError, match=r"selective|no input or output"):
                hankel_singular_values(recurrence)
            continue
        found = hankel_singular_values(recurrence)
        known = (found.status == Status.KNOWN) | (found.status == Status.ZERO)
        assert bool(found.values[known].isfinite().all())
        assert bool((known | ~found.values.isfinite().any(1)).all())


def test_weights_whose_product_is_beyond_float64_cost_their_own_channel_alone() -> None:
    recurrence = random_siso(channels=3)
    assert recurrence.output_matrix is not None
    assert recurrence.input_matrix is not None
    scale = torch.tensor([1.0, 1e200, 1.0], dtype=torch.float64)[:, None]
    large = replace(
        recurrence, output_matrix=recurrence.output_matrix * scale, input_matrix=recurrence.input_matrix * scale
    )
    found, expected = hankel_singular_values(large).values, hankel_singular_values(recurrence).values
    assert bool(found[1].isnan().all())
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], rtol=0, atol=0)
