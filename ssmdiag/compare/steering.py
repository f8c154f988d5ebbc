"""The tensors through which the input steers two layers, one by one → `SteeringComparison`.

A selective layer's nominal decay is read at the bias of its gates: projections that were zeroed, shuffled or never
merged do not change it. Each family names its tensors by role (`Family.steering`), so that they can be compared
between spellings that fuse, split or transpose them. Packed ones are compared byte by byte, MLX's also by
value as far as their rounding shows, others not at all. Where tensors cannot be compared, only the nominal point is
known to be the same: "Not proven". Channels of Mamba-1 that moved as a whole are followed into their order; heads of
other families are not, which is "Not proven" as well.

One tensor of each side is in memory at a time, in its stored type; rows are widened to float64 block by block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from filecmp import cmp
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssmdiag.checkpoint import StoredTensor
from ssmdiag.checkpoint.dtypes import is_number
from ssmdiag.checkpoint.location import Location
from ssmdiag.errors import SsmdiagError
from ssmdiag.families.interface import Steering
from ssmdiag.families.layer import Layer
from ssmdiag.families.mlx_packed import unpack
from ssmdiag.families.packed import packed_with
from ssmdiag.guard import guard

EQUAL = 1e-5
"""Relative tolerance of a weight where both sides store the same type and nothing was rounded."""
ROUNDING = {"float64": EQUAL, "float32": EQUAL, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""The same where the coarser side stores this type and the other another type: a unit in its last place."""
PACKED_AS = "bfloat16"
"""Type by whose rounding unpacked weights are compared, beyond what their packing explains."""
COARSEST = 0.25
"""The same for types of 8 bits and fewer."""
SMALLEST = {"float16": 2.0**-24, "float8_e4m3fn": 2.0**-9, "float8_e5m2": 2.0**-16}
"""Absolute rounding of types whose smallest numbers are as large as usual weights."""
FLOOR = 2.0**-10
"""A weight counts as at least this share of the largest in its row: smaller ones have no effect beside it."""
BLOCK = 2**20
"""Weights widened to float64 at a time."""


@dataclass(frozen=True)
class SteeringDifference:
    """Where the tensors of one role differ most."""

    role: str
    a: str
    """Full name in the first checkpoint."""
    b: str
    value: float
    """Relative to the larger of the two weights; infinite where a weight is not finite or the shapes differ."""
    tolerance: float
    at: tuple[int, ...]
    """Row and column among the rows of this role; empty where there is no one place."""
    weights: tuple[float, float] | None
    """The two weights there."""
    note: str = ""
    """Why there are no weights."""

    @property
    def within(self) -> bool:
        return self.value <= self.tolerance


@dataclass(frozen=True)
class SteeringComparison:
    """All that steers one layer, in two checkpoints."""

    compared: tuple[SteeringDifference, ...]
    """One for each role that both sides have, the largest difference in tolerances first."""
    unseen: tuple[str, ...]
    """Sentences on what could not be compared."""

    @property
    def differing(self) -> tuple[SteeringDifference, ...]:
        return tuple(one for one in self.compared if not one.within)


_DOUBT = "±"
"""Key, beside that of a packed tensor, of how far each of its values may be off."""


