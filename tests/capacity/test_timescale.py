"""Scaled steps and recommended ranges against spectra made at those steps."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ssmdiag.capacity.capacity import assess_capacity
from ssmdiag.capacity.noise import complete, noisy_memory_function
from ssmdiag.capacity.reconstruction import memory_function
from ssmdiag.capacity.rounding import Rounding
from ssmdiag.capacity.timescale import OCTAVES, recommend_step, scaled, trade_off
from ssmdiag.families.initial_spectra import initial_spectra, legs_matrix
from ssmdiag.recurrence.discretisation import bilinear, zoh
from ssmdiag.recurrence.modal import Assumption, DenseRealisation, Recurrence
from tests.capacity.reference import spectrum
from tests.capacity.test_reconstruction import exactly, ring
from tests.kernel.test_kernel import random_dense, random_mimo, random_siso

A = exactly(-0.5, -0.5 + 3j, -2 + 40j, -16)[None]
LAGS = [0, 1, 5, 30, 200]
BILINEAR = Assumption("disc", "bilinear", "usual", "how A and B are discretised", ("zoh", "bilinear"))


def stepped(step: float, rule: str = "zoh") -> Recurrence:
    delta = torch.tensor([[step]], dtype=torch.float64)
    made = spectrum((bilinear if rule == "bilinear" else zoh)(A, delta))
    return replace(made, step=delta, assumptions=(BILINEAR,) if rule == "bilinear" else ())


@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
@pytest.mark.parametrize("factor", [0.01, 0.5, 1.0, 4.0])
def test_a_scaled_recurrence_is_the_one_made_at_that_step(rule: str, factor: float) -> None:
    found, expected = scaled(stepped(0.01, rule), factor), stepped(0.01 * factor, rule)
    np.testing.assert_allclose(found.log_eigenvalues.numpy(), expected.log_eigenvalues.numpy(), rtol=1e-12, atol=1e-15)
    assert found.step is not None
    assert found.step.item() == pytest.approx(0.01 * factor)


def legs(step: float, states: int = 12) -> Recurrence:
    matrix, B = legs_matrix(states)
    identity = torch.eye(states, dtype=torch.float64)
    right = torch.cat([identity + step / 2 * matrix, step * B[:, None]], 1)
    solved = torch.linalg.solve(identity - step / 2 * matrix, right)
    dense = DenseRealisation(solved[None, :, :-1], solved[None, :, -1], torch.ones(1, 1, states, dtype=torch.float64))
    rates = bilinear(-torch.arange(1, states + 1, dtype=torch.float64), torch.tensor(step, dtype=torch.float64))
    return spectrum(rates, dense=lambda: dense)


@pytest.mark.parametrize("factor", [0.1, 2.0, 30.0])
def test_a_scaled_dense_state_is_the_one_made_at_that_step(factor: float) -> None:
    found, expected = scaled(legs(0.01), factor), legs(0.01 * factor)
    assert found.dense is not None
    assert expected.dense is not None
    for name in ("state_matrix", "input_matrix"):
        np.testing.assert_allclose(
            getattr(found.dense(), name).numpy(), getattr(expected.dense(), name).numpy(), rtol=1e-9, atol=1e-11
        )
    np.testing.assert_allclose(found.log_eigenvalues.numpy(), expected.log_eigenvalues.numpy(), rtol=1e-9)


def test_factors_may_differ_between_channels() -> None:
    recurrence = random_siso(channels=3)
    factors = torch.tensor([[0.5], [1.0], [3.0]], dtype=torch.float64)
    together = memory_function(scaled(recurrence, factors), LAGS).values
    for channel, factor in enumerate(factors[:, 0].tolist()):
        alone = memory_function(scaled(recurrence, factor), LAGS).values[channel]
        np.testing.assert_allclose(together[channel].numpy(), alone.numpy(), rtol=1e-12)
    dense = random_dense()
    together = memory_function(scaled(dense, factors), LAGS).values
    for channel, factor in enumerate(factors[:, 0].tolist()):
        alone = memory_function(scaled(dense, factor), LAGS).values[channel]
        np.testing.assert_allclose(together[channel].numpy(), alone.numpy(), rtol=1e-9)


def test_what_is_broken_or_not_written_stays_so() -> None:
    recurrence = random_siso()
    assert recurrence.input_matrix is not None
    B, ell = recurrence.input_matrix.clone(), recurrence.log_eigenvalues.clone()
    B[0, 1], B[1, 2], ell[2, 0], ell[3, 0], ell[3, 1] = 0, math.nan, complex(math.nan, 0), 1e-3 + 1j, 1j
    broken = replace(recurrence, input_matrix=B, log_eigenvalues=ell)
    before, after = memory_function(broken, [0]), memory_function(scaled(broken, 2.0), [0])
    assert before.excluded.totals() == after.excluded.totals()
    assert before.modes.tolist() == after.modes.tolist()
    dense = random_dense()
    assert dense.dense is not None
    matrices = dense.dense()
    A = matrices.state_matrix.clone()
    A[0, 0, 0] = math.nan
    other = replace(matrices, state_matrix=A)
    assert memory_function(scaled(replace(dense, dense=lambda: other), 2.0), [0]).sound.tolist() == [False, True, True]
    many = random_mimo()
    assert scaled(many, 1.0).layout == "none"
    np.testing.assert_allclose(
        memory_function(scaled(many, 1.0), LAGS).values.numpy(), memory_function(many, LAGS).values.numpy(), rtol=1e-12
    )


@pytest.mark.slow
def test_longer_memory_is_fainter_and_the_sum_stays() -> None:
    recurrence = spectrum(zoh(A, torch.tensor([[0.02]], dtype=torch.float64)))
    found = trade_off(recurrence, 10**6)
    assert list(found) == [0.5, 1.0, 2.0, 4.0]
    present = [capacity.memory[0].item() for capacity in found.values()]
    assert present == sorted(present)
    for factor, capacity in found.items():
        np.testing.assert_allclose(capacity.capacity.numpy(), 6, rtol=1e-10)
        alone = assess_capacity(scaled(recurrence, factor), 10**6)
        np.testing.assert_array_equal(capacity.length_tenth.numpy(), alone.length_tenth.numpy())


@pytest.mark.one_in(8)
@pytest.mark.parametrize(("family", "length"), [("mamba", 4), ("s4d", 20), ("s4", 5), ("lru", 15)])
@pytest.mark.parametrize("state_dtype", ["bf16", "float32"])
def test_inside_a_recommended_range_the_length_is_met_and_just_outside_it_is_not(
    family: str, length: int, state_dtype: str
) -> None:
    recurrence = initial_spectra(family, 16)[0].recurrence
    if recurrence.dense is None:
        step = None if recurrence.step is None else recurrence.step[::5]
        recurrence = replace(recurrence, log_eigenvalues=recurrence.log_eigenvalues[::5], step=step)
    found = recommend_step(recurrence, length, state_dtype=state_dtype)
    unreachable = (family, state_dtype) == ("mamba", "bf16")
    assert found.reachable.tolist() == [not unreachable] * recurrence.channels
    assert (found.memory < 0.5).tolist() == [unreachable] * recurrence.channels
    if not unreachable:
        check_range(recurrence, found.lowest, found.highest, length, state_dtype)
        assert bool(((found.lowest <= found.best) & (found.best <= found.highest)).all())
        if recurrence.step is not None:
            assert found.steps is not None
            np.testing.assert_allclose(found.steps[0].numpy(), (recurrence.step * found.lowest[:, None]).numpy())


def check_range(
    recurrence: Recurrence, lowest: torch.Tensor, highest: torch.Tensor, length: int, state_dtype: str
) -> None:
    def memory(factor: torch.Tensor) -> torch.Tensor:
        return noisy_memory_function(scaled(recurrence, factor[:, None]), [length], state_dtype)[:, 0]

    assert bool((lowest < highest).all())
    for share in (0.0, 0.3, 0.7, 1.0):
        assert bool((memory(lowest ** (1 - share) * highest**share) >= 0.5 - 1e-9).all())
    assert bool((memory(lowest / 1.01) < 0.5).all())
    limit = torch.full_like(highest, 2.0**OCTAVES)
    if recurrence.dense is None:
        frequency = recurrence.frequency if recurrence.step is not None else recurrence.log_eigenvalues.exp().angle()
        limit = torch.minimum(limit, math.pi / frequency.abs().amax(1))
        assert bool((highest <= limit * 1.0001).all())
    inner = highest < limit * 0.99
    assert bool((memory(highest * 1.01)[inner] < 0.5).all())


@pytest.mark.slow
def test_no_step_gives_a_length_beyond_the_modes_over_the_share() -> None:
    recurrence = spectrum(ring(4))
    assert not bool(recommend_step(recurrence, 16).reachable.any())
    assert bool(recommend_step(recurrence, 1).reachable.all())
    broken = spectrum(torch.full((1, 4), math.nan))
    found = recommend_step(broken, 4)
    assert not bool(found.reachable.any())


def test_misuse_is_refused() -> None:
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="positive factor"):
            scaled(random_siso(), wrong)
    for length, share in ((-1, 0.5), (5, 0.0), (5, 1.0)):
        with pytest.raises(ValueError, match="0 steps or more"):
            recommend_step(random_siso(), length, share)
    with pytest.raises(ValueError, match="bf16"):
        recommend_step(random_siso(), 5, state_dtype="int4")


@pytest.mark.slow
def test_some_channels_of_a_layer_are_given_the_steps_they_have_in_all_of_it() -> None:
    at = slice(0, 2)
    recurrence = initial_spectra("s4d", 16)[0].recurrence
    step = None if recurrence.step is None else recurrence.step[::5]
    whole = replace(recurrence, log_eigenvalues=recurrence.log_eigenvalues[::5], step=step)
    some = replace(whole, log_eigenvalues=whole.log_eigenvalues[at], step=None if step is None else step[at])
    rounding = Rounding(int8_scale="layer")
    known = complete(rounding, whole)
    found = recommend_step(some, 8, state_dtype="int8", rounding=known)
    expected = recommend_step(whole, 8, state_dtype="int8", rounding=rounding)
    torch.testing.assert_close(found.lowest, expected.lowest[at], equal_nan=True)
    torch.testing.assert_close(found.memory, expected.memory[at])
    alone = recommend_step(some, 8, state_dtype="int8", rounding=rounding)
    assert not torch.equal(alone.memory, found.memory)
