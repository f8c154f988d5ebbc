"""Capacities on a GPU: every format of the state, every measure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ssmdiag import (
    Recurrence,
    hankel_singular_values,
    memory_function,
    noisy_capacity,
    noisy_memory_function,
    recommend_step,
    trade_off,
)
from ssmdiag.capacity.capacity import assess_capacity, initial_capacities, summarise_capacity
from ssmdiag.capacity.rounding import STATE_PRECISION
from tests.cuda.conftest import slow_but
from tests.cuda.same import TOLERANCE, assert_same

Pair = tuple[Recurrence, Recurrence]
LAGS = (0, 1, 7, 1000, 2**30)


@pytest.mark.parametrize("state", [pytest.param(state, marks=slow_but(state, "bf16")) for state in STATE_PRECISION])
def test_what_survives_a_rounded_state(state: str, pair: Pair) -> None:
    away, home = pair
    assert_same(assess_capacity(away, 64, state_dtype=state), assess_capacity(home, 64, state_dtype=state))
    assert_same(noisy_capacity(away, state), noisy_capacity(home, state))
    # Float32's noise is 1e-15 of the state's variance: of sixteen digits nine are left.
    tolerance = 1e-8 if state == "float32" else TOLERANCE
    assert_same(*(noisy_memory_function(each, LAGS, state) for each in pair), tolerance=tolerance)


@pytest.mark.slow
def test_memory_functions_and_their_summary(pair: Pair) -> None:
    away, home = pair
    assert_same(memory_function(away, LAGS), memory_function(home, LAGS))
    assert_same(summarise_capacity(assess_capacity(away, 64)), summarise_capacity(assess_capacity(home, 64)))
    assert_same(initial_capacities(away, 64).keys(), initial_capacities(home, 64).keys())


@pytest.mark.slow
def test_steps_are_scaled_and_recommended(pair: Pair) -> None:
    away, home = pair
    assert_same(trade_off(away, 64), trade_off(home, 64))
    assert_same(recommend_step(away, 3), recommend_step(home, 3))


def test_hankel_singular_values(pair: Pair) -> None:
    away, home = pair
    if home.time_invariant and home.layout != "none":
        assert_same(hankel_singular_values(away), hankel_singular_values(home))
        assert_same(hankel_singular_values(away).lost, hankel_singular_values(home).lost)
        assert_same(hankel_singular_values(away).states_for(), hankel_singular_values(home).states_for())


@pytest.mark.slow
def test_the_command_runs(small: Path, both: Callable[..., None]) -> None:
    both("capacity", small, "--length", 64)
    both("capacity", small, "--length", 64, "--layer", 3, "--for-length", 3, "--every-channel")
