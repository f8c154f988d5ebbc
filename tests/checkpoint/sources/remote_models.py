"""A small Mamba, for tests of places that are not on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

LAYERS = 3


def mamba(layers: range = range(LAYERS), width: int = 24, seed: int = 1) -> dict[str, torch.Tensor]:
    """Return weights in transformers' names."""
    draw = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}
    for layer in layers:
        shapes = {
            "A_log": (width, 4), "D": (width,), "conv1d.bias": (width,), "conv1d.weight": (width, 1, 4),
            "dt_proj.bias": (width,), "dt_proj.weight": (width, 2), "in_proj.weight": (2 * width, width),
            "x_proj.weight": (10, width),
        }  # fmt: skip
        for name, shape in shapes.items():
            state[f"backbone.layers.{layer}.mixer.{name}"] = torch.rand(shape, generator=draw)
        state[f"backbone.layers.{layer}.norm.weight"] = torch.rand(width, generator=draw)
    return state


def write_folder(folder: Path, *, shards: bool = False, width: int = 24, seed: int = 1) -> Path:
    """Write a model folder with its config.json, in one file or in two shards with an index."""
    folder.mkdir(parents=True)
    config = {"model_type": "mamba", "num_hidden_layers": LAYERS, "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(config))
    if not shards:
        save_file(mamba(width=width, seed=seed), folder / "model.safetensors")
        return folder
    parts = {
        f"model-0000{number}-of-00002.safetensors": mamba(layers, width, seed)
        for number, layers in ((1, range(2)), (2, range(2, LAYERS)))
    }
    for name, state in parts.items():
        save_file(state, folder / name)
    index = {"weight_map": {key: name for name, state in parts.items() for key in state}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
