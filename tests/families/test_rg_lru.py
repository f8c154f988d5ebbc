"""RG-LRU: the decay of Griffin and RecurrentGemma at the bias of its gate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from ssmdiag.errors import LayerError
from ssmdiag.recurrence.modal import Recurrence
from tests.tolerances import RELATIVE

Read = Callable[..., list[Recurrence]]

BLOCKS, WIDTH = 2, 4
NAMES = {
    "transformers": ("model.layers.0.temporal_block.rg_lru", "recurrent_param", "recurrent_gate_bias"),
    "DeepMind, torch": ("blocks.0.recurrent_block.rg_lru", "a_param", "a_gate.b"),
    "DeepMind, JAX": ("params/blocks.0/recurrent_block/rg_lru", "a_param", "a_gate/b"),
}


def model(layout: str) -> tuple[dict[str, torch.Tensor], np.ndarray, np.ndarray]:
    """Return a state dict, Λ as stored and the gate's bias by channel."""
    path, param, bias = NAMES[layout]
    dot = "/" if "/" in path else "."
    torch.manual_seed(4)
    state = {
        f"{path}{dot}{param}": torch.randn(BLOCKS * WIDTH, dtype=torch.float64),
        f"{path}{dot}{bias}": torch.randn(BLOCKS, WIDTH, dtype=torch.float64),
        f"{path}{dot}input_gate_bias": torch.randn(BLOCKS, WIDTH, dtype=torch.float64),
    }
    return state, state[f"{path}{dot}{param}"].numpy(), state[f"{path}{dot}{bias}"].numpy().reshape(-1)


@pytest.mark.parametrize("layout", NAMES)
def test_decay_is_the_papers_sigmoid_to_the_power_of_c_times_the_gate(layout: str, read_model: Read) -> None:
    state, param, bias = model(layout)
    (recurrence,) = read_model(state)
    base, gate = 1 / (1 + np.exp(param)), 1 / (1 + np.exp(-bias))  # σ(Λ) with the paper's Λ = −param
    assert recurrence.family == "rg_lru"
    assert recurrence.log_eigenvalues.shape == (BLOCKS * WIDTH, 1)
    np.testing.assert_allclose(
        recurrence.log_eigenvalues.real[:, 0].numpy(), 8 * gate * np.log(base), rtol=RELATIVE["float64"]
    )
    assert not recurrence.time_invariant


def test_a_rate_of_1e_12_keeps_its_digits(read_model: Read) -> None:
    state, _, bias = model("transformers")
    state["model.layers.0.temporal_block.rg_lru.recurrent_param"].fill_(-30.0)
    (recurrence,) = read_model(state)
    expected = 8 * np.log1p(np.exp(-30.0)) / (1 + np.exp(-bias))
    np.testing.assert_allclose(recurrence.rate[:, 0].numpy(), expected, rtol=RELATIVE["float64"])


def test_complex_variant_turns_by_its_imaginary_parameter_times_the_gate(read_model: Read) -> None:
    state, _, bias = model("DeepMind, torch")
    frequency = torch.linspace(0.1, 3.0, BLOCKS * WIDTH, dtype=torch.float64)
    state["blocks.0.recurrent_block.rg_lru.a_imag_param"] = frequency
    (recurrence,) = read_model(state)
    expected = frequency.numpy() / (1 + np.exp(-bias))
    np.testing.assert_allclose(recurrence.frequency[:, 0].numpy(), expected, rtol=RELATIVE["float64"])
    assert recurrence.conjugate_pairs


def test_a_gate_of_another_width_is_named(read_model: Read) -> None:
    state, _, _ = model("transformers")
    state["model.layers.0.temporal_block.rg_lru.recurrent_gate_bias"] = torch.randn(BLOCKS, WIDTH + 1)
    with pytest.raises(LayerError, match=r"recurrent_param has shape .*make block × width = 10"):
        read_model(state)


def test_lrnnx_stores_the_papers_own_lambda(read_model: Read) -> None:
    """a = σ(a_log)^{c r}: the opposite sign of the other ports."""
    rng = np.random.default_rng(0)
    raw, bias = rng.normal(size=(5, 1)), rng.normal(size=5)
    state = {"a_log": raw, "recurrent_gate_proj.bias": bias}
    (recurrence,) = read_model({f"layers.0.{name}": torch.tensor(value) for name, value in state.items()})
    factor = (1 / (1 + np.exp(-raw[:, 0]))) ** (8 / (1 + np.exp(-bias)))
    np.testing.assert_allclose(recurrence.log_eigenvalues.real[:, 0].exp().numpy(), factor, rtol=1e-12)
