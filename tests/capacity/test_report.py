"""The report of one layer: each part is what the measure by itself gives."""

from __future__ import annotations

import pytest
import torch

from ssmdiag.capacity.capacity import assess_capacity, summarise_capacity
from ssmdiag.capacity.report import MOST_CHANNELS, report_capacity
from ssmdiag.capacity.timescale import recommend_step
from ssmdiag.families.initial_spectra import initial_spectra
from tests.capacity.reference import spectrum
from tests.kernel.test_kernel import random_siso


def test_a_report_has_the_capacity_of_the_layer_and_of_its_initialisations() -> None:
    recurrence = next(iter(initial_spectra("s4d", 8))).recurrence
    found = report_capacity(recurrence, 100, state_dtype="bf16")
    assert found.own == summarise_capacity(assess_capacity(recurrence, 100, state_dtype="bf16"))
    assert found.own.modes is not None
    assert found.initial.keys() >= {start.name for start in initial_spectra("s4d", 8)}
    assert (found.steps, found.wanted) == ({}, None)


def test_other_steps_and_a_range_of_steps_are_given_on_request() -> None:
    recurrence = random_siso(3, modes=6, slow=1e-2)
    found = report_capacity(recurrence, 100, state_dtype="float32", other_steps=True, wanted=5)
    assert found.steps.keys() == {0.5, 1.0, 2.0, 4.0}
    assert found.steps[1.0].length_half == found.own.length_half
    advice, alone = found.wanted, recommend_step(recurrence, 5, state_dtype="float32")
    assert advice is not None
    assert (advice.length, advice.channels, advice.of) == (5, int(alone.reachable.sum()), recurrence.channels)
    assert advice.lowest == pytest.approx(float(alone.lowest[alone.reachable].median()))
    assert f"multiply Δ by {advice.lowest:.3g}" in advice.sentence


def test_a_length_that_no_step_reaches_has_no_range() -> None:
    advice = report_capacity(random_siso(3, modes=2, slow=1e-2), 100, wanted=10**6).wanted
    assert advice is not None
    assert (advice.channels, advice.lowest, advice.highest) == (0, None, None)
    assert advice.sentence.startswith("no step Δ makes any of 5 channels")


def test_of_many_channels_a_sample_is_reported_unless_every_one_is_wanted() -> None:
    wide = spectrum(-torch.linspace(1e-3, 1, 2 * 100, dtype=torch.float64).reshape(100, 2))
    assert report_capacity(wide, 50).own.channels == MOST_CHANNELS
    assert report_capacity(wide, 50, every_channel=True).own.channels == 100
