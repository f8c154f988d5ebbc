"""safetensors: the header gives every name and shape; values are read by offset, on request.

The layout is public (https://github.com/huggingface/safetensors): eight bytes with the length of the header, the header
as JSON, {name: {"dtype", "shape", "data_offsets"}}, then the values, one tensor after another without gaps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

from ssmdiag.checkpoint.budget import parse_json, shortened, train_step
from ssmdiag.checkpoint.formats.interface import FirstLook, Format, Source, Tensor
from ssmdiag.checkpoint.formats.table import Entry, TensorTable, read_values
from ssmdiag.checkpoint.settings import flatten
from ssmdiag.errors import CheckpointError

_DTYPES = {
    "F64": ("float64", 64), "F32": ("float32", 32), "F16": ("float16", 16), "BF16": ("bfloat16", 16),
    "F8_E4M3": ("float8_e4m3fn", 8), "F8_E5M2": ("float8_e5m2", 8), "F8_E8M0": ("float8_e8m0fnu", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8), "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "F6_E2M3": ("f6_e2m3", 6), "F6_E3M2": ("f6_e3m2", 6), "F4": ("float4_e2m1fn_x2", 4), "C64": ("complex64", 64),
    "I64": ("int64", 64), "I32": ("int32", 32), "I16": ("int16", 16), "I8": ("int8", 8), "BOOL": ("bool", 8),
    "U64": ("uint64", 64), "U32": ("uint32", 32), "U16": ("uint16", 16), "U8": ("uint8", 8),
}  # fmt: skip
"""Code in the file → torch name, bits of a value."""
LONGEST_HEADER = 100_000_000
"""Most bytes of a header: the limit of the safetensors package."""
STEP_KEYS = ("train_step", "step", "global_step", "iteration")
"""Metadata keys that give the optimiser step."""


class _InvalidError(Exception):
    """The header does not describe tensors that fit the file."""


class SafetensorsFile(TensorTable):
    """One .safetensors file."""

    format = "safetensors"
    broken = (EOFError, OSError, RuntimeError, AttributeError, IndexError)

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        header, start = self._header()
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise self._invalid("its metadata is not text")
        self.entries = self._placed(header, start)
        self.settings = {k: v for key, text in metadata.items() for k, v in _settings(key, text).items()}
        steps = (train_step(self.settings.get(key)) for key in STEP_KEYS)
        self.train_step = next((step for step in steps if step is not None), None)

    def values(self, name: str) -> Tensor:
        entry = self.entries[name]
        if entry.dtype == "float4_e2m1fn_x2":  # two values a byte
            entry = replace(entry, shape=(*entry.shape[:-1], entry.shape[-1] // 2))
        return read_values(self.source, entry)

    def _header(self) -> tuple[dict[str, Any], int]:
        """Return the header and where the values start."""
        size = self.source.size
        length = int.from_bytes(self.source.read(0, min(size, 8)), "little")
        if not 2 <= length <= min(size - 8, LONGEST_HEADER):
            raise CheckpointError(
                f"{self.name} is torn or not a safetensors file: it has {size:,} bytes, "
                f"its first eight announce a header of {length:,}.",
                advice="download or save it again; compare the size with the source.",
            )
        try:
            text = self.source.read(8, length).decode()
            header = parse_json(text)
            if isinstance(header, dict) and text.count('"data_offsets"') != len(header) - ("__metadata__" in header):
                header = parse_json(text, object_pairs_hook=_without_repeats)
        except ValueError as error:
            raise CheckpointError(
                f"{self.name}: its safetensors header is not readable ({error}).",
                advice="download or save it again.",
            ) from error
        if not isinstance(header, dict):
            raise self._invalid("its header is not a table of tensors")
        return header, 8 + length

    def _placed(self, header: Mapping[str, Any], start: int) -> dict[str, Entry]:
        """Return the location of each tensor, names in alphabetical order."""
        entries: dict[str, Entry] = {}
        for name in sorted(header):
            try:
                entries[name] = _entry(header[name], start)
            except _InvalidError as error:
                raise self._invalid(f"tensor {shortened(name)}: {error}") from error
        end = max((sum(entry.pieces[0]) for entry in entries.values()), default=start)
        if end != self.source.size:
            raise CheckpointError(
                f"{self.name} is torn: {self.source.size:,} bytes, but its header describes {end:,}.",
                advice="the download or the save was cut short; get the file again.",
            )
        at = start
        for name, entry in sorted(entries.items(), key=lambda item: item[1].pieces):
            begin, length = entry.pieces[0]
            if begin != at:
                raise self._invalid(f"tensor {shortened(name)} does not begin where the one before it ends")
            at += length
        return entries

    def _invalid(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.name} is not a valid safetensors file ({why}).", advice="save it again.")


def _entry(entry: Any, start: int) -> Entry:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise _InvalidError("no dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in _DTYPES:
        raise _InvalidError(f"unknown dtype {shortened(repr(entry['dtype']))}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise _InvalidError("its shape or its offsets are not whole numbers")
    dtype, bits = _DTYPES[entry["dtype"]]
    if prod(size for size in shape if size) >= 2**63:
        raise _InvalidError("its shape has more values than any memory")
    length = offsets[1] - offsets[0]
    if prod(shape) * bits != 8 * length:
        raise _InvalidError(f"{prod(shape):,} values of {dtype} in {length:,} bytes")
    return Entry(tuple(shape), dtype, ((start + offsets[0], length),))


def _are_sizes(numbers: Any) -> bool:
    if not isinstance(numbers, list):
        return False
    for number in numbers:  # noqa: SIM110 – a third of the time, of hundreds of thousands
        if type(number) is not int or not 0 <= number < 2**63:
            return False
    return True


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name occurs in it twice")
    return content


def _settings(key: str, text: str) -> dict[str, Any]:
    """Return one entry of the metadata; parsed where it is a JSON object."""
    try:
        return flatten(parse_json(text), key) if text.lstrip().startswith("{") else flatten({key: text})
    except ValueError:
        return flatten({key: text})


def _recognises(look: FirstLook) -> bool:
    length = int.from_bytes(look.head[:8], "little")
    return look.head[8:9] == b"{" and length <= LONGEST_HEADER


FORMAT = Format(name="safetensors", recognises=_recognises, open=SafetensorsFile, suffixes=(".safetensors",))
