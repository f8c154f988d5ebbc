"""Models of fla whose files hold no decay: RetNet, DeltaNet, linear attention, against their updates, stepped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ssmdiag import diagnose
from ssmdiag.errors import LayerError, UnknownFamilyError
from ssmdiag.recurrence.modal import Recurrence
from tests.families.test_steering import write

Read = Callable[..., list[Recurrence]]

HEADS, SIZE, MODEL = 3, 8, 12
_QKV = {f"{name}_proj.weight": (HEADS * SIZE, MODEL) for name in "qkv"}
TENSORS: dict[str, dict[str, tuple[int, ...]]] = {
    "retnet": {**_QKV, "g_proj.weight": (HEADS * SIZE, MODEL), "g_norm_swish_gate.weight": (SIZE,)},
    "retnet without a gate": {**_QKV, "g_norm.weight": (SIZE,)},
    "delta_net": {**_QKV, "b_proj.weight": (HEADS, MODEL), "o_norm.weight": (SIZE,)},
    "gated_deltaproduct": {
        "q_proj.weight": (HEADS * SIZE, MODEL), "k_proj.weight": (2 * HEADS * SIZE, MODEL),
        "v_proj.weight": (2 * HEADS * SIZE, MODEL), "b_proj.weight": (2 * HEADS, MODEL), "o_norm.weight": (SIZE,),
    },
    "linear_attn": {**_QKV, "norm.weight": (SIZE,)},
}  # fmt: skip


def model(name: str) -> dict[str, torch.Tensor]:
    """Return one recurrent layer and one that attends, as hybrids have them."""
    torch.manual_seed(5)
    state = {f"model.layers.0.attn.{local}": torch.randn(shape) for local, shape in TENSORS[name].items()}
    return state | {f"model.layers.1.attn.{local}": torch.randn(shape) for local, shape in _QKV.items()}


def config(name: str) -> dict[str, Any]:
    more = {"num_householder": 2} if name == "gated_deltaproduct" else {}
    return {"model_type": name.split()[0], "num_heads": HEADS, **more}


def kept(name: str, steps: int) -> np.ndarray[Any, Any]:
    """Return what is left of a first write in each head after so many writes along another key (fla/ops/*/naive.py)."""
    first, other = np.eye(SIZE)[:2]
    state = np.stack([np.outer(first, np.ones(SIZE))] * HEADS)
    for _ in range(steps):
        for head in range(HEADS):
            if name.startswith("retnet"):
                state[head] = state[head] * (1 - 2.0 ** (-5 - head)) + np.outer(other, np.ones(SIZE))
            elif name == "linear_attn":
                state[head] = state[head] + np.outer(other, np.ones(SIZE))
            else:
                state[head] += 0.7 * np.outer(other, np.ones(SIZE) - other @ state[head])
    return state[:, 0, 0]


@pytest.mark.parametrize("name", TENSORS)
def test_what_is_left_of_a_write_is_the_decay_to_the_number_of_steps(name: str, read_model: Read) -> None:
    (recurrence,) = read_model(model(name), config(name))
    assert recurrence.log_eigenvalues.shape == (HEADS, 1)
    assert recurrence.time_invariant
    left = (9 * recurrence.log_eigenvalues.real[:, 0]).exp()
    np.testing.assert_allclose(left.numpy(), kept(name, 9), rtol=1e-12)


@pytest.mark.parametrize("name", ["delta_net", "gated_deltaproduct", "linear_attn"])
def test_a_memory_without_a_decay_is_said_to_have_none_and_nothing_is_found_wrong_with_it(
    name: str, tmp_path: Any
) -> None:
    result = diagnose(write(tmp_path / "m", model(name), config(name)))
    assert result.exit_code() == 0
    assert not result.findings
    (layer,) = result.layers
    assert any("no decay, λ = 1" in note for note in layer.notes)
    assert (layer.spectral_radius, layer.rate.median) == (1.0, 0.0)


@pytest.mark.parametrize("name", TENSORS)
def test_without_a_config_nothing_is_assumed(name: str, read_model: Read) -> None:
    with pytest.raises(UnknownFamilyError):
        read_model(model(name))


def test_a_deltaproduct_with_a_forget_gate_is_a_gated_delta_net(read_model: Read) -> None:
    state = model("gated_deltaproduct")
    more = {"A_log": (HEADS,), "dt_bias": (HEADS,), "a_proj.weight": (HEADS, MODEL)}
    state |= {f"model.layers.0.attn.{local}": torch.randn(shape) for local, shape in more.items()}
    assert [r.family for r in read_model(state, config("gated_deltaproduct"))] == ["gated_delta_net"]


@pytest.mark.parametrize("heads", [None, 0, 5, "3"])
def test_retnets_decay_needs_the_number_of_heads(heads: object, read_model: Read) -> None:
    with pytest.raises(LayerError, match="num_heads"):
        read_model(model("retnet"), {"model_type": "retnet", "num_heads": heads})
