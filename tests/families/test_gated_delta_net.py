"""Gated DeltaNet: the decay from its formula, and which files are it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from ssmdiag.errors import UnknownFamilyError
from ssmdiag.recurrence.modal import Recurrence
from tests.tolerances import RELATIVE

Read = Callable[..., list[Recurrence]]

HEADS, MODEL, KEYS = 4, 12, 16

ON_DISK = {
    "Qwen3-Next": {"in_proj_ba.weight": (2 * HEADS, MODEL), "conv1d.weight": (64, 1, 4), "norm.weight": (8,)},
    "Qwen3.5": {"in_proj_a.weight": (HEADS, MODEL), "conv1d.weight": (64, 1, 4), "norm.weight": (8,)},
    "Qwen3.5, MLX": {"in_proj_a.weight": (HEADS, MODEL), "conv1d.weight": (64, 4, 1), "norm.weight": (8,)},
    "OLMo-Hybrid": {"a_proj.weight": (HEADS, MODEL), "q_conv1d.weight": (KEYS, 1, 4), "o_norm.weight": (8,)},
    "fla without convolution": {"a_proj.weight": (HEADS, MODEL), "o_norm.weight": (8,)},
    "Comba": {"a_proj.weight": (HEADS, MODEL), "o_norm.weight": (8,), "decay": (HEADS,), "D": (HEADS,)},
    "lara_mini": {"in_proj.weight": (2 * KEYS + 72, MODEL), "conv1d.weight": (64, 1, 4), "out_norm.weight": (8,)},
    "Megatron": {
        "in_proj.weight": (2 * KEYS + 72, MODEL),
        "in_proj.layer_norm_weight": (MODEL,),
        "conv1d.weight": (64, 1, 4),
        "out_norm.weight": (8,),
        "out_proj.weight": (MODEL, 32),
    },
    "NVlabs": {"gk_proj.weight": (HEADS, MODEL), "q_proj.weight": (KEYS, MODEL), "D": (HEADS,)},
}


def model(layout: str, layers: int = 2, prefix: str = "model.layers") -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    shapes = {"A_log": (HEADS,), "dt_bias": (HEADS,), **ON_DISK[layout]}
    return {
        f"{prefix}.{layer}.linear_attn.{name}": torch.randn(shape, dtype=torch.float64)
        for layer in range(layers)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("layout", ON_DISK)
def test_log_decay_is_minus_exp_a_log_times_softplus_of_the_bias(layout: str, read_model: Read) -> None:
    state = model(layout)
    recurrences = read_model(state)
    assert [r.layer for r in recurrences] == ["model.layers.0.linear_attn", "model.layers.1.linear_attn"]
    for recurrence in recurrences:
        rate = np.exp(state[f"{recurrence.layer}.A_log"].numpy())
        step = np.logaddexp(0.0, state[f"{recurrence.layer}.dt_bias"].numpy())
        assert recurrence.family == "gated_delta_net"
        assert recurrence.log_eigenvalues.shape == (HEADS, 1)
        np.testing.assert_allclose(recurrence.log_eigenvalues[:, 0].numpy(), -rate * step, rtol=RELATIVE["float64"])
        assert not recurrence.time_invariant
        assert recurrence.input_matrix is None


def test_a_decay_close_to_one_keeps_its_digits(read_model: Read) -> None:
    state = model("Qwen3.5", layers=1)
    state["model.layers.0.linear_attn.A_log"].fill_(-20.0)
    state["model.layers.0.linear_attn.dt_bias"].fill_(-30.0)
    (recurrence,) = read_model(state)
    expected = math.exp(-20.0) * math.log1p(math.exp(-30.0))
    np.testing.assert_allclose(recurrence.rate.numpy(), expected, rtol=RELATIVE["float64"])


def test_layers_of_vision_language_models_are_found_under_their_prefix(read_model: Read) -> None:
    recurrences = read_model(model("Qwen3.5", prefix="model.language_model.layers"))
    assert [r.layer for r in recurrences] == [f"model.language_model.layers.{i}.linear_attn" for i in range(2)]


@pytest.mark.parametrize("ending", ["qweight", "weight_packed"])
def test_packed_projections_do_not_matter(ending: str, read_model: Read) -> None:
    state = model("OLMo-Hybrid")
    packed = {name.replace("_proj.weight", f"_proj.{ending}"): value for name, value in state.items()}
    assert [r.family for r in read_model(packed)] == ["gated_delta_net"] * 2


def test_mamba_2_that_lost_its_skip_is_not_taken_for_it(read_model: Read) -> None:
    shapes = {"A_log": (8,), "dt_bias": (8,), "conv1d.weight": (96, 1, 4), "norm.weight": (64,)}
    shapes["in_proj.weight"] = (168, 32)
    state = {f"backbone.layers.0.mixer.{name}": torch.randn(shape) for name, shape in shapes.items()}
    with pytest.raises(UnknownFamilyError):
        read_model(state)


def test_delta_rule_transition_never_keeps_more_than_the_decay() -> None:
    """The caveat's claim, from the update itself: e^g (I − βkkᵀ) has norm e^g for β in [0, 2], |k| = 1."""
    rng = np.random.default_rng(0)
    for beta in (0.0, 0.5, 1.0, 1.7, 2.0):
        key = rng.normal(size=6)
        key /= np.linalg.norm(key)
        transition = math.exp(-0.3) * (np.eye(6) - beta * np.outer(key, key))
        modulus = np.sort(np.abs(np.linalg.eigvalsh(transition)))
        np.testing.assert_allclose(modulus[-1], math.exp(-0.3), rtol=1e-12)
        assert modulus[0] <= math.exp(-0.3) * (1 + 1e-12)


def test_raven_with_an_output_gate_is_not_taken_for_it(read_model: Read) -> None:
    """Its nominal decay is that of a slot with the router's whole weight, alike in all slots of a head."""
    shapes = {"A_log": (HEADS,), "dt_bias": (HEADS,), "a_proj.weight": (HEADS, MODEL), "o_norm.weight": (8,)}
    state = {f"model.layers.0.attn.{name}": torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    state["model.layers.0.attn.r_proj.weight"] = torch.randn(HEADS * 6, MODEL)
    (recurrence,) = read_model(state)
    rate = np.exp(state["model.layers.0.attn.A_log"].numpy())
    step = np.logaddexp(0.0, state["model.layers.0.attn.dt_bias"].numpy())
    assert recurrence.family == "raven"
    expected = np.repeat(-(rate * step)[:, None], 6, axis=1)
    np.testing.assert_allclose(recurrence.log_eigenvalues.real.numpy(), expected, rtol=RELATIVE["float64"])
