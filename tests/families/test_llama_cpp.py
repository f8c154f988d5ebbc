"""Gated DeltaNet, KDA and RWKV in GGUF, converted as llama.cpp's converters do: one memory with the file they read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ssmdiag import diagnose, prove_conversion
from ssmdiag.compare.conversion import Outcome
from ssmdiag.diagnosis import extract_recurrences
from ssmdiag.errors import LayerError
from tests.checkpoint.formats.llama_cpp import write_gguf
from tests.families.steered import STEERED
from tests.families.test_rwkv import HEADS, KEYS, model
from tests.families.test_steering import write
from tests.families.tiny_transformers import save_tiny
from tests.tolerances import EIGENVALUES

State = dict[str, torch.Tensor]

ARCHITECTURES = {
    "qwen3_next": gguf.MODEL_ARCH.QWEN3NEXT,
    "qwen3_5_text": gguf.MODEL_ARCH.QWEN35,
    "kimi_linear": gguf.MODEL_ARCH.KIMI_LINEAR,
    "rwkv6": gguf.MODEL_ARCH.RWKV6,
    "rwkv7": gguf.MODEL_ARCH.RWKV7,
}
KEY_HEADS = {"ssm.group_count": 2}


def tiled(values: torch.Tensor, key_heads: int, heads: int) -> torch.Tensor:
    """Return rows with value head v of key head k at v · key_heads + k, where transformers has k · (heads/…) + v."""
    order = [k * (heads // key_heads) + v for v in range(heads // key_heads) for k in range(key_heads)]
    size = len(values) // heads
    return torch.cat([values[head * size : (head + 1) * size] for head in order])


def convert(model_type: str, state: State, config: Any) -> State:
    """Return the tensors of all recurrent layers under llama.cpp's names (conversion/qwen.py, kimi_linear.py)."""
    names = gguf.get_tensor_name_map(ARCHITECTURES[model_type], config.num_hidden_layers)
    found: State = {}
    for name, value in state.items():
        if "linear_attn" not in name and "self_attn" not in name:
            continue
        name = name.replace("dt_bias", "dt_proj.bias")
        if name.endswith("in_proj_qkvz.weight"):  # for each key head: q, k, its values, their z
            keys, values = config.linear_num_key_heads, config.linear_num_value_heads
            d_k, d_v = config.linear_key_head_dim, config.linear_value_head_dim
            groups = value.reshape(keys, -1, value.shape[-1])
            q, k, v, z = groups.split([d_k, d_k, values // keys * d_v, values // keys * d_v], 1)
            base = name.removesuffix("qkvz.weight")
            parts = {f"{base}qkv.weight": torch.cat([each.flatten(0, 1) for each in (q, k, v)])}
            parts[f"{base}z.weight"] = z.flatten(0, 1)
        else:
            parts = {name: value}
        for part, tensor in parts.items():
            if (new := names.get_name(part, try_suffixes=(".weight", ".bias"))) is None:
                continue
            if part.endswith("A_log"):
                tensor = -tensor.exp()
            if model_type == "qwen3_5_text":
                tensor = in_tiles(part, tensor, config)
            if "conv1d" in part:
                channels, _, width = tensor.shape
                tensor = tensor.reshape(1, channels, 1, width) if model_type == "kimi_linear" else tensor.squeeze(1)
            found[new] = tensor
    return found


def in_tiles(name: str, value: torch.Tensor, config: Any) -> torch.Tensor:
    keys, values = config.linear_num_key_heads, config.linear_num_value_heads
    if name.endswith(("A_log", "dt_proj.bias", "in_proj_a.weight", "in_proj_b.weight", "in_proj_z.weight")):
        return tiled(value, keys, values)
    if "qkv" in name or "conv1d" in name:
        rows = 2 * keys * config.linear_key_head_dim
        return torch.cat([value[:rows], tiled(value[rows:], keys, values)])
    return value


def pair(model_type: str, tmp_path: Path, **settings: Any) -> tuple[Path, State, dict[str, Any]]:
    """Return (directory of transformers, GGUF tensors, GGUF settings)."""
    model, directory = save_tiny(model_type, tmp_path)
    state = {name: value.float() for name, value in load_file(directory / "model.safetensors").items()}
    write(directory, state, model.config.to_dict())
    settings = (KEY_HEADS if model_type.startswith("qwen") else {}) | settings
    return directory, convert(model_type, state, model.config), settings


def gguf_file(path: Path, model_type: str, tensors: State, **settings: Any) -> Path:
    return write_gguf(path, tensors, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[model_type]], **settings)


@pytest.mark.parametrize("model_type", ["qwen3_next", "qwen3_5_text", "kimi_linear"])
def test_a_conversion_to_gguf_is_proven_and_a_change_of_any_tensor_is_caught(model_type: str, tmp_path: Path) -> None:
    directory, tensors, settings = pair(model_type, tmp_path)
    proof = prove_conversion(directory, gguf_file(tmp_path / "model.gguf", model_type, tensors, **settings))
    assert not proof.problems
    assert len(proof.layers) == 3
    for layer in proof.layers:
        assert layer.outcome is Outcome.SAME, (layer.notes, layer.steering and layer.steering.unseen)
    for name in [name for name in tensors if name.startswith("blk.0.")]:
        if (
            name.endswith(("attn_gate.weight", "ssm_out.weight", "ssm_norm.weight", "attn_output.weight"))
            or "_g_" in name
        ):
            continue
        changed = {**tensors, name: tensors[name].roll(1, -2 if tensors[name].ndim > 2 else 0) * 1.01}
        other = gguf_file(tmp_path / "changed.gguf", model_type, changed, **settings)
        assert prove_conversion(directory, other).layers[0].outcome is Outcome.DIFFERS, name


def test_without_the_number_of_key_heads_the_order_of_qwen35s_heads_is_not_guessed(tmp_path: Path) -> None:
    directory, tensors, _ = pair("qwen3_5_text", tmp_path)
    proof = prove_conversion(directory, gguf_file(tmp_path / "model.gguf", "qwen3_5_text", tensors))
    assert {layer.outcome for layer in proof.layers} == {Outcome.NOMINAL}
    decays = [
        extract_recurrences(path)[0].rate.flatten().sort().values for path in (directory, tmp_path / "model.gguf")
    ]
    torch.testing.assert_close(decays[0], decays[1], rtol=EIGENVALUES, atol=0)


KDA_SHAPES = {"Kimi-Linear": (1, 1, HEADS, 1), "Kimi-K3": (HEADS, 1), "GLM-5-next": (HEADS,)}


def kda(shape: tuple[int, ...], *, ling: bool = False) -> State:
    torch.manual_seed(4)
    shapes = {"ssm_f_a.weight": (KEYS, 12), "ssm_f_b.weight": (HEADS * KEYS, KEYS), "ssm_dt.bias": (HEADS * KEYS,)}
    state = {f"blk.1.{name}": torch.randn(size) for name, size in shapes.items()}
    if ling:
        del state["blk.1.ssm_f_b.weight"]
    rates = torch.randn(shape).exp()
    return {**state, "blk.1.ssm_a": rates if ling else -rates}


def graph(state: State, bound: float | None) -> np.ndarray[Any, Any]:
    """Return g (head, key) at zero input as llama.cpp's graph computes it (src/models/kimi-k3.cpp, bailingmoe3.cpp)."""
    a = state["blk.1.ssm_a"].double().numpy().reshape(HEADS, 1)
    z = state["blk.1.ssm_dt.bias"].double().numpy().reshape(HEADS, KEYS)
    if bound is None:
        return a * np.log1p(np.exp(z))
    scaled = z * a if "blk.1.ssm_f_b.weight" not in state else -(z * a)
    return bound / (1 + np.exp(-scaled))


@pytest.mark.parametrize("bound", [-5.0, -2.5, None])
@pytest.mark.parametrize("arch", KDA_SHAPES)
def test_kdas_gate_is_that_of_llama_cpps_graph(arch: str, bound: float | None, tmp_path: Path) -> None:
    state = kda(KDA_SHAPES[arch])
    settings = {} if bound is None else {"kda.gate_lower_bound": bound}
    (recurrence,) = extract_recurrences(gguf_file(tmp_path / "model.gguf", "kimi_linear", state, **settings))
    assert recurrence.family == "kda"
    expected = graph(state, bound)
    np.testing.assert_allclose(recurrence.log_eigenvalues.real.numpy(), expected, rtol=1e-9)
    (assumption,) = recurrence.assumptions
    assert (assumption.option, assumption.source) == ("kda_lower_bound", "usual" if bound is None else "file")
    assert assumption.choices == ("none", "-5")


def test_lings_bounded_gate_has_a_itself(tmp_path: Path) -> None:
    state = kda((HEADS, 1), ling=True)
    for settings, bound, source in (({"kda.gate_lower_bound": -4.0}, -4.0, "file"), ({}, -5.0, "usual")):
        (recurrence,) = extract_recurrences(gguf_file(tmp_path / f"{bound}.gguf", "kimi_linear", state, **settings))
        np.testing.assert_allclose(recurrence.log_eigenvalues.real.numpy(), graph(state, bound), rtol=1e-9)
        assert recurrence.assumptions[0].source == source


def test_a_log_left_in_ssm_a_is_a_conversion_fault_whichever_gate_it_is(tmp_path: Path) -> None:
    state = kda((HEADS,))
    state["blk.1.ssm_a"] = torch.tensor([1.5, 0.3])
    plain = diagnose(gguf_file(tmp_path / "plain.gguf", "kimi_linear", state))
    (found,) = [finding for finding in plain.findings if finding.code == "SSM101"]
    assert found.severity == "error"
    assert "ssm_a holds A_log" in (found.advice or "")
    with pytest.raises(LayerError, match="wrong sign"):
        extract_recurrences(gguf_file(tmp_path / "bound.gguf", "kimi_linear", state, **{"kda.gate_lower_bound": -5.0}))


def test_both_readings_of_a_silent_kda_are_reported(tmp_path: Path) -> None:
    result = diagnose(gguf_file(tmp_path / "model.gguf", "kimi_linear", kda((HEADS,))))
    (layer,) = result.layers
    (assumption,) = layer.assumptions
    assert (assumption.option, assumption.value, assumption.source) == ("kda_lower_bound", "none", "usual")
    assert set(assumption.choices) == {"none", "-5"}


def rwkv(version: str) -> tuple[State, State]:
    """Return a layer of RWKV's own code, and what llama.cpp's converter makes of it (conversion/rwkv.py)."""
    state, _ = model(f"{version}, BlinkDL")
    path = "blocks.0.att."
    more = STEERED[f"rwkv{version}"]["BlinkDL"]
    width = HEADS * KEYS
    names = gguf.get_tensor_name_map(ARCHITECTURES[f"rwkv{version}"], 1)
    prefix = "rwkv.blocks.0.attention." if version == "6" else "model.layers.0.attention."
    torch.manual_seed(6)
    sizes = {
        "6": {
            **dict.fromkeys(("key.weight", "value.weight", "receptance.weight"), (width, width)),
            **{f"time_maa_{name}": (1, 1, width) for name in "xwkvrg"},
            **{"time_maa_w1": (width, 20), "time_maa_w2": (5, 4, width)},
        },
        "7": {
            **dict.fromkeys(("key.weight", "value.weight", "receptance.weight"), (width, width)),
            **{f"x_{name}": (1, 1, width) for name in "rwkvag"},
            **{f"{name}{n}": size for name in "av" for n, size in enumerate(((1, 1, width), (width, 4), (4, width)))},
            "k_a": (1, 1, width),
        },
    }[version]
    state |= {f"{path}{name}": torch.randn(size, dtype=torch.float64) for name, size in sizes.items()}
    state = {name: value.float() for name, value in state.items()}
    assert {f"{path}{name}" for name in more} <= set(state), "the test leaves out what steers it"
    found: State = {}
    mixes: State = {}
    for name, value in state.items():
        local = name.removeprefix(path)
        if local.startswith("x_"):
            mixes[local] = value
            continue
        new = names.get_name(f"{prefix}{local}", try_suffixes=(".weight", ".bias"))
        if new is None:
            continue
        new = new if new.endswith((".weight", ".bias")) else f"{new}.weight"
        if "lerp" in new and not new.endswith("lerp_x.weight"):
            mixes[local[-1]] = value
            continue
        transposed = ("_decay_w1", "_decay_w2", "mix_w1") if version == "6" else ("w1", "w2", "a1", "a2", "v1", "v2")
        if new.removesuffix(".weight").endswith(transposed):
            value = value.T
        elif new.endswith("time_mix_w2.weight"):
            value = value.permute(0, 2, 1)
        elif version == "7" or "lerp" in new or new.endswith("time_mix_decay.weight"):
            value = value.squeeze()
        value = value.flatten() if "r_k" in new else value
        if version == "7" and "time_mix_v" in new and "value" not in new:
            continue  # of the first layer: a takes its place
        found[new] = value.contiguous()
        if version == "7" and "time_mix_a" in new:
            found[new.replace("time_mix_a", "time_mix_v")] = value.contiguous()
    order = "wkvrg" if version == "6" else [f"x_{name}" for name in "rwkvag"]
    found["blk.0.time_mix_lerp_fused.weight"] = torch.stack([mixes[name].reshape(1, 1, width) for name in order])
    return state, found


@pytest.mark.parametrize("version", ["6", "7"])
def test_rwkv_in_gguf_is_the_rwkv_it_was_made_from(version: str, tmp_path: Path) -> None:
    state, tensors = rwkv(version)
    a = write(tmp_path / "a", state, {})
    name = f"rwkv{version}"
    own, converted = (
        extract_recurrences(path)
        for path in (a, gguf_file(tmp_path / "b.gguf", name, tensors, **{"wkv.head_size": KEYS}))
    )
    assert converted[0].family == name
    assert converted[0].log_eigenvalues.shape == (HEADS, KEYS)
    torch.testing.assert_close(converted[0].log_eigenvalues, own[0].log_eigenvalues, rtol=0, atol=0)
    (layer,) = prove_conversion(a, tmp_path / "b.gguf").layers
    assert layer.outcome is Outcome.SAME, layer.steering
    beside = (
        "time_mix_r_k.weight",
        "time_mix_first.weight",
        "time_mix_ln.weight",
        "time_mix_v0.weight",
        "v1.weight",
        "v2.weight",
    )
    for local in [local for local in tensors if not local.endswith(beside)]:
        changed = {**tensors, local: tensors[local].roll(1, 0) * 1.01}
        other = gguf_file(tmp_path / "c.gguf", name, changed, **{"wkv.head_size": KEYS})
        assert prove_conversion(a, other).layers[0].outcome is Outcome.DIFFERS, local


def test_qwens_rwkv_6_has_its_heads_from_the_metadata(tmp_path: Path) -> None:
    _, tensors = rwkv("6")
    del tensors["blk.0.time_mix_first.weight"]
    (with_size,) = extract_recurrences(gguf_file(tmp_path / "a.gguf", "rwkv6", tensors, **{"wkv.head_size": KEYS}))
    (without,) = extract_recurrences(gguf_file(tmp_path / "b.gguf", "rwkv6", tensors))
    assert with_size.log_eigenvalues.shape == (HEADS, KEYS)
    assert without.log_eigenvalues.shape == (HEADS * KEYS, 1)
