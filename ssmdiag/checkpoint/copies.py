"""Whether two files with the same tensor names are copies, or hold different parts of the tensors."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import TYPE_CHECKING

from ssmdiag.checkpoint.location import real_path

if TYPE_CHECKING:
    from torch import Tensor

    from ssmdiag.checkpoint.checkpoint import Container


def first_difference(a: Container, b: Container, names: Iterable[str]) -> str | None:
    """Return the name of a tensor that differs between two files in any bit; None where they are copies.

    Shapes and dtypes are compared before any values, small tensors before large ones.
    """
    if a.path and b.path and real_path(a.path) == real_path(b.path):
        return None
    waiting = sorted(names, key=lambda name: prod(a.shape(name)))
    for name in waiting:
        if (a.shape(name), a.dtype(name)) != (b.shape(name), b.dtype(name)):
            return name
    return next((name for name in waiting if not _bytes(a, name).equal(_bytes(b, name))), None)


def _bytes(container: Container, name: str) -> Tensor:
    import torch

    return container.load(name).contiguous().flatten().view(torch.uint8)
