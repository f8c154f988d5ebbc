"""One file of each format, as its own package writes it or, of flax, as its layout is written by hand."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from tests.checkpoint.formats.flax_files import nested, pack

STATE: Mapping[str, Tensor] = {
    "layers.0.mixer.A_log": torch.linspace(-1, 3, 32).reshape(8, 4),
    "layers.0.mixer.D": torch.arange(8, dtype=torch.float64).sub(3.5),
    "layers.0.mixer.kernel": torch.linspace(-2, 2, 60).half().reshape(3, 4, 5),
    "layers.0.mixer.order": torch.arange(7, dtype=torch.int32),
}
"""What every format can hold."""

Write = Callable[[Mapping[str, Tensor], Path], bytes]


def _torch(state: Mapping[str, Tensor], folder: Path, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(dict(state), file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def _npz(state: Mapping[str, Tensor], folder: Path) -> bytes:
    file = io.BytesIO()
    np.savez(file, **{name: value.numpy() for name, value in state.items()})
    return file.getvalue()


def _gguf(state: Mapping[str, Tensor], folder: Path) -> bytes:
    path = folder / "written.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    for name, value in state.items():
        writer.add_tensor(name, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


SAMPLES: Mapping[str, tuple[str, str, Write]] = {
    "safetensors": ("safetensors", "m.safetensors", lambda state, folder: save(dict(state))),
    "torch zip": ("torch file", "m.pt", _torch),
    "torch pickles": ("torch file", "m.bin", lambda state, folder: _torch(state, folder, zipped=False)),
    "npz": ("npz", "m.npz", _npz),
    "GGUF": ("GGUF", "m.gguf", _gguf),
    "flax msgpack": ("flax msgpack", "m.msgpack", lambda state, folder: pack({"params": nested(state)})),
}
"""Name → format, file name, writer."""
