"""Tensors of which several files hold pieces, put together when they are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from ssmdiag.checkpoint.budget import shortened
from ssmdiag.checkpoint.checkpoint import Container
from ssmdiag.checkpoint.location import Location
from ssmdiag.errors import CheckpointError, PartialModelError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """A block of a tensor: rows of a tensor in one file."""

    container: Container
    name: str
    """Of the tensor in that file."""
    offsets: tuple[int, ...]
    """Where the block begins in the whole."""
    sizes: tuple[int, ...]
    first_row: int = 0
    """Where it begins in the tensor of the file."""

    def load(self) -> Tensor:
        values = self.container.load(self.name)
        return values.narrow(0, self.first_row, self.sizes[0]) if self.sizes else values


class Assembled:
    """A container of tensors in pieces. Raises PartialModelError where the pieces of one leave a gap.

    The shape of a tensor is where its last pieces end, so that a file absent at the end goes unnoticed.
    """

    def __init__(
        self, folder: Location, format: str, pieces: Mapping[str, Sequence[Piece]], settings: Mapping[str, Any]
    ) -> None:
        self.name, self.format = folder.name, format
        self.path: Location | None = folder
        self.notes: list[str] = []
        self.settings = settings
        self.train_step: int | None = None
        self._pieces = pieces
        self._shapes = {name: self._shape(name) for name in pieces}

    def names(self) -> list[str]:
        return list(self._pieces)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> str:
        piece = self._pieces[name][0]
        return piece.container.dtype(piece.name)

    def prefetch(self, names: Iterable[str]) -> None:
        wanted: dict[Container, list[str]] = {}
        for piece in (piece for name in names for piece in self._pieces[name]):
            wanted.setdefault(piece.container, []).append(piece.name)
        for container, held in wanted.items():
            container.prefetch(held)

    def load(self, name: str) -> Tensor:
        import torch

        shape, pieces = self._shapes[name], self._pieces[name]
        if len(pieces) == 1:
            return pieces[0].load()
        whole = torch.empty(shape, dtype=getattr(torch, self.dtype(name)))
        filled = torch.zeros(shape, dtype=torch.bool)
        for piece in pieces:
            block = tuple(slice(at, at + size) for at, size in zip(piece.offsets, piece.sizes, strict=True))
            if filled[block].any():
                raise CheckpointError(
                    f"{self.name}: two files hold the values of {shortened(name)} at {list(piece.offsets)}.",
                    expected="each value once",
                    advice="move files of another model away.",
                )
            whole[block] = piece.load()
            filled[block] = True
        return whole

    def _shape(self, name: str) -> tuple[int, ...]:
        pieces = self._pieces[name]
        axes = {len(piece.sizes) for piece in pieces}
        types = {piece.container.dtype(piece.name) for piece in pieces}
        if len(axes) > 1 or len(types) > 1:
            raise CheckpointError(f"{self.name}: the pieces of {shortened(name)} differ in type or number of axes.")
        ends = [[at + size for at, size in zip(p.offsets, p.sizes, strict=True)] for p in pieces if prod(p.sizes)]
        shape = tuple(map(max, zip(*ends, strict=True))) if ends else pieces[0].sizes
        held = sum(prod(piece.sizes) for piece in pieces)
        if held != prod(shape):
            raise PartialModelError(
                f"{self.name}: the files hold {held:,} of the {prod(shape):,} values of {shortened(name)}.",
                expected="the files of all ranks",
                advice="copy or download the missing files.",
            )
        return shape
