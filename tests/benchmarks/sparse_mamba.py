"""Mamba checkpoints of any size, made without their weights' disk space: holes where no reading looks."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

WIDTHS = {"F32": 4, "BF16": 2}


@dataclass(frozen=True)
class Size:
    """The sizes that a Mamba-1 is made of."""

    layers: int
    model: int
    channels: int
    modes: int = 16
    rank: int = 160
    vocabulary: int = 50280


MAMBA_130M = Size(layers=24, model=768, channels=1536, rank=48)
MAMBA_2_8B = Size(layers=64, model=2560, channels=5120)


def write_sparse_mamba(path: Path, size: Size = MAMBA_2_8B, *, seed: int = 0, trained: bool = False) -> Path:
    """Write the file, with S4D-real A and Δ log-uniform in 0.001 to 0.1, and return its path.

    `trained` moves the rates, the steps and the norms a little, as training does.
    """
    mixer = {
        "A_log": ("F32", (size.channels, size.modes)),
        "D": ("F32", (size.channels,)),
        "conv1d.bias": ("BF16", (size.channels,)),
        "conv1d.weight": ("BF16", (size.channels, 1, 4)),
        "dt_proj.bias": ("BF16", (size.channels,)),
        "dt_proj.weight": ("BF16", (size.channels, size.rank)),
        "in_proj.weight": ("BF16", (2 * size.channels, size.model)),
        "out_proj.weight": ("BF16", (size.model, size.channels)),
        "x_proj.weight": ("BF16", (size.rank + 2 * size.modes, size.channels)),
    }
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "backbone.embedding.weight": ("BF16", (size.vocabulary, size.model)),
        "backbone.norm_f.weight": ("BF16", (size.model,)),
    }
    for layer in range(size.layers):
        shapes |= {f"backbone.layers.{layer}.mixer.{name}": entry for name, entry in mixer.items()}
        shapes[f"backbone.layers.{layer}.norm.weight"] = ("BF16", (size.model,))
    header: dict[str, dict[str, object]] = {}
    starts, end = {}, 0
    for name, (dtype, shape) in shapes.items():
        starts[name], end = end, end + WIDTHS[dtype] * prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [starts[name], end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(seed)
    moved = 0.05 if trained else 0.0
    a_log = np.log(np.tile(np.arange(1, size.modes + 1, dtype=np.float32), (size.channels, 1)))
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
        for name, (_, shape) in shapes.items():
            file.seek(8 + len(text) + starts[name])
            if name.endswith("A_log"):
                file.write((a_log + moved * random.standard_normal(a_log.shape, dtype=np.float32)).tobytes())
            elif name.endswith("dt_proj.bias"):
                step = np.exp(random.uniform(np.log(0.001), np.log(0.1), size.channels))
                step *= np.exp(moved * random.standard_normal(size.channels))
                file.write(_bfloat16(step + np.log(-np.expm1(-step))))
            elif name.endswith(".D"):
                file.write((1 + moved * random.standard_normal(shape)).astype(np.float32).tobytes())
            elif name.endswith(("norm.weight", "norm_f.weight")):
                file.write(_bfloat16(1 + moved * random.standard_normal(shape)))
    return path


def _bfloat16(values: np.ndarray) -> bytes:
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
