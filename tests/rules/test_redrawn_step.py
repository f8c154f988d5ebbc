"""SSM403: dt_bias drawn afresh in a trained model – and how far it may have moved to stay unseen."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.rules.healthy import save, trained_state
from tests.rules.initialisations import step_bias
from tests.rules.planting import findings_of

CODE = "SSM403"
LAYERS, HEADS = 52, 96
"""4,992 heads, as in a hybrid of some billion parameters; a Mamba-1 has as many channels in three layers."""


def model(directory: Path, bias: Tensor, norms: float = 0.1, dtype: torch.dtype = torch.float32) -> Path:
    """Write a trained Mamba-2 with this dt_bias (layer, head) and norms that have spread so far."""
    g = torch.Generator().manual_seed(1)
    state = {}
    for layer, row in enumerate(bias):
        path = f"backbone.layers.{layer}"
        state |= {
            f"{path}.mixer.A_log": (1 + 15 * torch.rand(len(row), generator=g)).log()
            + 0.2 * torch.randn(len(row), generator=g),
            f"{path}.mixer.dt_bias": row.to(dtype),
            f"{path}.mixer.D": 1 + 0.1 * torch.randn(len(row), generator=g),
            f"{path}.norm.weight": 1 + norms * standardised(torch.randn(64, generator=g)),
        }
    return save(directory, state, {})


def standardised(values: Tensor) -> Tensor:
    return (values - values.mean()) / values.std()


def fresh(seed: int = 0) -> Tensor:
    return step_bias(torch.Generator().manual_seed(seed), LAYERS, HEADS)


def test_a_redraw_after_loading_is_found(tmp_path: Path) -> None:
    (finding,) = findings_of(CODE, model(tmp_path, fresh()))
    assert (finding.severity, finding.layer, finding.count) == ("warning", None, LAYERS * HEADS)
    assert "still a log-uniform draw from [0.001, 0.1]" in finding.message
    # Moved by σ = 0.1/3 nats, a share 2σ/(√(2π) log 100) of all values leaves the range.
    expected = LAYERS * HEADS * 2 * (0.1 / 3) / math.sqrt(2 * math.pi) / math.log(100)
    assert finding.value == pytest.approx(expected, rel=1e-3)


def test_the_expected_number_outside_is_what_moving_the_values_gives(tmp_path: Path) -> None:
    """The formula against 100 fresh models, moved: within five standard errors."""
    (finding,) = findings_of(CODE, model(tmp_path, fresh(), norms=0.1))
    g = torch.Generator().manual_seed(2)
    counts = []
    for seed in range(100):
        step = torch.nn.functional.softplus(fresh(seed).double()).log()
        moved = step + 0.1 / 3 * torch.randn(step.shape, generator=g, dtype=step.dtype)
        counts.append(int(((moved < math.log(1e-3)) | (moved > math.log(1e-1))).sum()))
    average = sum(counts) / len(counts)
    assert abs(finding.value / 0.976 - average) < 5 * math.sqrt(average / len(counts)), (
        "the norms' median is 0.976 × 0.1"
    )


@pytest.mark.one_in(3)
@pytest.mark.parametrize("moved", [0.03, 0.1, 0.5])
def test_a_bias_that_moved_with_the_norms_is_trained(tmp_path: Path, moved: float) -> None:
    noise = torch.randn(LAYERS, HEADS, generator=torch.Generator().manual_seed(3))
    assert not findings_of(CODE, model(tmp_path, fresh() + moved * noise))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("redrawn", [13, 26, 40])
def test_a_redraw_of_some_layers_is_found(redrawn: int, tmp_path: Path) -> None:
    noise = torch.randn(LAYERS, HEADS, generator=torch.Generator().manual_seed(3))
    bias = fresh() + 0.5 * noise
    bias[:redrawn] = fresh(7)[:redrawn]
    (finding,) = findings_of(CODE, model(tmp_path, bias, norms=0.4))
    assert (finding.layer, finding.count) == (None, redrawn * HEADS)
    assert f"in {redrawn} of {LAYERS} layers" in finding.message


def test_a_redraw_of_one_layer_of_many_channels_is_found_and_named(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(3)
    bias = step_bias(g, 12, 1536) + 0.2 * torch.randn(12, 1536, generator=g)
    bias[4] = step_bias(g, 1, 1536)[0]
    (finding,) = findings_of(CODE, model(tmp_path, bias, norms=0.1))
    assert (finding.layer, finding.count) == ("backbone.layers.4.mixer", 1536)
    assert "of the other layers' values have left that range" in finding.message


@pytest.mark.slow
@pytest.mark.parametrize("uneven", [3.0, 8.0])
def test_layers_that_moved_less_than_others_are_not_taken_for_redrawn(uneven: float, tmp_path: Path) -> None:
    """Every layer moved, the first by a third of what the norms did, the last by `uneven` times as much."""
    for seed in range(12):
        g = torch.Generator().manual_seed(seed)
        moved = 0.1 / 3 * torch.logspace(0, math.log10(uneven), LAYERS)[:, None]
        bias = fresh(seed) + moved * torch.randn(LAYERS, HEADS, generator=g)
        assert not findings_of(CODE, model(tmp_path / f"few {seed}", bias))
        many = step_bias(g, 12, 1536) + moved[::4][:12] * torch.randn(12, 1536, generator=g)
        assert not findings_of(CODE, model(tmp_path / f"many {seed}", many))


REPEATS = [12, pytest.param(300, marks=pytest.mark.slow)]


@pytest.mark.slow
@pytest.mark.parametrize("repeats", REPEATS)
def test_redraws_are_found_but_for_the_share_the_test_gives_up(repeats: int, tmp_path: Path) -> None:
    """Kolmogorov–Smirnov at 0.1 % misses one redraw in a thousand, and nothing else stands in the way."""
    missed = sum(not findings_of(CODE, model(tmp_path / str(seed), fresh(seed))) for seed in range(repeats))
    assert missed <= repeats // 100


@pytest.mark.slow
@pytest.mark.parametrize("repeats", REPEATS)
def test_trained_models_are_not_taken_for_redrawn(repeats: int, tmp_path: Path) -> None:
    """Moved by no more than a third of what the norms moved, which none of our own trainings came under."""
    for seed in range(repeats):
        noise = torch.randn(LAYERS, HEADS, generator=torch.Generator().manual_seed(seed))
        assert not findings_of(CODE, model(tmp_path / str(seed), fresh(seed) + 0.1 / 3 * noise))


def test_a_small_or_briefly_trained_model_could_look_like_this_by_chance(tmp_path: Path) -> None:
    assert not findings_of(CODE, model(tmp_path / "small", fresh()[:4]))
    assert not findings_of(CODE, model(tmp_path / "brief", fresh(), norms=0.005))


def test_a_fresh_model_is_meant_to_look_fresh(tmp_path: Path) -> None:
    assert not findings_of(CODE, model(tmp_path, fresh(), norms=0.0))


def test_rounding_to_sixteen_bits_hides_nothing(tmp_path: Path) -> None:
    """bf16 moves values of 6.9 by up to 0.016, past the ends of the range."""
    assert findings_of(CODE, model(tmp_path / "fresh", fresh(), dtype=torch.bfloat16))
    noise = torch.randn(LAYERS, HEADS, generator=torch.Generator().manual_seed(3))
    assert not findings_of(CODE, model(tmp_path / "moved", fresh() + 0.1 * noise, dtype=torch.bfloat16))


@pytest.mark.slow
def test_a_range_of_the_models_own_is_taken_from_its_settings(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    step = (math.log(1e-4) + math.log(1e3) * torch.rand(LAYERS, HEADS, generator=g)).exp()
    bias = step + (-torch.expm1(-step)).log()
    path = model(tmp_path, bias)
    assert not findings_of(CODE, path)
    (path / "config.json").write_text('{"time_step_min": 0.0001, "time_step_max": 0.1}')
    assert "[0.0001, 0.1]" in findings_of(CODE, path)[0].message


@pytest.mark.slow
def test_mamba_1_is_examined_alike(tmp_path: Path) -> None:
    state = trained_state("mamba")
    g = torch.Generator().manual_seed(0)
    for name, values in state.items():
        if name.endswith("dt_proj.bias"):
            state[name] = step_bias(g, *values.shape)
    state = {name: value for name, value in state.items() if "weight" not in name or "norm" in name}
    many = {
        name.replace("layers.", f"layers.{copy}"): value.clone()
        for copy in range(1, 9)
        for name, value in state.items()
    }
    for name in many:
        if name.endswith("dt_proj.bias"):
            many[name] = step_bias(g, 256)
    (finding,) = findings_of(CODE, save(tmp_path / "m", many, {}))
    assert finding.of == 24 * 256
