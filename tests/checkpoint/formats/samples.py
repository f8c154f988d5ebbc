"""One file of each format, as its own package writes it or, of flax and torch.export, written by hand in its layout."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
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


def module(state: Mapping[str, Tensor]) -> torch.nn.Module:
    """Return a module with a state dict."""
    top = Unchanged()
    for name, value in state.items():
        *path, last = name.split(".")
        inner: torch.nn.Module = top
        for element in path:
            if not hasattr(inner, element):
                inner.add_module(element, torch.nn.Module())
            inner = inner.get_submodule(element)
        inner.register_buffer(last, value)
    return top


class Unchanged(torch.nn.Module):
    """Returns what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def torchscript(model: torch.nn.Module) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # it is read as long as it is met
        torch.jit.save(torch.jit.script(model), file)
    return file.getvalue()


SCALAR_TYPES = {"float32": 7, "float64": 8, "float16": 6, "int32": 4}


def exported(state: Mapping[str, Tensor]) -> bytes:
    """Return a torch.export archive without its graph."""
    file = io.BytesIO()
    config = {}
    with zipfile.ZipFile(file, "w") as archive:
        for number, (name, value) in enumerate(state.items()):
            archive.writestr(f"m/data/weights/weight_{number}", value.numpy().tobytes())
            config[name] = {
                "path_name": f"weight_{number}",
                "use_pickle": False,
                "tensor_meta": {
                    "dtype": SCALAR_TYPES[str(value.dtype)[6:]],
                    "sizes": [{"as_int": size} for size in value.shape],
                    "strides": [{"as_int": step} for step in value.stride()],
                    "storage_offset": {"as_int": 0},
                    "layout": 7,
                },
            }
        archive.writestr("m/data/weights/model_weights_config.json", json.dumps({"config": config}))
        archive.writestr("m/byteorder", "little")
    return file.getvalue()


SAMPLES: Mapping[str, tuple[str, str, Write]] = {
    "safetensors": ("safetensors", "m.safetensors", lambda state, folder: save(dict(state))),
    "torch zip": ("torch file", "m.pt", _torch),
    "torch pickles": ("torch file", "m.bin", lambda state, folder: _torch(state, folder, zipped=False)),
    "TorchScript": ("torch file", "m.jit.pt", lambda state, folder: torchscript(module(state))),
    "torch.export": ("torch export", "m.pt2", lambda state, folder: exported(state)),
    "npz": ("npz", "m.npz", _npz),
    "GGUF": ("GGUF", "m.gguf", _gguf),
    "flax msgpack": ("flax msgpack", "m.msgpack", lambda state, folder: pack({"params": nested(state)})),
}
"""Name → format, file name, writer."""