@dataclass(frozen=True, eq=False)
class _Found:
    """A tensor that steers a layer, in one checkpoint."""

    layer: Layer
    steering: Steering
    stored: StoredTensor
    packed: tuple[StoredTensor, ...]
    """What else it consists of, where it is packed."""
    cache: dict[str, Tensor] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        return not self.packed and _is_real(self.stored.dtype)

    def local(self, stored: StoredTensor) -> str:
        return stored.name.removeprefix(f"{self.layer.path}.")

    @property
    def readable(self) -> bool:
        """Whether its values are known, if only to within the rounding of a packed type."""
        if not self.plain and self.stored.name not in self.cache:
            if (unpacked := unpack(self.layer, self.stored, self.packed)) is None:
                return False
            self.cache.clear()
            self.cache[self.stored.name], self.cache[_DOUBT] = unpacked
        return True

    @property
    def whole(self) -> Tensor:
        """The whole tensor, in the stored type where it is not packed."""
        if self.stored.name not in self.cache:  # fused tensors have several roles, one after the other
            self.cache.clear()
            self.cache[self.stored.name] = self.stored.load().to(self.layer.device)
        return self.cache[self.stored.name]

    def values(self) -> Tensor | None:
        """Return the rows of its role in the stored type; None where the layout is not known."""
        return self._laid_out(self.whole)

    def doubt(self) -> Tensor | None:
        """Return how far each of these values may be from what was packed; None where it was not packed."""
        return self._laid_out(self.cache[_DOUBT]) if _DOUBT in self.cache else None

    def _laid_out(self, whole: Tensor) -> Tensor | None:
        if self.steering.layout is None:
            return whole
        with guard(self.layer.path, f"finding the {self.steering.role} in {self.local(self.stored)}"):
            return self.steering.layout(whole, self.layer)


def compare_steering(
    a: Layer, b: Layer, tolerance: float | None = None, order: Tensor | None = None
) -> SteeringComparison | None:
    """Return how what steers two layers differs; None where nothing does.

    `tolerance` is of a weight, relative to it; by default what rounding to the stored types explains (`ROUNDING`).
    `order` is the channel of `b` for each of `a`, where the order differs: it is applied where families name the axis
    that runs over channels (`Steering.channels`).
    """
    selective = "nominal" in (a.family.memory, b.family.memory)
    if a.family.steering is None or b.family.steering is None:
        return _compare_modules(a, b, tolerance) if selective else None
    compared: list[SteeringDifference] = []
    unseen: list[str] = []
    first, second = _by_role(a), _by_role(b)
    for role in dict.fromkeys((*first, *second)):
        one, other = first.get(role), second.get(role)
        if isinstance(one, _Found) and isinstance(other, _Found):
            found = _compare(one, other, role, tolerance, order)
            (unseen if isinstance(found, str) else compared).append(found)  # type: ignore[arg-type]
        elif selective:
            unseen += _lone(one, other)
    compared.sort(key=lambda d: -d.value / d.tolerance if d.tolerance else -d.value)
    if unseen and _same_files(a, b):
        unseen = []
    return SteeringComparison(tuple(compared), tuple(dict.fromkeys(unseen)))


def _same_files(a: Layer, b: Layer) -> bool:
    """Whether two layers of one name are in files that are equal to the last byte: a copy needs no other proof."""
    names = a.checkpoint.below(a.path)
    if a.path != b.path or names != b.checkpoint.below(b.path):
        return False
    pairs = {(a.checkpoint[name].container.path, b.checkpoint[name].container.path) for name in names}
    return all(_is_copy(one, other) for one, other in pairs)


def _is_copy(one: Location | None, other: Location | None) -> bool:
    if isinstance(one, Path) and isinstance(other, Path):
        return cmp(one, other, shallow=False)
    return one is not None and one == other


def _by_role(layer: Layer) -> dict[str, _Found | str]:
    """Return the tensor of each role, or the name of one that should be there and is not."""
    assert layer.family.steering is not None
    found: dict[str, _Found | str] = {}
    cache: dict[str, Tensor] = {}
    for steering in layer.family.steering(layer):
        if isinstance(found.get(steering.role), _Found):
            continue
        stored = layer.beside(steering.tensor)
        packed = packed_with(layer, steering.tensor)
        if stored is not None or packed:
            found[steering.role] = _Found(layer, steering, stored or packed[0], packed, cache)
        elif steering.needed:
            found.setdefault(steering.role, steering.tensor)
    return found


def _is_real(dtype: str) -> bool:
    return is_number(dtype) and not dtype.startswith("complex")


