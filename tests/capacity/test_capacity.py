"""Length, accuracy and capacity of layers against sums, brute force and the papers' initialisations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import scipy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmdiag.capacity.capacity import (
    LayerCapacity,
    affordable_channels,
    assess_capacities,
    assess_capacity,
    initial_capacities,
    state_format,
    summarise_capacity,
)
from ssmdiag.capacity.noise import noisy_capacity, noisy_memory_function
from ssmdiag.capacity.reconstruction import memory_function
from ssmdiag.capacity.rounding import STATE_PRECISION
from ssmdiag.families.initial_spectra import FAMILIES, initial_spectra, legs_matrix, normal_legs
from ssmdiag.recurrence.modal import Recurrence
from tests.capacity.reference import exact_capacity, exact_memory, exact_within, spectrum
from tests.capacity.test_reconstruction import exactly, ring
from tests.families.synthetic import config, state_dict
from tests.kernel.test_kernel import SPELLINGS, count_dense, random_dense, random_mimo, random_siso

SPAN = 600


def last_above(values: torch.Tensor, share: float) -> list[float]:
    """Return the largest lag with a value of at least the share, NaN where there is none."""
    found = [max((t for t, value in enumerate(row) if value >= share), default=math.nan) for row in values.tolist()]
    return [float(lag) for lag in found]


@pytest.mark.one_in(9)
@pytest.mark.parametrize(
    "make",
    [
        lambda: random_siso(slow=1e-2),
        lambda: random_siso(slow=1e-3, real=True),
        lambda: random_siso(modes=30),
        random_mimo,
        random_dense,
        lambda: initial_spectra("mamba", 16)[0].recurrence,
    ],
)
@pytest.mark.parametrize("context", [1, 3, 100, 512])
def test_length_accuracy_and_capacity_are_what_the_memory_function_says(
    make: Callable[[], Recurrence], context: int
) -> None:
    recurrence = make()
    memory = memory_function(recurrence, range(SPAN)).values
    rounded = noisy_memory_function(recurrence, range(SPAN), "bf16")
    found = assess_capacity(recurrence, context, state_dtype="bf16")
    np.testing.assert_array_equal(found.length_half.numpy(), last_above(memory, 0.5))
    np.testing.assert_array_equal(found.length_tenth.numpy(), last_above(memory, 0.1))
    np.testing.assert_array_equal(found.rounded_half.numpy(), last_above(rounded, 0.5))
    np.testing.assert_array_equal(found.rounded_tenth.numpy(), last_above(rounded, 0.1))
    np.testing.assert_allclose(found.capacity.numpy(), memory[:, :context].sum(1).numpy(), rtol=1e-10)
    for accuracy, length, row in zip(found.accuracy.tolist(), found.length_half.tolist(), memory, strict=True):
        if math.isnan(length):
            assert math.isnan(accuracy)
        else:
            assert accuracy == pytest.approx(float(row[: int(length) + 1].mean()), rel=1e-12)
    for name in STATE_PRECISION:
        np.testing.assert_allclose(found.surviving[name].numpy(), noisy_capacity(recurrence, name).numpy(), rtol=1e-12)
    assert found.effective_modes is found.surviving["bf16"]
    curve = memory_function(recurrence, found.lags).values.mean(0)
    assert float(found.lags[-1]) < context
    assert found.lags[0] == 0
    assert bool((found.lags.diff() > 0).all())
    np.testing.assert_allclose(found.memory.numpy(), curve.numpy(), rtol=1e-10)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("context", [1, 10, 1000, 100_003, 10**7, 10**9])
def test_capacity_of_a_long_context_equals_eighty_digits_without_a_sum(context: int) -> None:
    slow = exactly(-1e-6, -3e-6 + 0.3j, -2e-4 + 1j, -0.01, -0.5 + 2j)
    expected = exact_within(slow.tolist(), context)
    assert abs(assess_capacity(spectrum(slow), context).capacity.item() - expected) < 1e-11


HOLDING = {
    "real": [-0.001 * k for k in range(1, 17)],
    "pairs": [complex(-0.005, 0.01 * math.pi * k) for k in range(16)],
    "whole disc": ring(10, 0.0, 1.0).tolist(),
    "wide": [-1e-6, complex(-3e-6, 0.3), complex(-2e-4, 1), -0.01, complex(-0.5, 2)],
    "at the boundary": [*(complex(-1e-12 * k, 0.3 * k) for k in range(1, 5)), -1e-11],
    "one of them": [-1e-9],
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", HOLDING)
def test_the_lags_that_hold_a_share_of_the_capacity_are_those_of_many_digits(name: str) -> None:
    ell = HOLDING[name]
    found = assess_capacity(spectrum(exactly(*map(complex, ell))), 100)
    for share, lags in ((0.5, found.held_half.item()), (0.9, found.held_nine_tenths.item())):
        slack = int(lags * 1e-9) if lags > 1e9 else 0  # float64's digits of A^L
        assert exact_within(ell, int(lags) + slack, 120) >= share * found.modes.item()
        assert lags == 1 or exact_within(ell, int(lags) - 1 - slack, 120) < share * found.modes.item()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("make", [random_siso, random_mimo, random_dense, lambda: random_siso(slow=1e-4, modes=40)])
def test_the_lags_that_hold_a_share_are_where_the_memory_function_sums_to_it(make: Callable[[], Recurrence]) -> None:
    recurrence = make()
    found = assess_capacity(recurrence, 10)
    sums = memory_function(recurrence, range(2**16)).values.cumsum(1)
    for share, lags in ((0.5, found.held_half), (0.9, found.held_nine_tenths)):
        expected = (sums < share * found.modes[:, None]).sum(1) + 1
        np.testing.assert_array_equal(lags.numpy(), expected.numpy())


def test_a_capacity_held_beyond_all_whole_numbers_is_held_at_no_lag() -> None:
    found = assess_capacity(spectrum(torch.tensor([[-1e-17], [-0.1]], dtype=torch.float64)), 100)
    assert found.held_half.tolist() == [math.inf, 4]
    # 1 − e^{−2rL} ≥ ½ where L ≥ ln 2 / 2r
    assert assess_capacity(spectrum(exactly(-1e-10)), 100).held_half.item() == math.ceil(math.log(2) / 2e-10)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 24), st.booleans())
def test_length_is_bought_with_accuracy(seed: int, modes: int, real: bool) -> None:
    found = assess_capacity(random_siso(seed, modes=modes, slow=1e-2, real=real), 300)
    for share, length in ((0.5, found.length_half), (0.1, found.length_tenth)):
        assert bool((~(length + 1 > found.modes.double() / share)).all())
    known = ~found.length_half.isnan()
    bought = (found.accuracy * (found.length_half + 1))[known]
    assert bool((bought <= found.modes[known] + 1e-9).all())
    assert bool((found.capacity <= torch.minimum(found.modes.double(), torch.tensor(300.0)) + 1e-9).all())


def test_one_slow_mode_rebuilds_nothing_and_is_said_to() -> None:
    found = assess_capacity(spectrum(torch.tensor([[-1e-9], [-3.0]], dtype=torch.float64)), 100)
    assert found.length_half.isnan().tolist() == [True, False]
    assert found.capacity.tolist() == [pytest.approx(-math.expm1(-2e-7), rel=1e-9), pytest.approx(1.0)]
    summary = summarise_capacity(found)
    assert (summary.without_half, summary.without_tenth, summary.unknown) == (1, 1, 0)
    assert summary.length_half is not None
    assert summary.length_half.max == 0
    alone = summarise_capacity(assess_capacity(spectrum(torch.tensor([[-1e-9]], dtype=torch.float64)), 100))
    assert alone.length_half is None
    assert "No channel rebuilds even its present input" in alone.sentence


def test_equal_modes_hold_one_number() -> None:
    found = assess_capacity(spectrum(torch.full((3, 16), -0.05, dtype=torch.float64)), 1000)
    assert found.modes.tolist() == [1, 1, 1]
    assert found.excluded.totals()["repeated"] == 45
    assert found.capacity.tolist() == [pytest.approx(1.0)] * 3


def test_a_context_shorter_than_the_modes_is_all_that_can_be_remembered() -> None:
    found = assess_capacity(spectrum(ring(40)), 8)
    assert 7.9 < found.capacity.item() <= 8
    assert found.modes.item() == 79


def test_broken_channels_are_unknown_and_the_others_untouched() -> None:
    ell = random_siso(channels=4).log_eigenvalues.clone()
    alone = assess_capacity(spectrum(ell[3:]), 100)
    ell[0] = math.nan
    ell[1] = 0.1 + 1j
    ell[2, :2] = 2j
    found = assess_capacity(spectrum(ell), 100)
    assert found.sound.tolist() == [False, False, True, True]
    for name in ("length_tenth", "accuracy", "capacity", "held_half", "rounded_tenth", "effective_modes"):
        values = getattr(found, name)
        assert values[:2].isnan().all()
        np.testing.assert_allclose(values[3:].numpy(), getattr(alone, name).numpy(), rtol=1e-12)
    summary = summarise_capacity(found)
    assert (summary.channels, summary.unknown) == (4, 2)
    assert summary.excluded == {"not_finite": 6, "unstable": 6, "marginal": 2, "unreached": 0, "repeated": 0}
    nothing = summarise_capacity(assess_capacity(spectrum(ell[:2]), 100))
    assert nothing.capacity is None
    assert nothing.curve == ()
    assert "No channel's capacity is known" in nothing.sentence


def test_a_summary_is_plain_numbers_with_a_sentence() -> None:
    fresh = initial_spectra("mamba", 16)[0].recurrence
    summary = summarise_capacity(assess_capacity(fresh, 4096, state_dtype="bf16"))
    assert summary.modes is not None
    assert summary.modes.median == 16
    assert summary.effective_modes is not None
    exact = [float(exact_capacity(ell.tolist(), STATE_PRECISION["bf16"])) for ell in fresh.log_eigenvalues]
    assert summary.effective_modes.min == pytest.approx(min(exact), rel=1e-12)
    assert summary.effective_modes.max == pytest.approx(max(exact), rel=1e-12)
    assert set(summary.surviving) == set(STATE_PRECISION)
    assert summary.curve[0][0] == 0
    assert "of 16 modes survive rounding the state to bf16" in summary.sentence
    assert "13 of 16 channels rebuild inputs to one half or better" in summary.sentence


def test_the_state_is_taken_to_be_kept_as_the_weights_are() -> None:
    recurrence = random_siso(channels=1)
    kept = {
        "bfloat16": "bf16",
        "float16": "fp16",
        "float32": "float32",
        "float64": "float32",
        "float8_e4m3fn": "float32",
    }
    for stored, expected in kept.items():
        stored_so = replace(recurrence, dtype=stored)
        assert state_format(stored_so) == expected
        assert assess_capacity(stored_so, 10).state_dtype == expected


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one step"):
        assess_capacity(random_siso(), 0)
    with pytest.raises(ValueError, match="bf16, fp16, int8, float32"):
        assess_capacity(random_siso(), 10, state_dtype="float8")
    with pytest.raises(ValueError, match="at least one mode"):
        initial_spectra("s4d", 0)


def test_a_dense_state_is_built_once() -> None:
    recurrence, built = count_dense(random_dense())
    assess_capacity(recurrence, 100)
    assert len(built) == 1


@pytest.mark.one_in(16)
@pytest.mark.parametrize(("family", "spelling"), SPELLINGS)
def test_every_family_has_a_capacity_or_a_reason(
    family: object, spelling: object, read_model: Callable[..., list[Recurrence]]
) -> None:
    for recurrence in read_model(state_dict(spelling), config(family, spelling)):  # type: ignore[arg-type]
        found = assess_capacity(recurrence, 50)
        assert bool(found.sound.any()) or sum(found.excluded.totals().values()) > 0
        good = found.sound
        assert bool((found.capacity[good] <= found.modes[good].double() + 1e-9).all())
        assert bool((found.capacity[good] >= 0).all())
        assert summarise_capacity(found).sentence


def test_initialisations_have_the_spectra_that_were_printed() -> None:
    linear, inverse, normal, real = (initial.recurrence for initial in initial_spectra("s4d", 4))
    for recurrence in (linear, inverse, normal, real):
        assert recurrence.step is not None
        assert 1e-3 < float(recurrence.step.min()) < float(recurrence.step.max()) < 1e-1
    assert linear.step is not None
    A = linear.log_eigenvalues / linear.step
    np.testing.assert_allclose(A[0].imag.numpy(), [0, math.pi, 2 * math.pi, 3 * math.pi], rtol=1e-12)
    np.testing.assert_allclose((inverse.log_eigenvalues / linear.step)[3].imag.numpy()[-1], 8 / math.pi * (8 / 7 - 1))
    np.testing.assert_allclose((real.log_eigenvalues / linear.step)[5].real.numpy(), [-1, -2, -3, -4], rtol=1e-12)
    matrix, B = legs_matrix(8)
    np.testing.assert_allclose(np.sort(scipy.linalg.eigvals(matrix.numpy()).real), -np.arange(8.0, 0, -1), rtol=1e-9)
    skew = matrix.numpy() + 0.5 * np.outer(B.numpy(), B.numpy())
    expected = scipy.linalg.eigvals(skew)
    np.testing.assert_allclose(expected.real, -0.5, atol=1e-10)
    np.testing.assert_allclose(normal_legs(8).imag.numpy(), np.sort(expected.imag)[::-1], rtol=1e-10)
    (wide, narrow) = (initial.recurrence for initial in initial_spectra("lru", 64))
    assert 0 < float(wide.log_eigenvalues.real.exp().min()) < 0.1
    assert 0.9 < float(narrow.log_eigenvalues.real.exp().min()) < float(narrow.log_eigenvalues.real.exp().max()) < 0.999


@pytest.mark.one_in(3)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_initialisation_remembers_all_its_modes(family: str) -> None:
    for initial in initial_spectra(family, 8):
        found = assess_capacity(initial.recurrence, 10**6)
        assert bool(found.sound.all())
        np.testing.assert_allclose(found.capacity.numpy(), found.modes.numpy(), rtol=1e-9)
        assert initial.source


def test_a_layer_stands_beside_its_familys_initialisations() -> None:
    recurrence = replace(random_siso(modes=8), family="s4d")
    beside = initial_capacities(recurrence, 256)
    assert list(beside) == ["S4D-Lin", "S4D-Inv", "S4D-LegS", "S4D-Real"]
    assert all(isinstance(capacity, LayerCapacity) for capacity in beside.values())
    assert beside["S4D-Lin"].modes.max() == 15
    assert initial_capacities(replace(recurrence, family="unheard of"), 256) == {}


def test_layers_of_hundreds_of_modes_are_known_by_fewer_channels() -> None:
    assert [affordable_channels(modes, 64) for modes in (1, 64, 128, 256, 1024)] == [64, 64, 32, 4, 4]
    assert affordable_channels(1024, 3) == 3
    beside = initial_capacities(replace(random_siso(modes=8), family="lru"), 16)
    beside.clear()
    assert initial_capacities(replace(random_siso(modes=8), family="lru"), 16)


def test_legs_and_its_eigenvalues_remember_alike_until_their_states_are_rounded() -> None:
    legs = assess_capacity(initial_spectra("s4", 16)[0].recurrence, 4096)
    plain = assess_capacity(replace(initial_spectra("s4", 16)[0].recurrence, dense=None), 4096)
    np.testing.assert_array_equal(legs.length_half.numpy(), plain.length_half.numpy())
    np.testing.assert_allclose(legs.capacity.numpy(), plain.capacity.numpy(), rtol=1e-10)
    assert float(legs.surviving["bf16"].min()) > 0.98 * 16
    assert float(plain.surviving["bf16"].max()) < 7


@pytest.mark.slow
def test_a_layers_memory_equals_three_hundred_digits() -> None:
    ell = -0.02 * torch.arange(1, 17, dtype=torch.float64)
    exact = [float(value) for value in exact_memory(ell.tolist(), range(170))]
    found = assess_capacity(spectrum(ell), 100)
    assert found.length_half.item() == sum(value >= 0.5 for value in exact) - 1
    assert found.length_tenth.item() == sum(value >= 0.1 for value in exact) - 1
    assert found.capacity.item() == pytest.approx(sum(exact[:100]), rel=1e-12)


@pytest.mark.slow
def test_layers_together_are_each_layer_alone() -> None:
    generator = torch.Generator().manual_seed(3)

    def made(channels: int, modes: int, *, real: bool, reached: bool | None, dtype: str = "float32") -> Recurrence:
        ell = -torch.rand(channels, modes, generator=generator, dtype=torch.float64) - 1e-4 + 0j
        if not real:
            ell = ell + 3j * torch.rand(channels, modes, generator=generator, dtype=torch.float64)
        B = None if reached is None else torch.ones(1, modes, dtype=torch.complex128)
        if reached is False:
            B = B.repeat(channels, 1)  # type: ignore[union-attr]
            B[0, :2] = 0
        return Recurrence(
            f"layer{channels}", "s4d", "x", ell, time_invariant=True, dtype=dtype, input_matrix=B,
            output_matrix=None if B is None else torch.ones(1, channels, modes, dtype=torch.complex128),
        )  # fmt: skip

    broken = made(2, 4, real=True, reached=True)
    broken.log_eigenvalues[1, 0] = torch.nan
    broken.log_eigenvalues[0, 1] = 0.5
    matrix = random_mimo(modes=4)
    assert matrix.input_matrix is not None
    partly, unsound = matrix.input_matrix.clone(), matrix.input_matrix.clone()
    partly[1], unsound[2, 0] = 0, math.nan
    layers = [
        matrix, replace(matrix, input_matrix=partly), replace(matrix, input_matrix=unsound),
        made(3, 4, real=True, reached=True), made(2, 4, real=False, reached=True), made(5, 4, real=True, reached=None),
        made(1, 4, real=True, reached=False), made(4, 4, real=True, reached=True, dtype="bfloat16"), broken,
        made(4, 5, real=True, reached=True), made(3, 4, real=False, reached=False),
    ]  # fmt: skip
    for together, layer in zip(assess_capacities(layers, 64), layers, strict=True):
        alone = assess_capacity(layer, 64)
        assert (together.layer, together.state_dtype) == (alone.layer, alone.state_dtype)
        for name in ("modes", "sound", "lags"):
            assert torch.equal(getattr(together, name), getattr(alone, name)), name
        for name in (
            "length_half", "length_tenth", "accuracy", "capacity", "held_half", "held_nine_tenths", "rounded_half",
            "rounded_tenth", "memory",
        ):  # fmt: skip
            torch.testing.assert_close(
                getattr(together, name), getattr(alone, name), rtol=0, atol=0, equal_nan=True, msg=name
            )
        for state in alone.surviving:
            torch.testing.assert_close(
                together.surviving[state], alone.surviving[state], rtol=0, atol=0, equal_nan=True
            )
        assert together.excluded.totals() == alone.excluded.totals()
    assert assess_capacities([], 64) == []
