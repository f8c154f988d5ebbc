"""NumPy .npz: one zip member per array. Headers are read at once, values on request."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib import format as npy

from ssmdiag.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


class NpzFile:
    """One .npz file, opened without pickle support."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        self._headers: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        try:
            self._zip = zipfile.ZipFile(path)
            for member in self._zip.namelist():
                if member.endswith(".npy"):
                    self._read_header(member)
        except (zipfile.BadZipFile, zlib.error, ValueError, EOFError) as error:
            raise CheckpointError(
                f"{path.name} is a broken .npz file ({error}).", advice="save or download it again."
            ) from error
        if any(_is_bfloat16(dtype) for _, dtype in self._headers.values()):
            self.notes.append("two-byte arrays without a NumPy type are read as bfloat16, as JAX writes them")

    def names(self) -> list[str]:
        return list(self._headers)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._headers[name][0]

    def dtype(self, name: str) -> str:
        dtype = self._headers[name][1]
        return "bfloat16" if _is_bfloat16(dtype) else dtype.name

    def load(self, name: str) -> Tensor:
        import torch

        try:
            with self._zip.open(name + ".npy") as file:
                array = npy.read_array(file, allow_pickle=False)
        except (zipfile.BadZipFile, zlib.error, ValueError, EOFError) as error:
            raise CheckpointError(
                f"{self.path.name}: array {name} cannot be read ({error}).", advice="save or download the file again."
            ) from error
        if _is_bfloat16(array.dtype):
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))))

    def _read_header(self, member: str) -> None:
        with self._zip.open(member) as file:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read(file)
        if dtype.hasobject:
            self.notes.append(f"array {member[:-4]} holds Python objects and was not read")
        elif dtype.kind in "fciub" or _is_bfloat16(dtype):
            self._headers[member[:-4]] = (tuple(shape), dtype)


def _is_bfloat16(dtype: np.dtype) -> bool:
    return dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None
