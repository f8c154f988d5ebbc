"""What is said to survive rounding against recurrences that are really rounded."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssmdiag.capacity.capacity import assess_capacity, summarise_capacity
from ssmdiag.capacity.noise import noisy_capacity
from ssmdiag.capacity.rounding import SWALLOWED, Int8Scale, Rounding
from ssmdiag.families.initial_spectra import normal_legs
from tests.capacity.reference import spectrum
from tests.capacity.rounded_run import Run, own_scale, rebuilt, rounding_of
from tests.capacity.test_reconstruction import ring

MODES = 16
KNOWN_MISSES = {("channel", 1.0): 1, ("layer", 1.0): 1}
"""Mamba at 0.003 keeps 2.6 modes of 2.3 said, S4D-Inv at 0.01 keeps 4.9 of 4.0: modes whose steps are swallowed decay
more slowly, which is not counted."""
INDEX = torch.arange(MODES, dtype=torch.float64)
CASES: tuple[tuple[str, Int8Scale], ...] = (
    ("bf16", "state"), ("fp16", "state"), ("int8", "state"), ("int8", "channel"), ("int8", "layer"),
)  # fmt: skip


def half(frequency: Tensor) -> Tensor:
    return torch.complex(torch.full_like(frequency, -0.5), frequency)


def drawn(seed: int, real: bool) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rate = 10 ** (-2.5 + 2.3 * torch.rand(MODES, generator=generator, dtype=torch.float64))
    turn = 0.0 if real else math.pi * torch.rand(MODES, generator=generator, dtype=torch.float64)
    return torch.complex(-rate, turn + 0 * rate)


FAST = {
    "Mamba at 0.1": -0.1 * (INDEX + 1) + 0j,
    "S4D-Lin at 0.1": 0.1 * half(math.pi * INDEX),
    "ring 0–0.95": ring(MODES, 0.0, 0.95),
}
SPECTRA = {
    **{f"Mamba at {step}": -step * (INDEX + 1) + 0j for step in (0.001, 0.003, 0.01, 0.03, 0.1)},
    **{f"S4D-Lin at {step}": step * half(math.pi * INDEX) for step in (0.003, 0.01, 0.03, 0.1)},
    **{f"S4D-Inv at {step}": step * half(32 / math.pi * (32 / (2 * INDEX + 1) - 1)) for step in (0.01, 0.03, 0.1)},
    **{f"S4D-LegS at {step}": step * normal_legs(32)[:16] for step in (0.01, 0.1)},
    "ring 0–1": ring(MODES, 0.0, 1.0),
    "ring 0.9–0.999": ring(MODES),
    "drawn, real": drawn(1, True),
    "drawn": drawn(2, False),
    "drawn again": drawn(3, False),
}


def written(ell: Tensor, seed: int) -> Tensor:
    """Return b of any phase, real where the mode is."""
    b = torch.randn(MODES, generator=torch.Generator().manual_seed(seed), dtype=torch.complex128)
    return torch.where(ell.imag == 0, b.real + 0j, b)


def said_and_measured(ell: Tensor, b: Tensor, case: tuple[str, Int8Scale], mean: float) -> tuple[float, float]:
    """Return both for one channel; its layer has another whose numbers are three times as large."""
    state_dtype, int8_scale = case
    run = Run(ell.exp(), b, mean)
    scales = own_scale(run)
    largest = 3 * float(scales.max())
    rounding = Rounding(input_mean=mean, int8_scale=int8_scale, largest=largest if int8_scale == "layer" else None)
    said = noisy_capacity(spectrum(ell, input_matrix=b[None]), state_dtype, rounding).item()
    shared = {"state": scales.flatten()[:, None], "channel": scales.max(), "layer": scales.new_tensor(largest)}
    return said, rebuilt(run, rounding_of(state_dtype, shared[int8_scale]))


def close(said: float, measured: float) -> bool:
    return 0.9 * said <= measured <= 1.1 * said or abs(measured - said) <= 0.3


@pytest.mark.slow
@pytest.mark.parametrize("mean", [0.0, 1.0])
@pytest.mark.parametrize("case", CASES, ids="-".join)
@pytest.mark.parametrize("name", FAST)
def test_as_many_modes_survive_a_rounded_run_as_is_said(name: str, case: tuple[str, Int8Scale], mean: float) -> None:
    said, measured = said_and_measured(FAST[name], written(FAST[name], 7), case, mean)
    assert close(said, measured), f"said {said:.2f}, measured {measured:.2f}"


@pytest.mark.slow
@pytest.mark.parametrize("mean", [0.0, 1.0])
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_survivors_of_rounded_runs_over_nineteen_spectra(case: tuple[str, Int8Scale], mean: float) -> None:
    missed = []
    for seed, (name, ell) in enumerate(SPECTRA.items()):
        said, measured = said_and_measured(ell, written(ell, seed), case, mean)
        print(f"{'-'.join(case)}, mean {mean:g}, {name}: {measured:.2f} of {said:.2f} said, {measured / said:.3f}")
        missed += [] if close(said, measured) else [f"{name}: {measured:.2f} of {said:.2f}"]
        assert measured >= said or close(said, measured), missed
    print(f"{len(missed)} of {len(SPECTRA)} outside 0.9–1.1 and ± 0.3")
    assert len(missed) <= KNOWN_MISSES.get((case[1], mean), 0), missed


def test_rounding_loses_a_tenth_of_a_step_where_it_is_said_to_swallow_it() -> None:
    steps = torch.randn(10**6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    passed = [float((steps * size * (steps / size).round()).mean()) for size in (SWALLOWED - 0.3, SWALLOWED + 0.3)]
    assert passed[0] > 0.9 > passed[1]


@pytest.mark.parametrize(("name", "bound"), [("Mamba at 0.003", True), ("S4D-Lin at 0.03", False)])
def test_modes_that_survive_are_a_bound_where_steps_are_swallowed(name: str, bound: bool) -> None:
    ell = SPECTRA[name]
    recurrence = spectrum(ell, input_matrix=written(ell, 7)[None])
    rounding = Rounding(input_mean=1.0, int8_scale="channel")
    found = summarise_capacity(assess_capacity(recurrence, 256, state_dtype="int8", rounding=rounding))
    assert found.is_bound is bound
    assert ("at least" in found.sentence) is bound
    assert not summarise_capacity(assess_capacity(recurrence, 256, state_dtype="bf16")).is_bound


def test_states_too_small_for_fp16_are_said_to_be_lost() -> None:
    ell = -0.1 * (INDEX[:8] + 1) + 0j
    b = torch.ones(8, dtype=torch.complex128)
    kept = []
    for scale in (1.0, 1e-4, 1e-6, 1e-7):
        said = noisy_capacity(spectrum(ell, input_matrix=b[None]), "fp16", Rounding(input_scale=scale)).item()
        measured = rebuilt(Run(ell.exp(), b, scale=scale), rounding_of("fp16", b.real))
        assert close(said, measured), (scale, said, measured)
        kept.append(said)
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] < 0.6 * kept[0]