def _compare(
    a: _Found, b: _Found, role: str, tolerance: float | None, order: Tensor | None
) -> SteeringDifference | str:
    """Return the difference of one role, or a sentence on why there is none."""
    try:
        if not (a.plain and b.plain):
            alike = _compare_packed(a, b, role)
            if isinstance(alike, SteeringDifference) or not (a.readable and b.readable):
                return alike
        first, second = a.values(), b.values()
    except SsmdiagError as error:
        return error.sentence
    if (first is None) != (second is None) or (first is None and a.steering.tensor != b.steering.tensor):
        side = a if first is None else b
        return (
            f"{side.local(side.stored)} packs several roles, and no setting says in which order: its parts were not "
            "compared"
        )
    if first is None or second is None:
        first, second = a.whole, b.whole
    # A layout that multiplies returns float64: the other side stores the product rounded.
    rounded = first.dtype != second.dtype
    types = [side.stored.dtype if side.plain else PACKED_AS for side in (a, b)]
    allowed = rounding(*types, rounded=rounded) if tolerance is None else tolerance
    if a.steering.tensor == b.steering.tensor and a.whole.numel() != b.whole.numel():
        return _of_other_shapes(role, (a.stored, b.stored), allowed, tuple(a.whole.shape), tuple(b.whole.shape))
    axis = b.steering.channels
    if order is not None and axis is not None and axis < second.ndim and second.shape[axis] == len(order):
        second = second.index_select(axis, order)
    if a.plain and b.plain:
        return compare_weights(first, second, role, (a.stored, b.stored), allowed)
    doubts = [side.doubt() for side in (a, b)]
    if doubts[1] is not None and order is not None and axis is not None and len(order) == doubts[1].shape[axis]:
        doubts[1] = doubts[1].index_select(axis, order)
    doubt = sum(one.abs() for one in doubts if one is not None and one.shape == first.shape)
    found = compare_weights(first, second, role, (a.stored, b.stored), allowed, doubt)
    side = b if a.plain else a
    closer = (
        f"{side.local(side.stored)} is packed: unpacked it agrees to within its rounding, which hides smaller changes"
    )
    return closer if found.within else found


def _compare_packed(a: _Found, b: _Found, role: str) -> SteeringDifference | str:
    parts = [{side.local(t): t for t in (side.stored, *side.packed)} for side in (a, b)]
    if parts[0].keys() == parts[1].keys() and all(same_bytes(t, parts[1][name]) for name, t in parts[0].items()):
        return SteeringDifference(role, a.stored.name, b.stored.name, 0.0, 0.0, (), None)
    side = b if a.plain else a
    beside = next((t for t in side.packed if t is not side.stored), None)
    how = f"has {side.local(beside)} beside it" if beside else f"is {side.stored.dtype}"
    return f"{side.local(side.stored)} {how}: packed, quantised or adapted, it was not compared"


