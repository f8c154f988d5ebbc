"""Kimi Delta Attention: two gates under one set of names, and the shapes releases store them in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ssmdiag.errors import LayerError
from ssmdiag.recurrence.modal import Recurrence
from tests.tolerances import RELATIVE

Read = Callable[..., list[Recurrence]]

HEADS, KEYS, MODEL = 3, 8, 12
GATES = {
    "Kimi-Linear": ("model.layers.1.self_attn", "f_a_proj.weight", (1, 1, HEADS, 1)),
    "GLM-5-next": ("model.layers.1.self_attn", "f_a_proj.weight", (HEADS,)),
    "padded A_log": ("model.layers.1.self_attn", "f_a_proj.weight", (HEADS + 3,)),
    "bailing": ("model.layers.1.attention", "f_proj.weight", (HEADS,)),
    "fla": ("model.layers.1.attn", "f_proj.0.weight", (HEADS,)),
    "GPTQ": ("model.layers.1.attn", "f_proj.0.qweight", (HEADS,)),
    "compressed-tensors": ("model.layers.1.self_attn", "f_a_proj.weight_packed", (1, 1, HEADS, 1)),
}
PLAIN = {"Kimi-Linear", "fla", "GPTQ", "compressed-tensors"}
"""Where the gate is plain if nothing says otherwise."""


def model(layout: str) -> tuple[dict[str, torch.Tensor], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return a state dict, and its A (head, 1) and bias (head, key)."""
    path, gate, shape = GATES[layout]
    torch.manual_seed(2)
    shapes = {
        "A_log": shape, "dt_bias": (HEADS * KEYS,), gate: (KEYS, MODEL), "b_proj.weight": (HEADS, MODEL),
        "o_norm.weight": (KEYS,), "q_conv1d.weight": (HEADS * KEYS, 1, 4),
    }  # fmt: skip
    state = {f"{path}.{name}": torch.randn(size, dtype=torch.float64) for name, size in shapes.items()}
    rate = np.exp(state[f"{path}.A_log"].numpy().reshape(-1)[:HEADS, None])
    return state, rate, state[f"{path}.dt_bias"].numpy().reshape(HEADS, KEYS)


def plain(rate: np.ndarray[Any, Any], bias: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return -rate * np.logaddexp(0.0, bias)


def bounded(rate: np.ndarray[Any, Any], bias: np.ndarray[Any, Any], bound: float) -> np.ndarray[Any, Any]:
    return bound / (1.0 + np.exp(-rate * bias))


def assert_reads(recurrences: list[Recurrence], expected: np.ndarray[Any, Any]) -> Recurrence:
    (recurrence,) = recurrences
    assert recurrence.family == "kda"
    assert recurrence.log_eigenvalues.shape == (HEADS, KEYS)
    np.testing.assert_allclose(recurrence.log_eigenvalues.real.numpy(), expected, rtol=RELATIVE["float64"])
    return recurrence


@pytest.mark.parametrize("layout", GATES)
def test_without_settings_the_gate_is_that_of_the_released_models(layout: str, read_model: Read) -> None:
    state, rate, bias = model(layout)
    expected = plain(rate, bias) if layout in PLAIN else bounded(rate, bias, -5.0)
    recurrence = assert_reads(read_model(state), expected)
    (assumption,) = recurrence.assumptions
    assert (assumption.option, assumption.source) == ("kda_lower_bound", "usual")


@pytest.mark.parametrize("layout", GATES)
def test_the_user_may_say_which_gate_it_is(layout: str, read_model: Read) -> None:
    state, rate, bias = model(layout)
    assume, expected = ("-4.5", bounded(rate, bias, -4.5)) if layout in PLAIN else ("none", plain(rate, bias))
    assert_reads(read_model(state, kda_lower_bound=assume), expected)


@pytest.mark.parametrize(
    ("layout", "config", "bound"),
    [
        ("Kimi-Linear", {"model_type": "kimi_linear"}, None),
        ("Kimi-Linear", {"linear_attn_config": {"gate_lower_bound": -5.0}}, -5.0),
        ("GLM-5-next", {"model_type": "glm5_next", "linear_attn_config": {"safe_gate": True}}, -5.0),
        ("GLM-5-next", {"text_config": {"linear_lower_bound": -4.0}}, -4.0),
        ("GLM-5-next", {"linear_lower_bound": None}, None),
        ("bailing", {"kda_safe_gate": True, "kda_lower_bound": -3}, -3.0),
        ("bailing", {"kda_safe_gate": False, "kda_lower_bound": -5.0}, None),
        ("fla", {"safe_gate": False, "lower_bound": None}, None),
        ("fla", {"safe_gate": False, "lower_bound": -2.0}, -2.0),
    ],
)
def test_settings_decide_between_the_gates(
    layout: str, config: dict[str, Any], bound: float | None, read_model: Read
) -> None:
    state, rate, bias = model(layout)
    expected = plain(rate, bias) if bound is None else bounded(rate, bias, bound)
    recurrence = assert_reads(read_model(state, config), expected)
    assert [a.source for a in recurrence.assumptions] == ["file"]


def test_gdn_2_keeps_the_plain_gate(read_model: Read) -> None:
    state, rate, bias = model("fla")
    state["model.layers.1.attn.b_proj.weight"] = torch.randn(HEADS * KEYS, MODEL)
    state["model.layers.1.attn.w_proj.weight"] = torch.randn(HEADS * KEYS, MODEL)
    assert_reads(read_model(state), plain(rate, bias))


def test_no_channel_forgets_faster_than_the_lower_bound(read_model: Read) -> None:
    state, _, _ = model("bailing")
    state["model.layers.1.attention.dt_bias"] *= 1e6
    (recurrence,) = read_model(state)
    assert recurrence.rate.min() >= 0
    assert recurrence.rate.max() <= 5


def test_a_lower_bound_that_would_let_the_memory_grow_is_refused(read_model: Read) -> None:
    with pytest.raises(LayerError, match="lower bound is given as 5"):
        read_model(model("fla")[0], kda_lower_bound="5")


def test_a_bias_that_does_not_divide_among_the_heads_is_named(read_model: Read) -> None:
    state, _, _ = model("fla")
    state["model.layers.1.attn.dt_bias"] = torch.randn(HEADS * KEYS + 1)
    with pytest.raises(LayerError, match=r"model\.layers\.1\.attn\.dt_bias has 25 values, A_log says 3 heads"):
        read_model(state)
