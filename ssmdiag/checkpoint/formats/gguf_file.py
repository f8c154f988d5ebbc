"""GGUF, versions 2 and 3 (llama.cpp): metadata and tensor table at the front, values read when asked for.

The layout is public (ggml, docs/gguf.md): a header, key-value metadata, one entry per tensor with its
name, its sizes (fastest axis first, so reversed here), its type and its offset, then the values.
Tensors of quantised types have their type's name as dtype, such as `q4_k`, and cannot be loaded.
"""

from __future__ import annotations

import struct
from math import prod
from typing import Any

from ssmdiag.checkpoint.budget import shortened
from ssmdiag.checkpoint.dtypes import DTYPE_BITS
from ssmdiag.checkpoint.formats.interface import Format, Source, Tensor
from ssmdiag.checkpoint.formats.sequential import SequentialReader, TornError
from ssmdiag.checkpoint.formats.table import Entry, TensorTable
from ssmdiag.checkpoint.names import MOST_NAMES
from ssmdiag.checkpoint.settings import flatten
from ssmdiag.errors import CheckpointError

_TYPES = {
    0: "float32", 1: "float16", 24: "int8", 25: "int16", 26: "int32", 27: "int64", 28: "float64", 30: "bfloat16",
    2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 9: "q8_1", 10: "q2_k", 11: "q3_k", 12: "q4_k", 13: "q5_k",
    14: "q6_k", 15: "q8_k", 16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs", 19: "iq1_s", 20: "iq4_nl", 21: "iq3_s",
    22: "iq2_s", 23: "iq4_xs", 29: "iq1_m", 34: "tq1_0", 35: "tq2_0", 39: "mxfp4", 40: "nvfp4", 41: "q1_0",
}  # fmt: skip

_NUMBERS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
LONGEST_SETTING = 1024
"""Most elements of an array that is kept as a setting; vocabularies are skipped."""
MOST_AXES = 8
MADE_UP_CONTEXT = {"mamba.context_length": 2**20, "mamba2.context_length": 2**20}
"""The context length that the converter writes where the model's settings give none."""


class GgufFile(TensorTable):
    """One .gguf file."""

    format = "GGUF"
    again = "download or convert it again."

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        try:
            with source.open() as file:
                self.entries, settings = _Reader(file, source.size).read_all()
        except (TornError, EOFError, ValueError, struct.error, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"{source.name} is torn or not a GGUF file of version 2 or 3 ({error}).",
                expected="what llama.cpp's converters write, little-endian",
                advice="download or convert it again.",
            ) from error
        for key, value in MADE_UP_CONTEXT.items():
            if settings.get(key) == value:
                del settings[key]
                self.notes.append(f"{key} = {value:,} is the converter's value for models that give none; ignored")
        self.settings = flatten(settings)

    def values(self, name: str) -> Tensor:
        if (dtype := self.dtype(name)) not in DTYPE_BITS:
            raise CheckpointError(
                f"{self.name}: tensor {name} is quantised ({dtype}).",
                advice="give the file it was quantised from; ssmdiag does not undo quantisation.",
            )
        return super().values(name)


class _Reader(SequentialReader):
    where = "its header"

    def read_all(self) -> tuple[dict[str, Entry], dict[str, Any]]:
        """Return the tensor table and the metadata."""
        if self.read(4) != b"GGUF":
            raise TornError("it does not begin with GGUF")
        version = self.number("<I")
        if version not in (2, 3):
            raise TornError(f"version {version}, or written on a big-endian machine")
        tensors, pairs = self.number("<Q"), self.number("<Q")
        if tensors > MOST_NAMES:
            raise TornError(f"{tensors:,} tensors")
        settings: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._text()
            if (value := self._value(self.number("<I"))) is not None:
                settings[key] = value
        table = [self._tensor() for _ in range(tensors)]
        alignment = settings.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 2**20:
            raise TornError(f"an alignment of {alignment}")
        start = -(-self.at // alignment) * alignment
        entries: dict[str, Entry] = {}
        for name, shape, number, offset in table:
            dtype, count = _TYPES.get(number, f"ggml type {number}"), prod(shape)
            # No packed type puts more than eight values into a byte.
            width = count * DTYPE_BITS[dtype] // 8 if dtype in DTYPE_BITS else -(-count // 8)
            if any(size >= 2**63 for size in shape) or prod(size for size in shape if size) >= 2**63:
                raise TornError(f"{shortened(name)} has an impossible shape")
            if name in entries:
                raise TornError(f"two tensors are called {shortened(name)}")
            if width and start + offset + width > self.end:
                raise TornError(f"it ends before the values of {shortened(name)}")
            entries[name] = Entry(shape, dtype, ((start + offset, width),))
        return entries, settings

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, axes = self._text(), self.number("<I")
        if axes > MOST_AXES:
            raise TornError(f"{shortened(name)} has {axes:,} axes")
        shape = tuple(reversed([self.number("<Q") for _ in range(axes)]))
        return name, shape, self.number("<I"), self.number("<Q")

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY or depth > 3:
            raise TornError(f"metadata of type {kind}")
        inner, length = self.number("<I"), self.number("<Q")
        if inner in _NUMBERS:
            size = length * struct.calcsize(_NUMBERS[inner])
            if length > LONGEST_SETTING:
                return self.skip(size)
            return list(struct.unpack(f"<{length}{_NUMBERS[inner][1:]}", self.read(size)))
        if length > self.end - self.at:  # every element takes a byte or more
            raise TornError(f"an array of {length:,} elements")
        if inner == _STRING and length > LONGEST_SETTING:
            for _ in range(length):
                self.skip(self.number("<Q"))
            return None
        items = [self._value(inner, depth + 1) for _ in range(length)]
        return items if length <= LONGEST_SETTING else None

    def _text(self) -> str:
        return self.read(self.number("<Q")).decode("utf-8", errors="replace")


FORMAT = Format(name="GGUF", recognises=lambda look: look.head.startswith(b"GGUF"), open=GgufFile, suffixes=(".gguf",))
