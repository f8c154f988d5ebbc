"""NumPy .npz: one zip member per array. Headers are read at once, values on request."""

from __future__ import annotations

import io
import re
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

from ssmdiag.checkpoint.budget import Allowance, shortened
from ssmdiag.checkpoint.formats.interface import FirstLook, Format, Refusal, Source, Tensor
from ssmdiag.checkpoint.formats.table import Entry, TensorTable
from ssmdiag.checkpoint.formats.zip_file import PICKLES, beginning_of, extents_of, member_names, open_zip
from ssmdiag.errors import CheckpointError
from ssmdiag.printable import first_of

if TYPE_CHECKING:
    import numpy as np

BROKEN = (
    zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, ValueError, TypeError, SyntaxError, EOFError,
    NotImplementedError, RuntimeError, MemoryError, OverflowError, OSError,
)  # fmt: skip
"""Exceptions that reading a damaged or forged file can raise, those of NumPy's header parser included."""
LONGEST_HEADER = 10_000
"""Most bytes of an array's header: NumPy's own limit."""
FIRST_BYTES = LONGEST_HEADER + 2048
"""What is fetched of each array first: its header, and what zip puts before it."""
MOST_DESCRIBED = 2_000_000
"""Most characters of headers that are passed to NumPy, which takes a second for a million of a structured dtype."""
_WIDEST = {"float128": "float64", "longdouble": "float64", "complex256": "complex128", "clongdouble": "complex128"}
"""Extended precision, which torch lacks; read in double."""


class NpzFile(TensorTable):
    """One .npz file, opened without pickle support."""

    format = "npz"
    called = "array"
    broken = BROKEN

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._slow = Allowance(MOST_DESCRIBED)
        skipped: dict[str, list[str]] = {}
        try:
            self._zip = open_zip(source)
            source.prefetch((at, min(length, FIRST_BYTES)) for at, length in self._each_extent())
            for member in self._zip.infolist():
                if member.filename.endswith(".npy"):
                    self._read_header(member, skipped)
        except BROKEN as error:
            raise CheckpointError(
                f"{source.name} is a broken .npz file ({shortened(str(error) or type(error).__name__, 200)}).",
                advice="save or download it again.",
            ) from error
        if any(entry.dtype == "bfloat16" for entry in self.entries.values()):
            self.notes.append("two-byte arrays without a NumPy type are read as bfloat16, as JAX writes them")
        for kind, names in skipped.items():
            self.notes.append(f"{len(names):,} array{'s' * (len(names) > 1)} of {kind} not read: {first_of(names)}")

    def values(self, name: str) -> Tensor:
        import numpy as np
        import torch
        from numpy.lib import format as npy

        with self._zip.open(name + ".npy") as file:
            array = npy.read_array(file, allow_pickle=False)
        if _is_bfloat16(array.dtype):
            return torch.from_numpy(np.array(array, order="C").view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(np.array(array, dtype=self.dtype(name), order="C"))

    def pieces(self, name: str) -> Iterable[tuple[int, int]]:
        return [self._extents[name + ".npy"]]

    @cached_property
    def _extents(self) -> dict[str, tuple[int, int]]:
        return extents_of(self._zip)

    def _each_extent(self) -> Iterator[tuple[int, int]]:
        yield from self._extents.values()

    def _read_header(self, member: zipfile.ZipInfo, skipped: dict[str, list[str]]) -> None:
        from numpy.lib import format as npy

        content = beginning_of(self._zip, member, LONGEST_HEADER)
        if not content.startswith(b"\x93NUMPY") or len(content) < npy.MAGIC_LEN + 4:
            raise ValueError(f"{member.filename} is not an array")
        width = "<H" if content[len(npy.MAGIC_PREFIX)] == 1 else "<I"
        begin = npy.MAGIC_LEN + struct.calcsize(width)
        start = begin + struct.unpack_from(width, content, npy.MAGIC_LEN)[0]
        if start > len(content):
            raise ValueError(f"the header of an array announces {start:,} bytes")
        shape, dtype = _parsed(content[begin:start], content[npy.MAGIC_LEN : begin], self._slow)
        name = member.filename.removesuffix(".npy")
        if dtype.hasobject:
            skipped.setdefault("Python objects", []).append(name)
        elif dtype.kind not in "fciub" and not _is_bfloat16(dtype):
            kind = "text" if dtype.kind in "US" else "structures" if dtype.names else f"type {dtype}"
            skipped.setdefault(kind, []).append(name)
        elif any(size < 0 for size in shape) or prod(size for size in shape if size) > 2**60:
            raise ValueError(f"array {name} has an impossible shape")
        elif start + prod(shape) * dtype.itemsize > member.file_size:
            raise ValueError(f"array {name} announces more values than it holds")
        else:
            known = "bfloat16" if _is_bfloat16(dtype) else _WIDEST.get(dtype.name, dtype.name)
            self.entries[name] = Entry(shape, known)


def _parsed(text: bytes, length: bytes, slow: Allowance) -> tuple[tuple[int, ...], np.dtype]:
    """Return shape and dtype from an array's header; `length` is the struct format of the header's own length.

    `slow` is the number of characters that may still be passed to NumPy's own parser.
    """
    import numpy as np
    from numpy.lib import format as npy

    if usual := _USUAL.fullmatch(text):
        return tuple(int(size) for size in usual[2].split(b",") if size.strip()), np.dtype(usual[1].decode())
    if not slow.take(len(text)):
        raise ValueError(f"more than {MOST_DESCRIBED:,} characters of headers describe structures or text")
    read = npy.read_array_header_1_0 if len(length) == 2 else npy.read_array_header_2_0
    with warnings.catch_warnings(action="ignore"):  # headers of Python 2
        shape, _, dtype = read(io.BytesIO(length + text))
    return tuple(shape), dtype


_USUAL = re.compile(
    rb"\{'descr': '([<>|=]?[fciub]\d{1,2})', 'fortran_order': (?:True|False), "
    rb"'shape': \(((?:\d{1,18}(?:, \d{1,18}){0,31},?)?)\), \}[ \n]*"
)
"""The header that numpy.save writes for an array of numbers; NumPy's own parser takes ten times as long."""


def _is_bfloat16(dtype: np.dtype) -> bool:
    return dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None and dtype.subdtype is None


def _recognises(look: FirstLook) -> bool:
    names = look.once(member_names)
    return any(name.endswith(".npy") for name in names) and not any(name.endswith(PICKLES) for name in names)


FORMAT = Format(
    name="npz",
    recognises=_recognises,
    open=NpzFile,
    suffixes=(".npz",),
    refusals=(
        Refusal(
            "an Equinox file, which has the values of arrays but not their names",
            "where the model's code is: model = equinox.tree_deserialise_leaves(PATH, like); numpy.savez('model.npz', "
            "**dict((jax.tree_util.keystr(path), x) for path, x in jax.tree_util.tree_leaves_with_path(equinox.filter("
            "model, equinox.is_array)))).",
            name=r"\.eqx$",
        ),
        Refusal(
            "a single NumPy array, which ssmdiag does not read",
            "numpy.savez('model.npz', name=array, …) keeps the names.",
            magic=(b"\x93NUMPY",),
        ),
    ),
)
