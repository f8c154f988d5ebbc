"""Gated and fixed-decay models of transformers: what we read from disk is what their own code computes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ssmdiag.diagnosis import extract_recurrences
from ssmdiag.recurrence.modal import Recurrence
from tests.families.tiny_transformers import save_tiny
from tests.tolerances import EIGENVALUES

ZERO = torch.zeros(1, 6, 32, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _all_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `.float()` inside the models' code give float64, so that a comparison shows formulas and not rounding."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., tuple[Any, Path]]:
    return partial(save_tiny, tmp_path=tmp_path)


def capture(owner: Any, name: str, key: str, call: Callable[[], Any]) -> torch.Tensor:
    """Run `call` and return the keyword argument `key` with which it called `owner.name`."""
    seen: list[torch.Tensor] = []
    original = getattr(owner, name)

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs[key])
        return original(*args, **kwargs)

    setattr(owner, name, spy)
    try:
        with torch.no_grad():
            call()
    finally:
        setattr(owner, name, original)
    (value,) = seen
    return value


def modules(model: nn.Module, kind: str) -> list[nn.Module]:
    return [module for module in model.modules() if type(module).__name__.endswith(kind)]


def delta_rule_decay(model: nn.Module) -> list[torch.Tensor]:
    found = modules(model, "GatedDeltaNet")
    code = sys.modules[type(found[0]).__module__]
    return [
        capture(code, "torch_chunk_gated_delta_rule", "g", lambda m=mixer: m(hidden_states=ZERO))[0, -1][:, None]
        for mixer in found
    ]


def forget_gate_decay(model: nn.Module) -> list[torch.Tensor]:
    return [gate(ZERO)[0, -1] for gate in modules(model, "ForgetGate")]


def rg_lru_decay(model: nn.Module) -> list[torch.Tensor]:
    position = torch.arange(1, 7)[None]
    found = modules(model, "RecurrentGemmaRglru")
    gates = [capture(m, "_rnn_scan", "recurrent_gate", lambda m=m: m(ZERO, position)) for m in found]
    return [gate[0, -1].log()[:, None] for gate in gates]


def mlstm_decay(model: nn.Module) -> list[torch.Tensor]:
    gates = [capture(m.mlstm_backend, "forward", "fgate", lambda m=m: m(ZERO)) for m in modules(model, "xLSTMLayer")]
    return [nn.functional.logsigmoid(gate[0, :, -1])[:, None] for gate in gates]


def rwkv_decay(model: nn.Module) -> list[torch.Tensor]:
    """Let one value in and then nothing: the scale of the numerator falls by the decay at every step."""
    code = sys.modules[type(model).__module__]
    key = torch.full((1, 8, 32), -1e30, dtype=torch.float64)
    key[:, 0] = 0.0
    decays = []
    for mixer in modules(model, "RwkvSelfAttention"):
        weights = mixer.time_decay, mixer.time_first
        _, state = code.rwkv_linear_attention_cpu(*weights, key, torch.ones_like(key), return_state=True)
        decays.append((state[0].log() + state[2])[0, :, None] / 7)
    return decays


def lightning_decay(model: nn.Module) -> list[torch.Tensor]:
    """Let one token in and then zeros: the stored outer product shrinks by the decay at every step."""
    code = sys.modules[type(model).__module__]
    angles = torch.ones(1, 1, 8, dtype=torch.float64), torch.zeros(1, 1, 8, dtype=torch.float64)
    decays = []
    for mixer in modules(model, "LightningAttention"):
        cache = code.MiniMaxCache()
        mixer(torch.randn(1, 1, 32, dtype=torch.float64), angles, None, cache)
        before = cache.get_linear_cache(mixer.layer_idx)
        mixer(ZERO, angles, None, cache)
        after = cache.get_linear_cache(mixer.layer_idx)
        decays.append(((after / before).log() / 6)[0, :, 0, :1])
    return decays


OWN_CODE: dict[str, Callable[[nn.Module], list[torch.Tensor]]] = {
    "qwen3_next": delta_rule_decay,
    "qwen3_5_text": delta_rule_decay,
    "qwen3_5_moe_text": delta_rule_decay,
    "qwen3_5": delta_rule_decay,
    "qwen3_5_moe": delta_rule_decay,
    "qwen4_exp": delta_rule_decay,
    "jev": delta_rule_decay,
    "minicpm_ocr": delta_rule_decay,
    "minicpmv4_6": delta_rule_decay,
    "minicpmv4_7": delta_rule_decay,
    "qwen4_exp_text": delta_rule_decay,
    "lara_mini": delta_rule_decay,
    "olmo_hybrid": delta_rule_decay,
    "kimi_linear": forget_gate_decay,
    "bailing_hybrid": forget_gate_decay,
    "glm5_next_text": forget_gate_decay,
    "glm5_next": forget_gate_decay,
    "recurrent_gemma": rg_lru_decay,
    "rwkv": rwkv_decay,
    "xlstm": mlstm_decay,
    "minimax": lightning_decay,
}


def assert_same(recurrences: list[Recurrence], expected: list[torch.Tensor]) -> None:
    assert len(recurrences) == len(expected) > 0
    for ours, theirs in zip(recurrences, expected, strict=True):
        torch.testing.assert_close(ours.log_eigenvalues.real, theirs.detach(), rtol=1e-9, atol=0)
        assert (ours.log_eigenvalues.imag == 0).all()


@pytest.mark.one_in(6)
@pytest.mark.parametrize("model_type", OWN_CODE)
def test_decay_read_from_disk_is_what_the_model_computes_without_input(
    model_type: str, save: Callable[..., tuple[Any, Path]]
) -> None:
    model, directory = save(model_type)
    with torch.no_grad():
        expected = OWN_CODE[model_type](model)
    assert_same(extract_recurrences(directory), expected)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("model_type", OWN_CODE)
def test_names_in_memory_are_recognised_as_well_as_names_on_disk(
    model_type: str, save: Callable[..., tuple[Any, Path]]
) -> None:
    model, directory = save(model_type)
    on_disk = extract_recurrences(directory)
    file = directory / "alone" / "state_dict.pt"
    file.parent.mkdir()
    torch.save(model.state_dict(), file)
    in_memory = extract_recurrences(file)
    assert [r.family for r in in_memory] == [r.family for r in on_disk]
    for one, other in zip(in_memory, on_disk, strict=True):
        torch.testing.assert_close(one.log_eigenvalues, other.log_eigenvalues, rtol=0, atol=0)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("bailing_hybrid", {"kda_safe_gate": False}),
        ("bailing_hybrid", {"kda_lower_bound": -3.0}),
        ("glm5_next_text", {"linear_lower_bound": None}),
        ("glm5_next_text", {"linear_lower_bound": -2.5}),
        ("xlstm", {"gate_soft_cap": 4.0}),
    ],
)
def test_settings_of_the_gate_are_taken_from_config(
    model_type: str, overrides: dict[str, Any], save: Callable[..., tuple[Any, Path]]
) -> None:
    model, directory = save(model_type, **overrides)
    with torch.no_grad():
        expected = OWN_CODE[model_type](model)
    recurrences = extract_recurrences(directory)
    assert_same(recurrences, expected)
    assert all(a.source == "file" for r in recurrences for a in r.assumptions)


def test_fused_gates_of_xlstm_are_split_as_the_model_splits_them(
    save: Callable[..., tuple[Any, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.xlstm import modeling_xlstm

    # Its own initialisation of fused weights adds vectors of different lengths and fails.
    monkeypatch.setattr(modeling_xlstm.xLSTMPreTrainedModel, "_init_weights", lambda self, module: None)
    model, directory = save("xlstm", weight_mode="fused")
    with torch.no_grad():
        expected = mlstm_decay(model)
    assert_same(extract_recurrences(directory), expected)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("model_type", ["qwen3_next", "kimi_linear", "glm5_next_text", "recurrent_gemma", "xlstm"])
def test_decay_of_a_float32_model_is_what_the_model_computes(
    model_type: str, save: Callable[..., tuple[Any, Path]]
) -> None:
    model, directory = save(model_type)
    model.to(torch.float32).save_pretrained(directory)
    with torch.no_grad():
        expected = OWN_CODE[model_type](model.double())
    for ours, theirs in zip(extract_recurrences(directory), expected, strict=True):
        assert ours.dtype == "float32"
        torch.testing.assert_close(ours.log_eigenvalues.real, theirs, rtol=EIGENVALUES, atol=0)
