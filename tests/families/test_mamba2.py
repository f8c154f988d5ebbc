"""Mamba-2, the hybrids that carry its mixer, and PLaMo-2."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssmdiag.checkpoint import read_checkpoint
from ssmdiag.families import mamba2
from ssmdiag.families.recognition import recognise
from ssmdiag.recurrence.modal import Recurrence
from tests.tolerances import RELATIVE

HEADS, STATE, INNER, WIDTH = 8, 4, 16, 6


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def mixer(prefix: str, **others: torch.Tensor) -> dict[str, torch.Tensor]:
    state = {
        "A_log": draw(HEADS),
        "D": draw(HEADS),
        "dt_bias": draw(HEADS) - 4,
        "conv1d.weight": draw(INNER + 2 * STATE, 1, 4),
        "conv1d.bias": draw(INNER + 2 * STATE),
        "in_proj.weight": draw(2 * INNER + 2 * STATE + HEADS, WIDTH),
        "norm.weight": draw(INNER),
        "out_proj.weight": draw(WIDTH, INNER),
    }
    return {f"{prefix}{name}": value for name, value in {**state, **others}.items()}


def log_eigenvalues(log_rate: torch.Tensor, bias: torch.Tensor) -> np.ndarray:
    """ℓ = −e^{A_log} softplus(bias), one per head."""
    return (-np.exp(log_rate.double().numpy()) * np.logaddexp(0, bias.double().numpy()))[:, None]


def assert_read(found: Recurrence, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.log_eigenvalues.real.numpy(), expected, rtol=RELATIVE["float64"], atol=0)


@pytest.mark.parametrize(
    "prefix",
    [
        "backbone.layers.0.mixer.",
        "model.backbone.layers.0.mixer.",
        "model.layers.0.mixer.",
        "model.layers.0.mamba.",
        "model.layers.5.mamba_decoder.mamba.",
        "model.language_model.layers.0.mamba.",
        "backbone.layers.0.mixer._fp32_params.",
    ],
)
def test_one_real_mode_per_head_is_read_at_the_bias(read_model: Callable[..., list[Recurrence]], prefix: str) -> None:
    state = mixer(prefix)
    (found,) = read_model(state)
    assert found.log_eigenvalues.shape == (HEADS, 1)
    assert_read(found, log_eigenvalues(state[f"{prefix}A_log"], state[f"{prefix}dt_bias"]))
    assert found.family == "mamba2"
    assert not found.time_invariant
    assert found.operating_point is not None
    assert "as at zero input" in found.operating_point


@pytest.mark.parametrize(
    "change",
    [
        {"in_proj.weight": None, "in_proj.qweight": torch.zeros(2, 3, dtype=torch.int32)},
        {"in_proj.weight": torch.zeros(99, 1, dtype=torch.uint8), "in_proj.weight.absmax": draw(4)},
        {"conv1d.weight": draw(INNER + 2 * STATE, 4, 1)},
        {"D": draw(INNER)},
        {"norm.weight": None, "conv1d.bias": None},
    ],
    ids=["gptq", "bitsandbytes", "mlx", "D_has_hdim", "without norm and bias"],
)
def test_quantised_and_converted_twins_are_read_alike(
    read_model: Callable[..., list[Recurrence]], change: dict[str, torch.Tensor | None]
) -> None:
    state = mixer("m.")
    expected = log_eigenvalues(state["m.A_log"], state["m.dt_bias"])
    for name, value in change.items():
        if value is None:
            del state[f"m.{name}"]
        else:
            state[f"m.{name}"] = value
    (found,) = read_model(state)
    assert_read(found, expected)


@pytest.mark.parametrize("multipliers", [None, [1.0, 0.5, 2.0, 3.0, 0.25]])
def test_a_bias_of_in_proj_adds_to_the_step(
    read_model: Callable[..., list[Recurrence]], multipliers: list[float] | None
) -> None:
    bias = draw(2 * INNER + 2 * STATE + HEADS)
    state = mixer("m.", **{"in_proj.bias": bias})
    config = {} if multipliers is None else {"model_type": "falcon_h1", "ssm_multipliers": multipliers}
    (found,) = read_model(state, config)
    scale = 1.0 if multipliers is None else multipliers[-1]
    assert_read(found, log_eigenvalues(state["m.A_log"], state["m.dt_bias"] + scale * bias[-HEADS:]))
    assert "m.in_proj.bias" in found.tensors


STEPS = torch.tensor([1e-4, 5e-4, 0.9e-3, 2e-3, 0.01, 0.02, 0.05, 0.2], dtype=torch.float64)
INFINITIES: list[Any] = [math.inf, {"__float__": "Infinity"}, None]


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("config", "outside"),
    [
        ({"model_type": "nemotron_h", "time_step_min": 0.001, "time_step_limit": [0.0, math.inf]}, 3),
        ({"model_type": "zamba2"}, 3),
        ({"model_type": "outer", "text_config": {"model_type": "nemotron_h", "time_step_min": 0.015}}, 5),
        *(({"model_type": "mamba2", "time_step_limit": [0.0, infinity]}, 0) for infinity in INFINITIES),
        *(({"model_type": "mamba2", "time_step_limit": [0.0006, infinity]}, 2) for infinity in INFINITIES),
        ({"model_type": "granitemoehybrid", "time_step_limit": [0.001, 0.1]}, 4),
        ({"ssm_cfg": {"layer": "Mamba2", "dt_limit": [0.001, math.inf]}}, 3),
        ({"model_type": "bamba", "time_step_min": 0.1}, 0),
        (None, 0),
    ],
)
def test_heads_that_a_clamp_would_change_are_counted_and_shown_unclamped(
    read_model: Callable[..., list[Recurrence]], config: dict[str, Any] | None, outside: int
) -> None:
    state = mixer("m.", dt_bias=STEPS + torch.log(-torch.expm1(-STEPS)))  # the inverse of softplus
    (found,) = read_model(state, config)
    notes = [note for note in found.notes if "clamps" in note]
    assert len(notes) == (outside > 0)
    assert all(f"{outside} of {HEADS} heads" in note for note in notes)
    torch.testing.assert_close(found.rate[:, 0] / state["m.A_log"].exp(), STEPS, rtol=1e-12, atol=0)


@pytest.mark.parametrize("limits", [[0.0], "[0, inf)", [0.0, "much"], 0.5])
def test_limits_that_are_no_pair_of_numbers_are_left_aside_with_a_note(
    read_model: Callable[..., list[Recurrence]], limits: Any
) -> None:
    state = mixer("m.")
    (found,) = read_model(state, {"model_type": "mamba2", "time_step_limit": limits})
    assert_read(found, log_eigenvalues(state["m.A_log"], state["m.dt_bias"]))
    assert any("ignored" in note for note in found.notes)


def test_infinity_as_a_bare_json_token_is_read(tmp_path: Path, write_model: Callable[..., Path]) -> None:
    directory = write_model(mixer("m."))
    (directory / "config.json").write_text('{"model_type": "mamba2", "time_step_limit": [0.0, Infinity]}')
    assert json.loads((directory / "config.json").read_text())["time_step_limit"][1] == math.inf
    (layer,) = recognise(read_checkpoint(directory)).layers
    assert not layer.read()[0].notes


@pytest.mark.parametrize(
    "sibling",
    [
        "in_proj_ba.weight",
        "in_proj_a.weight",
        "a_proj.weight",
        "f_proj.0.weight",
        "f_a_proj.weight",
        "b_proj.weight",
        "bcdt_proj.weight",
        "q_proj.weight",
    ],
)
def test_delta_rule_layers_and_plamo_are_not_taken_for_mamba2(write_model: Callable[..., Path], sibling: str) -> None:
    state = mixer("m.", **{sibling: draw(HEADS, WIDTH)})
    assert not recognise(read_checkpoint(write_model(state)), families=[mamba2.FAMILY]).layers


def test_a_file_without_skip_is_not_mamba2_and_says_what_is_missing(write_model: Callable[..., Path]) -> None:
    state = mixer("m.")
    del state["m.D"]
    found = recognise(read_checkpoint(write_model(state)), families=[mamba2.FAMILY])
    assert not found.layers
    assert found.near_misses[0].reason == "m.D missing"


@pytest.mark.parametrize("weight", ["weight", "qweight"])
def test_plamo2_is_known_by_its_norm_and_read_at_the_bias(
    read_model: Callable[..., list[Recurrence]], weight: str
) -> None:
    prefix = "model.layers.layers.2.mixer."
    state = {
        f"{prefix}{name}": value
        for name, value in {
            "A_log": draw(HEADS),
            "D": draw(HEADS),
            "dt_bias": draw(HEADS),
            f"bcdt_proj.{weight}": draw(2 * STATE + 3, INNER),
            "dt_proj.weight": draw(HEADS, 3),
            "dt_norm_weight": draw(3),
            "B_norm_weight": draw(STATE),
            "C_norm_weight": draw(STATE),
            "conv1d.weight": draw(INNER, 1, 4),
            "in_proj.weight": draw(2 * INNER, WIDTH),
            "out_proj.weight": draw(WIDTH, INNER),
        }.items()
    }
    (found,) = read_model(state)
    assert found.family == "plamo2"
    assert_read(found, log_eigenvalues(state[f"{prefix}A_log"], state[f"{prefix}dt_bias"]))
