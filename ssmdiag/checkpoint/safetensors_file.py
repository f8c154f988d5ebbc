"""safetensors: the header gives every name and shape; values are mapped, not read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from ssmdiag.checkpoint.checkpoint import flatten
from ssmdiag.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2", "C64": "complex64",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "BOOL": "bool",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
}  # fmt: skip


STEP_KEYS = ("train_step", "step", "global_step", "iteration")
"""Metadata that gives the optimiser step."""


class SafetensorsFile:
    """One .safetensors file."""

    format = "safetensors"

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: Any = safe_open(str(path), framework="pt", device="cpu")
        except SafetensorError as error:
            raise _explain(path, error) from error
        self.notes: list[str] = []
        metadata = (self._file.metadata() or {}).items()
        self.settings: Mapping[str, Any] = {k: v for key, text in metadata for k, v in _settings(key, text).items()}
        step = next((self.settings[key] for key in STEP_KEYS if str(self.settings.get(key, "")).isdigit()), None)
        self.train_step = None if step is None else int(step)

    def names(self) -> list[str]:
        return list(self._file.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        code = self._file.get_slice(name).get_dtype()
        return _DTYPES.get(code, str(code).lower())

    def load(self, name: str) -> Tensor:
        try:
            return self._file.get_tensor(name)
        except (SafetensorError, RuntimeError, OSError) as error:
            raise CheckpointError(
                f"{self.path.name}: tensor {name} cannot be read ({error}).", advice="save or download the file again."
            ) from error


def _settings(key: str, text: str) -> dict[str, Any]:
    """Return one entry of the metadata, opened where it is a JSON object."""
    try:
        return flatten(json.loads(text), key) if text.lstrip().startswith("{") else {key: text}
    except ValueError:
        return {key: text}


def _explain(path: Path, error: SafetensorError) -> CheckpointError:
    """Say what is wrong with the file, by reading its header once more."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if 8 + length <= min(size, 100_000_000) else b""
    if not header:
        return CheckpointError(
            f"{path.name} is torn or not a safetensors file: it has {size:,} bytes, "
            f"its first eight announce a header of {length:,}.",
            advice="download or save it again; compare the size with the source.",
        )
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        needed = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return CheckpointError(
            f"{path.name}: its safetensors header is not readable ({error}).", advice="download or save it again."
        )
    if needed != size:
        return CheckpointError(
            f"{path.name} is torn: {size:,} bytes, but its header describes {needed:,}.",
            advice="the download or the save was cut short; get the file again.",
        )
    return CheckpointError(f"{path.name} is not a valid safetensors file ({error}).", advice="save it again.")
