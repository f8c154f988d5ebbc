"""Weights that MLX quantised are unpacked to what MLX itself makes of them, and compared as far as they can be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ssmdiag import read_checkpoint, recognise
from ssmdiag.compare.conversion import prove_conversion
from ssmdiag.families.mlx_packed import unpack

WRITTEN = np.load(Path(__file__).with_name("mlx_quantised.npz"))
"""`w`, and what quantize and dequantize of mlx 0.32.4 make of it: q, s, z and d, with bits and size of a group."""
CASES = [tuple(map(int, name[1:].split("_"))) for name in WRITTEN.files if name.startswith("q")]
PATH = "model.layers.0.linear_attn"
HEADS, MODEL = 4, 128


def gated_delta_net() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(*shape, generator=generator)

    state = {
        "A_log": draw(HEADS),
        "dt_bias": draw(HEADS),
        "norm.weight": torch.ones(8),
        "conv1d.weight": draw(64, 1, 4),
    }
    projections = {"a": HEADS, "b": HEADS, "qkv": 64, "z": 32}
    return state | {f"in_proj_{name}.weight": draw(rows, MODEL) for name, rows in projections.items()}


def write(folder: Path, state: dict[str, torch.Tensor], quantization: Any = None) -> Path:
    folder.mkdir()
    save_file({f"{PATH}.{name}": value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    config = {"model_type": "qwen3_5", "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
    (folder / "config.json").write_text(json.dumps(config | ({"quantization": quantization} if quantization else {})))
    return folder


def triplet(bits: int, group: int, name: str = "in_proj_a") -> dict[str, torch.Tensor]:
    codes, scales, biases = (torch.from_numpy(WRITTEN[f"{part}{bits}_{group}"]) for part in "qsz")
    return {f"{name}.weight": codes, f"{name}.scales": scales, f"{name}.biases": biases}


def unpacked(folder: Path) -> tuple[torch.Tensor, torch.Tensor] | None:
    checkpoint = read_checkpoint(folder)
    (layer,) = recognise(checkpoint).layers
    weight = checkpoint[f"{PATH}.in_proj_a.weight"]
    return unpack(layer, weight, [checkpoint[f"{PATH}.in_proj_a.{part}"] for part in ("scales", "biases")])


@pytest.mark.parametrize(("bits", "group"), CASES)
def test_what_mlx_packed_is_unpacked_to_what_mlx_unpacks(bits: int, group: int, tmp_path: Path) -> None:
    state = gated_delta_net() | triplet(bits, group)
    found = unpacked(write(tmp_path / "m", state, {"bits": bits, "group_size": group, "mode": "affine"}))
    assert found is not None
    values, doubt = found
    theirs = WRITTEN[f"d{bits}_{group}"]
    assert values.shape == theirs.shape
    rounding = 2.0**-10 if theirs.dtype == np.float16 else 1e-6
    assert np.abs(values.numpy() - theirs).max() <= rounding * np.abs(theirs).max()
    assert (np.abs(values.numpy() - WRITTEN["w"]) <= doubt.numpy()).all()


def test_bits_of_one_module_come_before_those_of_all(tmp_path: Path) -> None:
    state = gated_delta_net() | triplet(8, 32)
    own = {"bits": 4, "group_size": 64, f"{PATH}.in_proj_a": {"bits": 8, "group_size": 32}}
    assert unpacked(write(tmp_path / "own", state, own)) is not None
    assert unpacked(write(tmp_path / "wrong", state, {"bits": 6, "group_size": 64})) is None
    assert unpacked(write(tmp_path / "other", state, {"bits": 8, "group_size": 32, "mode": "mxfp8"})) is None
    assert unpacked(write(tmp_path / "none", state)) is None


def quantised(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return 4-bit codes, scales and biases of groups of 64, rounded to the nearest code."""
    groups = weight.unflatten(1, (-1, 64))
    low = groups.amin(2)
    scale = ((groups.amax(2) - low) / 15).clamp(min=1e-6)
    codes = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15).long().flatten(1).unflatten(1, (-1, 8))
    words = (codes << (4 * torch.arange(8))).sum(2).to(torch.uint32)
    return {"weight": words, "scales": scale, "biases": low}


def proof_of(tmp_path: Path, change: float) -> Any:
    state = gated_delta_net()
    packed = dict(state)
    for name in ("in_proj_a", "in_proj_b", "in_proj_qkv", "in_proj_z"):
        weight = packed.pop(f"{name}.weight")
        if name == "in_proj_a":
            weight = weight + change * (torch.arange(weight.numel()).reshape(weight.shape) == 130)
        packed |= {f"{name}.{part}": value for part, value in quantised(weight).items()}
    a = write(tmp_path / "a", state)
    b = write(tmp_path / "b", packed, {"bits": 4, "group_size": 64})
    return prove_conversion(a, b).layers[0]


def test_a_model_and_its_packed_copy_agree_as_far_as_its_rounding_shows(tmp_path: Path) -> None:
    layer = proof_of(tmp_path, 0.0)
    assert not layer.steering.differing
    assert not layer.proven
    said = [one for one in layer.steering.unseen if one.startswith("in_proj_a.weight")]
    assert said == [
        "in_proj_a.weight is packed: unpacked it agrees to within its rounding, which hides smaller changes"
    ]


def test_a_weight_changed_by_more_than_its_packing_explains_is_found(tmp_path: Path) -> None:
    layer = proof_of(tmp_path, 0.5)
    (difference,) = layer.steering.differing
    assert (difference.role, difference.at) == ("decay", (1, 2))
    assert difference.value > difference.tolerance
