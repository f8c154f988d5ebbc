"""From recurrences to numbers: what is counted, what is left out, what is said."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssmdiag import diagnose
from ssmdiag.assessment.spectrum import BINS_PER_DECADE, FIRST_DECADE, summarise
from ssmdiag.diagnosis import context_length_of
from ssmdiag.recurrence.modal import Recurrence
from ssmdiag.recurrence.quantiles import Quantiles


def recurrence(rates: list[float], **fields: object) -> Recurrence:
    ell = -torch.tensor([rates], dtype=torch.complex128)
    return Recurrence("layers.0", "test", "test", ell, time_invariant=True, **fields)  # type: ignore[arg-type]


def test_quantiles_are_those_of_numpy_by_nearest_rank() -> None:
    values = torch.rand(10_001, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = np.quantile(values.numpy(), [0, 0.05, 0.5, 0.95, 1], method="nearest")
    got = Quantiles.of_sorted(values.sort().values)
    assert got is not None
    assert list(vars(got).values()) == wanted.tolist()
    assert Quantiles.of_sorted(values[:0]) is None


def test_modes_that_are_not_finite_are_counted_and_left_out() -> None:
    layer = summarise(recurrence([0.1, math.nan, 0.2, -math.inf]), "Test")
    assert layer.nonfinite == 2
    assert layer.rate is not None
    assert (layer.rate.min, layer.rate.max) == (0.1, 0.2)
    assert sum(layer.histogram) == 2


def test_a_zero_eigenvalue_is_instant_forgetting_not_a_defect() -> None:
    layer = summarise(recurrence([math.inf, 0.1]), "Test")
    assert (layer.nonfinite, layer.half_life.min) == (0, 0.0)


def test_unstable_and_marginal_modes_never_decay_and_are_counted_apart() -> None:
    layer = summarise(recurrence([-0.01, 0.0, 0.5]), "Test")
    assert (layer.unstable, layer.marginal) == (1, 1)
    assert layer.half_life.max == math.inf
    assert layer.spectral_radius == pytest.approx(math.exp(0.01))
    assert layer.margin == pytest.approx(-math.expm1(0.01))


def test_a_layer_without_a_finite_mode_has_no_numbers() -> None:
    layer = summarise(recurrence([math.nan, math.nan]), "Test")
    assert (layer.rate, layer.half_life, layer.margin, layer.spectral_radius) == (None, None, None, None)
    assert layer.nonfinite == 2


def test_histogram_counts_quarter_decades_of_the_time_constant() -> None:
    layer = summarise(recurrence([1 / 1.5, 1 / 150.0, 1e-30, 1e30]), "Test")
    position = [i for i, count in enumerate(layer.histogram) if count]
    first = [math.floor((math.log10(tau) - FIRST_DECADE) * BINS_PER_DECADE) for tau in (1.5, 150.0)]
    assert position == [0, *first, len(layer.histogram) - 1]


def test_the_sample_of_eigenvalues_holds_the_slowest_and_the_fastest() -> None:
    rates = torch.logspace(-6, 1, 4000, dtype=torch.float64)
    layer = summarise(Recurrence("x", "x", "x", -rates[None].to(torch.complex128), time_invariant=True), "Test")
    assert len(layer.eigenvalues) == 512
    assert layer.eigenvalues[0][0] == pytest.approx(1e-6)
    assert layer.eigenvalues[-1][0] == pytest.approx(10)


def mamba(layers: int = 2, **changes: torch.Tensor) -> dict[str, torch.Tensor]:
    state = {}
    for i in range(layers):
        state |= {
            f"backbone.layers.{i}.mixer.A_log": torch.arange(1, 5).float().log().repeat(8, 1),
            f"backbone.layers.{i}.mixer.dt_proj.bias": torch.full((8,), -4.0),
            f"backbone.layers.{i}.mixer.dt_proj.weight": torch.zeros(8, 2),
            f"backbone.layers.{i}.mixer.x_proj.weight": torch.zeros(10, 8),
        }
    return state | changes


Write = Callable[..., Path]


def test_context_length_comes_from_the_configuration_and_the_caller_wins(write_model: Write) -> None:
    directory = write_model(mamba(), {"text_config": {"max_position_embeddings": 32_768}})
    assert diagnose(directory, memory=False).context_length == 32_768
    assert diagnose(directory, context_length=100, memory=False).context_length == 100
    assert diagnose(write_model(mamba(), {"hidden_size": 8}, name="b"), memory=False).context_length is None


def test_only_what_is_asked_for_is_read(write_model: Write) -> None:
    big = mamba() | {"backbone.layers.0.mixer.in_proj.weight": torch.zeros(1000, 1000)}
    result = diagnose(write_model(big))
    assert result.bytes_read < 1200  # of 4 MB
    assert result.size > 4_000_000


def test_layers_are_ordered_by_number_not_by_spelling(write_model: Write) -> None:
    names = [layer.name for layer in diagnose(write_model(mamba(12)), memory=False).layers]
    assert names == [f"backbone.layers.{i}.mixer" for i in range(12)]


def test_a_nan_in_one_layer_leaves_the_others_diagnosed(write_model: Write) -> None:
    state = mamba()
    state["backbone.layers.1.mixer.A_log"][2, 3] = math.nan
    result = diagnose(write_model(state))
    assert [layer.nonfinite for layer in result.layers] == [0, 1]
    assert "backbone.layers.1.mixer.A_log: 1 of 32 values is NaN or infinite" in result.layers[1].notes
    assert result.layers[1].half_life is not None
    assert result.exit_code() == 0


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_weights_are_named_and_never_pass_for_a_fast_mode(write_model: Write, value: float) -> None:
    state = mamba()
    state["backbone.layers.1.mixer.dt_proj.bias"][3] = value
    layer = diagnose(write_model(state)).layers[1]
    # Δ = ∞ is a broken mode, Δ = 0 one that never decays; neither is healthy.
    assert (layer.nonfinite, layer.marginal) == ((4, 0) if value > 0 else (0, 4))
    assert "dt_proj.bias: 1 of 8 values is NaN or infinite" in " ".join(layer.notes)


def test_siblings_of_different_shapes_are_a_problem_of_their_layer_alone(write_model: Write) -> None:
    result = diagnose(write_model(mamba(3) | {"backbone.layers.1.mixer.dt_proj.bias": torch.zeros(7)}), memory=False)
    assert [layer.name for layer in result.layers] == ["backbone.layers.0.mixer", "backbone.layers.2.mixer"]
    assert "backbone.layers.1.mixer" in result.problems[0]
    assert "do not belong together" in result.problems[0]
    assert result.exit_code() == 2


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"l_max": 777.0}, 777),
        ({"l_max": "1e6"}, 1_000_000),
        ({"n_positions": 1024}, 1024),
        ({"vision_config.max_position_embeddings": 77, "text_config.max_position_embeddings": 4096}, 4096),
        ({"l_max": True, "seq_len": 0.5, "n_ctx": "many", "block_size": None}, None),
        ({"max_position_embeddings": 10**30}, None),
    ],
)
def test_the_context_is_read_from_any_spelling_of_a_whole_number(settings: dict[str, Any], steps: int | None) -> None:
    assert context_length_of(settings) == steps


@pytest.mark.slow
def test_without_tails_all_else_is_the_same() -> None:
    path = Path(__file__).parents[1] / "examples" / "lru-digits" / "step-02000.safetensors"
    without, whole = diagnose(path, tails=False), diagnose(path)
    for a, b in zip(without.layers, whole.layers, strict=True):
        assert a.decay is not None
        assert b.decay is not None
        assert (a.decay.tail, a.decay.lags) == (None, (None, None, None))
        assert b.decay.lags != a.decay.lags
        assert (a.horizon, a.decay.counts, a.decay.whole) == (b.horizon, b.decay.counts, b.decay.whole)
        assert b.decay.sentence.startswith(a.decay.sentence)
    assert without.findings == whole.findings
