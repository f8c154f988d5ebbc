"""What a layer remembers, where some channels have no kernel to speak of: said, and never made up."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssmdiag.assessment.memory import (
    FLOAT32_FLOOR,
    LayerMemory,
    assess_memories,
    assess_memory,
    lag_edges,
    summarise_memory,
)
from ssmdiag.decay.decay import DecayStatus, Law, compare_decay
from ssmdiag.diagnosis import diagnose
from ssmdiag.kernel.status import Status
from ssmdiag.recurrence.modal import Recurrence
from ssmdiag.reports import Settings, render


def layer(*rates: tuple[float, ...], weights: tuple[tuple[float, ...], ...] | None = None) -> Recurrence:
    """Return a real layer with these rates in its channels, and output weights 1 unless given."""
    ell = -torch.tensor(rates, dtype=torch.complex128)
    C = torch.ones_like(ell) if weights is None else torch.tensor(weights, dtype=torch.complex128)
    return Recurrence(
        "layers.0", "s4d", "x", ell, time_invariant=True, input_matrix=torch.ones_like(ell), output_matrix=C[None]
    )


def status_of(memory: LayerMemory, channel: int | None = None) -> DecayStatus:
    return (memory.whole.channel(0) if channel is None else memory.channels.channel(channel)).status


def test_a_layer_with_a_growing_channel_has_no_law_and_no_end() -> None:
    memory = assess_memory(layer((0.1, 0.01), (0.1, -1e-4)), 1000)
    assert status_of(memory) is DecayStatus.UNBOUNDED
    assert status_of(memory, 1) is DecayStatus.UNBOUNDED
    assert status_of(memory, 0) is not DecayStatus.UNBOUNDED
    horizon, decay = summarise_memory(memory)
    assert horizon is not None
    assert math.isinf(horizon.max)
    assert decay.whole.law is Law.UNDETERMINED
    assert decay.sentence == "A growing mode reaches the output: the kernel has no bound."
    assert decay.envelope == ()


def test_channels_without_a_kernel_are_left_out_of_the_layer_and_it_is_said() -> None:
    plain = assess_memory(layer((0.01, 0.01), (0.01, 0.01)), 1000)
    memory = assess_memory(
        layer((0.01, 0.01), (math.nan, 0.01), (0.01, 0.01), (1e-9, 1e-9 * (1 + 1e-12)),
              weights=((1, 1), (1, 1), (1, 1), (1, -1))), 1000,
    )  # fmt: skip
    assert [status_of(memory, k) for k in (1, 3)] == [DecayStatus.NOT_FINITE, DecayStatus.CANCELLED]
    assert memory.left_out == 2
    said = summarise_memory(memory)[1]
    assert said.sentence == summarise_memory(plain)[1].sentence + " 2 channels are left out: no kernel is known."
    assert len(said.envelope) == len(summarise_memory(plain)[1].envelope)
    for mine, other in zip(said.envelope, summarise_memory(plain)[1].envelope, strict=True):
        assert mine == pytest.approx(other)
    assert summarise_memory(plain)[1].whole.law is Law.EXPONENTIAL


def test_a_horizon_beyond_a_billion_steps_is_no_reason_to_forget_it() -> None:
    horizon, _ = summarise_memory(assess_memory(layer((0.1, 0.2), (1e-10, 1e-10), (1e-14, 1e-14)), 4096))
    assert horizon is not None
    assert horizon.median == pytest.approx(math.log(100) / 2e-10, rel=1e-3)
    assert math.isinf(horizon.max)  # past 2⁴⁰ steps


def test_zero_is_told_from_too_small() -> None:
    memory = assess_memory(layer((0.01,), (0.01,), weights=((0,), (1e-200,))), 100)
    assert [status_of(memory, k) for k in (0, 1)] == [DecayStatus.ZERO, DecayStatus.TINY]


def test_horizons_can_be_those_of_more_channels_than_the_laws() -> None:
    whole, some = layer((0.1,), (0.001,), (0.2,)), layer((0.1,), (0.2,))
    (memory,) = assess_memories([some], 1000, horizons_of=[whole])
    assert memory.channels.channels == 2
    assert memory.horizon.lags.tolist() == assess_memory(whole, 1000).horizon.lags.tolist()


def laws_of(K: Tensor) -> list[Law]:
    edges = lag_edges(K.shape[1])
    sums = torch.cat([torch.zeros(len(K), 1, dtype=torch.float64), K.square().cumsum(1)], 1)
    mean = (sums[:, edges[1:]] - sums[:, edges[:-1]]) / edges.diff()
    found = compare_decay(edges, mean, FLOAT32_FLOOR * mean.amax(1, keepdim=True), context=K.shape[1])
    return [found.channel(k).law for k in range(len(K))]


def test_a_kernel_that_rises_or_swings_slowly_is_not_flat_and_one_that_only_oscillates_is() -> None:
    t = torch.arange(4096, dtype=torch.float64)
    rises = (-t / 2273).exp() - (-1.02 * t / 2273).exp()
    swings = (-t / 3000).exp() * (0.0004 * t + 1.51).cos()
    assert laws_of(torch.stack([rises, swings])) == [Law.UNDETERMINED] * 2
    assert laws_of(torch.stack([torch.ones_like(t), (2.1 * t + 1.57).cos()])) == [Law.FLAT] * 2


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("exponentials", "most"), [(2, 0.03), (3, 0.08)])
def test_few_exponentials_are_seldom_called_a_power(exponentials: int, most: float) -> None:
    generator = torch.Generator().manual_seed(exponentials)
    context, count = 4096, 400
    low, high = math.log(0.3 / context), math.log(0.5)
    rate = (low + (high - low) * torch.rand(count, exponentials, 1, generator=generator, dtype=torch.float64)).exp()
    weight = torch.randn(count, exponentials, 1, generator=generator, dtype=torch.float64).exp()
    t = torch.arange(context, dtype=torch.float64)
    laws = [
        law
        for part in range(0, count, 50)
        for law in laws_of((weight[part : part + 50] * (-rate[part : part + 50] * t).exp()).sum(1))
    ]
    assert laws.count(Law.POLYNOMIAL) <= 0.005 * count
    assert laws.count(Law.TRUNCATED) <= most * count


def test_the_report_of_a_growing_channel_is_drawn(write_model) -> None:  # type: ignore[no-untyped-def]
    modes = 4
    state = {
        "layer.kernel.A_real": torch.full((2, modes), 0.01), "layer.kernel.A_imag": torch.zeros(2, modes),
        "layer.kernel.B": torch.ones(1, 2, modes, 2), "layer.kernel.C": torch.ones(1, 2, modes, 2),
        "layer.kernel.inv_dt": torch.zeros(2, 1),
    }  # fmt: skip
    state["layer.kernel.A_real"][1, 0] = -1e-4
    found = diagnose(write_model(state), assume={"real_transform": "none"})
    text = render([found], "text", Settings(width=100, full=True))
    assert "A growing mode reaches the output" in text
    assert "Forgets exponentially" not in text
    assert found.layers[0].horizon is not None
    assert math.isinf(found.layers[0].horizon.max)
    assert Status.GROWS.sentence.split(":")[0] in text.lower()
