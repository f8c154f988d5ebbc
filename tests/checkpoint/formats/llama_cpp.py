"""Writes GGUF files as llama.cpp's converter does, with llama.cpp's own package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import torch

ARCHITECTURES = {
    "mamba": gguf.MODEL_ARCH.MAMBA,
    "falcon_mamba": gguf.MODEL_ARCH.MAMBA,
    "jamba": gguf.MODEL_ARCH.JAMBA,
    "mamba2": gguf.MODEL_ARCH.MAMBA2,
    "bamba": gguf.MODEL_ARCH.GRANITE_HYBRID,
    "falcon_h1": gguf.MODEL_ARCH.FALCON_H1,
    "nemotron_h": gguf.MODEL_ARCH.NEMOTRON_H,
    "granitemoehybrid": gguf.MODEL_ARCH.GRANITE_HYBRID,
}
"""model_type of transformers → architecture of llama.cpp."""

STEP_BIAS = ".dt_bias"


def converted(model_type: str, state: Mapping[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """Return the recurrent tensors under llama.cpp's names, found by its map, with the changes its converter makes.

    They are (conversion/mamba.py, jamba.py): A = −exp(A_log); the convolution loses its axis of 1; in Mamba-2 A and D
    get one; dt_bias counts as the bias of dt_proj.
    """
    names = gguf.get_tensor_name_map(ARCHITECTURES[model_type], layers)
    mamba_1 = ARCHITECTURES[model_type] in (gguf.MODEL_ARCH.MAMBA, gguf.MODEL_ARCH.JAMBA)
    found: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        renamed = name.removesuffix(STEP_BIAS) + ".dt_proj.bias" if name.endswith(STEP_BIAS) else name
        new = names.get_name(renamed, try_suffixes=(".weight", ".bias"))
        if new is None or ".ssm_" not in new:
            continue
        value = -value.exp() if name.endswith("A_log") else value
        value = value.squeeze(1) if new.endswith("ssm_conv1d.weight") else value
        found[new] = value[:, None] if not mamba_1 and new.endswith((".ssm_a", ".ssm_d")) else value
    return found


def write_gguf(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    architecture: str = "mamba",
    kinds: Mapping[str, gguf.GGMLQuantizationType] | None = None,
    **settings: Any,
) -> Path:
    """Write tensors and settings; `kinds` gives a quantised type by the end of a name, the rest stays float32."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(settings.pop("context_length", 2**20))
    for key, value in settings.items():
        writer.add_key_value(f"{architecture}.{key}", value, gguf.GGUFValueType.get_type(value))
    for name, value in tensors.items():
        kind = next((kind for end, kind in (kinds or {}).items() if name.endswith(end)), None)
        array = value.detach().float().contiguous().numpy()
        if kind is None:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
