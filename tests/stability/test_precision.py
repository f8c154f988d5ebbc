"""What few bits do to a memory, against torch's own casts and sixty digits."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssmdiag.recurrence.maps import MAPS
from ssmdiag.recurrence.modal import RecurrentWeight
from ssmdiag.stability.precision import (
    HALF_SPACING_BELOW_ONE,
    ROUNDED_LIKE,
    error_bound,
    is_coarse,
    longest_time_constant,
    rounds_to_one,
    time_constant_error,
    worst_and_median_error,
)

DTYPES = sorted(HALF_SPACING_BELOW_ONE)


def weight(values: torch.Tensor, map: str, *, discrete: bool = False) -> RecurrentWeight:
    return RecurrentWeight("w", "rate", map, values.double(), "float32", discrete)


@pytest.mark.parametrize("dtype", DTYPES)
def test_decays_that_round_to_one_are_those_that_torch_rounds_to_one(dtype: str) -> None:
    rate = torch.logspace(-12, 1, 200_001, dtype=torch.float64)
    cast = (-rate).exp().to(getattr(torch, dtype)) == 1
    differ = rounds_to_one(rate, dtype) != cast
    # torch casts float64 to 16 bits by way of float32: at the boundary itself it rounds twice.
    assert bool(((rate[differ] * longest_time_constant(dtype)) - 1).abs().lt(1e-3).all())
    assert int(differ.sum()) <= 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_longest_time_constant_is_where_rounding_begins(dtype: str) -> None:
    tau = longest_time_constant(dtype)
    assert bool(rounds_to_one(torch.tensor(1 / (tau * (1 + 1e-9)), dtype=torch.float64), dtype))
    assert not bool(rounds_to_one(torch.tensor(1 / (tau * (1 - 1e-9)), dtype=torch.float64), dtype))


def test_modes_on_and_past_the_boundary_do_not_round_to_one() -> None:
    assert rounds_to_one(torch.tensor([0.0, -1e-5, math.nan]), "bfloat16").tolist() == [False, False, False]


@pytest.mark.one_in(4)
@pytest.mark.parametrize("map", ["exp", "softplus", "sigmoid", "direct", "best"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn"])
def test_no_cast_moves_a_time_constant_further_than_said(map: str, dtype: str) -> None:
    g = torch.Generator().manual_seed(0)
    before = (-8 * torch.rand(20_000, generator=g) - 0.01).double()
    after = before.to(getattr(torch, dtype)).double()
    # Seen from the stored value, as a checkpoint shows it, the value it came from lies within half a unit.
    seen = time_constant_error(weight(after, map), dtype)
    moved = (MAPS[map](after) / MAPS[map](before) - 1).abs()
    assert bool((moved <= seen * (1 + 1e-12)).all())
    assert float((moved / seen).max()) > 0.9, "and the bound is reached"


def test_a_log_in_bfloat16_costs_what_the_formula_says() -> None:
    a_log = torch.tensor([3.0, 5.0])
    got = time_constant_error(weight(a_log, "exp"), "bfloat16")
    wanted = [float(mpmath.expm1(mpmath.mpf(2) ** -7)), float(mpmath.expm1(mpmath.mpf(2) ** -6))]
    assert got.tolist() == pytest.approx(wanted, rel=1e-12)
    assert wanted == pytest.approx([0.0078, 0.0157], abs=1e-4)


@given(st.floats(-1e-3, -1e-9), st.sampled_from(["bfloat16", "float16"]))
def test_a_stored_decay_errs_by_what_its_neighbours_say(rate: float, dtype: str) -> None:
    decay = torch.tensor(rate, dtype=torch.float64).exp().to(getattr(torch, dtype))
    got = float(time_constant_error(weight(decay, "none", discrete=True), dtype))
    below = math.log(float(torch.nextafter(decay, decay * 0)) / 2 + float(decay) / 2)
    if float(decay) == 1:
        assert got == math.inf  # its upper neighbour grows
        return
    above = math.log(float(torch.nextafter(decay, decay * 0 + 1)) / 2 + float(decay) / 2)
    stored = math.log(float(decay))
    wanted = max(abs(stored / end - 1) if end < 0 else math.inf for end in (below, above))
    assert got == pytest.approx(wanted, rel=1e-9)


@pytest.mark.one_in(5)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn"])
@pytest.mark.parametrize("size", [1, 2, 7, 5000])
def test_worst_and_median_are_those_of_all_values(dtype: str, size: int) -> None:
    values = torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64) * 4
    for stored in (values.to(getattr(torch, dtype)).double(), values):  # of the dtype, and computed from it
        error = time_constant_error(weight(stored, "softplus"), dtype)
        assert worst_and_median_error(weight(stored, "softplus"), dtype) == (float(error.max()), float(error.median()))


def test_broken_values_are_left_out_of_the_median() -> None:
    stored = torch.tensor([math.nan, math.inf, -2.0, -2.0, -4.0, -8.0]).to(torch.bfloat16)
    sound = time_constant_error(weight(torch.tensor([-2.0, -2.0, -4.0, -8.0]), "exp"), "bfloat16")
    assert worst_and_median_error(weight(stored, "exp"), "bfloat16") == (float(sound.max()), float(sound.median()))
    assert worst_and_median_error(weight(stored[:1], "exp"), "bfloat16") is None


@pytest.mark.one_in(9)
@pytest.mark.parametrize("map", [name for name in MAPS if name != "none"])
@pytest.mark.parametrize("dtype", sorted(ROUNDED_LIKE))
def test_the_bound_bounds(map: str, dtype: str) -> None:
    values = torch.linspace(-6, 6, 999, dtype=torch.float64)
    stored = weight(values, map)
    error = time_constant_error(stored, dtype)
    assert float(error[MAPS[map](values) > 0].max()) <= error_bound(stored, dtype) * (1 + 1e-12)


def test_the_bound_of_what_cannot_be_bounded_is_infinite() -> None:
    assert error_bound(weight(torch.tensor([math.nan, 1.0]), "exp"), "bfloat16") == math.inf
    assert error_bound(weight(torch.tensor([0.5]), "sigmoid", discrete=True), "bfloat16") == math.inf
    assert error_bound(weight(torch.empty(0), "exp"), "bfloat16") == 0.0


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_full_precision_is_not_coarse(dtype: str) -> None:
    assert not is_coarse(dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "complex32", "float8_e5m2", "float4_e2m1fn_x2"])
def test_sixteen_bits_and_fewer_are_coarse(dtype: str) -> None:
    assert is_coarse(dtype)
