"""A file that begins with, or amounts to, a table of its tensors: what every format of that kind has in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ssmdiag.checkpoint.budget import shortened
from ssmdiag.checkpoint.formats.interface import Source, Tensor
from ssmdiag.errors import CheckpointError


@dataclass(slots=True)
class Entry:
    """One tensor of a table."""

    shape: tuple[int, ...]
    dtype: str
    """Its torch name, or that of a type that torch lacks."""
    pieces: tuple[tuple[int, int], ...] = ()
    """Start in the file and number of bytes of each piece, one after the other, in C order."""


class TensorTable:
    """A container with a table of its tensors; a format fills in `entries`, and `settings` and `notes` where it can."""

    format = ""
    train_step: int | None = None
    called = "tensor"
    """What the format calls a tensor."""
    again = "save or download the file again."
    """What to do where one cannot be read."""
    broken: tuple[type[Exception], ...] = (EOFError, OSError)
    """Exceptions that reading a damaged file can raise."""

    def __init__(self, source: Source) -> None:
        self.source, self.name, self.path = source, source.name, source.path
        self.notes: list[str] = []
        self.settings: Mapping[str, Any] = {}
        self.entries: dict[str, Any] = {}
        """By name: an `Entry`, or another record with a shape and a dtype."""

    def names(self) -> list[str]:
        return list(self.entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.entries[name].shape

    def dtype(self, name: str) -> str:
        return self.entries[name].dtype

    def load(self, name: str) -> Tensor:
        try:
            return self.values(name)
        except self.broken as error:
            raise CheckpointError(
                f"{self.name}: {self.called} {name} cannot be read ({shortened(str(error), 200)}).", advice=self.again
            ) from error

    def prefetch(self, names: Iterable[str]) -> None:
        self.source.prefetch(piece for name in names for piece in self.pieces(name))

    def pieces(self, name: str) -> Iterable[tuple[int, int]]:
        """Return where the values of a tensor are in the file, as start and length; nothing where that is not known."""
        return getattr(self.entries[name], "pieces", ())

    def values(self, name: str) -> Tensor:
        """Read one tensor; raises the exceptions in `broken`."""
        return read_values(self.source, self.entries[name])


def read_values(source: Source, entry: Entry) -> Tensor:
    """Return the values at an entry's pieces."""
    import torch

    dtype = getattr(torch, entry.dtype)
    if not (pieces := [piece for piece in entry.pieces if piece[1]]):
        return torch.empty(entry.shape, dtype=dtype)
    content = source.read(*pieces[0])
    for piece in pieces[1:]:
        content += source.read(*piece)
    return torch.frombuffer(content, dtype=dtype).reshape(entry.shape)