def same_bytes(a: StoredTensor, b: StoredTensor) -> bool:
    """Whether two tensors are stored alike to the last byte."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    try:
        first, second = a.load(), b.load()
    except SsmdiagError:  # types that are named but not loaded, such as those of GGUF
        return False
    return _equal(first, second)


def _equal(first: Tensor, second: Tensor) -> bool:
    if first.dtype.itemsize == 1:  # of types of 8 bits torch compares integers alone
        first, second = first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8)
    return torch.equal(first, second)


def _lone(one: _Found | str | None, other: _Found | str | None) -> Iterator[str]:
    """Yield why a role missing on one side was not compared; a bias of zeros counts as missing."""
    for found, place in ((one, "first"), (other, "second")):
        if isinstance(found, str):
            yield f"the {place} has no {found}"
        elif found is not None and not isinstance(other if found is one else one, str):
            if found.plain and found.stored.name.endswith("bias") and not bool(found.stored.load().any()):
                continue
            yield f"only the {place} has {found.local(found.stored)}"


def _compare_modules(a: Layer, b: Layer, tolerance: float | None) -> SteeringComparison:
    """Return how all tensors of two modules differ, where no family says which of them steer the decay."""
    sides = [
        {name.removeprefix(f"{x.path}."): x.checkpoint[name] for name in x.checkpoint.below(x.path)} for x in (a, b)
    ]
    compared: list[SteeringDifference] = []
    unseen: list[str] = []
    for local in sides[0].keys() & sides[1].keys():
        first, second = sides[0][local], sides[1][local]
        if same_bytes(first, second):
            compared.append(SteeringDifference(local, first.name, second.name, 0.0, 0.0, (), None))
        elif _is_real(first.dtype) and _is_real(second.dtype):
            allowed = rounding(first.dtype, second.dtype) if tolerance is None else tolerance
            pair = [stored.load().to(layer.device) for stored, layer in ((first, a), (second, b))]
            compared.append(compare_weights(pair[0], pair[1], local, (first, second), allowed))
        else:
            unseen.append(f"{local.lstrip('.')} is {first.dtype} and {second.dtype}: it was not compared")
    if sides[0].keys() != sides[1].keys() or any(not d.within for d in compared):
        unseen.append("no family says which tensors steer its decay by the input, and those beside it are not the same")
        compared = []
    return SteeringComparison(tuple(compared), tuple(unseen))


def compare_weights(
    first: Tensor,
    second: Tensor,
    role: str,
    stored: tuple[StoredTensor, StoredTensor],
    allowed: float,
    doubt: Tensor | int = 0,
) -> SteeringDifference:
    """Return the weight that differs most, relative to itself or to a small share of the largest of its row.

    `doubt` is how much of a difference packing explains, for each weight.
    """
    names = stored[0].name, stored[1].name
    if first.shape != second.shape:
        return _of_other_shapes(role, stored, allowed, tuple(first.shape), tuple(second.shape))
    shape = tuple(first.shape)
    if first.dtype == second.dtype and _equal(first, second):
        return SteeringDifference(role, *names, 0.0, allowed, (), None)
    rows, columns = math.prod(shape[:-1]), shape[-1] if shape else 1
    first, second = first.reshape(rows, columns), second.reshape(rows, columns)
    packing = doubt.reshape(rows, columns) if isinstance(doubt, Tensor) else None
    slack = max(SMALLEST.get(tensor.dtype, 0.0) for tensor in stored) if first.dtype != second.dtype else 0.0
    worst, where, pair = -1.0, 0, (0.0, 0.0)
    step = max(1, BLOCK // max(columns, 1))
    for start in range(0, rows, step):
        one, other = (side[start : start + step].to(torch.float64) for side in (first, second))
        size = torch.maximum(one.abs(), other.abs())
        scale = torch.maximum(size, FLOOR * size.amax(1, keepdim=True))
        gap = (one - other).abs()
        if packing is not None:
            gap = (gap - packing[start : start + step]).clamp(min=0)
        error = ((gap - slack).clamp(min=0) / scale).where(gap != 0, 0.0).nan_to_num(math.inf, math.inf)
        at = int(error.argmax())
        if float(error.flatten()[at]) > worst:
            worst, where = float(error.flatten()[at]), start * columns + at
            pair = float(one.flatten()[at]), float(other.flatten()[at])
    index = tuple(int(place) for place in np.unravel_index(where, shape))
    return SteeringDifference(role, *names, worst, allowed, index, pair)


def _of_other_shapes(
    role: str, stored: tuple[StoredTensor, StoredTensor], allowed: float, a: tuple[int, ...], b: tuple[int, ...]
) -> SteeringDifference:
    note = f"{a} in a, {b} in b"
    return SteeringDifference(role, stored[0].name, stored[1].name, math.inf, allowed, (), None, note)


def rounding(a: str, b: str, *, rounded: bool = False) -> float:
    """Return what rounding explains of a weight's difference between two stored types.

    `rounded` says that one side was rounded although both store the same type.

    >>> rounding("float32", "float32"), rounding("bfloat16", "float32"), rounding("bfloat16", "bfloat16")
    (1e-05, 0.0078125, 1e-05)
    """
    return EQUAL if a == b and not rounded else max(ROUNDING.get(dtype, COARSEST) for dtype in (a, b))
