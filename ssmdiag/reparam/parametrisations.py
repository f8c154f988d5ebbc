"""The torch parametrisations behind `reparameterize` and `freeze`.

A swapped weight is stored as v, and the model reads it as w = f⁻¹(g(v)). f is the map in the model's own code
and g the new map, so the rate f(w) is g(v). `right_inverse` turns w into v.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ssmdiag.checkpoint.live import Place, links_of
from ssmdiag.recurrence.maps import StableMap
from ssmdiag.reparam.weights import flatten_numbers, unflatten_numbers


class OnEntries(nn.Module):
    """A parametrisation of some numbers of a tensor, or of all."""

    entries: Tensor | None

    def __init__(self, entries: Tensor | None, order: tuple[str, ...]) -> None:
        super().__init__()
        self.register_buffer("entries", entries, persistent=False)
        self.order = order
        """Parameters of the module in their order before the swap; an optimizer's state dict depends on it."""

    def put(self, tensor: Tensor, numbers: Tensor) -> Tensor:
        """Return the tensor with its entries replaced."""
        if self.entries is not None:
            numbers = flatten_numbers(tensor).index_copy(0, self.entries, numbers)
        return unflatten_numbers(numbers, tensor)

    def take(self, tensor: Tensor) -> Tensor:
        """Return the numbers at the entries, on one axis."""
        flat = flatten_numbers(tensor)
        return flat if self.entries is None else flat[self.entries]


class MapSwap(OnEntries):
    """Stores v with g(v) = f(w) in place of w, and gives the model w."""

    def __init__(
        self, old: StableMap, new: StableMap, entries: Tensor | None, dtype: torch.dtype, order: tuple[str, ...]
    ) -> None:
        super().__init__(entries, order)
        self.old, self.new = old, new
        self.dtype = dtype
        """Dtype in the model; v is stored in float32 where this is narrower."""

    def forward(self, stored: Tensor) -> Tensor:
        weights = self.put(stored, to_old_weight(self.old, self.new, self.take(stored)))
        narrow = stored.dtype == torch.float32 and self.dtype.itemsize < 4
        return weights.to(self.dtype) if narrow else weights

    def right_inverse(self, weights: Tensor) -> Tensor:
        numbers = self.take(weights)
        return self.put(weights, self.new.inverse(self.old(numbers.double())).to(numbers.dtype))

    def extra_repr(self) -> str:
        return f"{self.old.name} → {self.new.name}"


class Hold(OnEntries):
    """Gives the model the values that the entries had when they were frozen, whatever happens to the stored ones.

    A gradient of zero would not suffice: weight decay and momentum still move the weight.
    """

    held: Tensor

    def __init__(self, entries: Tensor, held: Tensor, order: tuple[str, ...]) -> None:
        super().__init__(entries, order)
        self.register_buffer("held", held)

    def covers(self, entries: Tensor) -> bool:
        """Whether all of these are already frozen."""
        return self.entries is None or bool(torch.isin(entries, self.entries).all())

    def forward(self, stored: Tensor) -> Tensor:
        return self.put(stored, self.held.to(flatten_numbers(stored).dtype))

    def right_inverse(self, weights: Tensor) -> Tensor:
        return weights


def to_old_weight(old: StableMap, new: StableMap, stored: Tensor) -> Tensor:
    """Return w with f(w) = g(v), where g(v) = 0 as the limit of f⁻¹; NaN past the boundary if f stays above 0."""
    magnitude = new(stored)
    if old.linear:
        return old.inverse(magnitude)
    # f⁻¹ has infinite slope at 0; away from 0, relu's flat side has a gradient of 0 instead of NaN.
    inside = magnitude > 0
    weights = old.inverse(magnitude.where(inside, 1.0))
    limit = old.inverse(torch.zeros_like(magnitude))
    return weights.where(inside, limit.where(magnitude == 0, torch.nan))


def ours(module: nn.Module) -> Iterator[tuple[Place, list[OnEntries]]]:
    """Yield every tensor of a module that has parametrisations of this package, with these."""
    for part in module.modules():
        chains: Any = part.parametrizations if parametrize.is_parametrized(part) else {}
        for name in chains:
            links = [link for link in links_of((part, name)) if isinstance(link, OnEntries)]
            if links:
                yield (part, name), links


def order_of(part: nn.Module) -> tuple[str, ...]:
    """Return the parameters of a submodule in their order before any swap."""
    own = (links[0].order for (owner, _), links in ours(part) if owner is part)
    return next(own, tuple(part._parameters))
