"""A .safetensors or .npz file of float32 tensors, written one by one, so that it may be larger than memory."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

import numpy as np

from ssmdiag.errors import SsmdiagError
from ssmdiag.output.temporaries import replacing
from ssmdiag.output.writer import Target

if TYPE_CHECKING:
    from torch import Tensor

ALIGNMENT = 8
"""The header of a .safetensors file is padded to a multiple of this many bytes."""


class Archive(Protocol):
    """A file that tensors are added to; the metadata come last."""

    def add(self, name: str, shape: Sequence[int], parts: Iterable[Tensor]) -> None:
        """Write one tensor, given as consecutive parts of its memory."""

    def describe(self, metadata: Mapping[str, str]) -> None:
        """Write the metadata."""


@contextmanager
def create_archive(output: Path) -> Iterator[Archive]:
    """Yield the archive of a new file, which appears complete at the end or not at all.

    Raises SsmdiagError where the file exists, has another ending or cannot be written.
    """
    if output.suffix not in FORMATS:
        raise SsmdiagError(f"--output {output}: unknown ending.", expected=f"one of {', '.join(FORMATS)}")
    if output.exists():
        raise SsmdiagError(f"--output {output}: exists already.", advice="remove it, or choose another name.")
    target = Target(output)
    target.require_writable()
    with (
        target.sentences("nothing is left of it"),
        replacing(output) as temporary,
        temporary.open("wb") as file,
        FORMATS[output.suffix](file, temporary.parent) as archive,
    ):
        yield archive


class _Npz(zipfile.ZipFile):
    def add(self, name: str, shape: Sequence[int], parts: Iterable[Tensor]) -> None:
        with self.open(f"{_unicode(name)}.npy", "w", force_zip64=True) as entry:
            header = {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}
            np.lib.format.write_array_header_1_0(entry, header)
            _write(entry, parts)

    def describe(self, metadata: Mapping[str, str]) -> None:
        with self.open("metadata.npy", "w") as entry:
            np.lib.format.write_array(entry, np.array(json.dumps(metadata)), allow_pickle=False)


class _Safetensors:
    """The header precedes the values and lists all of them, so the values wait in an unnamed file."""

    def __init__(self, file: IO[bytes], values: IO[bytes]) -> None:
        self.file, self.values = file, values
        self.header: dict[str, object] = {}

    def add(self, name: str, shape: Sequence[int], parts: Iterable[Tensor]) -> None:
        start = self.values.tell()
        _write(self.values, parts)
        self.header[_unicode(name)] = {
            "dtype": "F32",
            "shape": list(shape),
            "data_offsets": [start, self.values.tell()],
        }

    def describe(self, metadata: Mapping[str, str]) -> None:
        plain = {key: _unicode(value) for key, value in metadata.items()}
        header = json.dumps({"__metadata__": plain, **self.header}, ensure_ascii=False).encode()
        header += b" " * (-len(header) % ALIGNMENT)
        self.file.write(len(header).to_bytes(8, "little") + header)
        self.values.seek(0)
        shutil.copyfileobj(self.values, self.file, 2**22)


@contextmanager
def _safetensors(file: IO[bytes], directory: Path) -> Iterator[Archive]:
    with tempfile.TemporaryFile(dir=directory) as values:
        yield _Safetensors(file, values)


FORMATS: dict[str, Callable[[IO[bytes], Path], AbstractContextManager[Archive]]] = {
    ".safetensors": _safetensors,
    ".npz": lambda file, directory: _Npz(file, "w"),
}


def _unicode(text: str) -> str:
    """Return text that UTF-8 can encode: a lone surrogate, from a name in JSON or of a file, becomes `\\ud800`."""
    return text.encode(errors="backslashreplace").decode()


def _write(file: IO[bytes], parts: Iterable[Tensor]) -> None:
    for part in parts:
        file.write(part.numpy().astype("<f4", copy=False).data)
